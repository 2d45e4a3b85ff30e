"""The truth behind the simulators: the exact balances of each account, and the movements that change them.

Refuses I/O, clocks and chance: the caller that makes a movement decides when. It only counts polls, because
a movement may show its second half some polls after its first.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping
from typing import Literal, get_args

from watcher.sandbox.book import (
    NOTHING,
    Account,
    AccountKey,
    Amount,
    Book,
    Half,
    Holding,
    Impossible,
    ListedAsset,
    Move,
    ProviderName,
)

TREASURY = 10110
ALICE = "alice@example.com"
ACME = "acme"

LOOPRING_ASSETS = (
    ListedAsset("0", "ETH", "Ethereum", 18),
    ListedAsset("1", "LRC", "Loopring", 18),
    ListedAsset("3", "USDT", "Tether USD", 6),
    ListedAsset("6", "USDC", "USD Coin", 6),
)
METAKEEP_ASSETS = (
    ListedAsset("0x1456b21890f920110190063921f6bc7f7b027fa6", "MK", "MetaKeep", 18, lockable=True),
    ListedAsset("0x0186b21890f920110190063921f6bc7f7b027fa6", "ZBVS", "VEuBtTAtPu", 6, lockable=True),
    ListedAsset("0x7ceB23fD6bC0adD59E62ac25578270cFf1b9f619", "WETH", "Wrapped Ether", 18),
    ListedAsset("0x0000000000000000000000000000000000001010", "POL", "Polygon", 18),
)
BANK_ASSETS = (
    ListedAsset("EUR", "EUR", "Euro", 2),
    ListedAsset("JPY", "JPY", "Japanese yen", 0),
    ListedAsset("KWD", "KWD", "Kuwaiti dinar", 3),
)
"""Not used by the other providers: what is printed distinguishes assets by name."""


class World:
    """Accounts, assets and movements of all providers.

    `withdrawals` is how this world behaves, as in watcher.toml: "outside", a pending withdrawal has
    left `total`; "inside", it has not. `on_move` is called with every move as it shows.

    Assets are named by id or symbol, accounts by id, email or address. A movement raises
    Impossible if it would overdraw a balance, and then nothing has moved. `split=2` shows its
    second half after two more polls were answered; `first` says which half shows at once.
    """

    def __init__(
        self,
        *,
        withdrawals: Literal["outside", "inside"] = "outside",
        on_move: Callable[[Move], None] | None = None,
    ) -> None:
        self.withdrawals = withdrawals
        self.on_move = on_move
        self._book_by_key: dict[AccountKey, Book] = {}
        self._key_by_address: dict[tuple[ProviderName, str], AccountKey] = {}
        self._assets: dict[ProviderName, list[ListedAsset]] = {name: [] for name in get_args(ProviderName)}

    def list_asset(self, provider: ProviderName, asset: ListedAsset) -> ListedAsset:
        """List an asset at a provider. Loopring's ids are whole numbers, MetaKeep's contract addresses."""
        if provider == "loopring" and not asset.id.isdecimal():
            raise Impossible("Loopring's asset ids are whole numbers")
        if self.asset_of(provider, asset.id):
            raise Impossible(f"{provider} already lists an asset {asset.id}")
        self._assets[provider].append(asset)
        return asset

    def open_account(self, key: AccountKey, *, address: str | None = None, **totals: Amount) -> Account:
        """Open an account with totals by symbol: `open_account(10110, ETH="1.5")`. An int is Loopring's, an
        email MetaKeep's."""
        by_text: ProviderName = "metakeep" if "@" in str(key) else "bank"
        provider: ProviderName = "loopring" if isinstance(key, int) else by_text
        if key in self._book_by_key:
            raise Impossible(f"{provider} already has an account {key}")
        # An address that is made up is the same in every run.
        address = address or f"0x{hashlib.sha256(str(key).encode()).hexdigest()[:40]}"
        account = Account(provider, key, address)
        self._book_by_key[key] = Book(account, self._report)
        self._key_by_address[provider, account.address.lower()] = key
        for symbol, total in totals.items():
            self.set(key, symbol, total=total)
        return account

    def accounts(self) -> tuple[Account, ...]:
        """Name all accounts, oldest first."""
        return tuple(book.account for book in self._book_by_key.values())

    def account(self, key: AccountKey) -> Account:
        """Find an account. Raises Impossible."""
        return self._book(key).account

    def account_of(self, provider: ProviderName, key: AccountKey) -> Account | None:
        """Find a provider's account by its account id or email, exactly."""
        book = self._book_by_key.get(key)
        return book.account if book and book.account.provider == provider else None

    def account_at(self, provider: ProviderName, address: str) -> Account | None:
        """Find a provider's account by its address, in any case."""
        key = self._key_by_address.get((provider, address.lower()))
        return None if key is None else self._book_by_key[key].account

    def assets(self, provider: ProviderName) -> tuple[ListedAsset, ...]:
        """Name all assets of a provider, as listed."""
        return tuple(self._assets[provider])

    def asset_of(self, provider: ProviderName, asset_id: str) -> ListedAsset | None:
        """Find a provider's asset by its id."""
        return next((one for one in self._assets[provider] if one.has_id(asset_id)), None)

    def asset(self, provider: ProviderName, name: str) -> ListedAsset:
        """Find an asset by id or, where no id fits, by symbol. Raises Impossible."""
        known = self._assets[provider]
        by_symbol = (one for one in known if one.symbol == name)
        found = self.asset_of(provider, name) or next(by_symbol, None)
        if not found:
            raise Impossible(f"{provider} lists no such asset; it lists {', '.join(a.symbol for a in known)}")
        return found

    def holdings(self, account: AccountKey) -> Mapping[str, Holding]:
        """Copy what an account holds now, by asset id; assets that it never touched are absent."""
        return self._book(account).holdings()

    def holding(self, account: AccountKey, asset: str) -> Holding:
        """Read what an account holds now of one asset."""
        book, listed = self._place(account, asset)
        return book.holding(listed)

    def holding_at_last(self, account: AccountKey, asset: str) -> Holding:
        """Read what an account will hold of one asset when every half of a split movement has shown."""
        book, listed = self._place(account, asset)
        return book.holding_at_last(listed)

    def deposit_seen(self, account: AccountKey, asset: str, amount: Amount) -> None:
        """Show a deposit on the chain: pending_deposit rises."""
        book, listed, x = self._stake(account, asset, amount)
        book.make("deposit.seen", listed, Holding(pending_deposit=x))

    def deposit_cleared(
        self, account: AccountKey, asset: str, amount: Amount, *, split: int = 0, first: Half = "pending"
    ) -> None:
        """Credit a pending deposit: pending_deposit falls, total rises."""
        book, listed, x = self._stake(account, asset, amount)
        halves = _in_order(first, Holding(pending_deposit=-x), Holding(total=x))
        book.make("deposit.cleared", listed, *halves, split)

    def deposit_dropped(self, account: AccountKey, asset: str, amount: Amount) -> None:
        """Forget a pending deposit that never comes: pending_deposit falls."""
        book, listed, x = self._stake(account, asset, amount)
        book.make("deposit.dropped", listed, Holding(pending_deposit=-x))

    def withdrawal_requested(
        self,
        account: AccountKey,
        asset: str,
        amount: Amount,
        *,
        lock: bool = True,
        split: int = 0,
        first: Half = "pending",
    ) -> None:
        """Accept a withdrawal. Inside, it shows as a pending and a lock; outside, as a lock at most."""
        book, listed, x = self._stake(account, asset, amount)
        pending, locked = (x if self.withdrawals == "inside" else 0), (x if lock else 0)
        halves = _in_order(first, Holding(pending_withdrawal=pending), Holding(locked=locked))
        book.make("withdrawal.requested", listed, *halves, split)
        book.remember_request(listed, locked)

    def withdrawal_debited(
        self, account: AccountKey, asset: str, amount: Amount, *, split: int = 0, first: Half = "pending"
    ) -> None:
        """Outside only: total falls (with the lock its request made) and pending_withdrawal rises."""
        if self.withdrawals == "inside":
            raise Impossible(
                "withdrawal.debited: with withdrawals inside, money leaves at withdrawal.cleared"
            )
        book, listed, x = self._stake(account, asset, amount)
        locked = book.lock_of_requests(listed, x)
        halves = _in_order(first, Holding(pending_withdrawal=x), Holding(total=-x, locked=-locked))
        book.make("withdrawal.debited", listed, *halves, split)
        book.remember_request(listed, -locked)

    def withdrawal_cleared(
        self, account: AccountKey, asset: str, amount: Amount, *, split: int = 0, first: Half = "pending"
    ) -> None:
        """Finish a withdrawal: pending_withdrawal falls; inside, total and the request's lock with it."""
        book, listed, x = self._stake(account, asset, amount)
        locked = book.lock_of_requests(listed, x) if self.withdrawals == "inside" else 0
        gone = Holding(total=-x, locked=-locked) if self.withdrawals == "inside" else NOTHING
        book.make(
            "withdrawal.cleared", listed, *_in_order(first, Holding(pending_withdrawal=-x), gone), split
        )
        book.remember_request(listed, -locked)

    def withdrawal_returned(
        self, account: AccountKey, asset: str, amount: Amount, *, split: int = 0, first: Half = "pending"
    ) -> None:
        """Give the money back: pending_withdrawal falls; total rises (outside) or the lock falls (inside)."""
        book, listed, x = self._stake(account, asset, amount)
        locked = book.lock_of_requests(listed, x) if self.withdrawals == "inside" else 0
        back = Holding(locked=-locked) if self.withdrawals == "inside" else Holding(total=x)
        book.make(
            "withdrawal.returned", listed, *_in_order(first, Holding(pending_withdrawal=-x), back), split
        )
        book.remember_request(listed, -locked)

    def lock(self, account: AccountKey, asset: str, amount: Amount) -> None:
        """Put part of total under a lock (an order, a developer's lock)."""
        book, listed, x = self._stake(account, asset, amount)
        book.make("lock", listed, Holding(locked=x))

    def unlock(self, account: AccountKey, asset: str, amount: Amount) -> None:
        """Free part of what is locked."""
        book, listed, x = self._stake(account, asset, amount)
        book.make("unlock", listed, Holding(locked=-x))

    def credit(self, account: AccountKey, asset: str, amount: Amount) -> None:
        """Add to total, without a deposit."""
        book, listed, x = self._stake(account, asset, amount)
        book.make("credit", listed, Holding(total=x))

    def debit(self, account: AccountKey, asset: str, amount: Amount) -> None:
        """Take from total, without a withdrawal."""
        book, listed, x = self._stake(account, asset, amount)
        book.make("debit", listed, Holding(total=-x))

    def set(self, account: AccountKey, asset: str, **amounts: Amount) -> None:
        """Set total, locked, pending_deposit or pending_withdrawal, even to an impossible value."""
        unknown = ", ".join(sorted(set(amounts) - set(Holding._fields)))
        if unknown:
            raise Impossible(f"set knows {', '.join(Holding._fields)}; not {unknown}")
        book, listed = self._place(account, asset)
        before = book.holding(listed)
        after = before._replace(**{name: listed.units(amount) for name, amount in amounts.items()})
        book.make("set", listed, after.minus(before))

    def polled(self, account: AccountKey) -> None:
        """Note that a poll of this account was answered; show the halves that waited for it."""
        self._book(account).polled()

    def settle(self, account: AccountKey) -> None:
        """Show all halves of this account that still wait, polled or not."""
        self._book(account).settle()

    def copy(self) -> "World":
        """Copy this world, to try things on; the copy reports no moves."""
        # A memo that names it is not asked about functions since 3.14.
        on_move, self.on_move = self.on_move, None
        try:
            return copy.deepcopy(self)
        finally:
            self.on_move = on_move

    def _book(self, key: AccountKey) -> Book:
        if key not in self._book_by_key and isinstance(key, str):
            loopring_s = self.account_at("loopring", key)
            found = loopring_s or self.account_at("metakeep", key)
            key = found.key if found else key
        if key not in self._book_by_key:
            known = ", ".join(str(account.key) for account in self.accounts()[:5])
            raise Impossible(f"no account {key} in this world{known and f', which has {known}'}")
        return self._book_by_key[key]

    def _place(self, account: AccountKey, asset: str) -> tuple[Book, ListedAsset]:
        book = self._book(account)
        return book, self.asset(book.account.provider, asset)

    def _stake(self, account: AccountKey, asset: str, amount: Amount) -> tuple[Book, ListedAsset, int]:
        book, listed = self._place(account, asset)
        return book, listed, listed.units(amount)

    def _report(self, move: Move) -> None:
        if self.on_move:
            self.on_move(move)


def _in_order(first: Half, pending: Holding, rest: Holding) -> tuple[Holding, Holding]:
    return (pending, rest) if first == "pending" else (rest, pending)


def empty_world() -> World:
    """Make a world that lists the usual assets and has no accounts."""
    world = World()
    for asset in LOOPRING_ASSETS:
        world.list_asset("loopring", asset)
    for asset in METAKEEP_ASSETS:
        world.list_asset("metakeep", asset)
    for asset in BANK_ASSETS:
        world.list_asset("bank", asset)
    return world


def default_world() -> World:
    """Make a world with 10110 at Loopring, alice@example.com at MetaKeep, and acme at the bank."""
    world = empty_world()
    world.open_account(TREASURY, ETH="2.5", LRC="1000", USDC="5000")
    world.open_account(ALICE, MK="1.12", ZBVS="100041.234567", POL="25")
    world.lock(ALICE, "ZBVS", "10.12")
    world.open_account(ACME, EUR="1250.50", JPY="300000", KWD="70.125")
    return world
