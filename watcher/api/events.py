"""Events to pull, and balances to begin with: for a receiver that found a gap, or that lost its database.

A subscription gets what was queued for it, byte for byte as it was or is to be sent, and balances of its own
accounts and assets. What `enqueue` put into queues besides (pings, alerts, what was sent again) is in no log.
"""

import asyncio
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import orjson
from aiohttp import web

from watcher.amounts import Conversions
from watcher.api.problems import Problem, cursor, limit_in, page_of, query_of, unknown
from watcher.journal.events import Delivery, Event, amounts_of, iso
from watcher.journal.interest import Interest
from watcher.journal.log import Record, sequence_of
from watcher.run.worker import Worker
from watcher.snapshot import Asset
from watcher.store.history import PAGE_BYTES, Cursor, Gone, History
from watcher.store.keys import Keys
from watcher.store.pipe import Pipe, in_parts
from watcher.store.reader import Reader, Seen

_SEQUENCE = re.compile(r"0|[1-9][0-9]{0,13}")
_NAMES_AT_ONCE = 1000
"""Names of accounts looked at in one turn of the event loop: well below a millisecond."""

_GONE = (
    "what followed is no longer held, or the store was set back since: begin with the balances, or go on "
    "from `oldest` and take each id once"
)


def routes(worker: Worker) -> Iterable[web.RouteDef]:
    """What is served under /v1 by this module."""
    pull = _Pull(worker)
    return (
        web.get("/v1/events", pull.all_events),
        web.get("/v1/subscriptions/{name}/events", pull.events),
        web.get("/v1/subscriptions/{name}/balances", pull.balances),
    )


class _Pull:
    """Reads the log and the states of one worker's store."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def all_events(self, request: web.Request) -> web.Response:
        """Events of the log, for the operator: of all, or as one subscription got them."""
        asked = query_of(request, "after", "limit", "account", "subscription", "type")
        return await self._events(asked, asked.get("subscription"))

    async def events(self, request: web.Request) -> web.Response:
        """Events that were queued for a subscription, as far as it may still see them."""
        name, interest = request.match_info["name"], self._interest
        asked = query_of(request, "after", "limit", "account", "type")
        if name not in interest.names:
            raise unknown("subscription", name)
        account = asked.get("account")
        if account is not None and name not in interest.listeners(account):
            raise unknown("account", account)  # whether there is one or not
        return await self._events(asked, name, interest)

    async def balances(self, request: web.Request) -> web.Response:
        """What the accounts of a subscription hold: of each what all events up to its `sequence` led to."""
        name, page, interest = request.match_info["name"], page_of(request), self._interest
        if name not in interest.names:
            raise unknown("subscription", name)
        events = (await self._history.end()).text  # before any state is read: nothing falls in between
        names = await self._accounts_of(name, page.after, page.limit + 1)
        known = self._worker.settings.account_by_name
        provider_by_account = {one: known[one].provider for one in names[: page.limit] if one in known}
        items, size = list[bytes](), 0
        async for seen in Reader(*self._store).read_states(provider_by_account):
            items.append(orjson.dumps(self._holding(seen, provider_by_account[seen.account], name)))
            size += len(items[-1])
            if size > PAGE_BYTES:
                break
        read = [*provider_by_account][: len(items)]
        is_last = read == names
        said = orjson.dumps({"next": None if is_last or not read else cursor(read[-1]), "events": events})
        return _raw(items, said)

    async def _events(
        self, asked: dict[str, str], name: str | None, interest: Interest | None = None
    ) -> web.Response:
        limit = limit_in(asked)
        account, type_, after = asked.get("account"), asked.get("type", "*"), asked.get("after", "")
        is_sequence = _SEQUENCE.fullmatch(after) is not None
        if is_sequence and not account:
            raise Problem(400, "after: is a sequence, which is one account's: say of which `account`")
        seen: Seen | None = None

        def takes(record: Record) -> bool:
            event = _event_of(record, name)
            return (
                event is not None
                and fnmatchcase(event.type, type_)
                and (
                    name is None
                    or interest is None
                    or (name in interest.listeners(record.account) and interest.wants(name, event))
                )
            )

        try:
            start = Cursor({}, int(after)) if is_sequence else Cursor.read(after) if after else Cursor()
            if account and start.after is not None:
                seen = await self._state(account)
                if is_sequence and seen.state:
                    sequence, end = seen.state.sequence, seen.log_end
                    start = await self._history.since(account, start.after, sequence=sequence, log_end=end)
            page = await self._history.page(
                start, account=account, subscription=name, limit=limit, takes=takes
            )
        except ValueError as error:
            raise Problem(400, f"after: {error}") from None
        except Gone as gone:
            oldest: str | int = Cursor().text
            if seen:
                oldest = seen.state.sequence if gone.oldest is None and seen.state else gone.oldest or 0
            raise Problem(410, _GONE, oldest=oldest) from None
        more = {"unreadable": page.unreadable} if page.unreadable else {}
        said = orjson.dumps({"next": page.cursor.text, "more": not page.is_end, **more})
        return _raw([_body(record, name) for record in page.records], said)

    @property
    def _store(self) -> tuple[Pipe, Keys]:
        if self._worker.opened is None or self._worker.stands_by:
            raise Problem(503, "this worker waits for its store")
        return self._worker.opened.schedule.pipe, Keys(self._worker.settings.redis.namespace)

    @property
    def _history(self) -> History:
        return History(*self._store)

    @property
    def _interest(self) -> Interest:
        if self._worker.configured is None:
            raise Problem(503, "this worker waits for its store")
        return self._worker.configured.interest

    async def _state(self, account: str) -> Seen:
        settings = self._worker.settings.account_by_name.get(account)
        if settings is None:
            raise unknown("account", account)
        (seen,) = [one async for one in Reader(*self._store).read_states({account: settings.provider})]
        return seen

    async def _accounts_of(self, name: str, after: str, most: int) -> list[str]:
        """Name the first of a subscription's accounts that come after a name."""
        found: list[str] = []
        for some in in_parts([*self._worker.settings.account_by_name], _NAMES_AT_ONCE):
            listeners = self._interest.listeners
            found += [one for one in some if one > after and name in listeners(one)]
            if len(found) > _NAMES_AT_ONCE:
                found = sorted(found)[:most]
            await asyncio.sleep(0)
        return sorted(found)[:most]

    def _holding(self, seen: Seen, provider: str, name: str) -> dict[str, Any]:
        """Write what an account holds of the assets that a subscription wants."""
        state, conversions, interest = seen.state, Conversions(), self._interest
        entries = state.entry_by_asset.values() if state else ()
        return {
            "account": {"name": seen.account, "provider": provider},
            "sequence": None if seen.damage else state.sequence if state else 0,
            "polled_at": iso(state.polled_at_ms) if state and state.polled_at_ms else None,
            "balances": [
                {"asset": entry.asset._asdict(), **amounts_of(entry.published, conversions)}
                for entry in entries
                if interest.holds(name, entry.asset)
            ],
        }


def _event_of(record: Record, subscription: str | None) -> Event | None:
    """Read what a record says of its event, as far as wishes go by it; None where it is damaged."""
    try:
        content, asset = record.content, record.content["data"]["asset"]
        asset = None if asset is None else Asset(*(asset[field] for field in Asset._fields))
        # A crossing was queued for those whose threshold it was, whatever assets they want else.
        only_for = subscription if content["type"] == "threshold.crossed" else None
        sequence, amount = sequence_of(record), content["data"]["amount"]
        return Event(content["id"], content["type"], record.account, asset, amount, sequence, b"", only_for)
    except (KeyError, TypeError):
        return None


def _body(record: Record, subscription: str | None) -> bytes:
    """Write an event as it was sent to a subscription; without one, what it says to all."""
    if subscription is None:
        return record.raw + b"}"
    id_, type_ = record.content["id"], record.content["type"]
    previous = record.previous[subscription]
    return Delivery(id_, type_, sequence_of(record), record.raw, subscription, previous).body


def _raw(items: Sequence[bytes], said: bytes) -> web.Response:
    """Answer with items as they are, and what else is said of them."""
    return web.Response(
        body=b'{"items":[%b],%b' % (b",".join(items), said[1:]), content_type="application/json"
    )
