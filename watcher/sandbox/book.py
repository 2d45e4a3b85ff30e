"""The true state of one account: its holdings, and the halves of movements that do not show yet."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from watcher.snapshot import asset_id

Amount = int | str
"""How much: an int counts smallest units (5 wei), text is in whole units of the asset ("12.5" ETH)."""

_WHOLE_UNITS = re.compile(r"(0|[1-9][0-9]{0,77})(?:\.([0-9]{1,78}))?\Z", re.ASCII)


class Impossible(ValueError):
    """The world cannot make this movement. The message says what is missing."""


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
        """Count smallest units. Raises Impossible if it is no exact amount of this asset."""
        if isinstance(amount, int):
            if amount < 0:
                raise Impossible("an amount is never negative: the movement's name says the direction")
            return amount
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


AccountKey = int | str
"""Loopring's account id (an int), MetaKeep's email, or the bank's account (other text); an address finds an
account too."""

ProviderName = Literal["loopring", "metakeep", "bank"]
Half = Literal["pending", "total"]
"""Which half of a split movement shows first: the pending, or the rest (total and lock)."""


@dataclass(frozen=True, slots=True)
class Account:
    """A customer of one provider, with balances there."""

    provider: ProviderName
    key: AccountKey
    address: str


class Move(NamedTuple):
    """A movement, or half of one, that now shows: `effect` is what it did, `after` the holding then."""

    do: str
    account: Account
    asset: ListedAsset
    effect: Holding
    after: Holding


@dataclass(slots=True)
class _Late:
    """The second half of a split movement; it shows when `polls_left` more polls were answered."""

    do: str
    asset: ListedAsset
    effect: Holding
    polls_left: int


class Book:
    """One account's holdings. `on_move` is called with every move as it shows."""

    def __init__(self, account: Account, on_move: Callable[[Move], None]) -> None:
        self.account = account
        self._on_move = on_move
        self._holding_by_asset: dict[str, Holding] = {}
        self._late: list[_Late] = []
        self._requested_by_asset: dict[str, int] = {}

    def holdings(self) -> Mapping[str, Holding]:
        """Copy the holdings of now, by asset id; assets that were never touched are absent."""
        return dict(self._holding_by_asset)

    def holding(self, asset: ListedAsset) -> Holding:
        """Read the holding of one asset now."""
        return self._holding_by_asset.get(asset.id, NOTHING)

    def holding_at_last(self, asset: ListedAsset) -> Holding:
        """Read the holding of one asset as it will be once every half has shown."""
        return self.holding(asset).plus(*(late.effect for late in self._late if late.asset.id == asset.id))

    def make(
        self, do: str, asset: ListedAsset, now: Holding, later: Holding = NOTHING, split: int = 0
    ) -> None:
        """Show `now`, and `later` when `split` more polls were answered (0: at once). Raises Impossible."""
        if not split:
            now, later = now.plus(later), NOTHING
        for after in (self.holding(asset).plus(now), self.holding_at_last(asset).plus(now, later)):
            if lacking := self._lacking(after):
                units = getattr(after, lacking)
                raise Impossible(f"{do}: {lacking} of {asset.symbol} would fall to {asset.text(units)}")
        self._show(do, asset, now)
        if later != NOTHING:
            self._late.append(_Late(do, asset, later, split))

    def polled(self) -> None:
        """Note that a poll was answered; show the halves that waited for it."""
        waiting, self._late = self._late, []
        for late in waiting:
            late.polls_left -= 1
            # A half that would take what another late half has yet to bring waits for it.
            after = self.holding(late.asset).plus(late.effect)
            if late.polls_left <= 0 and not self._lacking(after):
                self._show(late.do, late.asset, late.effect)
            else:
                self._late.append(late)

    def settle(self) -> None:
        """Show all halves that still wait, polled or not."""
        waiting, self._late = self._late, []
        for late in waiting:
            self._show(late.do, late.asset, late.effect)

    def lock_of_requests(self, asset: ListedAsset, units: int) -> int:
        """Return how much of `units` earlier withdrawal requests have locked and not released."""
        return min(units, self.holding(asset).locked, self._requested_by_asset.get(asset.id, 0))

    def remember_request(self, asset: ListedAsset, locked: int) -> None:
        """Record that a withdrawal request locked so much more (or, negative, released it)."""
        self._requested_by_asset[asset.id] = self._requested_by_asset.get(asset.id, 0) + locked

    def _lacking(self, after: Holding) -> str | None:
        """Name a field that would fall below zero and may not. At the bank, the total may."""
        may_fall = ("total",) if self.account.provider == "bank" else ()
        return next(
            (name for name, units in after._asdict().items() if units < 0 and name not in may_fall), None
        )

    def _show(self, do: str, asset: ListedAsset, effect: Holding) -> None:
        after = self.holding(asset).plus(effect)
        self._holding_by_asset[asset.id] = after
        if effect != NOTHING:
            self._on_move(Move(do, self.account, asset, effect, after))
