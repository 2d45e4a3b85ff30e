"""Serves the page, and reads what it shows when somebody looks: within a time limit, once for many."""

import asyncio
import re
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from importlib.resources import files
from itertools import islice, product

import orjson

from watcher import __version__
from watcher.journal.log import Record
from watcher.observe.listener import Answer, Route
from watcher.observe.page.document import Found, Owed, document, names_shown
from watcher.observe.page.recent import Recent
from watcher.observe.views import Outlook, Overview
from watcher.printable import printable
from watcher.run.worker import Opened, Worker
from watcher.settings import Settings
from watcher.store.exceptions import StoreError
from watcher.store.history import History, place
from watcher.store.keys import Keys, shard_of
from watcher.store.reader import Reader, Tried

TIMEOUT_S = 4.0
FRESH_S = 2.0

_ATTEMPTS = 50
"""Of one subscription and shard, the latest."""

_DIFFERS = 10
_QUEUES = 100
_DELIVERIES = 50
"""Looked into of one queue; of an event that may wait further back, that much is told."""


class Look:
    """What one worker sees of its store, as the page's JSON."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._one_at_a_time = asyncio.Lock()
        self._outlook = Outlook(worker)
        self._opened: Opened | None = None
        self._recent: Recent | None = None
        self._seen: bytes = b"null"
        self._read_at = self._fresh_until = 0.0
        self._trouble: str | None = None

    async def json(self) -> bytes:
        """Say what is seen now, or what was seen last, `age_s` ago, and what the `trouble` is."""
        async with self._one_at_a_time:
            if time.monotonic() >= self._fresh_until:
                await self._look()
                self._fresh_until = time.monotonic() + FRESH_S
        return orjson.dumps(
            {
                "worker": self._worker.name,
                "version": __version__,
                "is_draining": self._worker.is_stopped,
                "stuck": [*self._worker.liveness.stuck(time.monotonic())],
                "trouble": self._trouble,
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
            self._trouble = "the store is not open"
            return
        try:
            async with asyncio.timeout(TIMEOUT_S):
                found = await self._find(settings, opened)
        except (StoreError, TimeoutError):
            found = None
        if found is None:
            self._trouble = "the store does not do its part"
            return
        # In a thread: amounts are long numbers, and there may be hundreds of them.
        self._seen = await asyncio.to_thread(lambda: orjson.dumps(document(settings, found)))
        self._trouble, self._read_at = None, time.monotonic()

    async def _find(self, settings: Settings, opened: Opened) -> Found | None:
        outlook = await self._outlook.look()
        if outlook is None:
            return None
        pipe, keys = opened.schedule.pipe, Keys(settings.redis.namespace)
        reader, recent = Reader(pipe, keys), self._recent_of(opened, keys)
        now_ms = await reader.now_ms()
        await recent.read(now_ms)
        events = [*recent.events]
        names = names_shown(settings, outlook, events)
        return Found(
            now_ms=now_ms,
            outlook=outlook,
            accounts=[seen async for seen in reader.read_states(names)],
            events=events,
            steps_by_account=recent.steps_by_account(),
            since_ms=recent.since_ms,
            attempts=await _attempts(Reader(pipe, keys), outlook, events),
            owed=await _owed(Reader(pipe, keys), outlook, events),
        )

    def _recent_of(self, opened: Opened, keys: Keys) -> Recent:
        if self._recent is None or self._opened is not opened:
            self._opened, self._recent = opened, Recent(History(opened.schedule.pipe, keys))
        return self._recent


async def _attempts(letters: Reader, outlook: Overview, events: Sequence[Record]) -> list[tuple[str, Tried]]:
    """Read the latest attempts at any of these events that were remembered, by subscription."""
    if not events:
        return []
    since_ms = place(events[0].id)[0]
    places = [*product(outlook.waiting, {shard_of(record.account) for record in events})]
    found = await asyncio.gather(
        *(letters.attempts_since(name, shard, since_ms, at_most=_ATTEMPTS) for name, shard in places)
    )
    return [(name, one) for (name, _), part in zip(places, found, strict=True) for one in part]


async def _owed(waiting: Reader, outlook: Overview, events: Iterable[Record]) -> Owed:
    """Find what is still owed in the queues that may hold these events, as far as they are looked into."""
    accounts = dict.fromkeys(record.account for record in events)
    subscriptions = [name for name, found in outlook.waiting.items() if found.queues]
    queues = product(subscriptions, accounts)
    found, unread = set[tuple[str, str]](), Counter[str]()
    for name, account in islice(queues, _QUEUES):
        position = 0
        async for delivery in waiting.deliveries(name, account):
            if position == _DELIVERIES or delivery is None:  # too deep, or damaged: it may be any event
                unread[account] += 1
                break
            found.add((delivery.event_id, name))
            position += 1
    unread.update(account for _, account in queues)
    return Owed(frozenset(found), unread)


_HTML = "text/html; charset=utf-8"
_JSON = "application/json"


def routes(worker: Worker) -> Mapping[str, Route]:
    """What is served, by path."""
    html = files("watcher.observe.page").joinpath("page.html").read_text("utf-8")
    page = Answer(200, html.encode(), _HTML, policy_of(html))
    look = Look(worker)

    async def show() -> Answer:
        return page

    async def tell() -> Answer:
        return Answer(200, await look.json(), _JSON)

    return {"/": show, "/page.json": tell}


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
