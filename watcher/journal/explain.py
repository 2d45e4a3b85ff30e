"""Explains what moved in one asset between what was told so far and what is seen now: states in, changes out.

Refuses to know time or storage: for how many good polls something was held comes in and goes out as a
number. All sums are on integers, and the same input always gives the same changes.
"""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from watcher.amounts import to_atoms, to_text
from watcher.snapshot import Balance

Withdrawals = Literal["outside", "inside"]
"""Whether a pending withdrawal has already left `total`."""

Field = Literal["total", "locked", "pending_deposit", "pending_withdrawal"]


class Vector(NamedTuple):
    """The four fields of one asset, in atoms: a state, or the effect of a change on it."""

    total: int = 0
    locked: int = 0
    pending_deposit: int = 0
    pending_withdrawal: int = 0

    def __add__(self, other: "Vector") -> "Vector":  # type: ignore[override]  # a tuple would append
        return Vector(*map(int.__add__, self, other))

    def __sub__(self, other: "Vector") -> "Vector":
        return Vector(*map(int.__sub__, self, other))


class Change(NamedTuple):
    """A part of what moved, under the name of its row in RULES. `before` + `effect` is `after`.

    `amount` is the x of the row: positive, in atoms.
    """

    type: str
    amount: int
    effect: Vector
    before: Vector
    after: Vector


class Explanation(NamedTuple):
    """What to tell and what to hold. `published` + `held` is what was seen; `why` says why it is held.

    `held_polls` counts the good polls that ended with something held, 0 when nothing is; it goes into
    the next explanation.
    """

    changes: tuple[Change, ...]
    published: Vector
    held: Vector
    held_polls: int
    why: tuple[str, ...]


Takes = Callable[[Vector, Vector], Vector]
"""Finds a rule's part in (what is left to explain, what is seen now): the effect, of nothing if none."""


class Rule(NamedTuple):
    """A row of the event table. One that `waits` saw half a movement, and is told once that has settled."""

    type: str
    takes: Takes
    waits: str | None = None


NOTHING = Vector()


def explain(
    published: Vector, seen: Vector, *, held_polls: int, settle_polls: int, withdrawals: Withdrawals
) -> Explanation:
    """Explain the way from `published` (baseline + effects told so far) to `seen` (a good poll).

    `held_polls` is the last explanation's; it counts for the asset as a whole. Once something was held
    for `settle_polls` further good polls, everything is told as it stands and nothing is held.
    """
    if published == seen:
        return Explanation((), published, NOTHING, 0, ())
    is_settled = held_polls >= settle_polls
    left, why = seen - published, []
    effect_by_type: dict[str, Vector] = {}
    for rule in RULES[withdrawals]:
        effect = rule.takes(left, seen)
        if effect == NOTHING:
            continue
        left -= effect
        if rule.waits and not is_settled:
            why.append(rule.waits)
        else:
            effect_by_type[rule.type] = effect_by_type.get(rule.type, NOTHING) + effect
    changes = tuple(_chain(published, effect_by_type))
    after = changes[-1].after if changes else published
    return Explanation(changes, after, seen - after, held_polls + 1 if why else 0, tuple(why))


def in_atoms(balance: Balance, convert: Callable[[str], int] = to_atoms) -> Vector:
    """Turn a balance into a state to do sums with; a pending that the provider does not have counts as 0."""
    return Vector(*(0 if text is None else convert(text) for text in balance))


def in_text(vector: Vector, like: Balance, convert: Callable[[int], str] = to_text) -> Balance:
    """Turn a state or an effect into text; a pending of nothing is null where `like` has null."""
    total, locked, *pendings = vector
    texts = (
        None if one is None and not atoms else convert(atoms)
        for one, atoms in zip(like[2:], pendings, strict=True)
    )
    return Balance(convert(total), convert(locked), *texts)


def _chain(before: Vector, effect_by_type: dict[str, Vector]) -> Iterator[Change]:
    for type_, effect in effect_by_type.items():
        # No row of the table moves any field by more than its x.
        yield Change(type_, max(map(abs, effect)), effect, before, before + effect)
        before += effect


def _rise_of(field: Field) -> Takes:
    """A rule that takes all that is left of a field's rise, on its own."""
    place = Vector._fields.index(field)
    return lambda left, _: _alone(place, _rise(left[place]))


def _fall_of(field: Field) -> Takes:
    place = Vector._fields.index(field)
    return lambda left, _: _alone(place, -_fall(left[place]))


def _alone(place: int, x: int) -> Vector:
    return Vector._make(x if i == place else 0 for i in range(len(NOTHING))) if x else NOTHING


# The rules that pair fields: what two movements have in common is the smaller of them.


def _deposit_credited(left: Vector, _: Vector) -> Vector:
    x = min(_fall(left.pending_deposit), _rise(left.total))
    return Vector(total=x, pending_deposit=-x)


def _withdrawal_debited(left: Vector, _: Vector) -> Vector:
    x = min(_rise(left.pending_withdrawal), _fall(left.total))
    return Vector(total=-x, locked=-min(x, _fall(left.locked)), pending_withdrawal=x)


def _withdrawal_credited_back(left: Vector, _: Vector) -> Vector:
    # Equality, not a minimum: a credit of another amount has nothing to do with the withdrawal.
    x = _fall(left.pending_withdrawal)
    return Vector(total=x, pending_withdrawal=-x) if x == left.total else NOTHING


def _withdrawal_locked(left: Vector, _: Vector) -> Vector:
    x = min(_rise(left.pending_withdrawal), _rise(left.locked))
    return Vector(locked=x, pending_withdrawal=x)


def _withdrawal_paid(left: Vector, _: Vector) -> Vector:
    x = min(_fall(left.pending_withdrawal), _fall(left.total))
    return Vector(total=-x, locked=-min(x, _fall(left.locked)), pending_withdrawal=-x)


def _withdrawal_unlocked(left: Vector, _: Vector) -> Vector:
    x = _fall(left.pending_withdrawal)
    return Vector(locked=-min(x, _fall(left.locked)), pending_withdrawal=-x)


def _credit_of_a_deposit(left: Vector, seen: Vector) -> Vector:
    return Vector(total=min(_rise(left.total), seen.pending_deposit))


def _rise(moved: int) -> int:
    return max(moved, 0)


def _fall(moved: int) -> int:
    return max(-moved, 0)


_DEPOSITS = (
    Rule("deposit.pending", _rise_of("pending_deposit")),
    Rule("deposit.cleared", _deposit_credited),
    Rule("deposit.dropped", _fall_of("pending_deposit"), waits="a pending deposit's credit is not seen"),
)
_WITHDRAWALS_OUTSIDE = (
    Rule("withdrawal.pending", _withdrawal_debited),
    Rule("withdrawal.pending", _rise_of("pending_withdrawal"), waits="a withdrawal's debit is not seen"),
    Rule("withdrawal.returned", _withdrawal_credited_back),
    Rule("withdrawal.cleared", _fall_of("pending_withdrawal"), waits="a withdrawal may still come back"),
)
_WITHDRAWALS_INSIDE = (
    Rule("withdrawal.pending", _withdrawal_locked),
    Rule("withdrawal.pending", _rise_of("pending_withdrawal"), waits="a withdrawal's lock is not seen"),
    Rule("withdrawal.cleared", _withdrawal_paid),
    Rule("withdrawal.returned", _withdrawal_unlocked, waits="a withdrawal's debit is not seen"),
)
_THE_REST = (
    Rule("locked.increased", _rise_of("locked")),
    Rule("locked.decreased", _fall_of("locked")),
    Rule("total.increased", _credit_of_a_deposit, waits="a credit may belong to a pending deposit"),
    Rule("total.increased", _rise_of("total")),
    Rule("total.decreased", _fall_of("total")),
)

RULES: dict[Withdrawals, tuple[Rule, ...]] = {
    "outside": _DEPOSITS + _WITHDRAWALS_OUTSIDE + _THE_REST,
    "inside": _DEPOSITS + _WITHDRAWALS_INSIDE + _THE_REST,
}
"""The event table: each rule takes its part of what moved, in the order in which changes are told."""
