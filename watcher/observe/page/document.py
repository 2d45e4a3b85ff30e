"""What the page shows, as plain data: what `watcher status`, `balances` and `events` show, and bounded.

Refuses to read anything, and to pass on a secret: of a subscription's URL it has the origin, of texts from
outside one printable line.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

from watcher.amounts import to_text
from watcher.journal.explain import in_atoms
from watcher.journal.log import Record
from watcher.observe.views import (
    SUBSCRIPTION_STATES,
    Line,
    Overview,
    account_line,
    attempt_line,
    balance_line,
    place_of,
    problems_of,
    provider_line,
    subscription_line,
)
from watcher.printable import printable, without_secrets
from watcher.settings import Settings
from watcher.store.history import place
from watcher.store.reader import Seen as SeenAccount
from watcher.store.reader import Tried

MOST_ACCOUNTS = 200
MOST_BALANCES = 500
MOST_OF_AN_ACCOUNT = 50
MOST_PROVIDERS = 50
MOST_SUBSCRIPTIONS = 100
MOST_ERRORS = 5
MOST_ATTEMPTS = 12
"""Of one event at one subscription: more than the default retries."""

MOST_POINTS = 48
"""A point every half hour of a day: what a line of the width of a word can show."""

_PASSING = {"pending confirmation", "suspect", "never read"}
"""Problems that do not put an account first."""

_BALANCE = ("total", "locked", "available", "pending_deposit", "pending_withdrawal")


class Step(NamedTuple):
    """What one record of the log did to a total, in atoms. None: it starts here, whatever was before.

    `asset` is None for what may have done anything to any asset of its account.
    """

    at_ms: int
    asset: str | None
    moved: int | None


class Point(NamedTuple):
    """The total from a time on, in atoms."""

    at_ms: int
    total: int


def curve(published: int, steps: Sequence[Step], *, since_ms: int) -> list[Point]:
    """Follow a total back from what was published last; `steps` are those of its asset, oldest first."""
    points, total = [], published
    for step in reversed(steps):
        points.append(Point(step.at_ms, total))
        if step.moved is None:
            return points[::-1]
        total -= step.moved
    return [Point(since_ms, total), *reversed(points)]


def thinned(points: Sequence[Point], *, since_ms: int, until_ms: int) -> list[tuple[int, str]]:
    """Keep the first point, and the last one of each part of the time, as exact text."""
    part_ms = max(1, (until_ms - since_ms) // MOST_POINTS)
    last_by_part = {(point.at_ms - since_ms) // part_ms: point for point in points[1:]}
    return [(at_ms, to_text(total)) for at_ms, total in [*points[:1], *last_by_part.values()]]


def of_asset(steps: Iterable[Step], asset: str) -> list[Step]:
    """Find the steps of one asset among those of its account."""
    return [step for step in steps if step.asset in (asset, None)]


class Owed(NamedTuple):
    """Deliveries that wait, by event and subscription; how many queues of an account were not read whole."""

    waiting: frozenset[tuple[str, str]]
    unread_by_account: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Found:
    """What was read from Redis at one time (Unix ms of the server)."""

    now_ms: int
    overview: Overview
    accounts: Sequence[SeenAccount]
    events: Sequence[Record]
    steps_by_account: Mapping[str, Sequence[Step]]
    since_ms: int
    attempts: Sequence[tuple[str, Tried]]
    owed: Owed


def names_shown(settings: Settings, overview: Overview, events: Iterable[Record]) -> list[str]:
    """Choose the accounts to show: all; of too many first what is stale or fails, then what changed last."""
    configured = settings.account_by_name
    if len(configured) <= MOST_ACCOUNTS:
        return [*configured]
    failing = chain.from_iterable((*overview.stale.values(), *overview.failing.values()))
    moved = (record.account for record in reversed([*events]))
    first = (name for name in chain(failing, moved) if name in configured)
    return [*islice(dict.fromkeys(chain(first, islice(configured, MOST_ACCOUNTS))), MOST_ACCOUNTS)]


def document(settings: Settings, found: Found) -> Line:
    """Everything that the page shows. Each list has the number of those that were `left_out`."""
    overview, now_ms = found.overview, found.now_ms
    accounts = _accounts(settings, found)
    rows = [row for account in accounts for row in account["balances"]]
    since_ms = min((row["curve"][0].at_ms for row in rows), default=now_ms)  # all curves span the same time
    for row in rows:
        row["curve"] = thinned(row["curve"], since_ms=since_ms, until_ms=now_ms)
    providers = [
        provider_line(name, overview.failing[name], overview.overdue[name], now_ms)
        for name in settings.provider_by_name
    ]
    for line in providers:
        line["errors"] = [
            {**error, "reason": _said(error["reason"])} for error in line["errors"][:MOST_ERRORS]
        ]
    providers.sort(key=lambda line: not any(error["todo"] for error in line["errors"]))
    subscriptions = sorted(
        (_subscription(settings, name, overview, now_ms) for name in overview.waiting),
        key=lambda line: SUBSCRIPTION_STATES.index(line["state"]),
    )
    return {
        "now_ms": now_ms,
        "curves": {"since_ms": since_ms, "until_ms": now_ms},
        "accounts": {
            "shown": accounts,
            "left_out": max(0, len(settings.account_by_name) - len(accounts)),
            "failing": sum(map(len, overview.failing.values())),
            "stale": sum(map(len, overview.stale.values())),
        },
        "providers": _first(MOST_PROVIDERS, providers),
        "subscriptions": _first(MOST_SUBSCRIPTIONS, subscriptions),
        "events": [*_events(found)],
    }


def _first(most: int, lines: Sequence[Line]) -> Line:
    return {"shown": lines[:most], "left_out": max(0, len(lines) - most)}


def _accounts(settings: Settings, found: Found) -> list[Line]:
    """The accounts that are shown, first those with problems.

    Of each its assets, with their whole curves: first those with a change pending confirmation, then those
    with a balance.
    """
    lines = []
    left = MOST_BALANCES
    for seen in found.accounts:
        account = settings.account_by_name[seen.account]
        failing = found.overview.failing.get(account.provider, {}).get(account.name)
        problems = problems_of(
            settings, seen, failing, found.now_ms, watched_since_ms=found.overview.watched_since_ms
        )
        line = account_line(account, seen, failing, problems)
        entries = [*seen.state.suspected.values()] if seen.state else []
        entries.sort(
            key=lambda one: (not (one.confirmation_polls or one.suspect), not any(in_atoms(one.seen)))
        )
        steps = found.steps_by_account.get(seen.account, ())
        rows = []
        for entry in entries[: min(left, MOST_OF_AN_ACCOUNT)]:
            row = balance_line(entry)
            row["asset"] = {name: _outside(text) for name, text in row["asset"].items()}
            total, moves = in_atoms(entry.published).total, of_asset(steps, entry.asset.id)
            row["curve"] = curve(total, moves, since_ms=found.since_ms)
            rows.append(row)
        left -= len(rows)
        line["reason"] = _said(line["reason"])
        lines.append({**line, "balances": rows, "left_out": len(entries) - len(rows)})
    return sorted(lines, key=lambda line: not {*line["problems"]} - _PASSING)


def _subscription(settings: Settings, name: str, overview: Overview, now_ms: int) -> Line:
    breaker = overview.breakers.get(name)
    known, waiting = settings.subscription_by_name.get(name), overview.waiting[name]
    line = subscription_line(name, waiting, breaker, now_ms, known=known, is_configured=True)
    return {**line, "reason": _said(line["reason"]), "place": place_of(settings, name)}


_STATE_BY_OUTCOME = {"delivered": "delivered", "refused": "given up"}
_KEPT = ("attempt", "outcome", "status", "duration_ms", "at")


def _events(found: Found) -> Iterator[Line]:
    """The latest events, the newest first, and how far their deliveries are, as far as is known."""
    tried: dict[str, dict[str, list[Line]]] = {}
    for subscription, attempt in found.attempts:
        line = attempt_line(subscription, attempt, found.now_ms)
        kept = {name: _outside(line[name]) for name in _KEPT}
        kept |= {"error": _said(line["error"]), "answer": _said(line["answer"])}
        tried.setdefault(str(line["event_id"]), {}).setdefault(subscription, []).append(kept)
    for event_id, subscription in found.owed.waiting:
        tried.setdefault(event_id, {}).setdefault(subscription, [])
    for record in reversed(found.events):
        event_id, deliveries = str(record.content["id"]), []
        for name, attempts in sorted(tried.get(event_id, {}).items()):
            outcome = str(attempts[-1]["outcome"]) if attempts else ""
            is_waiting = (event_id, name) in found.owed.waiting
            state = "waiting" if is_waiting else _STATE_BY_OUTCOME.get(outcome, "unknown")
            shown = attempts[-MOST_ATTEMPTS:]
            deliveries.append({"subscription": name, "state": state, "attempts": shown})
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


def _part(said: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = said.get(name)
    return part if isinstance(part, dict) else {}


def _outside(value: object) -> str | int | None:
    """Take a text or a number from outside; nothing else."""
    if isinstance(value, str):
        return printable(value)
    return value if isinstance(value, int) and abs(value) < 2**53 else None


def _said(text: object) -> str | None:
    """Take a text from outside that may quote a secret."""
    return printable(without_secrets(text)) if isinstance(text, str) else None
