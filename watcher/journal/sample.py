"""Events of every type for a receiver to be tried with. Nothing that they tell has happened.

Pure: time and chance come in. Refuses to name an account of the configuration: a receiver that books what it
is told must never book a sample as money.
"""

from collections.abc import Mapping

from watcher.amounts import to_atoms
from watcher.journal import notices
from watcher.journal.account import Entry, Moved
from watcher.journal.events import Draft, Event, Origin, drafts_of, tell
from watcher.journal.explain import Change, Vector, in_atoms
from watcher.settings import ThresholdSettings
from watcher.snapshot import Asset, Balance

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
        return notices.ping(subscription, nonce=nonce, now_ms=now_ms)
    since_ms = now_ms - 30_000
    draft = _change(type_) if type_ in _SIGNS else _notice(type_, subscription, since_ms)
    draft = draft._replace(says={**draft.says, "sample": True}, identity=(subscription, nonce))
    name = None if type_ == "subscription.paused" else SAMPLE
    return tell([draft], Origin(name, name, 0, since_ms, now_ms), first_sequence=now_ms, now_ms=now_ms)[0]


def _change(type_: str) -> Draft:
    before = in_atoms(_BALANCE)
    effect = Vector(*(sign * _AMOUNT for sign in _SIGNS[type_]))
    moved = Moved(_ASSET, _BALANCE, Change(type_, _AMOUNT, effect, before, before + effect))
    return next(drafts_of([moved]))


def _notice(type_: str, subscription: str, since_ms: int) -> Draft:
    entries = {_ASSET.id: Entry(_ASSET, _BALANCE, _BALANCE)}
    match type_:
        case "account.baseline":
            return next(notices.baseline(entries))
        case "account.stale":
            return notices.stale(since_ms, "transient", "no answer within 10 s")
        case "account.recovered":
            return notices.recovered(since_ms)
        case "threshold.crossed":
            watch = notices.Watch(subscription, ThresholdSettings(asset=_ASSET.id, below="1000"))
            return notices.crossings([watch], entries, frozenset())[0][0]
        case "subscription.paused":
            return notices.paused_draft(SAMPLE, "it answered 410", since_ms)
    raise ValueError(f"no type of the catalogue: {type_}")
