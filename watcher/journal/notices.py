"""What is told beside changes: baselines, stale accounts, thresholds, pings. Nothing here moves a balance.

Pure: time comes in. Refuses to tell it to anybody who did not ask for it by its type (`interest` knows).
"""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import NamedTuple

from watcher.amounts import Conversions, to_atoms
from watcher.journal.account import Entry, Moved
from watcher.journal.events import Draft, Event, Origin, amounts_of, drafts_of, iso, tell
from watcher.journal.explain import Change, Vector, in_atoms, in_text
from watcher.settings import ThresholdSettings
from watcher.snapshot import Asset, Balance, Row, is_called

ASSETS_PER_BASELINE = 20
"""Balances in one `account.baseline`: 20 of the widest ones stay below the 20 kB of a body."""

_NO_EFFECT = Balance("0", "0", "0", "0")._asdict()


class Watch(NamedTuple):
    """One threshold of one subscription."""

    subscription: str
    threshold: ThresholdSettings


def baseline(entry_by_asset: Mapping[str, Entry], conversions: Conversions) -> Iterator[Draft]:
    """Tell the balances that an account starts with; an account with many assets takes several events."""
    entries = [entry_by_asset[asset] for asset in sorted(entry_by_asset)]
    parts = [entries[i : i + ASSETS_PER_BASELINE] for i in range(0, len(entries), ASSETS_PER_BASELINE)] or [
        []
    ]
    for number, part in enumerate(parts, 1):
        balances = [
            {"asset": entry.asset._asdict(), **amounts_of(entry.published, conversions)} for entry in part
        ]
        says = {"effect": _NO_EFFECT, "balances": balances, "part": number, "parts": len(parts)}
        yield Draft("account.baseline", None, "0", says, (str(number),))


def stale(since_ms: int, trouble: str, reason: str) -> Draft:
    """Tell that an account had no good poll for too long."""
    says = {"effect": _NO_EFFECT, "since": iso(since_ms), "trouble": trouble, "reason": reason}
    return Draft("account.stale", None, "0", says, (str(since_ms),))


def recovered(since_ms: int) -> Draft:
    """Tell that a stale account had a good poll again."""
    return Draft(
        "account.recovered", None, "0", {"effect": _NO_EFFECT, "since": iso(since_ms)}, (str(since_ms),)
    )


def paused(subscription: str, reason: str, since_ms: int, *, now_ms: int) -> Event:
    """Tell somebody else that a subscription gets nothing more until it is resumed."""
    draft = paused_draft(subscription, reason, since_ms)
    return tell([draft], Origin(None, None, 0, since_ms, now_ms), first_sequence=now_ms, now_ms=now_ms)[0]


def paused_draft(subscription: str, reason: str, since_ms: int) -> Draft:
    """Say that a subscription is paused."""
    says = {"effect": _NO_EFFECT, "paused": subscription, "since": iso(since_ms), "reason": reason}
    return Draft("subscription.paused", None, "0", says, (subscription, str(since_ms)))


def ping(subscription: str, *, nonce: str, now_ms: int) -> Event:
    """Make a sample that tells nothing; its nonce makes it an event of its own."""
    draft = Draft("subscription.ping", None, "0", {"effect": _NO_EFFECT}, (subscription, nonce))
    return tell([draft], Origin(None, None, 0, now_ms, now_ms), first_sequence=now_ms, now_ms=now_ms)[0]


def threshold_key(watch: Watch, asset: str) -> str:
    """Name a threshold, at an asset, by what it says: an edited one is another one."""
    threshold = watch.threshold
    parts = (watch.subscription, asset, threshold.field, str(threshold.below), str(threshold.above))
    return sha256("\n".join(parts).encode()).hexdigest()[:12]


def crossings(
    watches: Iterable[Watch],
    entry_by_asset: Mapping[str, Entry],
    crossed: frozenset[str],
    conversions: Conversions,
    *,
    zeros: Iterable[Row] = (),
) -> tuple[list[Draft], frozenset[str]]:
    """Judge all thresholds; returns what to tell, and which are crossed now.

    A threshold is told when it is crossed, and again only after it was cleared. A suspect reading counts
    neither way. `zeros` are what a full listing does not name: of that there is nothing.
    """
    drafts: list[Draft] = []
    still: set[str] = set()
    nothing = [
        Entry(row.asset, row.balance, row.balance) for row in zeros if row.asset.id not in entry_by_asset
    ]
    for watch in watches:
        for entry in (*entry_by_asset.values(), *nothing):
            if not is_called(entry.asset, watch.threshold.asset):
                continue
            key = threshold_key(watch, entry.asset.id)
            was_crossed = key in crossed
            if (
                was_crossed
                if entry.suspect
                else _is_crossed(watch.threshold, entry.seen, conversions, was_crossed=was_crossed)
            ):
                if not was_crossed and key not in still:  # the same bound, by symbol and by id, is one
                    drafts.append(_crossing(watch, entry, key, conversions))
                still.add(key)
    return drafts, frozenset(still)


def _is_crossed(
    threshold: ThresholdSettings, balance: Balance, conversions: Conversions, *, was_crossed: bool
) -> bool:
    """Compare with the bound, or, once it was crossed, with where it is cleared (hysteresis)."""
    value = _value(threshold, balance, conversions)
    if value is None:
        return False
    if threshold.below is not None:
        bound = threshold.clear or threshold.below if was_crossed else threshold.below
        return value < conversions.atoms(bound)
    if threshold.above is not None:
        bound = threshold.clear or threshold.above if was_crossed else threshold.above
        return value > conversions.atoms(bound)
    return False


def _value(threshold: ThresholdSettings, balance: Balance, conversions: Conversions) -> int | None:
    if threshold.field == "available":
        return conversions.atoms(balance.total) - conversions.atoms(balance.locked)
    text: str | None = getattr(balance, threshold.field)
    return None if text is None else conversions.atoms(text)


def _crossing(watch: Watch, entry: Entry, key: str, conversions: Conversions) -> Draft:
    published = amounts_of(entry.published, conversions)
    value = conversions.text(_value(watch.threshold, entry.seen, conversions) or 0)
    says = {
        "effect": in_text(Vector(), entry.seen)._asdict(),
        "before": published,
        "after": published,
        "threshold": {**watch.threshold.model_dump(exclude={"asset"}), "value": value},
    }
    return Draft("threshold.crossed", entry.asset, value, says, (key, value), only_for=watch.subscription)


SAMPLE = "sample"
"""What the account, its provider and the paused subscription are called. `data.sample` is true besides."""

_ASSET = Asset("0", "ETH", "Ether", 18)
_BALANCE = Balance("100", "10", "20", "5")
_AMOUNT = to_atoms("5")
_SIGNS: Mapping[str, tuple[int, int, int, int]] = {
    "deposit.pending": (0, 0, 1, 0),
    "deposit.cleared": (1, 0, -1, 0),
    "deposit.dropped": (0, 0, -1, 0),
    "withdrawal.pending": (-1, 0, 0, 1),
    "withdrawal.cleared": (0, 0, 0, -1),
    "withdrawal.returned": (1, 0, 0, -1),
    "locked.increased": (0, 1, 0, 0),
    "locked.decreased": (0, -1, 0, 0),
    "total.increased": (1, 0, 0, 0),
    "total.decreased": (-1, 0, 0, 0),
}
"""How the amount moves each of the four fields."""


def sample(type_: str, subscription: str, *, nonce: str, now_ms: int) -> Event:
    """Make a sample of a type of the catalogue; its nonce makes it an event of its own."""
    if type_ == "subscription.ping":
        return ping(subscription, nonce=nonce, now_ms=now_ms)
    since_ms = now_ms - 30_000
    draft = _change(type_) if type_ in _SIGNS else _notice(type_, subscription, since_ms)
    draft = draft._replace(says={**draft.says, "sample": True}, identity=(subscription, nonce))
    name = None if type_ == "subscription.paused" else SAMPLE
    return tell([draft], Origin(name, name, 0, since_ms, now_ms), first_sequence=now_ms, now_ms=now_ms)[0]


def _change(type_: str) -> Draft:
    before = in_atoms(_BALANCE)
    effect = Vector(*(sign * _AMOUNT for sign in _SIGNS[type_]))
    moved = Moved(_ASSET, _BALANCE, Change(type_, _AMOUNT, effect, before, before + effect))
    return next(drafts_of([moved], Conversions()))


def _notice(type_: str, subscription: str, since_ms: int) -> Draft:
    entries = {_ASSET.id: Entry(_ASSET, _BALANCE, _BALANCE)}
    match type_:
        case "account.baseline":
            return next(baseline(entries, Conversions()))
        case "account.stale":
            return stale(since_ms, "transient", "no answer within 10 s")
        case "account.recovered":
            return recovered(since_ms)
        case "threshold.crossed":
            watch = Watch(subscription, ThresholdSettings(asset=_ASSET.id, below="1000"))
            return crossings([watch], entries, frozenset(), Conversions())[0][0]
        case "subscription.paused":
            return paused_draft(SAMPLE, "it answered 410", since_ms)
    raise ValueError(f"no type of the catalogue: {type_}")
