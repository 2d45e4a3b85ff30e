"""Why Redis cannot be used, as all packages above go by it; `errors` says what is what.

Refuses to import a client: what reads a configuration needs these.
"""


class StoreError(Exception):
    """Redis cannot be used now. A worker that already runs says so once, waits and tries again."""

    cause = ""
    """What an error reply is about, in the same words each time; empty for a silence, or an unknown reply."""


class StoreUnreachable(StoreError):
    """No server answers, or it answers and refuses writes: time or its operator heals it."""

    exit_code = 69


class StoreRefuses(StoreUnreachable):
    """The server answers, and with an error: some of what it is asked may still succeed meanwhile."""


class ConfigurationRefused(StoreError):
    """The address, the credentials or the server's settings are wrong: waiting heals nothing."""

    exit_code = 78


class PartOfCluster(ConfigurationRefused):
    """A node of a Cluster names another one. The pipe of a Cluster goes on there, by the cause."""
