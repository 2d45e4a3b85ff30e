"""Events to pull, and balances to start from: for a receiver that found a gap, or that lost its database.

A subscription gets the events that were queued for it, with the exact bytes of the webhooks, and the balances
of its own accounts and assets. Pings, alerts and events that were sent again are not in the log.
"""

import asyncio
import re
from collections.abc import Iterable, Sequence
from fnmatch import translate
from itertools import islice
from typing import Any

import orjson
from aiohttp import web

from watcher.api.access import COST
from watcher.api.accounts import Names, Opened, opened
from watcher.api.problems import Problem, cursor, limit_in, page_of, query_of, unknown
from watcher.config.tables import is_glob
from watcher.encryption import Keyring, Undecryptable
from watcher.journal.events import Event, amounts_of, iso
from watcher.journal.interest import Filters, Interest
from watcher.run.worker import Worker
from watcher.snapshot import Asset
from watcher.store.history import PAGE_BYTES, Cursor, Gone, History, Logged, cursor_text, read_cursor
from watcher.store.reader import Seen

_CURSOR = "cursor"
"""The kind under which cursors are encrypted: no record of the directory has it."""

TYPE = r"[a-z_.*?!\[\]-]{1,64}"
"""An event type or a glob. It is short, because a long glob would hold the event loop up."""

_SEQUENCE = re.compile(r"0|[1-9][0-9]{0,13}")
_OF_A_LOOK = 2
"""How many requests a page counts as for each read of the log that finds next to nothing: a subscription that
gets few events could otherwise keep Redis busy."""

_NAMES_AT_ONCE = 1000
"""Names of accounts looked at in one turn of the event loop: well below a millisecond."""

_GONE = (
    "what followed is no longer in the log, or Redis was set back since: begin with the balances, or go on "
    "from `oldest` and take each id once"
)


def routes(worker: Worker) -> Iterable[web.RouteDef]:
    """Return the routes of this module."""
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
        self._accounts = Names("account")

    async def all_events(self, request: web.Request) -> web.Response:
        """Answer with events of the log, to the operator: all, or those of one subscription."""
        asked = query_of(request, "after", "limit", "account", "subscription", "type")
        return await self._events(opened(self._worker), asked, asked.get("subscription"), is_own=False)

    async def events(self, request: web.Request) -> web.Response:
        """Answer with the events that were queued for a subscription and that it may still see."""
        asked, store = query_of(request, "after", "limit", "account", "type"), opened(self._worker)
        name, account = _known_in(request, store), asked.get("account")
        if account is not None and name not in store.followed.interest.listeners(account):
            raise unknown("account", account)  # even if it exists: the subscription is not to know
        return await self._events(store, asked, name, is_own=True)

    async def balances(self, request: web.Request) -> web.Response:
        """Answer with the balances of a subscription's accounts, as the events up to `sequence` left them."""
        page, store = page_of(request), opened(self._worker)
        name = _known_in(request, store)
        end = await History(store.pipe, store.keys).end()  # before the states: no event is lost in between
        names, turns = await self._accounts_of(name, page.after, page.limit + 1, store)
        provider_by_account = dict(names[: page.limit])
        items, size = list[bytes](), 0
        async for seen in store.reader.read_states(provider_by_account):
            items.append(orjson.dumps(_holding(seen, provider_by_account[seen.account], name, store)))
            size += len(items[-1])
            if size > PAGE_BYTES:
                break
        next_after = cursor(names[len(items) - 1][0]) if len(items) < len(names) else None
        response = _raw(items, next=next_after, events=_shown(end, name, store))
        response[COST] = turns
        return response

    async def _events(
        self, store: Opened, asked: dict[str, str], name: str | None, *, is_own: bool
    ) -> web.Response:
        """Answer with a page of events. `is_own`: the subscription itself asks. It gets only what it may see,
        and cursors that no other subscription can read or use."""
        history, interest, limit = History(store.pipe, store.keys), store.followed.interest, limit_in(asked)
        account, type_, after = asked.get("account"), asked.get("type", "*"), asked.get("after", "")
        owner = name if is_own else None
        if not re.fullmatch(TYPE, type_):
            raise Problem(400, "type: must be a type of events, or a glob of some, such as `deposit.*`")
        is_asked = re.compile(translate(type_)).match  # fnmatch would cache each of the many globs of clients

        def takes(event: Logged) -> bool:
            return bool(is_asked(event.type)) and (owner is None or _may_see(owner, event, interest))

        seen: Seen | None = None
        try:
            start = _start(after, owner, store)
            if start.after is not None:
                if account is None:
                    raise Problem(400, "after: is of one account: say of which `account`")
                seen = await _state(account, store)
                if not start.places and seen.state:
                    sequence, end = seen.state.sequence, seen.log_end
                    start = await history.since(account, start.after, sequence=sequence, log_end=end)
            page = await history.page(start, account=account, subscription=name, limit=limit, takes=takes)
        except Gone as gone:
            oldest: str | int = _shown(Cursor(), owner, store)
            if seen:
                oldest = seen.state.sequence if gone.oldest is None and seen.state else gone.oldest or 0
            raise Problem(410, _GONE, oldest=oldest) from None
        items = [event.to(name).body if name else event.content + b"}" for event in page.events]
        more = {"unreadable": page.unreadable} if page.unreadable else {}
        response = _raw(items, next=_shown(page.cursor, owner, store), more=not page.is_end, **more)
        response[COST] = _OF_A_LOOK * page.in_vain
        return response

    async def _accounts_of(
        self, name: str, after: str, most: int, store: Opened
    ) -> tuple[list[tuple[str, str]], int]:
        """Return a subscription's first accounts after a name, each with its provider; and how many turns of
        the event loop that took, where globs had to be compared with all accounts."""
        found, turns = list[tuple[str, str]](), 0
        if (wanted := _named_by(name, store)) is not None:
            known = store.followed.settings.account_by_name
            some = islice((one for one in sorted(wanted) if one > after and one in known), most)
            return [(one, known[one].provider) for one in some], turns
        while len(found) < most and (names := await self._accounts.after(store, after, _NAMES_AT_ONCE)):
            after, known = names[-1], store.followed.settings.account_by_name
            listeners = store.followed.interest.listeners
            found += [(one, known[one].provider) for one in names if one in known and name in listeners(one)]
            turns += 1
            await asyncio.sleep(0)
        return found[:most], turns


def _known_in(request: web.Request, store: Opened) -> str:
    """Return the subscription in the path. Raises Problem: 404."""
    name = request.match_info["name"]
    if name not in store.followed.interest.names:
        raise unknown("subscription", name)
    return name


def _named_by(subscription: str, store: Opened) -> set[str] | None:
    """Return the accounts that a subscription names; None if it has globs."""
    filters: Filters | None = store.followed.settings.subscription_by_name.get(subscription)
    known = store.followed.get("subscription", subscription)
    filters = filters or (known.filters if known else None)
    return None if filters is None or any(map(is_glob, filters.accounts)) else {*filters.accounts}


def _start(after: str, owner: str | None, store: Opened) -> Cursor:
    """Read where a page begins: at a sequence, a cursor, or the oldest event. Raises Problem: 400."""
    if not after or _SEQUENCE.fullmatch(after):
        return Cursor({}, int(after)) if after else Cursor()
    try:
        if owner is not None:
            after = _keyring(store).decrypt(_CURSOR, owner, {}, read_cursor(after))["cursor"]
        return Cursor.read(after)
    except (ValueError, Undecryptable):
        raise Problem(400, "after: is neither the `next` of a page of these events nor a sequence") from None


def _shown(cursor: Cursor, owner: str | None, store: Opened) -> str:
    """Write a cursor, encrypted for a subscription: it holds the time of each shard's last event, which may
    be another subscription's."""
    if owner is None:
        return cursor.text
    return cursor_text(_keyring(store).encrypt(_CURSOR, owner, {}, {"cursor": cursor.text}))


def _keyring(store: Opened) -> Keyring:
    if store.file.api is None:
        raise Problem(503, "this worker has no [api] secret_key to encrypt a cursor with")
    keys = [key.get_secret_value() for key in store.file.api.secret_key]
    return Keyring(keys, store.file.redis.namespace)


async def _state(account: str, store: Opened) -> Seen:
    settings = store.followed.settings.account_by_name.get(account)
    if settings is None:
        raise unknown("account", account)
    (seen,) = [one async for one in store.reader.read_states({account: settings.provider})]
    return seen


def _holding(seen: Seen, provider: str, name: str, store: Opened) -> dict[str, Any]:
    """Write an account's balances of the assets that a subscription wants."""
    state, interest = seen.state, store.followed.interest
    entries = state.entry_by_asset.values() if state else ()
    return {
        "account": {"name": seen.account, "provider": provider},
        "sequence": None if seen.damage else state.sequence if state else 0,
        "polled_at": iso(state.polled_at_ms) if state and state.polled_at_ms else None,
        "balances": [
            {"asset": entry.asset._asdict(), **amounts_of(entry.published)}
            for entry in entries
            if interest.holds(name, entry.asset)
        ],
    }


def _may_see(subscription: str, event: Logged, interest: Interest) -> bool:
    """Say whether a subscription, as it is now, still matches an event that was queued for it."""
    if subscription not in interest.listeners(event.account):
        return False
    # A crossing was queued because of the subscription's threshold, whatever its `assets` are.
    is_crossing = event.type == "threshold.crossed"
    if not interest.wants(subscription, Event("", event.type, event.account, None, "0", 0, b"")):
        return False
    if is_crossing or interest.holds(subscription):
        return True
    try:
        asset = orjson.loads(event.content + b"}")["data"]["asset"]
        return asset is None or interest.holds(subscription, Asset(*(asset[name] for name in Asset._fields)))
    except (ValueError, KeyError, TypeError):
        return False


def _raw(items: Sequence[bytes], **said: Any) -> web.Response:
    """Answer with items as they are stored, and these other fields."""
    body = b'{"items":[%b],%b' % (b",".join(items), orjson.dumps(said)[1:])
    return web.Response(body=body, content_type="application/json")
