"""Says which readings of a balance are too odd to count before a second one agrees.

Refuses to remember and to decide what happens meanwhile: the caller keeps the accepted balance, and
comes back with the balance that it was told to doubt.
"""

from watcher.amounts import to_atoms
from watcher.snapshot import Balance, Row


def doubt(accepted: Balance, row: Row | None, *, doubted: Balance | None = None) -> str | None:
    """Say why `row` needs a second opinion; None says that it counts.

    `row` is None where the asset is missing from a listing of everything. `doubted` is what the last
    good poll said of this asset, if that was doubtful too: a reading of exactly the same balance agrees
    with it, whether as a row of zeros or by its absence. Another odd reading is a new doubt, to be kept
    in its place; a reading that is not odd counts, and ends the old doubt.
    """
    balance = row.balance if row else absent(accepted)
    if balance in (accepted, doubted):
        return None
    if row is None:
        return "the asset disappeared"
    if balance.total == "0" != accepted.total:
        return "total fell to zero"
    if row.locked_absent and accepted.locked != "0":
        return "locked disappeared"
    if balance[:2] != accepted[:2] and to_atoms(balance.locked) > to_atoms(balance.total):
        return "more is locked than there is"
    return None


def absent(accepted: Balance) -> Balance:
    """Read an asset's absence from a listing of everything: zero, in the fields that the provider has."""
    pendings = (accepted.pending_deposit, accepted.pending_withdrawal)
    return Balance("0", "0", *(None if pending is None else "0" for pending in pendings))
