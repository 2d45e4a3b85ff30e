"""What a sink does: it brings one delivery to one subscription, and says what became of it.

A sink knows its own service: it alone reads statuses and answers, and translates them. What an attempt
means for the delivery and for its subscription is the same for all sinks (`outcomes`).
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

from watcher.engine.breaker import Answer
from watcher.journal.events import Delivery
from watcher.settings import SubscriptionSettings

ATTEMPT_TIMEOUT_S = 20
"""A whole attempt, name look-up to last byte. Shorter than a queue's lease and than the drain."""

LONGEST_RETRY_AFTER_S = 86_400
"""A receiver may ask for a day of silence; more would outlast the patience of its operator."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt as it ended: what it says, by a status, or an error of ours in its place and what fixes it.

    `excerpt` is how the answer begins, printable, at most 1 KiB; it is empty where the first attempt is a
    success.
    """

    answer: Answer
    duration_ms: int
    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None
    excerpt: str = ""
    fix: str = ""

    @property
    def reason(self) -> str:
        """Why it failed, if it did."""
        said = f"status {self.status}" if self.error is None else self.error
        return f"{said}; {self.fix}" if self.fix else said


class Target(Protocol):
    """Where and how one subscription is reached: checked and prepared once per configuration."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> SubscriptionSettings: ...


T_contra = TypeVar("T_contra", bound=Target, contravariant=True)


class Sink(Protocol[T_contra]):
    """A way to subscriptions of one kind."""

    async def send(self, target: T_contra, delivery: Delivery, attempt: int) -> Attempt:
        """Make one attempt, the first has number 1. Ends within ATTEMPT_TIMEOUT_S, and raises nothing but
        what is a bug: whatever the service does comes back as an Attempt."""
        ...
