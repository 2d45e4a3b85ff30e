"""`/v1/accounts`: the accounts of the file and of the API, and their balances."""

import asyncio
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from heapq import merge
from itertools import islice
from typing import Any, NamedTuple

from aiohttp import web

from watcher.api.problems import Problem, answer, page, page_of, query_of, unknown
from watcher.config.loading import masked
from watcher.journal.events import iso
from watcher.observe.views import account_line, balance_line, problems_of
from watcher.pause import compute, in_order, slowly
from watcher.run.directory import Followed, Known
from watcher.run.worker import Worker
from watcher.settings import AccountSettings, Settings, SubscriptionSettings
from watcher.store.directory import Kind
from watcher.store.keys import Keys
from watcher.store.pipe import Pipe
from watcher.store.reader import Reader

_AT_ONCE = 20
"""Items of a list described in one turn of the event loop: a millisecond."""

_ENTRIES_AT_ONCE = 50
"""Assets written in one turn of the event loop: a millisecond or two."""


class Opened(NamedTuple):
    """What a request needs of a worker that has started."""

    pipe: Pipe
    keys: Keys
    reader: Reader
    followed: Followed
    file: Settings


def opened(worker: Worker) -> Opened:
    """Return what a request needs of the worker. Raises Problem: 503 while it cannot be answered."""
    if worker.opened is None or worker.followed is None or not worker.has_begun:
        why = "this worker is starting: it has not reached Redis, or not read everything yet"
    elif worker.stands_by:
        why = "this worker stands by until Redis is in its layout"
    else:
        pipe, keys = worker.opened.schedule.pipe, Keys(worker.file.redis.namespace)
        return Opened(pipe, keys, Reader(pipe, keys), worker.followed, worker.file)
    raise Problem(503, why, headers={"retry-after": "2"})


class Names:
    """The names of one kind, in order: those of the file and those of the directory."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._file: Settings | None = None
        self._of_file: list[str] = []

    async def after(self, store: Opened, name: str, limit: int) -> list[str]:
        """Return at most `limit` names that come after `name`."""
        if self._file is not store.file:
            self._of_file = await compute(list, in_order(_of_file(self._kind, store.file)))
            self._file = store.file
        start = bisect_right(self._of_file, name)
        both = merge(self._of_file[start : start + limit], store.followed.names(self._kind, name, limit))
        return [*islice(dict.fromkeys(both), limit)]

    async def show_page(self, request: web.Request, worker: Worker) -> web.Response:
        """Answer with a page of descriptions."""
        asked, store = page_of(request), opened(worker)
        names = await self.after(store, asked.after, asked.limit + 1)
        found = [described(self._kind, name, store) async for name in slowly(names[: asked.limit], _AT_ONCE)]
        return answer(page(names, [one for one in found if one], asked.limit))


def _of_file(kind: Kind, file: Settings) -> Mapping[str, AccountSettings | SubscriptionSettings]:
    return file.account_by_name if kind == "account" else file.subscription_by_name


def described(kind: Kind, name: str, store: Opened) -> dict[str, Any] | None:
    """Describe an account or a subscription, without its secrets; None if there is none."""
    settings, known = _of_file(kind, store.file).get(name), store.followed.get(kind, name)
    if settings is None and known is None:
        return None
    is_read_only = settings is not None
    return {
        "name": name,
        "read_only": is_read_only,
        "state": "in_force" if is_read_only or known is None else known.state,
        "reason": None if is_read_only or known is None else known.reason or None,
        "version": None if is_read_only or known is None else known.record.edited,
        "settings": _shown(settings, known),
    }


async def found_now(kind: Kind, name: str, store: Opened) -> dict[str, Any]:
    """Describe an account or a subscription as it is now. Raises Problem: 404."""
    await store.followed.follow_now()  # another worker may have written it just now
    if (found := described(kind, name, store)) is None:
        raise unknown(kind, name)
    return found


def _shown(settings: AccountSettings | SubscriptionSettings | None, known: Known | None) -> dict[str, Any]:
    if settings := settings or (known and known.settings):
        return {key: value for key, value in masked(settings).items() if key != "name"}
    return dict(known.record.plain) if known else {}  # the rest is encrypted


def etag(described: dict[str, Any]) -> dict[str, str]:
    """Return the ETag header, which the next edit sends as If-Match; what the file defines has none."""
    return {"etag": f'"{described["version"]}"'} if described["version"] else {}


class Accounts:
    """Answers about accounts."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._names = Names("account")

    async def show_all(self, request: web.Request) -> web.Response:
        """Answer with a page of accounts, by name."""
        return await self._names.show_page(request, self._worker)

    async def show(self, request: web.Request) -> web.Response:
        """Answer with an account: its settings, its last poll, and its problems."""
        query_of(request)
        name, store = request.match_info["name"], opened(self._worker)
        found = await found_now("account", name, store)
        return answer({**found, "status": await self._status(name, store)}, headers=etag(found))

    async def _status(self, name: str, store: Opened) -> dict[str, Any]:
        settings = self._worker.settings
        if (account := settings.account_by_name.get(name)) is None:
            return {}
        reader = store.reader
        now_ms, watched_since_ms, failing = await asyncio.gather(
            reader.now_ms(), reader.watched_since_ms(), reader.failure(account.provider, name)
        )
        async for seen in reader.read_states({name: account.provider}):
            problems = problems_of(settings, seen, failing, now_ms, watched_since_ms=watched_since_ms)
            line = account_line(account, seen, failing, problems)
            return {key: line[key] for key in line.keys() - {"kind", "account", "provider"}}
        raise AssertionError

    async def show_balances(self, request: web.Request) -> web.Response:
        """Answer with the last accepted balances, and the sequence of the event that led to them."""
        query_of(request)
        name, store = request.match_info["name"], opened(self._worker)
        found = await found_now("account", name, store)
        provider, now_ms = found["settings"]["provider"], await store.reader.now_ms()
        async for seen in store.reader.read_states({name: provider}):
            state = seen.state
            is_read = state is not None and state.polled_at_ms > 0
            note = seen.damage
            if state and state.emptiness:
                note = f"the listing names nothing since {iso(state.emptiness.since_ms)}"
            entries = state.suspected.values() if state else ()
            return answer(
                {
                    "account": name,
                    "provider": provider,
                    "sequence": state.sequence if state else None,
                    "polled_at": iso(state.polled_at_ms) if state and is_read else None,
                    "age_s": max(0, now_ms - state.polled_at_ms) // 1000 if state and is_read else None,
                    "note": note,
                    "balances": [balance_line(entry) async for entry in slowly(entries, _ENTRIES_AT_ONCE)],
                }
            )
        raise AssertionError


def routes(worker: Worker) -> Iterable[web.RouteDef]:
    accounts = Accounts(worker)
    return [
        web.get("/v1/accounts", accounts.show_all),
        web.get("/v1/accounts/{name}", accounts.show),
        web.get("/v1/accounts/{name}/balances", accounts.show_balances),
    ]
