"""`/v1/subscriptions`: the subscriptions of the file and of the API, their states and deliveries."""

import asyncio
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from aiohttp import web

from watcher.api.accounts import Names, Opened, etag, found_now, opened
from watcher.api.problems import Problem, answer, limit_in, query_of
from watcher.observe.views import (
    dead_letter_line,
    remedy_of,
    subscription_line,
    unsaid_reasons,
    waiting_line,
)
from watcher.run.worker import Worker
from watcher.store.history import cursor_text, read_cursor
from watcher.store.keys import SHARDS
from watcher.store.queues import Breakers

_STATES = ("waiting", "dead")
_ID = re.compile(r"[A-Za-z0-9_-]{0,64}")


class Subscriptions:
    """Answers about subscriptions."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._names = Names("subscription")

    async def show_all(self, request: web.Request) -> web.Response:
        """Answer with a page of subscriptions, by name."""
        return await self._names.show_page(request, self._worker)

    async def show(self, request: web.Request) -> web.Response:
        """Answer with a subscription: its settings, its record, its breaker and its backlog."""
        query_of(request)
        name, store = request.match_info["name"], opened(self._worker)
        found = await found_now("subscription", name, store)
        now_ms, waiting, breakers = await asyncio.gather(
            store.reader.now_ms(),
            store.reader.waiting([name]),
            Breakers(store.pipe, store.keys).read(),
        )
        reasons = await unsaid_reasons(store.reader, waiting, breakers, now_ms)
        line = subscription_line(
            *(name, waiting[name], breakers.get(name), now_ms),
            known=None,
            is_configured=True,
            failed_last=reasons.get(name),
        )
        line["todo"] = remedy_of(
            {**line, "record": found["state"], "format": found["settings"].get("format")}
        )
        status = {key: line[key] for key in line.keys() - {"kind", "subscription", "is_configured", "format"}}
        return answer({**found, "status": status}, headers=etag(found))

    async def show_deliveries(self, request: web.Request) -> web.Response:
        """Answer with a page of deliveries that wait, or of dead letters: queue by queue, oldest first."""
        asked = query_of(request, "state", "after", "limit")
        state, limit = asked.get("state", "waiting"), limit_in(asked)
        if state not in _STATES:
            raise Problem(400, f"state: must be {' or '.join(_STATES)}")
        after = _after(asked.get("after", ""), state)
        name, store = request.match_info["name"], opened(self._worker)
        await found_now("subscription", name, store)
        read = _waiting if state == "waiting" else _dead
        found = await read(name, store, after, limit)
        following = None
        if len(found) > limit:
            following = found[limit - 1][0].text(state)
        return answer({"items": [line for _, line in found[:limit]], "next": following})


class _Place(NamedTuple):
    """The last delivery of a page: its shard, its account, its `number` in the queue and the id of its event;
    of a dead letter, the id of the dead letter."""

    shard: int
    account: str
    number: int
    id: str

    def text(self, state: str) -> str:
        return cursor_text(json.dumps([state, *self]).encode())


def _after(text: str, state: str) -> _Place:
    """Read a cursor. Raises Problem: 400."""
    if not text:
        return _Place(0, "", 0, "")
    with suppress(ValueError, RecursionError):
        of_state, shard, account, number, item = json.loads(read_cursor(text))
        place = _Place(shard, account, number, item)
        is_of_us = of_state == state and [*map(type, place)] == [int, str, int, str]
        if is_of_us and place.text(state) == text and shard in range(SHARDS) and _ID.fullmatch(item):
            return place
    raise Problem(400, "after: is not the `next` of a page of this list")


async def _waiting(
    name: str, store: Opened, after: _Place, limit: int
) -> list[tuple[_Place, dict[str, Any]]]:
    """Read one delivery more than `limit`, if there are so many."""
    reader, found = store.reader, list[tuple[_Place, dict[str, Any]]]()
    now_ms, breakers = await asyncio.gather(reader.now_ms(), Breakers(store.pipe, store.keys).read())
    for shard in range(after.shard, SHARDS):
        first = after.account if shard == after.shard else ""
        queues = [queue for queue in await reader.queues_of_shard(name, shard) if queue.account >= first]
        for queue in sorted(queues, key=lambda queue: queue.account):
            number = 0
            if queue.account == first:
                number = await reader.place_behind(name, first, after.id, after.number)
            async for delivery in reader.deliveries(name, queue.account, number):
                number += 1
                line = waiting_line(name, queue, number, delivery, breakers.get(name), now_ms)
                found.append((_Place(shard, queue.account, number, line["event_id"] or ""), line))
                if len(found) > limit:
                    return found
    return found


async def _dead(name: str, store: Opened, after: _Place, limit: int) -> list[tuple[_Place, dict[str, Any]]]:
    """Read one dead letter more than `limit`, if there are so many."""
    found, now_ms = list[tuple[_Place, dict[str, Any]]](), await store.reader.now_ms()
    for shard in range(after.shard, SHARDS):
        last = after.id if shard == after.shard else ""
        while letters := await store.reader.dead_letters_behind(name, shard, last):
            last = letters[-1].id
            found += (
                (_Place(shard, "", 0, letter.id), dead_letter_line(name, letter, now_ms))
                for letter in letters
            )
            if len(found) > limit:
                return found
    return found


def routes(worker: Worker) -> Iterable[web.RouteDef]:
    subscriptions = Subscriptions(worker)
    return [
        web.get("/v1/subscriptions", subscriptions.show_all),
        web.get("/v1/subscriptions/{name}", subscriptions.show),
        web.get("/v1/subscriptions/{name}/deliveries", subscriptions.show_deliveries),
    ]
