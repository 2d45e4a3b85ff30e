"""What the page shows, as plain data: what `watcher status`, `balances` and `events` say, and bounded.

Refuses to read anything, and to pass on a secret: of a subscription's URL its origin, of texts from outside
one printable line.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

from watcher.journal.account import Entry
from watcher.journal.explain import in_atoms
from watcher.journal.log import Record
from watcher.observe.page.recent import Point, Step, curve, of_asset, thinned
from watcher.observe.views import (
    Line,
    Overview,
    account_line,
    attempt_line,
    balance_line,
    place_of,
    provider_line,
    subscription_line,
    troubles_of,
)
from watcher.printable import printable, without_secrets
from watcher.settings import Settings
from watcher.store.history import place
from watcher.store.reader import Backlog, Tried
from watcher.store.reader import Seen as SeenAccount

MOST_ACCOUNTS = 200
MOST_BALANCES = 500
MOST_OF_AN_ACCOUNT = 50
MOST_PROVIDERS = 50
MOST_SUBSCRIPTIONS = 100
MOST_ATTEMPTS = 12
"""Of one event at one subscription: more than the default retries."""

_PASSING = {"held", "suspect", "never read"}
"""What is no reason to look at an account first."""

_BALANCE = ("total", "locked", "available", "pending_deposit", "pending_withdrawal")


class Owed(NamedTuple):
    """Deliveries that wait, by event and subscription; how many queues of an account were not read whole."""

    waiting: frozenset[tuple[str, str]]
    unread_by_account: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Found:
    """What was read of the store at one time (Unix ms of the server)."""

    now_ms: int
    outlook: Overview
    accounts: Sequence[SeenAccount]
    events: Sequence[Record]
    steps_by_account: Mapping[str, Sequence[Step]]
    since_ms: int
    attempts: Sequence[tuple[str, Tried]]
    owed: Owed


@dataclass(slots=True)
class _Curves:
    """The curves of a page, which all begin at the same time: when the first of them does."""

    found: Found
    rows: list[tuple[Line, list[Point]]] = field(default_factory=list)

    def draw(self, row: Line, account: str, entry: Entry) -> None:
        steps = of_asset(self.found.steps_by_account.get(account, ()), entry.asset.id)
        published = in_atoms(entry.published).total
        self.rows.append((row, curve(published, steps, since_ms=self.found.since_ms)))

    def finish(self) -> Line:
        """Write the curves into their rows; returns the time that they span."""
        until_ms = self.found.now_ms
        since_ms = min((points[0].at_ms for _, points in self.rows), default=until_ms)
        for row, points in self.rows:
            row["curve"] = thinned(points, since_ms=since_ms, until_ms=until_ms)
        return {"since_ms": since_ms, "until_ms": until_ms}


def names_shown(settings: Settings, outlook: Overview, events: Iterable[Record]) -> list[str]:
    """Choose accounts: all that there are; of too many those that fail, then those that moved last."""
    configured = settings.account_by_name
    if len(configured) <= MOST_ACCOUNTS:
        return [*configured]
    failing = chain.from_iterable(outlook.failing.values())
    moved = (record.account for record in reversed([*events]))
    first = (name for name in chain(failing, moved) if name in configured)
    return [*islice(dict.fromkeys(chain(first, islice(configured, MOST_ACCOUNTS))), MOST_ACCOUNTS)]


def document(settings: Settings, found: Found) -> Line:
    """Say how all stands. Lists say how many of their kind were `left_out`."""
    outlook, now_ms = found.outlook, found.now_ms
    curves = _Curves(found)
    accounts = _accounts(settings, found, curves)
    providers = sorted(
        (_provider(name, outlook, now_ms) for name in settings.provider_by_name),
        key=lambda line: not any(found["todo"] for found in line["troubles"]),
    )
    subscriptions = sorted(
        (_subscription(settings, name, outlook, now_ms) for name in outlook.waiting),
        key=lambda line: _STATES.index(line["state"]),
    )
    return {
        "now_ms": now_ms,
        "curves": curves.finish(),
        "accounts": {
            "shown": accounts,
            "left_out": max(0, len(settings.account_by_name) - len(accounts)),
            "failing": sum(map(len, outlook.failing.values())),
        },
        "providers": {
            "shown": providers[:MOST_PROVIDERS],
            "left_out": max(0, len(providers) - MOST_PROVIDERS),
        },
        "subscriptions": {
            "shown": subscriptions[:MOST_SUBSCRIPTIONS],
            "left_out": max(0, len(subscriptions) - MOST_SUBSCRIPTIONS),
        },
        "events": [*_events(found)],
    }


def _accounts(settings: Settings, found: Found, curves: _Curves) -> list[Line]:
    lines = []
    left = MOST_BALANCES
    for seen in found.accounts:
        account = settings.account_by_name[seen.account]
        failing = found.outlook.failing.get(account.provider, {}).get(account.name)
        troubles = troubles_of(account, seen, failing, found.now_ms)
        line = account_line(account, seen, failing, troubles)
        line["reason"] = _said(line["reason"])
        rows = _balances(seen, curves, min(left, MOST_OF_AN_ACCOUNT))
        left -= len(rows)
        assets = len(seen.state.entry_by_asset) if seen.state else 0
        lines.append({**line, "balances": rows, "left_out": assets - len(rows)})
    return sorted(lines, key=lambda line: not {*line["troubles"]} - _PASSING)


def _balances(seen: SeenAccount, curves: _Curves, most: int) -> list[Line]:
    """The assets of an account: first what is not emitted yet, then what there is something of."""
    entries = [*seen.state.entry_by_asset.values()] if seen.state else []
    entries.sort(key=lambda entry: (not (entry.held_polls or entry.suspect), not any(in_atoms(entry.seen))))
    rows = []
    for entry in entries[:most]:
        row = balance_line(entry)
        row["asset"] = {name: _outside(text) for name, text in row["asset"].items()}
        curves.draw(row, seen.account, entry)
        rows.append(row)
    return rows


def _provider(name: str, outlook: Overview, now_ms: int) -> Line:
    line = provider_line(name, outlook.failing[name], outlook.overdue[name], now_ms)
    troubles = [{**found, "reason": _said(found["reason"])} for found in line["troubles"][:5]]
    return {**line, "troubles": troubles}


_STATES = ("paused", "failing", "held", "well")


def _subscription(settings: Settings, name: str, outlook: Overview, now_ms: int) -> Line:
    waiting, breaker = outlook.waiting[name], outlook.breakers.get(name)
    backlog = Backlog(queues=waiting.queues, dead=waiting.dead, oldest_sequence=waiting.oldest_sequence)
    line = subscription_line(name, backlog, breaker, now_ms, is_configured=True)
    del line["deliveries"], line["retrying"]  # counting them would mean to look into every queue
    failures = breaker.failures if breaker else 0
    state = "paused" if line["paused_at"] else "failing" if failures else "held" if line["held_s"] else "well"
    return {
        **line,
        "reason": _said(line["reason"]),
        "state": state,
        "failures": failures,
        "place": place_of(settings, name),
    }


def _events(found: Found) -> Iterator[Line]:
    """The latest events, the newest first, with what is known of their deliveries."""
    tried: dict[str, dict[str, list[Line]]] = {}
    for subscription, attempt in found.attempts:
        line = attempt_line(subscription, attempt, found.now_ms)
        tried.setdefault(str(line["event_id"]), {}).setdefault(subscription, []).append(line)
    for event_id, subscription in found.owed.waiting:
        tried.setdefault(event_id, {}).setdefault(subscription, [])
    for record in reversed(found.events):
        event_id = str(record.content["id"])
        deliveries = [
            _delivery(name, lines, is_waiting=(event_id, name) in found.owed.waiting)
            for name, lines in sorted(tried.get(event_id, {}).items())
        ]
        unread = found.owed.unread_by_account.get(record.account, 0)
        yield {**_event(record), "deliveries": deliveries, "unread_queues": unread}


def _event(record: Record) -> Line:
    data = _part(record.content, "data")
    asset = _part(data, "asset")
    return {
        "id": _outside(record.content["id"]),
        "type": _outside(record.content.get("type")),
        "account": _outside(record.account),
        "at_ms": place(record.id)[0],
        "amount": _outside(data.get("amount")) if asset else None,
        "asset": _outside(asset.get("symbol") or asset.get("id")),
        "sequence": _outside(data.get("sequence")),
        "reason": _said(data.get("reason")),
        **{
            part: {name: _outside(_part(data, part).get(name)) for name in _BALANCE if _part(data, part)}
            for part in ("effect", "before", "after")
        },
    }


def _delivery(subscription: str, attempts: Sequence[Line], *, is_waiting: bool) -> Line:
    """Say where the deliveries of one event to one subscription stand, as far as that was remembered."""
    last = attempts[-1]["outcome"] if attempts else None
    state = {"delivered": "delivered", "refused": "given up"}.get(str(last), "unknown")
    kept = ("attempt", "outcome", "status", "duration_ms", "at")
    return {
        "subscription": subscription,
        "state": "waiting" if is_waiting else state,
        "attempts": [
            {
                **{name: _outside(line[name]) for name in kept},
                "error": _said(line["error"]),
                "answer": _said(line["answer"]),
            }
            for line in attempts[-MOST_ATTEMPTS:]
        ],
    }


def _part(said: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = said.get(name)
    return part if isinstance(part, dict) else {}


def _outside(value: object) -> str | int | None:
    """Take a text or a number from outside; nothing else."""
    if isinstance(value, str):
        return printable(value)
    return value if isinstance(value, int) and abs(value) < 2**53 else None


def _said(text: object) -> str | None:
    """Take a text that may quote what somebody was sent."""
    return printable(without_secrets(text)) if isinstance(text, str) else None
