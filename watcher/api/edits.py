"""The requests under /v1 that change something: put, delete, poll, pause, resume, resend, ping.

Refuses to show a secret or a token a second time: only the answer to the request that made it holds it.
"""

import asyncio
import math
import re
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, Self, TypeVar

import orjson
from aiohttp import web
from pydantic import Field, StrictBool, field_validator, model_validator

from watcher.api.access import CALLER
from watcher.api.accounts import opened
from watcher.api.problems import BATCH_BYTES, Problem, answer, body_of, query_of, unknown
from watcher.config.bodies import BodyRefused, Table, read_table, section_of
from watcher.delivery.queue import pause_by_hand, resume_by_hand
from watcher.delivery.resend import Reached, Selection, send_part
from watcher.delivery.sink import Attempt
from watcher.durations import parse_since, since_ms
from watcher.engine.breaker import Answer
from watcher.observe.log import log
from watcher.pause import slowly
from watcher.printable import many, printable
from watcher.run.edits import Edited, Editor, EditRefused, Match, anything
from watcher.run.verification import TooMany
from watcher.run.worker import Worker
from watcher.settings import Section, SubscriptionSettings
from watcher.store.directory import Directory, Kind
from watcher.store.history import cursor_text, read_cursor
from watcher.store.keys import SHARDS, check_count
from watcher.store.members import WOKEN, Roster, woken_line
from watcher.store.queues import Breakers, Queues
from watcher.store.schedule import Schedule

MOST_OF_A_BATCH = 1000
PING_S = 9.0
"""Shorter than the time that a request may take."""

_LINES_AT_ONCE = 100
"""Lines of a batch read in one turn of the event loop: some milliseconds."""

LINES = ("application/jsonl", "application/x-ndjson")

_RECORD = re.compile(r"[0-9]{1,14}-[0-9]{1,14}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_TAG = re.compile(r'\s*(W/)?"([!#-~]*)"\s*(?:,|\Z)')

T = TypeVar("T")

_STATUS_BY_REASON: Mapping[str, int] = {
    "read_only": 409,
    "missing": 404,
    "precondition": 412,
    "conflict": 409,
    "full": 507,
    "locked": 409,
}


RESEND_S = 6.0
"""The same of a resend, which then says where the rest begins."""

_LONGEST_AFTER = 400


class Again(Section):
    """What to send again: one event, or dead letters, or the events of the log since a time."""

    id: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,64}\Z", description="the id of one event")
    dead: StrictBool = Field(False, description="all dead letters; with `since`, those since then")
    since: str | None = Field(
        None, description="how long ago (`1h`, `2d`), or a time such as `2026-11-20T14:00:00Z`"
    )
    dry_run: StrictBool = Field(False, description="only count what would be sent again")
    after: str | None = Field(
        None,
        max_length=_LONGEST_AFTER,
        description="alone: the `next` of the answer before, to go on with what that left",
    )

    @model_validator(mode="after")
    def _is_one_selection(self) -> Self:
        if sum((self.id is not None, self.dead or self.since is not None, self.after is not None)) != 1:
            raise ValueError("say what to send again: id, or dead, or since; or after alone")
        return self

    @field_validator("since")
    @classmethod
    def _is_a_time(cls, since: str | None) -> str | None:
        if since is not None:
            _since(since)
        return since


def _since(text: str) -> datetime | timedelta:
    """Read a time, or how long ago it was. Raises ValueError."""
    try:
        return parse_since(text)
    except ValueError:
        message = "write how long ago, as in 1h or 2d, or a time, as in 2026-11-20T14:00:00Z"
        raise ValueError(message) from None


def _after(selection: Selection, rest: Reached) -> str:
    """Write what is left of a selection, as a client gets it."""
    return cursor_text(orjson.dumps([[*selection], [*rest]]))


def _rest(text: str) -> tuple[Selection, Reached]:
    """Read what `_after` wrote. Raises Problem: 422."""
    with suppress(ValueError, TypeError):
        one, other = orjson.loads(read_cursor(text))
        selection, rest = Selection(*one), Reached(*other)
        is_ours = [*map(type, one[1:] + other)] == [bool, int, int, bool, bool, int, str]
        is_ours = is_ours and isinstance(selection.event_id, str | None) and _after(selection, rest) == text
        if is_ours and _RECORD.fullmatch(rest.record) and 0 <= rest.shard <= SHARDS:
            check_count(selection.since_ms)
            check_count(selection.until_ms)
            return selection, rest
    raise Problem(422, "after: is not the `next` of an answer to a resend")


class Edits:
    """Answers requests that change something."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._under_way = set[asyncio.Task[Any]]()

    async def put_account(self, request: web.Request) -> web.Response:
        """Add an account, or change it."""
        query_of(request)
        table = _table(await body_of(request), request)
        with _refusals():
            by, match = request[CALLER].name, _match_of(request)
            edited = await self._whole(self._editor().put_account(table, by=by, match=match))
        return _answer(edited, request)

    async def put_accounts(self, request: web.Request) -> web.Response:
        """Add or change many accounts, one on each line. The answer has a line for each, in the same
        order."""
        query_of(request)
        body = await body_of(request, limit=BATCH_BYTES, types=LINES)
        lines = [line for line in body.split(b"\n") if line.strip()]
        if not 1 <= len(lines) <= MOST_OF_A_BATCH:
            raise Problem(
                413 if lines else 400, f"a batch has a line for each account, {MOST_OF_A_BATCH:,} at most"
            )
        found: list[Edited | BodyRefused | EditRefused | None] = [None] * len(lines)
        table_by_place: dict[int, Table] = {}
        async for place, line in slowly(enumerate(lines), _LINES_AT_ONCE):
            try:
                table_by_place[place] = read_table(line, named=None)
            except BodyRefused as refused:
                found[place] = refused
        tables, by = [*table_by_place.values()], request[CALLER].name
        edits = await self._whole(self._editor().put_accounts(tables, by=by))
        for place, edit in zip(table_by_place, edits, strict=True):
            found[place] = edit
        said = bytearray()
        async for number, said_of in slowly(enumerate(found, 1), _LINES_AT_ONCE):
            assert said_of is not None
            said += orjson.dumps(_line(number, table_by_place.get(number - 1, {}), said_of)) + b"\n"
        return web.Response(body=bytes(said), content_type=LINES[0])

    async def put_subscription(self, request: web.Request) -> web.Response:
        """Add a subscription, or change it."""
        query_of(request)
        table = _table(await body_of(request), request)
        with _refusals():
            by, match = request[CALLER].name, _match_of(request)
            edited = await self._whole(self._editor().put_subscription(table, by=by, match=match))
        return _answer(edited, request)

    async def delete_account(self, request: web.Request) -> web.Response:
        return await self._delete("account", request)

    async def delete_subscription(self, request: web.Request) -> web.Response:
        return await self._delete("subscription", request)

    async def _delete(self, kind: Kind, request: web.Request) -> web.Response:
        await _nothing_else(request)
        with _refusals():
            by, match = request[CALLER].name, _match_of(request)
            name = _name(kind, request)
            await self._whole(self._editor().delete(kind, name, by=by, match=match))
        return web.Response(status=204)

    async def renew_secret(self, request: web.Request) -> web.Response:
        """Make a new signing secret. The old ones sign as well for 24 hours."""
        await _nothing_else(request)
        with _refusals():
            name = _name("subscription", request)
            edited = await self._whole(self._editor().renew_secret(name, by=request[CALLER].name))
        return _answer(edited, request)

    async def renew_token(self, request: web.Request) -> web.Response:
        """Make a new token. The old ones stay valid for 24 hours."""
        await _nothing_else(request)
        with _refusals():
            name = _name("subscription", request)
            edited = await self._whole(self._editor().renew_token(name, by=request[CALLER].name))
        return _answer(edited, request)

    async def poll(self, request: web.Request) -> web.Response:
        """Make an account due now."""
        await _nothing_else(request)
        store, name = opened(self._worker), _name("account", request)
        woken = await Roster(store.pipe, store.keys).wake([name])
        if woken:
            return answer(woken_line(woken[0]), status=202)
        if name not in self._worker.settings.account_by_name:
            raise unknown("account", name)
        return answer({**dict.fromkeys(WOKEN), "account": name, "state": "unscheduled"}, status=202)

    async def pause(self, request: web.Request) -> web.Response:
        """Pause a subscription: it is sent nothing until it is resumed, and its events are kept."""
        await _nothing_else(request)
        store, name = opened(self._worker), self._subscription(request).name
        is_new = await pause_by_hand(Breakers(store.pipe, store.keys), name)
        return self._answer_change(request, name, "paused", is_new=is_new)

    async def resume(self, request: web.Request) -> web.Response:
        """Resume a subscription: what waits for it is sent at once, even if its breaker was open."""
        await _nothing_else(request)
        store, name = opened(self._worker), self._subscription(request).name
        queues = Queues(Schedule(store.pipe), store.keys)
        is_new = await resume_by_hand(Breakers(store.pipe, store.keys), queues, name)
        return self._answer_change(request, name, "resumed", is_new=is_new)

    async def resend(self, request: web.Request) -> web.Response:
        """Send events again: one event, dead letters, or those of the log since a time."""
        query_of(request)
        table = _table(await body_of(request), None)
        with _refusals():
            asked = section_of(Again, table)
        store, settings = opened(self._worker), self._subscription(request)
        if asked.after is not None:
            selection, start = _rest(asked.after)
        else:
            now_ms = await store.reader.now_ms()
            start_ms = since_ms(_since(asked.since) if asked.since else None, now_ms)
            selection = Selection(asked.id, asked.dead, start_ms, now_ms, asked.dry_run)
            start = Reached(is_log=not (asked.id or asked.dead))
        resent, rest = await send_part(store.pipe, store.keys, settings, selection, start, within_s=RESEND_S)
        if not resent.is_found and rest == start:
            raise Problem(
                422, "this takes too long for a request, and nothing was sent: use `watcher resend`"
            )
        if selection.event_id and not (rest or resent.is_found):
            raise Problem(404, f"nothing of {selection.event_id} is left: no dead letter, no record of it")
        breaker = (await Breakers(store.pipe, store.keys).read()).get(settings.name)
        if not selection.is_preview:
            self._log_change(request, settings.name, "resent")
        is_paused = bool(breaker and breaker.paused_at_ms)
        line = resent.line(is_paused=is_paused, is_preview=selection.is_preview)
        return answer({**line, "next": rest and _after(selection, rest)})

    async def ping(self, request: web.Request) -> web.Response:
        """Send a sample event now, and answer with the result. A URL that answers 2xx is verified."""
        await _nothing_else(request)
        opened(self._worker)
        settings, verification = self._subscription(request), self._worker.verification
        assert verification, "it is there as soon as the directory is read"
        attempt = Attempt(Answer.NO_ANSWER, int(1000 * PING_S), error=f"no answer within {PING_S:.0f} s")
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(PING_S):
                    attempt = await verification.ping(settings)
        except TooMany as error:
            after = {"retry-after": str(math.ceil(error.retry_after_s))}
            raise Problem(429, str(error), headers=after) from None
        self._log_change(request, settings.name, "pinged")
        followed = self._worker.followed
        known = followed.get("subscription", settings.name) if followed else None
        return answer(
            {
                "name": settings.name,
                "delivered": attempt.answer is Answer.DELIVERED,
                "verified": known is None or known.state != "unverified",
                "status": attempt.status,
                "error": attempt.error,
                "answer": attempt.excerpt or None,
                "fix": attempt.fix or None,
                "duration_ms": attempt.duration_ms,
            }
        )

    async def _whole(self, edit: Coroutine[Any, Any, T]) -> T:
        """Finish an edit even if its request runs out of time, so that it is logged."""
        task = asyncio.create_task(edit)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # no caller awaits it
            raise

    def _editor(self) -> Editor:
        """Return the editor. Raises Problem: 503 on a worker that has no key to encrypt with."""
        store, worker = opened(self._worker), self._worker.opened
        if (keyring := store.followed.keyring) is None or worker is None:
            raise Problem(503, "this worker has no [api] secret_key to encrypt it with")
        directory = Directory(store.pipe, store.keys)
        return Editor(directory, keyring, store.followed, now_ms=worker.schedule.now_ms)

    def _subscription(self, request: web.Request) -> SubscriptionSettings:
        """Find the subscription in the path. Raises Problem: 404, or 409 where this worker cannot use it."""
        name, followed = _name("subscription", request), opened(self._worker).followed
        if (settings := self._worker.settings.subscription_by_name.get(name)) is not None:
            return settings
        if known := followed.get("subscription", name):
            raise Problem(409, f"subscription {name} cannot be used here: {known.reason}")
        raise unknown("subscription", name)

    def _log_change(self, request: web.Request, name: str, change: str) -> None:
        log.info("directory.changed", kind="subscription", name=name, change=change, by=request[CALLER].name)

    def _answer_change(self, request: web.Request, name: str, change: str, *, is_new: bool) -> web.Response:
        if is_new:
            self._log_change(request, name, change)
        return answer({"name": name, "change": change if is_new else "unchanged"})


def routes(worker: Worker) -> Iterable[web.RouteDef]:
    edits = Edits(worker)
    account, subscription = "/v1/accounts/{name}", "/v1/subscriptions/{name}"
    return [
        web.put(account, edits.put_account),
        web.delete(account, edits.delete_account),
        web.post(f"{account}/poll", edits.poll),
        web.post("/v1/accounts:batch", edits.put_accounts),
        web.put(subscription, edits.put_subscription),
        web.delete(subscription, edits.delete_subscription),
        web.post(f"{subscription}/secret", edits.renew_secret),
        web.post(f"{subscription}/token", edits.renew_token),
        web.post(f"{subscription}/pause", edits.pause),
        web.post(f"{subscription}/resume", edits.resume),
        web.post(f"{subscription}/resend", edits.resend),
        web.post(f"{subscription}/ping", edits.ping),
    ]


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn refused bodies and edits into problems."""
    try:
        yield
    except (BodyRefused, EditRefused) as refused:
        raise Problem(_status(refused), _detail(refused), errors=_errors(refused)) from None


def _status(edit: Edited | BodyRefused | EditRefused) -> int:
    if isinstance(edit, Edited):
        return 201 if edit.change == "created" else 200
    return 422 if isinstance(edit, BodyRefused) else _STATUS_BY_REASON[edit.why]


def _detail(refused: BodyRefused | EditRefused, part: str = "body") -> str:
    if isinstance(refused, EditRefused):
        return printable(str(refused), 500)
    return f"{many(len(refused.findings), 'mistake')} in the {part}"


def _errors(refused: BodyRefused | EditRefused) -> list[dict[str, str]]:
    found = refused.findings if isinstance(refused, BodyRefused) else ()
    return [{"pointer": one.key, "detail": one.text} for one in found]


def _line(number: int, table: Table, edit: Edited | BodyRefused | EditRefused) -> dict[str, Any]:
    """Write the result of one line of a batch."""
    line = {"line": number, "name": _text(table.get("name")), "status": _status(edit)}
    if isinstance(edit, Edited):
        return {**line, "change": edit.change, "version": edit.version}
    return {**line, "detail": _detail(edit, "line"), "errors": _errors(edit)}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _answer(edited: Edited, request: web.Request) -> web.Response:
    """Answer with the result of an edit, and the secrets and token that it made."""
    shown: dict[str, Any] = {"name": edited.name, "change": edited.change}
    if edited.secrets:
        shown["secrets"] = edited.secrets
    if edited.token:
        shown["token"] = edited.token
    headers = {} if edited.change in ("secret", "token") else {"etag": f'"{edited.version}"'}
    if edited.change == "created":
        headers["location"] = request.path
    return answer(shown, status=_status(edited), headers=headers)


def _table(body: bytes, request: web.Request | None) -> Table:
    """Read a body that is a JSON object, with the name in the path. Raises Problem: 400."""
    try:
        return read_table(body, named=request.match_info["name"] if request else None)
    except BodyRefused as refused:
        raise Problem(400, _detail(refused), errors=_errors(refused)) from None


def _name(kind: Kind, request: web.Request) -> str:
    """Read the name in the path. Raises Problem: 404 if it cannot be a name."""
    name = request.match_info["name"]
    if not _NAME.fullmatch(name):
        raise unknown(kind, name)
    return name


async def _nothing_else(request: web.Request) -> None:
    """Refuse a query, and a body that is not empty. Raises Problem."""
    query_of(request)
    if (await body_of(request, is_optional=True)).strip() not in (b"", b"{}"):
        raise Problem(400, "this request takes no body")


def _match_of(request: web.Request) -> Match:
    """Read If-Match and If-None-Match (RFC 9110). Raises Problem: 400."""
    wanted, unwanted = _tags(request, "if-match"), _tags(request, "if-none-match")
    if wanted is None and unwanted is None:
        return anything

    def match(version: int | None) -> bool:
        tags = set() if version is None else {"*", str(version)}
        return (wanted is None or bool(tags & wanted)) and not (unwanted and tags & unwanted)

    return match


def _tags(request: web.Request, header: str) -> set[str] | None:
    """Read a list of entity tags, or `*`; a weak one of If-Match is never the same."""
    if header not in request.headers:
        return None
    text = ",".join(request.headers.getall(header)).strip()
    if text == "*":
        return {"*"}
    found, at = set[str](), 0
    while at < len(text) or not text:
        if not (tag := _TAG.match(text, at)):
            raise Problem(400, f'{header}: must be `*`, or tags as in `"123"`')
        if not (tag[1] and header == "if-match"):
            found.add(tag[2])
        at = tag.end()
    return found
