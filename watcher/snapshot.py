"""The normal form of what a provider says: one snapshot per successful poll, one balance per asset.

Refuses to interpret: it neither compares two snapshots nor knows where one came from.
"""

from collections.abc import Mapping
from typing import NamedTuple

SPOKEN_TEXT_LIMIT = 64
"""Longest name or symbol that is carried: such text comes from outside and goes into every event."""


class Balance(NamedTuple):
    """What an account holds of one asset, as canonical decimal text in whole units of the asset.

    `total` is settled funds, locked included, pendings excluded, and below zero where an account is
    overdrawn; nothing else is negative. A pending is None where the provider has no such field, which is not
    "0".
    """

    total: str
    locked: str
    pending_deposit: str | None
    pending_withdrawal: str | None

    @classmethod
    def of_signed(cls, total: str, locked: str, pending: str) -> "Balance":
        """Make a balance where the provider has one `pending`: above zero it comes in, below it goes out.

        All three are canonical text. The pending of the other way is "0": the provider does know it.
        """
        if pending.startswith("-"):
            return cls(total, locked, "0", pending[1:])
        return cls(total, locked, pending, "0")


LOST = -1


class Asset(NamedTuple):
    """What an account holds. `id` alone identifies it; symbol and name are carried, never compared.
    `decimals` is None if they are unknown: amounts are then in the provider's own unit. In a state they are
    LOST if Redis lost the note of them, until an answer says them again."""

    id: str
    symbol: str | None = None
    name: str | None = None
    decimals: int | None = None


class Row(NamedTuple):
    """One asset's line of a snapshot. `locked_absent`: the provider said nothing of a lock this time."""

    asset: Asset
    balance: Balance
    locked_absent: bool = False


class Snapshot(NamedTuple):
    """One successful poll of one account.

    `watched` names the assets that were asked for (None: all of them). `absent_is_zero` says what a missing
    row means: zero (a full listing) or unknown (anything else). `zeros` are rows for assets that a threshold
    names and a full listing does not; `is_open` says that there may be more of them once a list of assets can
    be had. `height` is the block, slot or ledger index that it was read at, if the provider says one.
    """

    row_by_asset: Mapping[str, Row]
    watched: tuple[str, ...] | None
    absent_is_zero: bool
    zeros: tuple[Row, ...] = ()
    is_open: bool = False
    height: int | None = None


def asset_id(text: str) -> str:
    """The identity of an asset: `0x…` ids compare case-insensitively, all others verbatim (base58)."""
    return text.lower() if text[:2] in ("0x", "0X") else text


def is_called(asset: Asset, text: str) -> bool:
    """Say whether `text`, the id or the symbol of an asset, means this one."""
    return asset.id == asset_id(text) or asset.symbol == text


def spoken(text: object) -> str | None:
    """Make a name or symbol from outside safe to carry: printable, one line, at most 64 characters.

    Control and bidirectional characters and lone surrogates are dropped; what is left empty is None.
    """
    if not isinstance(text, str):
        return None
    if len(text) <= SPOKEN_TEXT_LIMIT and text.isprintable():
        return text.strip() or None
    kept = "".join(character for character in text[: 4 * SPOKEN_TEXT_LIMIT] if character.isprintable())
    return kept.strip()[:SPOKEN_TEXT_LIMIT] or None
