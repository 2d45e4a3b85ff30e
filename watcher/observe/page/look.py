"""Serves the page, and reads what it shows on request: within a time limit, once for many clients."""

import asyncio
import re
import time
from base64 import b64encode
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from importlib.resources import files
from itertools import islice
from typing import get_args

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from watcher import __version__
from watcher.amounts import to_atoms
from watcher.journal.log import Record
from watcher.observe.page.document import (
    NOTHING_RECORDED,
    Found,
    Owed,
    Recorded,
    Step,
    document,
    names_shown,
)
from watcher.observe.views import Overview, OverviewReader, unsaid_reasons
from watcher.pause import compute, uncollected
from watcher.printable import printable
from watcher.run.directory import Followed, State
from watcher.run.worker import Opened, Worker
from watcher.settings import Settings
from watcher.store.address import safe_url
from watcher.store.directory import KINDS
from watcher.store.exceptions import StoreError, StoreRefuses
from watcher.store.history import History, place
from watcher.store.keys import Keys, shard_of
from watcher.store.members import Workers
from watcher.store.pipe import in_parts
from watcher.store.reader import Reader

TIMEOUT_S = 4.0
FRESH_S = 2.0

_ATTEMPTS = 50
"""The latest attempts that are read of one subscription and shard."""

_LARGE = 20_000
"""Bytes from which on an answer is compressed: a thousand accounts are a megabyte."""

_DIFFERS = 10
_PLACES = 400
"""Streams of attempts that are read, those of the latest events first."""

_RECEIVERS = 50
"""Receivers of one event whose attempts are read."""

_LOOKED_AT = 1_000
"""Subscriptions of the directory that are searched for those that are not in force."""

_QUEUES = 100
_QUEUES_AT_ONCE = 10
"""Some milliseconds, where all of them are long."""

_DELIVERIES = 50
"""Deliveries read of one queue. An event that may wait behind them is shown as such."""


class Look:
    """What one worker sees of its Redis, as the page's JSON."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._one_at_a_time = asyncio.Lock()
        self._overview = OverviewReader(worker)
        self._opened: Opened | None = None
        self._recent: Recent | None = None
        self._seen: bytes = b"null"
        self._read_at = self._fresh_until = 0.0
        self._error: str | None = None

    async def json(self) -> bytes:
        """Return what is seen now; or what was seen `age_s` ago, and the `error` since then."""
        async with self._one_at_a_time:
            if time.monotonic() >= self._fresh_until:
                with uncollected():  # a thousand states are read, and forgotten again
                    await self._look()
                self._fresh_until = time.monotonic() + FRESH_S
        return orjson.dumps(
            {
                "worker": self._worker.name,
                "version": __version__,
                "is_draining": self._worker.is_stopped,
                "stuck": [*self._worker.liveness.stuck(time.monotonic())],
                "error": self._error,
                "differs": [
                    {"worker": printable(one.worker), "names": [*map(printable, one.names[:_DIFFERS])]}
                    for one in self._worker.differences[:_DIFFERS]
                ],
                "age_s": time.monotonic() - self._read_at,
                "seen": orjson.Fragment(self._seen),
            }
        )

    async def _look(self) -> None:
        settings, opened = self._worker.settings, self._worker.opened
        if opened is None:
            self._error = "there is no contact with Redis yet: nothing is polled or delivered before there is"
            return
        if self._worker.stands_by:
            self._error = "this worker stands by until Redis is in its layout: see `watcher store layout`"
            return
        try:
            async with asyncio.timeout(TIMEOUT_S):
                found = await self._find(settings, opened)
        except (StoreError, TimeoutError):
            found = None
        if found is None:
            refused = opened.health.error if not opened.health.is_up else None
            self._error = "Redis does not answer in time: while it does not, nothing is polled or delivered"
            if isinstance(refused, StoreRefuses):
                allows = "until then nothing is polled, and as much is delivered as Redis allows"
                self._error = f"{refused}: {allows}"
            return
        # In a thread: there may be hundreds of long amounts, and thousands of subscriptions.
        self._seen = await compute(self._write, settings, found, is_kept=False)
        refusal, self._read_at = opened.health.refusal, time.monotonic()
        self._error = f"nothing is polled: {refusal}" if refusal else None

    async def _find(self, settings: Settings, opened: Opened) -> Found | None:
        overview = await self._overview.look()
        if overview is None:
            return None
        pipe, keys = opened.schedule.pipe, Keys(settings.redis.namespace)
        if self._recent is None or self._opened is not opened:
            self._opened, self._recent = opened, Recent(History(pipe, keys))
        reader, recent = Reader(pipe, keys), self._recent
        now_ms = await reader.now_ms()
        await recent.read(now_ms)
        events = [*recent.events]
        names = names_shown(settings, overview, events)
        provider_by_account = {name: settings.account_by_name[name].provider for name in names}
        accounts = [seen async for seen in reader.read_states(provider_by_account)]
        since_ms = place(events[0].id)[0] if events else now_ms
        places = dict.fromkeys(
            (name, shard_of(event.account)) for event in reversed(events) for name in _wanted(overview, event)
        )
        tried = await asyncio.gather(
            *(
                reader.attempts_since(name, shard, since_ms, at_most=_ATTEMPTS)
                for name, shard in islice(places, _PLACES)
            )
        )
        return Found(
            now_ms=now_ms,
            overview=overview,
            accounts=accounts,
            events=events,
            steps_by_account=recent.steps_by_account(),
            since_ms=recent.since_ms,
            attempts=[(name, one) for (name, _), part in zip(places, tried, strict=False) for one in part],
            owed=await _owed(reader, overview, events),
            delivered=dict(self._worker.counters.delivered),
            attempted=self._worker.counters.attempted.copy(),
            workers=await Workers(pipe, keys).read(),
            server=(opened.health.guarantee, safe_url(settings.redis.url.get_secret_value()))
            if opened.health.guarantee
            else None,
            needed=self._needed(),
            reasons=await unsaid_reasons(reader, overview.waiting, overview.breakers, now_ms),
        )

    def _write(self, settings: Settings, found: Found) -> bytes:
        names = [account.account for account in found.accounts]
        recorded = _recorded(self._worker.followed, names, found.overview)
        return orjson.dumps(document(settings, replace(found, recorded=recorded)))

    def _needed(self) -> dict[str, float]:
        configured = self._worker.configured
        polls = configured.poll_work.by_provider.items() if configured else ()
        return {name: one.poller.needed_per_second for name, one in polls}


def _recorded(followed: Followed | None, accounts: Sequence[str], overview: Overview) -> Recorded:
    """Count the records of the directory. For each subscription that is shown, and for the first of all
    others, return the state of its record."""
    if followed is None:
        return NOTHING_RECORDED
    states: tuple[State, ...] = get_args(State)
    counts = {(str(kind), str(state)): followed.count(kind, state) for kind in KINDS for state in states}
    found = {}
    is_any_unusable = followed.count("subscription", "locked", "unfit")
    others = followed.names("subscription", limit=_LOOKED_AT) if is_any_unusable else ()
    for name in dict.fromkeys((*overview.waiting, *overview.unknown, *others)):
        if known := followed.get("subscription", name):
            found[name] = (known.state, known.reason, known.unverified_since_ms)
    shown = ((name, followed.get("account", name)) for name in accounts)
    in_force = {name: known.state for name, known in shown if known}
    return Recorded(counts, in_force, found, followed.older_key)


def _wanted(overview: Overview, event: Record) -> Iterable[str]:
    """Return the subscriptions that an event was queued for; all of them, if an older version wrote it."""
    return islice(event.previous or overview.waiting, _RECEIVERS)


async def _owed(reader: Reader, overview: Overview, events: Sequence[Record]) -> Owed:
    """Find the deliveries of these events that wait, the latest first, in the part of their queues that is
    read."""
    queues = dict.fromkeys(
        (name, event.account) for event in reversed(events) for name in _wanted(overview, event)
    )
    waiting, read = defaultdict[str, set[str]](set), set[tuple[str, str]]()
    for some in in_parts([*islice(queues, _QUEUES)], _QUEUES_AT_ONCE):
        heads = await asyncio.gather(*(head_of(reader, *queue) for queue in some))
        for queue, (ids, is_whole) in zip(some, heads, strict=True):
            for event_id in ids:
                waiting[event_id].add(queue[0])
            if is_whole:
                read.add(queue)
    backlogs = await reader.waiting({name for name, _ in read})
    return Owed(waiting, read, {name for name, found in backlogs.items() if found.dead})


async def head_of(reader: Reader, subscription: str, account: str) -> tuple[list[str], bool]:
    """Return the ids of the first events of a queue, and whether these are all."""
    ids: list[str] = []
    async for delivery in reader.deliveries(subscription, account):
        if len(ids) == _DELIVERIES or delivery is None:  # too far back, or damaged: it may be any event
            return ids, False
        ids.append(delivery.event_id)
    return ids, True


DAY_MS = 24 * 3_600_000
MOST_EVENTS = 50
MOST_RECORDS = 10_000
"""Records read at once, and remembered: no more than the log keeps of each shard, so that none is missing
between two of them."""

_PAGE = 500
"""Records that `History` reads of one shard at once: if fewer come, there are no more."""

_AT_ONCE = 100
"""Records that are taken in before anything else goes on: some milliseconds."""

LONGEST_S = 1.5
"""To read what was: on a busy machine the page shows the last hours instead of the last day."""

_ROUNDS = 4
_FORGOTTEN_AFTER_S = 60.0
"""After a longer pause, too much was missed to read forward from there."""


class Recent:
    """The last day of the event log, as far as the page shows it, and how each total changed.

    `since_ms`: nothing that came after this is missing. `events`: the latest, oldest first.
    """

    def __init__(self, history: History) -> None:
        self.since_ms = 0
        self.events: deque[Record] = deque(maxlen=MOST_EVENTS)
        self._history = history
        self._steps: deque[tuple[str, Step]] = deque()
        self._ends: list[str] | None = None
        self._read_at = 0.0

    async def read(self, now_ms: int) -> None:
        """Take in what is new; the first time, or after a long pause, the last day. Raises StoreError."""
        if self._ends is None or time.monotonic() - self._read_at > _FORGOTTEN_AFTER_S:
            await self._begin(now_ms - DAY_MS)
        else:
            for _ in range(_ROUNDS):
                records, self._ends = await self._history.after(self._ends)
                for record in records:
                    self._steps.extend(steps_of(record))
                    if "id" in record.content:
                        self.events.append(record)
                if len(records) < _PAGE:
                    break
            else:
                self._ends = None  # more comes than is read: the next look reads the last day
        self._read_at = time.monotonic()
        self.since_ms = max(self.since_ms, now_ms - DAY_MS)
        while self._steps and (len(self._steps) > MOST_RECORDS or self._steps[0][1].at_ms < self.since_ms):
            _, step = self._steps.popleft()
            self.since_ms = max(self.since_ms, step.at_ms)

    def steps_by_account(self) -> Mapping[str, list[Step]]:
        """Return what changed since then, oldest first."""
        found: dict[str, list[Step]] = {}
        for account, step in self._steps:
            found.setdefault(account, []).append(step)
        return found

    async def _begin(self, since_ms: int) -> None:
        ends = await self._history.ends()
        steps: deque[tuple[str, Step]] = deque()
        events: list[Record] = []
        count, until = 0, time.monotonic() + LONGEST_S
        async for record in self._history.in_order(ends, since_ms=since_ms, newest_first=True):
            steps.extendleft(reversed([*steps_of(record)]))
            if "id" in record.content and len(events) < MOST_EVENTS:
                events.append(record)
            count += 1
            if count == MOST_RECORDS or time.monotonic() > until:
                since_ms = place(record.id)[0]
                break
            if count % _AT_ONCE == 0:
                await asyncio.sleep(0)  # deliveries do not wait for the page
        self.since_ms = since_ms
        self._steps, self._ends = steps, ends
        self.events = deque(reversed(events), MOST_EVENTS)


def steps_of(record: Record) -> Iterator[tuple[str, Step]]:
    """Return what a record did to totals. One that cannot be read may have done anything to its account."""
    at_ms, content = place(record.id)[0], record.content
    try:
        if content["type"] == "baseline":
            if content["whole"] is True:  # before it, nothing is known of assets that it does not name either
                yield record.account, Step(at_ms, None, None)
            for asset in content["assets"]:
                yield record.account, Step(at_ms, str(asset), None)
        elif "effect" in content.get("data", {}):
            data = content["data"]
            if moved := to_atoms(data["effect"]["total"]):
                yield record.account, Step(at_ms, str(data["asset"]["id"]), moved)
    except (KeyError, TypeError, ValueError, AttributeError):
        yield record.account, Step(at_ms, None, None)


def routes(worker: Worker) -> Mapping[str, Handler]:
    """What is served, by path."""
    html = files("watcher.observe.page").joinpath("page.html").read_text("utf-8")
    policy = {"content-security-policy": policy_of(html)}
    look = Look(worker)

    async def show(_: web.Request) -> web.Response:
        return web.Response(text=html, content_type="text/html", headers=policy)

    async def show_json(_: web.Request) -> web.Response:
        body = await look.json()
        answer = web.Response(body=body, content_type="application/json", zlib_executor_size=_LARGE)
        if len(body) > _LARGE:
            answer.enable_compression()  # in a thread, and as the client says it can
        return answer

    return {"/": show, "/page.json": show_json}


def policy_of(html: str) -> str:
    """Write the content security policy of a page: its own script and style, its own origin, nothing else."""
    return (
        f"default-src 'none'; script-src {_hash_of('script', html)}; style-src {_hash_of('style', html)}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )


def _hash_of(element: str, html: str) -> str:
    (text,) = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
