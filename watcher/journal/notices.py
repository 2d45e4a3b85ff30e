"""Events beside changes: baselines, stale accounts, thresholds, pings. Nothing here moves a balance.

Pure: time comes in. They go only to subscriptions that ask for their type (`interest` knows).
"""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import NamedTuple

from watcher.amounts import to_atoms
from watcher.journal.account import Entry, Moved
from watcher.journal.events import Draft, Event, Origin, amounts_of, drafts_of, events_of, iso, shown
from watcher.journal.explain import RULES, Vector, in_atoms, in_text
from watcher.settings import ThresholdSettings
from watcher.snapshot import Asset, Balance, Row, is_called

ASSETS_PER_BASELINE = 20
"""Balances in one `account.baseline`: 20 of the widest ones stay below the 20 kB of a body."""

_NO_EFFECT = Balance("0", "0", "0", "0")._asdict()


class Watch(NamedTuple):
    """One threshold of one subscription."""

    subscription: str
    threshold: ThresholdSettings


def baseline(entry_by_asset: Mapping[str, Entry]) -> Iterator[Draft]:
    """Draft the balances that an account starts with; an account with many assets takes several events."""
    entries = [entry_by_asset[asset] for asset in sorted(entry_by_asset)]
    parts = [entries[i : i + ASSETS_PER_BASELINE] for i in range(0, len(entries), ASSETS_PER_BASELINE)] or [
        []
    ]
    for number, part in enumerate(parts, 1):
        balances = [{"asset": shown(entry.asset), **amounts_of(entry.published)} for entry in part]
        says = {"effect": _NO_EFFECT, "balances": balances, "part": number, "parts": len(parts)}
        # What it says is part of what it is: after a loss of the state there may be another first one.
        identity = (str(number), *(text for entry in part for text in (entry.asset.id, *entry.published)))
        yield Draft("account.baseline", None, "0", says, identity)


def stale(since_ms: int, error_class: str, reason: str) -> Draft:
    """Draft that an account had no successful poll for too long."""
    says = {"effect": _NO_EFFECT, "since": iso(since_ms), "trouble": error_class, "reason": reason}
    return Draft("account.stale", None, "0", says, (str(since_ms),))


def recovered(since_ms: int) -> Draft:
    """Draft that a stale account had a successful poll again."""
    return Draft(
        "account.recovered", None, "0", {"effect": _NO_EFFECT, "since": iso(since_ms)}, (str(since_ms),)
    )


def paused(subscription: str, reason: str, since_ms: int, *, now_ms: int) -> Event:
    """Make the event, for other subscriptions, that this one gets nothing more until it is resumed."""
    return _without_commit(paused_draft(subscription, reason, since_ms), since_ms, now_ms)


def paused_draft(subscription: str, reason: str, since_ms: int) -> Draft:
    """Draft that a subscription is paused."""
    says = {"effect": _NO_EFFECT, "paused": subscription, "since": iso(since_ms), "reason": reason}
    return Draft("subscription.paused", None, "0", says, (subscription, str(since_ms)))


def ping(subscription: str, *, nonce: str, now_ms: int) -> Event:
    """Make an event that says nothing; its nonce makes it an event of its own."""
    draft = Draft("subscription.ping", None, "0", {"effect": _NO_EFFECT}, (subscription, nonce))
    return _without_commit(draft, now_ms, now_ms)


def _without_commit(draft: Draft, since_ms: int, now_ms: int, *, account: str | None = None) -> Event:
    """Make an event that no commit of an account leads to: its time is its sequence."""
    origin = Origin(account, account, 0, since_ms, now_ms)
    return events_of([draft], origin, first_sequence=now_ms, now_ms=now_ms)[0]


def threshold_key(watch: Watch, asset: str) -> str:
    """Name a threshold, at an asset, by what it says: an edited one is another one."""
    threshold = watch.threshold
    parts = (watch.subscription, asset, threshold.field, str(threshold.below), str(threshold.above))
    return sha256("\n".join(parts).encode()).hexdigest()[:12]


def crossings(
    watches: Iterable[Watch],
    entry_by_asset: Mapping[str, Entry],
    crossed: frozenset[str],
    *,
    zeros: Iterable[Row] = (),
) -> tuple[list[Draft], frozenset[str]]:
    """Judge all thresholds; returns what to emit, and which are crossed now.

    An event is emitted when a threshold is crossed, and again only after it was cleared. A suspect reading
    counts neither way. `zeros` are what a full listing does not name: of that there is nothing.
    """
    drafts: list[Draft] = []
    still: set[str] = set()
    nothing = [
        Entry(row.asset, row.balance, row.balance) for row in zeros if row.asset.id not in entry_by_asset
    ]
    for watch in watches:
        threshold = watch.threshold
        for entry in (*entry_by_asset.values(), *nothing):
            if not is_called(entry.asset, threshold.asset):
                continue
            key = threshold_key(watch, entry.asset.id)
            was_crossed = key in crossed
            if entry.suspect:
                still |= {key} & crossed
                continue
            value = amounts_of(entry.seen)[threshold.field]
            if value is None or not _is_crossed(threshold, value, was_crossed=was_crossed):
                continue
            if not was_crossed and key not in still:  # the same bound, by symbol and by id, is one
                published = amounts_of(entry.published)
                says = {
                    "effect": in_text(Vector(), entry.seen)._asdict(),
                    "before": published,
                    "after": published,
                    "threshold": {**threshold.model_dump(exclude={"asset"}), "value": value},
                }
                draft = Draft("threshold.crossed", entry.asset, value, says, (key, value, *entry.published))
                drafts.append(draft._replace(only_for=watch.subscription))
            still.add(key)
    return drafts, frozenset(still)


def _is_crossed(threshold: ThresholdSettings, value: str, *, was_crossed: bool) -> bool:
    """Compare with the bound, or, once it was crossed, with where it is cleared (hysteresis)."""
    bound = threshold.above if threshold.below is None else threshold.below
    if was_crossed:
        bound = threshold.clear or bound
    assert bound is not None, "one of both is given"
    above_by = to_atoms(value) - to_atoms(bound)
    return above_by > 0 if threshold.below is None else above_by < 0


SAMPLE = "sample"
"""What the account, its provider and the paused subscription are called. `data.sample` is true besides."""

_ASSET = Asset("0", "ETH", "Ether", 18)
_BALANCE = Balance("100", "10", "20", "5")
_AMOUNT = "5"


def sample(type_: str, subscription: str, *, nonce: str, now_ms: int) -> Event:
    """Make a sample of a type of the catalogue; its nonce makes it an event of its own."""
    if type_ == "subscription.ping":
        return ping(subscription, nonce=nonce, now_ms=now_ms)
    since_ms = now_ms - 30_000
    entries = {_ASSET.id: Entry(_ASSET, _BALANCE, _BALANCE)}
    match type_:
        case "account.baseline":
            draft = next(baseline(entries))
        case "account.stale":
            draft = stale(since_ms, "transient", "no answer within 10 s")
        case "account.recovered":
            draft = recovered(since_ms)
        case "threshold.crossed":
            watch = Watch(subscription, ThresholdSettings(asset=_ASSET.id, below="1000"))
            draft = crossings([watch], entries, frozenset())[0][0]
        case "subscription.paused":
            draft = paused_draft(SAMPLE, "it answered 410", since_ms)
        case _:
            signs = next((rule.signs for rule in RULES["outside"] if rule.type == type_), None)
            if signs is None:
                raise ValueError(f"no type of the catalogue: {type_}")
            effect = Vector(*(sign * to_atoms(_AMOUNT) for sign in signs))
            after = in_text(in_atoms(_BALANCE) + effect, _BALANCE)
            moved = Moved(_ASSET, type_, _AMOUNT, in_text(effect, _BALANCE), _BALANCE, after)
            draft = next(drafts_of([moved]))
    draft = draft._replace(says={**draft.says, "sample": True}, identity=(subscription, nonce))
    account = None if type_ == "subscription.paused" else SAMPLE
    return _without_commit(draft, since_ms, now_ms, account=account)
