"""What one account holds as far as was emitted, what is pending confirmation, and how a snapshot moves
both."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from watcher.amounts import to_atoms, to_text
from watcher.journal.explain import Withdrawals, explain, in_atoms, in_text
from watcher.snapshot import LOST, Asset, Balance, Row, Snapshot


def why_suspect(accepted: Balance, row: Row | None, *, suspect: Balance | None = None) -> str | None:
    """Say why `row` needs a second opinion; None says that it counts.

    `row` is None where the asset is missing from a listing of everything. `suspect` is what the last
    successful poll said of this asset, if that was suspect too. A reading that is odd in no other way agrees
    with it, even if another field went on moving, so nothing stays suspect for longer than one successful
    poll. A reading that is odd in another way is suspect in its place; a reading that is not odd counts, and
    ends the suspicion.
    """
    balance = row.balance if row else absent(accepted)
    if balance == accepted:
        return None
    oddities = _oddities(accepted, balance)
    if row and not oddities:
        return None
    if row and not row.locked_absent:
        oddities.discard(_NO_LOCK)  # said in so many words, it is a fact
    if suspect and oddities <= _oddities(accepted, suspect):
        return None
    if row is None and any(field not in ("0", None) for field in accepted):
        return "the asset disappeared"
    return min(oddities, default=None)


_NO_ROWS = "the listing names nothing, which counts after a minute"
_EMPTY, _REPAID = "total fell to zero", "total rose to zero"
_NO_LOCK = "locked disappeared"
_OVERLOCKED = "more is locked than there is"


def _oddities(accepted: Balance, balance: Balance) -> set[str]:
    """Everything about a balance that is odd after an accepted one."""
    odd = set()
    if balance.total == "0" != accepted.total:
        odd.add(_REPAID if accepted.total.startswith("-") else _EMPTY)
    if balance.locked == "0":
        if accepted.locked != "0":
            odd.add(_NO_LOCK)
    elif balance[:2] != accepted[:2] and to_atoms(balance.locked) > to_atoms(balance.total) >= 0:
        odd.add(_OVERLOCKED)  # of an account that is overdrawn, anything locked would be more than there is
    return odd


def absent(accepted: Balance) -> Balance:
    """Read an asset's absence from a listing of everything: zero, in the fields that the provider has."""
    pendings = (accepted.pending_deposit, accepted.pending_withdrawal)
    return Balance("0", "0", *(None if pending is None else "0" for pending in pendings))


class Entry(NamedTuple):
    """One asset of an account. `seen` is the last accepted reading.

    `suspect` is a reading that awaits a second opinion. `confirmation_polls` counts the
    successful polls for which a change has been pending confirmation.
    """

    asset: Asset
    published: Balance
    seen: Balance
    confirmation_polls: int = 0
    suspect: Balance | None = None


EMPTY_REPEATS, EMPTY_MS = 3, 60_000
"""How often, and for how long, a full listing must go on naming nothing before that counts."""


class Emptiness(NamedTuple):
    """A full listing of an account with balances suddenly named nothing: since when (Unix ms of the server),
    and how many successful polls have said the same since."""

    since_ms: int
    repeats: int = 0

    def counts(self, observed_ms: int) -> bool:
        """Say whether it has lasted long enough to be believed."""
        return self.repeats >= EMPTY_REPEATS and observed_ms - self.since_ms >= EMPTY_MS


_RESET = "reset by "


class AccountState(NamedTuple):
    """Everything that is known of an account.

    `source` says where it was read: another source is another account, and "" says nowhere yet. `version`
    names the commit that wrote this state. `height` is that of the last accepted snapshot that had one, and
    never falls. `stale_since_ms` is not 0 after `account.stale`; `crossed` are thresholds (`notices`).
    `emptiness` is not None while a listing that names nothing awaits confirmation; all else of the account
    stays as it was accepted before.
    """

    source: str
    watched: tuple[str, ...] | None
    entry_by_asset: Mapping[str, Entry]
    version: str = ""
    sequence: int = 0
    polled_at_ms: int = 0
    stale_since_ms: int = 0
    crossed: frozenset[str] = frozenset()
    emptiness: Emptiness | None = None
    height: int | None = None

    @property
    def reset_by(self) -> str | None:
        """Who made the account forget what was accepted, so that the next snapshot is a baseline; None if no
        one did."""
        return self.source.removeprefix(_RESET) if self.source.startswith(_RESET) else None

    def reset(self, by: str, version: str) -> "AccountState":
        """Forget what was accepted, and when. The sequence goes on rising, and two things stay: that it is
        stale, and its crossed thresholds."""
        return AccountState(
            f"{_RESET}{by}",
            None,
            {},
            version,
            self.sequence,
            stale_since_ms=self.stale_since_ms,
            crossed=self.crossed,
        )

    def assets(self) -> dict[str, Asset]:
        """The known names and decimals of its assets, by asset id."""
        return {asset_id: entry.asset for asset_id, entry in self.entry_by_asset.items()}

    @property
    def suspected(self) -> Mapping[str, Entry]:
        """The entries, each with the reading of it that is suspect; of an empty listing that is nothing."""
        if not self.emptiness:
            return self.entry_by_asset
        return {asset: _suspecting_absence(entry) for asset, entry in self.entry_by_asset.items()}

    def is_at_rest(self, *, needs_decimals: bool, among: Collection[str] | None = None) -> bool:
        """Say whether the same answer again would change nothing. `needs_decimals`: not so where they are not
        known yet. `among`: of all other assets it is known."""
        unknown = (LOST, None) if needs_decimals else (LOST,)
        entries = self.entry_by_asset
        looked_at = entries.values() if among is None else [entries[asset_id] for asset_id in among]
        for asset, _, _, confirmation_polls, suspect in looked_at:
            if confirmation_polls or suspect or asset.decimals in unknown:
                return False
        return not (self.emptiness or self.stale_since_ms)


@dataclass(frozen=True, slots=True)
class Rules:
    """How a provider's movements are explained."""

    withdrawals: Withdrawals = "outside"
    settle_polls: int = 2


class Moved(NamedTuple):
    """One change of one asset, in text."""

    asset: Asset
    type: str
    amount: str
    effect: Balance
    before: Balance
    after: Balance


@dataclass(slots=True)
class Advance:
    """What a snapshot does to a state. `baselined` assets start anew, without an event, and say why;
    `reset_by` says who wanted a baseline of the whole account.

    With `emptiness` it does nothing else: each asset that was there is suspect.
    """

    is_baseline: bool
    is_news: bool
    entry_by_asset: dict[str, Entry] = field(default_factory=dict)
    moved: list[Moved] = field(default_factory=list)
    baselined: dict[str, str] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)
    suspect: dict[str, str] = field(default_factory=dict)
    pending_confirmation: dict[str, tuple[str, ...]] = field(default_factory=dict)
    emptiness: Emptiness | None = None
    reset_by: str | None = None


def advance(
    state: AccountState | None,
    snapshot: Snapshot,
    *,
    source: str,
    rules: Rules,
    observed_ms: int,
    differing: Collection[str] | None = None,
) -> Advance:
    """Move a state on to a snapshot. The first one, or one from another source, is a baseline.

    A full listing that suddenly names nothing moves nothing until it has lasted (`Emptiness`). One that names
    something again ends that, and is judged by what was accepted before. With `differing`, the state is at
    rest after a snapshot that differs from this one in the rows of these assets alone, and in nothing else.
    """
    known = state.entry_by_asset if state and state.source == source else {}
    is_baseline = state is None or state.source != source
    result = Advance(
        is_baseline,
        is_news=state is None
        or is_baseline
        or state.watched != snapshot.watched
        or state.emptiness is not None
        or (state.height is None and snapshot.height is not None),  # one that rises is noted by a touch, too
        reset_by=state.reset_by if state and is_baseline else None,
    )
    if state and (emptiness := _emptiness(state, snapshot, observed_ms)):
        if not emptiness.counts(observed_ms):
            entries = {**state.entry_by_asset}
            result = Advance(is_baseline=False, is_news=True, entry_by_asset=entries, emptiness=emptiness)
            result.suspect |= {
                asset: _NO_ROWS for asset in entries if _suspecting_absence(entries[asset]).suspect
            }
            return result
        known = {asset: _suspecting_absence(entry) for asset, entry in known.items()}
    if state is not None and is_baseline:
        result.forgotten.extend(sorted(state.entry_by_asset))
    rows, result.entry_by_asset = snapshot.row_by_asset, {**known}
    watched = None if snapshot.watched is None else frozenset(snapshot.watched)
    if differing is None:
        touched = known.keys() - rows.keys()
        for asset_id, (asset, balance, _) in rows.items():
            entry = known.get(asset_id)
            still: tuple[object, ...] = (asset, balance, balance, 0, None)
            if entry is None or entry != still:
                touched.add(asset_id)
            elif entry.seen is not balance:  # nothing moved, and nothing waits: one in memory is enough
                result.entry_by_asset[asset_id] = Entry(asset, balance, balance)
        differing = touched if watched is None else touched | (known.keys() - watched)
    for asset_id in sorted(differing):
        entry, row = known.get(asset_id), rows.get(asset_id)
        if watched is not None and asset_id not in watched:
            if entry:
                result.forgotten.append(asset_id)
                del result.entry_by_asset[asset_id]
        elif entry is None:
            assert row is not None
            if state and not is_baseline and state.watched is None and snapshot.absent_is_zero:
                # The whole account was listed without it: it had nothing of it.
                nothing = absent(row.balance)
                _accept(Entry(row.asset, nothing, nothing), row, rules, result)
                result.is_news = True
            else:
                _start(row, "first seen", result)
        else:
            _follow(entry, row, snapshot, rules, result)
    if not result.entry_by_asset.keys() <= known.keys():
        result.entry_by_asset = dict(sorted(result.entry_by_asset.items()))
    return result


def _emptiness(state: AccountState, snapshot: Snapshot, observed_ms: int) -> Emptiness | None:
    """Take note of a full listing that names nothing of an account that held something, here or elsewhere."""
    if snapshot.row_by_asset or not snapshot.absent_is_zero:
        return None
    if all(entry.seen == absent(entry.seen) for entry in state.entry_by_asset.values()):
        return None
    if state.emptiness is None:
        return Emptiness(observed_ms)
    # The server's clock may have been set back: the time that passed since counts, and no other.
    return Emptiness(min(state.emptiness.since_ms, observed_ms), state.emptiness.repeats + 1)


def _suspecting_absence(entry: Entry) -> Entry:
    nothing = absent(entry.seen)
    return entry if entry.seen == nothing else entry._replace(suspect=nothing)


def _follow(entry: Entry, row: Row | None, snapshot: Snapshot, rules: Rules, result: Advance) -> None:
    """Take in what a snapshot says, or does not say, of an asset that has an entry."""
    if row and entry.asset.decimals == LOST:
        entry, result.is_news = entry._replace(asset=row.asset), True
    is_open = entry.confirmation_polls or entry.suspect
    if row is None and not snapshot.absent_is_zero:
        result.entry_by_asset[entry.asset.id] = entry  # absent means unknown
    elif row and row.balance == entry.seen and row.asset.decimals == entry.asset.decimals and not is_open:
        result.entry_by_asset[entry.asset.id] = entry  # it is called otherwise now, and nothing else
    elif row and (
        row.asset.decimals != entry.asset.decimals
        or (row.balance.pending_deposit is None) != (entry.seen.pending_deposit is None)
        or (row.balance.pending_withdrawal is None) != (entry.seen.pending_withdrawal is None)
    ):
        _start(row, "its unit changed", result)
    elif reason := why_suspect(entry.seen, row, suspect=entry.suspect):
        result.suspect[entry.asset.id] = reason
        balance = row.balance if row else absent(entry.seen)
        result.entry_by_asset[entry.asset.id] = entry._replace(suspect=balance)
        result.is_news = True
    else:
        _accept(entry, row, rules, result)


def _accept(entry: Entry, row: Row | None, rules: Rules, result: Advance) -> None:
    """Explain the way from what was published to a reading, and keep what is not emitted yet."""
    asset, seen = (row.asset, row.balance) if row else (entry.asset, absent(entry.seen))
    goal = in_atoms(seen)
    explanation = explain(
        in_atoms(entry.published),
        goal,
        confirmation_polls=entry.confirmation_polls,
        settle_polls=rules.settle_polls,
        withdrawals=rules.withdrawals,
    )
    before = entry.published
    for type_, amount, effect, _, goes_to in explanation.changes:
        after = seen if goes_to == goal else in_text(goes_to, seen)
        result.moved.append(Moved(asset, type_, to_text(amount), in_text(effect, seen), before, after))
        before = after
    published = seen if explanation.published == goal else before  # one in memory
    now = Entry(asset, published, seen, explanation.confirmation_polls)
    result.entry_by_asset[asset.id] = now
    if explanation.why:
        result.pending_confirmation[asset.id] = explanation.why
    if now[1:] != entry[1:]:
        result.is_news = True


def _start(row: Row, why: str, result: Advance) -> None:
    result.entry_by_asset[row.asset.id] = Entry(row.asset, row.balance, row.balance)
    result.baselined[row.asset.id] = why
    result.is_news = True
