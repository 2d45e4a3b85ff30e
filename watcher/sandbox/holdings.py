"""What an account of the sandbox holds of one asset, and exact amounts of it: integers, never a float.

Refuses to know accounts or providers: `world` does.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from watcher.snapshot import asset_id

Amount = int | str
"""How much: an int counts smallest units (5 wei), text is in whole units of the asset ("12.5" ETH)."""

_WHOLE_UNITS = re.compile(r"(0|[1-9][0-9]{0,77})(?:\.([0-9]{1,78}))?\Z", re.ASCII)


class Impossible(ValueError):
    """The world cannot do that: ask for something that it holds. The message says what is missing."""


class Holding(NamedTuple):
    """Four counts of smallest units. As an effect the same four may be negative.

    `total` is settled funds, locked included, pendings excluded (PROVIDERS, A8).
    """

    total: int = 0
    locked: int = 0
    pending_deposit: int = 0
    pending_withdrawal: int = 0

    def plus(self, *effects: "Holding") -> "Holding":
        """Add field by field."""
        return Holding(*(sum(units) for units in zip(self, *effects, strict=True)))

    def minus(self, other: "Holding") -> "Holding":
        """Subtract field by field."""
        return Holding(*(mine - less for mine, less in zip(self, other, strict=True)))


NOTHING = Holding()


@dataclass(frozen=True, slots=True)
class ListedAsset:
    """An asset as its provider lists it. `lockable`: one of MetaKeep's own coins, which have locks."""

    id: str
    symbol: str
    name: str
    decimals: int
    lockable: bool = False

    def has_id(self, text: str) -> bool:
        """Say whether `text` is its id, `0x…` in any case."""
        return asset_id(text) == asset_id(self.id)

    def units(self, amount: Amount) -> int:
        """Count smallest units. Raises Impossible for what is no exact amount of this asset."""
        if isinstance(amount, int):
            return _not_negative(amount)
        match = _WHOLE_UNITS.match(amount)
        if not match:
            raise Impossible('an amount is decimal text in whole units, such as "12.5"')
        fraction = match[2] or ""
        if len(fraction) > self.decimals:
            raise Impossible(f"{self.symbol} has {self.decimals} decimals; this amount has {len(fraction)}")
        return int(match[1] + fraction.ljust(self.decimals, "0"))

    def text(self, units: int) -> str:
        """Write a count of smallest units in whole units, without needless zeros; a minus where negative."""
        whole, fraction = divmod(abs(units), 10**self.decimals)
        digits = str(fraction).rjust(self.decimals, "0").rstrip("0") if fraction else ""
        return f"{'-' * (units < 0)}{whole}{'.' * bool(digits)}{digits}"


def _not_negative(units: int) -> int:
    if units < 0:
        raise Impossible("an amount is never negative: the movement's name says the direction")
    return units
