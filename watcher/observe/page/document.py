"""What the page shows, as plain data: what `watcher status`, `balances` and `events` show, within bounds.

Refuses to read anything, and to pass on a secret: of a subscription's URL it has the origin, of each text
from outside one printable line.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

from watcher.amounts import to_atoms, to_text
from watcher.journal.events import iso
from watcher.journal.log import Record
from watcher.observe.counters import Attempted
from watcher.observe.views import (
    PROBLEMS,
    ROSTERS_DIFFER,
    SUBSCRIPTION_STATES,
    TOO_FEW,
    Line,
    Overview,
    account_line,
    attempt_line,
    balance_line,
    place_of,
    problems_of,
    provider_line,
    rate_line,
    remedy_of,
    rosters_differ,
    server_line,
    subscription_line,
    worker_line,
)
from watcher.printable import many, printable, without_secrets
from watcher.providers.contract import PERMANENT
from watcher.settings import Settings
from watcher.store.exceptions import StoreError
from watcher.store.guarantee import Guarantee
from watcher.store.history import place
from watcher.store.members import Presence
from watcher.store.reader import Backlog, Tried
from watcher.store.reader import Seen as SeenAccount

MOST_ACCOUNTS = 1_000
MOST_BALANCES = 3_000
MOST_OF_AN_ACCOUNT = 50
MOST_PROVIDERS = 50
MOST_SUBSCRIPTIONS = 100
MOST_WORKERS = 20
MOST_ERRORS = 5
MOST_RECEIVERS = 20
"""Receivers shown of one event, first those to which it was not delivered."""

MOST_ATTEMPTS = 12
"""Attempts shown of one event at one subscription: more than the default retries."""

MOST_POINTS = 48
"""A point for every half hour of a day: as many as a small curve can show."""

_PASSING = {"pending confirmation", "suspect", "never read"}
"""Problems that do not put an account at the top."""

_FAILS = {*PROBLEMS} - _PASSING
_ZERO = {"0", None}
"""What an amount is where there is nothing of it."""

_BALANCE = ("total", "locked", "available", "pending_deposit", "pending_withdrawal")


class Step(NamedTuple):
    """What one record of the log did to a total, in atoms. None: it starts here, whatever was before. `asset`
    is None if it may have done anything to any asset of its account."""

    at_ms: int
    asset: str | None
    moved: int | None


class Point(NamedTuple):
    """The total from a time on, in atoms."""

    at_ms: int
    total: int


def curve(published: int, steps: Sequence[Step], *, since_ms: int) -> list[Point]:
    """Calculate the course of a total back from the published one; `steps` are those of its asset, oldest
    first."""
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


class Recorded(NamedTuple):
    """What the directory has: the number of records, by kind and state; the state of the accounts that are
    shown, by name; of a few subscriptions the state, the reason, and since when they are unverified (Unix
    ms); and how many are encrypted with an older key."""

    counts: Mapping[tuple[str, str], int]
    accounts: Mapping[str, str]
    subscriptions: Mapping[str, tuple[str, str, int | None]]
    older_key: int = 0

    def count(self, kind: str | None, state: str | None = None) -> int:
        """Count the records of a kind and in a state; None: of all."""
        return sum(
            count
            for (one, its_state), count in self.counts.items()
            if kind in (None, one) and state in (None, its_state)
        )


NOTHING_RECORDED = Recorded({}, {}, {})


class Owed(NamedTuple):
    """The subscriptions that an event waits for, by its id; the queues (subscription, account) that were read
    whole; and the subscriptions with dead letters."""

    waiting: Mapping[str, Collection[str]]
    read: Collection[tuple[str, str]]
    with_dead: Collection[str]


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
    delivered: Mapping[tuple[str, str], Attempted] = field(default_factory=dict)
    """By subscription and event, what this worker remembers."""
    attempted: Mapping[str, Attempted] = field(default_factory=dict)
    workers: Sequence[Presence] = ()
    server: tuple[Guarantee | StoreError, str] | None = None
    """What it guarantees, and where it is."""
    recorded: Recorded = NOTHING_RECORDED
    needed: Mapping[str, float] = field(default_factory=dict)
    """Requests a second that the accounts of a provider need."""
    reasons: Mapping[str, str | None] = field(default_factory=dict)
    """Of some subscriptions that are delayed, how the latest attempt failed."""


def names_shown(settings: Settings, overview: Overview, events: Iterable[Record]) -> list[str]:
    """Choose the accounts to show: all, or, of too many, first those that are stale or fail, then those that
    changed last."""
    configured = settings.account_by_name
    if len(configured) <= MOST_ACCOUNTS:
        return [*configured]
    failing = chain.from_iterable((*overview.stale.values(), *overview.failing.values()))
    moved = (record.account for record in reversed([*events]))
    first = (name for name in chain(failing, moved) if name in configured)
    return [*islice(dict.fromkeys(chain(first, islice(configured, MOST_ACCOUNTS))), MOST_ACCOUNTS)]


def document(settings: Settings, found: Found) -> Line:
    """Return everything that the page shows. Each list has the number of those that were `left_out`."""
    overview, now_ms = found.overview, found.now_ms
    accounts = _accounts(settings, found)
    providers = [
        provider_line(name, overview.failing[name], overview.overdue[name], now_ms)
        | rate_line(settings, name, found.needed.get(name), found.workers, now_ms)
        for name in settings.provider_by_name
    ]
    for line in providers:
        line["errors"] = [
            {**error, "reason": _said(error["reason"])} for error in line["errors"][:MOST_ERRORS]
        ]
    providers.sort(key=lambda line: not any(error["error_class"] in PERMANENT for error in line["errors"]))
    names = dict.fromkeys((*overview.waiting, *overview.unknown, *found.recorded.subscriptions))
    idle = [name for name in names if _is_idle(name, found)]
    idle_left_out = idle[MOST_SUBSCRIPTIONS:]
    for name in idle_left_out:  # of thousands, most: a line of each would take longer than all else
        del names[name]
    subscriptions = sorted(
        (_subscription(settings, name, found) for name in names),
        key=lambda line: (
            SUBSCRIPTION_STATES.index(line["state"]),
            line["record"] not in _NOT_IN_FORCE and line["is_configured"],
        ),
    )
    workers = [
        {name: printable(value) if isinstance(value, str) else value for name, value in line.items()}
        for line in (worker_line(one, now_ms) for one in found.workers)
    ]
    seen = {
        "now_ms": now_ms,
        "since_ms": min((account["since_ms"] for account in accounts), default=now_ms),
        "accounts": {
            "shown": accounts,
            "left_out": max(0, len(settings.account_by_name) - len(accounts)),
            "failing": sum(map(len, overview.failing.values())),
            "stale": sum(map(len, overview.stale.values())),
        },
        "providers": _first(MOST_PROVIDERS, providers),
        "subscriptions": _first(MOST_SUBSCRIPTIONS, subscriptions, more=len(idle_left_out)),
        "workers": {**_first(MOST_WORKERS, workers), "rosters_differ": rosters_differ(workers)},
        "server": server_line(*found.server, overview.memory) if found.server else None,
        "directory": {
            **{f"{kind}s": found.recorded.count(kind) for kind in ("account", "subscription")},
            **{state: found.recorded.count(None, state) for state in (*_NOT_IN_FORCE, "shadowed")},
            "older_key": found.recorded.older_key,
        },
        "events": [*_events(found)],
    }
    return {**seen, "health": health(seen, subscriptions)}


_NOT_IN_FORCE = {"unverified": "unverified", "locked": "locked", "unfit": "not valid here"}
"""States of a record of the API in which it is not used."""


def health(seen: Line, subscriptions: Sequence[Line]) -> Line:
    """Return the problems that `status` counts: first what fails, then what waits, then what was not read
    yet."""
    accounts = seen["accounts"]
    problems = Counter(problem for account in accounts["shown"] for problem in account["problems"])
    # Events that wait for a URL to be verified are not delayed.
    states = Counter(
        line["state"]
        for line in subscriptions
        if (line["record"], line["state"]) != ("unverified", "delayed")
    )
    least = "at least " if accounts["left_out"] else ""
    unread = sum(
        {"never read", "failing"} & {*one["problems"]} == {"never read"} for one in accounts["shown"]
    )
    providers, server, directory = seen["providers"]["shown"], seen["server"], seen["directory"]
    counted = [
        ("failing", least, problems["quarantined"], "account", "quarantined"),
        ("failing", "", accounts["stale"], "account", "stale"),
        ("failing", "", accounts["failing"], "account", "failing"),
        ("failing", "", states["paused"], "subscription", "paused"),
        ("failing", "", states["failing"], "subscription", "failing"),
        ("waiting", "", sum(line["late_s"] > 0 for line in providers), "provider", "polled late"),
        ("waiting", "", states["backing off"], "subscription", "backing off"),
        ("waiting", "", states["delayed"], "subscription", "delayed"),
        ("waiting", "", sum(line["dead"] for line in subscriptions), "dead letter", ""),
        (
            *("waiting", "", sum(not line["is_configured"] for line in subscriptions)),
            *("subscription", "not in the configuration"),
        ),
        ("waiting", least, problems["suspect"], "account", "suspect"),
        *(
            ("waiting", "", directory[state], "record", f"of the API {word}")
            for state, word in _NOT_IN_FORCE.items()
        ),
        ("unread", least, unread, "account", "not read yet"),
    ]
    told = [
        ("failing", f"{line['provider']}: {error['error_class']}: {error['reason']}")
        for line in providers
        for error in line["errors"]
        if error["error_class"] in PERMANENT
    ]
    told += [
        (state, f"{least_of}{many(count, noun)} {what}".rstrip())
        for state, least_of, count, noun, what in counted
        if count
    ]
    told += [("waiting", f"{line['provider']}: {TOO_FEW}") for line in providers if line["too_few_requests"]]
    told += [("waiting", f"workers: {ROSTERS_DIFFER}")] if seen["workers"]["rosters_differ"] else []
    told += [("waiting", f"Redis: {warning}") for warning in (server["warnings"] if server else ())]
    told.sort(key=lambda one: _HEALTH.index(one[0]))
    return {
        "state": told[0][0] if told else "well",
        "problems": [{"state": state, "text": text} for state, text in told],
    }


_HEALTH = ("failing", "waiting", "unread", "well")


def _first(most: int, lines: Sequence[Line], *, more: int = 0) -> Line:
    return {"shown": lines[:most], "left_out": max(0, len(lines) - most) + more}


_NOTHING = Backlog()


def _is_idle(name: str, found: Found) -> bool:
    """Return whether a subscription is healthy, and nothing waits for it or was given up."""
    overview, record = found.overview, found.recorded.subscriptions.get(name)
    is_in_force = record is None or record[0] not in _NOT_IN_FORCE
    return is_in_force and name not in overview.breakers and overview.waiting.get(name) == _NOTHING


def _accounts(settings: Settings, found: Found) -> list[Line]:
    """The accounts that are shown, those with problems first. Each has its assets with their whole curves:
    first those with a change pending confirmation, then those with a balance."""
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
        entries.sort(key=lambda one: (not (one.confirmation_polls or one.suspect), {*one.seen} <= _ZERO))
        steps = found.steps_by_account.get(seen.account, ())
        rows = []
        for entry in entries[: min(left, MOST_OF_AN_ACCOUNT)]:
            row = balance_line(entry)
            row["asset"] = {name: _outside(text) for name, text in row["asset"].items()}
            total, moves = to_atoms(entry.published.total), of_asset(steps, entry.asset.id)
            row["curve"] = curve(total, moves, since_ms=found.since_ms)
            rows.append(row)
        left -= len(rows)
        since_ms = min((row["curve"][0].at_ms for row in rows), default=found.now_ms)
        for row in rows:  # of one account, they span the same time
            row["curve"] = thinned(row["curve"], since_ms=since_ms, until_ms=found.now_ms)
        line["reason"] = _said(line["reason"])
        left_out = len(entries) - len(rows)
        line["record"] = found.recorded.accounts.get(account.name, "file")
        lines.append({**line, "since_ms": since_ms, "balances": rows, "left_out": left_out})
    return sorted(lines, key=lambda line: not {*line["problems"]} & _FAILS)


def _subscription(settings: Settings, name: str, found: Found) -> Line:
    overview, known = found.overview, settings.subscription_by_name.get(name)
    waiting = overview.waiting.get(name) or overview.unknown.get(name, Backlog())
    is_configured = name in overview.waiting or name in found.recorded.subscriptions
    line = subscription_line(
        *(name, waiting, overview.breakers.get(name), found.now_ms),
        known=known,
        is_configured=is_configured,
        failed_last=found.reasons.get(name),
    )
    record, why, since_ms = found.recorded.subscriptions.get(name, ("file", "", None))
    last = found.attempted.get(name)
    return {
        **line,
        "reason": _said(line["reason"]),
        "ping_error": _said(line["ping_error"]),
        "todo": remedy_of({**line, "record": record}),
        "place": place_of(settings, name),
        "record": record,
        "record_reason": _said(why) or None,
        "unverified_since": iso(since_ms) if since_ms else None,
        "last_attempt": _remembered(last) if last else None,
    }


def _remembered(one: Attempted) -> Line:
    said = {name: value for name, value in one._asdict().items() if name != "at_ms"}
    return {**said, "at": iso(one.at_ms), "error": None, "answer": None}


_STATE_BY_OUTCOME = {"delivered": "delivered", "refused": "given up"}
_DELIVERY_STATES = ("given up", "waiting", "may wait", "gone", "delivered")
"""The state of an event at one subscription, the worst first. Gone: it waits no longer, and it is unknown
whether it was delivered or given up."""

_KEPT = ("attempt", "outcome", "status", "duration_ms", "at")


def _events(found: Found) -> Iterator[Line]:
    """The latest events, the newest first, with the states of their deliveries, as far as these are known."""
    tried: dict[str, dict[str, list[Line]]] = {}
    for subscription, attempt in found.attempts:
        line = attempt_line(subscription, attempt, found.now_ms)
        kept = {name: _outside(line[name]) for name in _KEPT}
        kept |= {"error": _said(line["error"]), "answer": _said(line["answer"])}
        tried.setdefault(str(line["event_id"]), {}).setdefault(subscription, []).append(kept)
    for record in reversed(found.events):
        event_id, deliveries = str(record.content["id"]), []
        tries, waiting = tried.get(event_id, {}), found.owed.waiting.get(event_id, ())
        for name in dict.fromkeys((*record.previous, *tries, *waiting)):
            attempts = tries.get(name, [])
            known = found.delivered.get((name, event_id))
            # A delivery that succeeded at once is recorded nowhere, but this worker may remember it.
            if known and known.attempt == 1 and (not attempts or attempts[-1]["at"] < iso(known.at_ms)):
                attempts = [*attempts, _remembered(known)]
            outcome = str(attempts[-1]["outcome"]) if attempts else ""
            if name in waiting:
                state = "waiting"
            elif outcome in _STATE_BY_OUTCOME:
                state = _STATE_BY_OUTCOME[outcome]
            elif (name, record.account) not in found.owed.read:
                state = "may wait"
            else:  # it left its queue, and there is no dead letter of it
                state = "gone" if name in found.owed.with_dead else "delivered"
            deliveries.append({"subscription": name, "state": state, "attempts": attempts[-MOST_ATTEMPTS:]})
        deliveries.sort(key=lambda one: (_DELIVERY_STATES.index(one["state"]), one["subscription"]))
        yield {
            **_event(record),
            "deliveries": deliveries[:MOST_RECEIVERS],
            "left_out": max(0, len(deliveries) - MOST_RECEIVERS),
        }


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
    """Take a text or a number from outside, and nothing else."""
    if isinstance(value, str):
        return printable(value)
    return value if isinstance(value, int) and abs(value) < 2**53 else None


def _said(text: object) -> str | None:
    """Take a text from outside that may quote a secret."""
    return printable(without_secrets(text)) if isinstance(text, str) else None
