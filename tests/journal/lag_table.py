"""Prints how many movements are recognised when their halves arrive in different polls, as markdown.

    python -m tests.journal.lag_table

Simulated, not measured: it compares values of `settle_polls` with each other, and says nothing of how
often a provider really is late. A trial is one movement of 1 to 9 on an account that holds enough for
everything, half the time with another deposit and another withdrawal pending. A poll sees, with the
probability NOISE, one movement more that has nothing to do with it, of 1 to 9: a lock, a release, a
debit, a credit, or a new deposit. No poll fails. The seeds are fixed; every `settle_polls` gets the
same trials.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import chain, repeat
from random import Random
from typing import NamedTuple

from watcher.journal.explain import NOTHING, Vector, Withdrawals, explain

TRIALS = 2000
NOISE = 0.3
SETTLE_POLLS = (0, 1, 2, 3)
LAGS = (-2, -1, 0, 1, 2)
"""Polls from the half that shows in the pending to the half that shows in total."""

ROOM = Vector(total=10_000, locked=1_000)
OTHERS_PENDING = Vector(pending_deposit=9, pending_withdrawal=9)
UNRELATED = (
    Vector(locked=1),
    Vector(locked=-1),
    Vector(total=-1),
    Vector(total=1),
    Vector(pending_deposit=1),
)
QUIET_POLLS = 2
"""Before the movement and after it, noise aside; then without noise until nothing is pending confirmation."""


class Movement(NamedTuple):
    """Something that ends what was pending, as its two halves for an amount of 1, and its event types."""

    name: str
    withdrawals: Withdrawals
    pending_half: Vector
    total_half: Vector
    recognised: str
    mistaken: str


DEPOSIT_CLEARS = Movement(
    "deposit clears",
    "outside",
    Vector(pending_deposit=-1),
    Vector(total=1),
    recognised="deposit.cleared",
    mistaken="deposit.dropped",
)
MOVEMENTS = (
    DEPOSIT_CLEARS,
    Movement(
        "withdrawal comes back (outside)",
        "outside",
        Vector(pending_withdrawal=-1),
        Vector(total=1),
        recognised="withdrawal.returned",
        mistaken="withdrawal.cleared",
    ),
    Movement(
        "withdrawal clears (inside)",
        "inside",
        Vector(locked=-1, pending_withdrawal=-1),
        Vector(total=-1),
        recognised="withdrawal.cleared",
        mistaken="withdrawal.returned",
    ),
)


class Share(NamedTuple):
    """Of all trials: emitted whole under the right type; emitted, at least in part, under the wrong one."""

    recognised: float
    mistaken: float


def share(movement: Movement, lag: int, settle_polls: int, *, trials: int, noise: float) -> Share:
    recognised = mistaken = 0
    for trial in range(trials):
        chance = Random(f"{movement.name} {lag} {trial}")
        amount = chance.randint(1, 9)
        snapshots = list(readings(movement, amount, lag, noise, chance))
        delivered = amount_by_type(snapshots, settle_polls, movement.withdrawals)
        recognised += delivered[movement.recognised] == amount
        mistaken += delivered[movement.mistaken] > 0
    return Share(recognised / trials, mistaken / trials)


def readings(movement: Movement, amount: int, lag: int, noise: float, chance: Random) -> Iterator[Vector]:
    """Yield the baseline and what each poll sees after it."""
    state = ROOM + chance.choice((NOTHING, OTHERS_PENDING))
    state -= times(amount, movement.pending_half)
    pending_at, total_at = QUIET_POLLS + max(-lag, 0), QUIET_POLLS + max(lag, 0)
    yield state
    for poll in range(QUIET_POLLS + abs(lag) + 1 + QUIET_POLLS):
        if poll == pending_at:
            state += times(amount, movement.pending_half)
        if poll == total_at:
            state += times(amount, movement.total_half)
        if chance.random() < noise:
            state += times(chance.randint(1, 9), chance.choice(UNRELATED))
        yield state
    yield from repeat(state, max(SETTLE_POLLS))


def amount_by_type(snapshots: list[Vector], settle_polls: int, withdrawals: Withdrawals) -> Counter[str]:
    published, confirmation_polls = snapshots[0], 0
    delivered: Counter[str] = Counter()
    for seen in snapshots[1:]:
        explanation = explain(
            published,
            seen,
            confirmation_polls=confirmation_polls,
            settle_polls=settle_polls,
            withdrawals=withdrawals,
        )
        published, confirmation_polls = explanation.published, explanation.confirmation_polls
        for change in explanation.changes:
            delivered[change.type] += change.amount
    return delivered


def times(amount: int, half: Vector) -> Vector:
    return Vector(*(amount * field for field in half))


def table(*, trials: int = TRIALS, noise: float = NOISE) -> Iterator[str]:
    """Yield the lines of the table: recognised / mistaken, in percent of the trials."""
    yield "| movement | its halves | " + " | ".join(f"settle_polls {polls}" for polls in SETTLE_POLLS) + " |"
    yield "|---|---|" + "---:|" * len(SETTLE_POLLS)
    for movement in MOVEMENTS:
        for lag in LAGS:
            shares = (share(movement, lag, polls, trials=trials, noise=noise) for polls in SETTLE_POLLS)
            cells = (f"{recognised:.0%} / {mistaken:.0%}" for recognised, mistaken in shares)
            yield " | ".join(chain((f"| {movement.name}", lag_text(lag)), cells)) + " |"


def lag_text(lag: int) -> str:
    if lag == 0:
        return "in one poll"
    return f"{'pending' if lag > 0 else 'total'} {abs(lag)} before {'total' if lag > 0 else 'pending'}"


if __name__ == "__main__":
    print(f"Recognised / emitted as something else, of {TRIALS} trials each, noise {NOISE:.0%} a poll:\n")
    print("\n".join(table()))
