"""Explains what moved in one asset between what was emitted and what is seen now: states in, changes out.

Refuses to know time or storage: for how many successful polls something was pending confirmation comes in and
goes out as a number. All sums are on integers, and the same input always gives the same changes.
"""

from functools import cache
from itertools import compress
from typing import Literal, NamedTuple

from watcher.amounts import to_atoms, to_text
from watcher.snapshot import Balance

Withdrawals = Literal["outside", "inside"]
"""Whether a pending withdrawal has already left `total`."""


class Vector(NamedTuple):
    """The four fields of one asset, in atoms: a state, or the effect of a change on it."""

    total: int = 0
    locked: int = 0
    pending_deposit: int = 0
    pending_withdrawal: int = 0

    def __add__(self, other: "Vector") -> "Vector":  # type: ignore[override]  # a tuple would append
        a, b, c, d = self
        e, f, g, h = other
        return Vector(a + e, b + f, c + g, d + h)

    def __sub__(self, other: "Vector") -> "Vector":
        a, b, c, d = self
        e, f, g, h = other
        return Vector(a - e, b - f, c - g, d - h)


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
    """What to emit, and what is pending confirmation, and why.

    `published` + `pending_confirmation` is what was seen.
    `confirmation_polls` counts the successful polls that ended with something pending confirmation, 0 when
    nothing is; it goes into the next explanation.
    """

    changes: tuple[Change, ...]
    published: Vector
    pending_confirmation: Vector
    confirmation_polls: int
    why: tuple[str, ...]


class Rule(NamedTuple):
    """A row of the event table: what moved in the direction of all its `signs`, by as much as they share.

    That x is the smallest of these movements. A rule that `waits` saw half a movement, and is emitted once
    that has settled.
    """

    type: str
    signs: Vector
    waits: str | None = None
    unlocks: bool = False
    """Takes what left `locked`, too, up to x: what goes out may have been locked until then."""
    exactly: bool = False
    """Takes nothing unless all of them moved by x: a credit of another amount belongs elsewhere."""
    of_a_deposit: bool = False
    """Takes no more than is still pending as a deposit."""


NOTHING = Vector()


def explain(
    published: Vector, seen: Vector, *, confirmation_polls: int, settle_polls: int, withdrawals: Withdrawals
) -> Explanation:
    """Explain the way from `published` (baseline + effects emitted so far) to `seen` (a successful poll).

    `confirmation_polls` is the last explanation's; it counts for the asset as a whole. Once something was
    pending confirmation for `settle_polls` further successful polls, everything is emitted as it stands.
    """
    if published == seen:
        return Explanation((), published, NOTHING, 0, ())
    is_settled = confirmation_polls >= settle_polls
    left, why = seen - published, []
    is_one_field = left.count(0) == len(left) - 1  # then each rule is about all that is left
    effect_by_type: dict[str, Vector] = {}
    for rule in _in_question(withdrawals, *[(by > 0) - (by < 0) for by in left]):
        effect = left if is_one_field and not rule.of_a_deposit else _part_of(rule, left, seen)
        if effect == NOTHING:
            continue
        if rule.waits and not is_settled:
            why.append(rule.waits)
        else:
            so_far = effect_by_type.get(rule.type)
            effect_by_type[rule.type] = so_far + effect if so_far else effect
        if effect == left:
            break
        left -= effect
    changes: list[Change] = []
    after = published
    for type_, effect in effect_by_type.items():
        before, after = after, after + effect
        # No row of the table moves any field by more than its x.
        changes.append(Change(type_, max(map(abs, effect)), effect, before, after))
    pending = seen - after if why else NOTHING
    return Explanation(tuple(changes), after, pending, confirmation_polls + 1 if why else 0, tuple(why))


def in_atoms(balance: Balance) -> Vector:
    """Turn a balance into a state to do sums with; a pending that the provider does not have counts as 0."""
    return Vector(*[to_atoms(text) if text and text != "0" else 0 for text in balance])  # most are


def in_text(vector: Vector, like: Balance) -> Balance:
    """Turn a state or an effect into text; a pending of nothing is null where `like` has null."""
    total, locked, deposit, withdrawal = [to_text(atoms) if atoms else "0" for atoms in vector]
    _, _, like_deposit, like_withdrawal = like
    return Balance(
        total,
        locked,
        None if like_deposit is None and deposit == "0" else deposit,
        None if like_withdrawal is None and withdrawal == "0" else withdrawal,
    )


@cache
def _in_question(withdrawals: Withdrawals, *directions: int) -> tuple[Rule, ...]:
    """Name the rules that can take a part of what moved in these directions: what is left of it moves in no
    other direction."""
    return tuple(
        rule
        for rule in RULES[withdrawals]
        if all(sign in (0, way) for sign, way in zip(rule.signs, directions, strict=True))
    )


def _part_of(rule: Rule, left: Vector, seen: Vector) -> Vector:
    """Find the part, in what is left to explain, of a rule that is in question for it: an effect, which is
    nothing if it has none."""
    if rule.of_a_deposit and not seen.pending_deposit:  # as mostly
        return NOTHING
    moved = [*map(abs, compress(left, rule.signs))]  # each goes the rule's way, or nowhere
    x = min(moved)
    if rule.of_a_deposit:
        x = min(x, seen.pending_deposit)
    if x <= 0 or (rule.exactly and x != max(moved)):
        return NOTHING
    effect = Vector(*map(x.__mul__, rule.signs))
    return effect._replace(locked=-min(x, max(-left.locked, 0))) if rule.unlocks else effect


_DEPOSITS = (
    Rule("deposit.pending", Vector(pending_deposit=+1)),
    Rule("deposit.cleared", Vector(total=+1, pending_deposit=-1)),
    Rule("deposit.dropped", Vector(pending_deposit=-1), waits="a pending deposit's credit is not seen"),
)
_WITHDRAWALS_OUTSIDE = (
    Rule("withdrawal.pending", Vector(total=-1, pending_withdrawal=+1), unlocks=True),
    Rule("withdrawal.pending", Vector(pending_withdrawal=+1), waits="a withdrawal's debit is not seen"),
    Rule("withdrawal.returned", Vector(total=+1, pending_withdrawal=-1), exactly=True),
    Rule("withdrawal.cleared", Vector(pending_withdrawal=-1), waits="a withdrawal may still come back"),
)
_WITHDRAWALS_INSIDE = (
    Rule("withdrawal.pending", Vector(locked=+1, pending_withdrawal=+1)),
    Rule("withdrawal.pending", Vector(pending_withdrawal=+1), waits="a withdrawal's lock is not seen"),
    Rule("withdrawal.cleared", Vector(total=-1, pending_withdrawal=-1), unlocks=True),
    Rule(
        "withdrawal.returned",
        Vector(pending_withdrawal=-1),
        unlocks=True,
        waits="a withdrawal's debit is not seen",
    ),
)
_THE_REST = (
    Rule("locked.increased", Vector(locked=+1)),
    Rule("locked.decreased", Vector(locked=-1)),
    Rule(
        "total.increased",
        Vector(total=+1),
        of_a_deposit=True,
        waits="a credit may belong to a pending deposit",
    ),
    Rule("total.increased", Vector(total=+1)),
    Rule("total.decreased", Vector(total=-1)),
)

RULES: dict[Withdrawals, tuple[Rule, ...]] = {
    "outside": _DEPOSITS + _WITHDRAWALS_OUTSIDE + _THE_REST,
    "inside": _DEPOSITS + _WITHDRAWALS_INSIDE + _THE_REST,
}
"""The event table: each rule takes its part of what moved, in the order in which changes are emitted."""
