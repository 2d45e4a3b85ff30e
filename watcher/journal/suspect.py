"""Says which readings of a balance are too odd to count before a second one agrees.

Refuses to remember and to decide what happens meanwhile: the caller keeps the accepted balance, and
comes back with the balance that it was told to doubt.
"""

from watcher.amounts import to_atoms
from watcher.snapshot import Balance, Row


def doubt(accepted: Balance, row: Row | None, *, suspect: Balance | None = None) -> str | None:
    """Say why `row` needs a second opinion; None says that it counts.

    `row` is None where the asset is missing from a listing of everything. `suspect` is what the last
    good poll said of this asset, if that was doubtful too: a reading that is odd in no other way agrees
    with it, even where another field went on moving, so that no doubt lasts longer than one good poll.
    A reading that is odd in another way is a new doubt, to be kept in its place; a reading that is not
    odd counts, and ends the old doubt.
    """
    balance = row.balance if row else absent(accepted)
    if balance == accepted:
        return None
    oddities = _oddities(accepted, balance)
    if row and not row.locked_absent:
        oddities.discard(_NO_LOCK)  # said in so many words, it is a fact
    if suspect and oddities <= _oddities(accepted, suspect):
        return None
    if row is None and any(field not in ("0", None) for field in accepted):
        return "the asset disappeared"
    return min(oddities, default=None)


_EMPTY = "total fell to zero"
_NO_LOCK = "locked disappeared"
_OVERLOCKED = "more is locked than there is"


def _oddities(accepted: Balance, balance: Balance) -> set[str]:
    """Everything about a balance that is odd after an accepted one."""
    odd = set()
    if balance.total == "0" != accepted.total:
        odd.add(_EMPTY)
    if balance.locked == "0" != accepted.locked:
        odd.add(_NO_LOCK)
    if balance[:2] != accepted[:2] and to_atoms(balance.locked) > to_atoms(balance.total):
        odd.add(_OVERLOCKED)
    return odd


def absent(accepted: Balance) -> Balance:
    """Read an asset's absence from a listing of everything: zero, in the fields that the provider has."""
    pendings = (accepted.pending_deposit, accepted.pending_withdrawal)
    return Balance("0", "0", *(None if pending is None else "0" for pending in pendings))
