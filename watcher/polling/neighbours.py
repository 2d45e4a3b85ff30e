"""What polling has to know of workers that run another configuration in the same namespace.

Refuses to find out: `run.agreement` does.
"""

from typing import Protocol


class Neighbours(Protocol):
    """Says which accounts are left to other workers."""

    def is_left(self, account: str) -> bool:
        """Say whether an account is not to be polled here."""
        ...

    def is_contested(self, account: str) -> bool:
        """Say whether another worker has an account of that name elsewhere, or had of late."""
        ...

    def may_poll(self, account: str, source: str, state_source: str | None) -> bool:
        """Say whether this worker, which polls `source`, may go on from a state that `state_source` made."""
        ...


class _Alone:
    """No other configuration is known."""

    def is_left(self, account: str) -> bool:
        return False

    def is_contested(self, account: str) -> bool:
        return False

    def may_poll(self, account: str, source: str, state_source: str | None) -> bool:
        return True


ALONE: Neighbours = _Alone()
