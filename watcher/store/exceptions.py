"""Why Redis cannot be used, as the packages above distinguish it; `errors` makes these.

Refuses to import a client: what reads a configuration needs these.
"""


class StoreError(Exception):
    """Redis cannot be used now. A running worker reports it once, waits and tries again."""

    cause = ""
    """The cause of an error reply, always in the same words; empty without a reply, or for an unknown one."""


class StoreUnreachable(StoreError):
    """No server answers, or it refuses writes: time or its operator fixes that."""

    exit_code = 69


class StoreRefuses(StoreUnreachable):
    """The server answers with an error; other commands may still succeed meanwhile."""


class ConfigurationRefused(StoreError):
    """The address, the credentials or the server's settings are wrong: waiting does not help."""

    exit_code = 78


class ServerRefused(ConfigurationRefused):
    """The server is too old, is set to evict keys, or is no server of its own: nothing is committed to it
    until that is fixed."""


class LayoutAwaited(ConfigurationRefused):
    """The data in Redis are not in this version's layout, or are to leave it: a worker stands by
    meanwhile."""


class PartOfCluster(ConfigurationRefused):
    """A node of a Cluster names another one. The pipe of a Cluster goes on there, by the cause."""
