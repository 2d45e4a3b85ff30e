"""A receiver that records everything: when an attempt came, its id, its bytes, whether it verifies, and
how it was answered.

Refuses to judge: `verdict` reads what is written here.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self

from aiohttp import web

from tests.support.builders import SECRET
from watcher.receive import Event, InvalidWebhook, verify


class Arrival(NamedTuple):
    """One attempt. `problem` says why it does not verify; then `event` is empty and it was answered 400."""

    at: float
    id: str
    body: bytes
    event: Event
    problem: str | None
    worker: str

    @property
    def account(self) -> str:
        return str(self.event["data"]["account"]["name"])


class Said(NamedTuple):
    """How an attempt is answered; status 0 resets the connection instead."""

    status: int = 200
    after_s: float = 0
    retry_after_s: int | None = None


class Answered(NamedTuple):
    """An attempt with its answer, and when that goes out, if the attempt is not given up before."""

    arrival: Arrival
    said: Said
    at: float


@dataclass(eq=False)
class RecordingReceiver:
    """Listens while it is entered (`async with`). `notice` is called for an attempt before it is answered;
    `respond` says how to answer one that verifies."""

    delay_s: float = 0
    respond: Callable[[Arrival], Said] = lambda _arrival: Said()
    fail_every: int = 0
    """Of so many attempts one is answered 500 (0: none)."""

    notice: Callable[[Arrival], None] = lambda _arrival: None
    arrivals: list[Arrival] = field(init=False, default_factory=list)
    balances: dict[tuple[str, str], dict[str, str]] = field(init=False, default_factory=dict)
    """What the event that came last for the first time says of each account and asset."""

    answered: list[Answered] = field(init=False, default_factory=list)
    is_hung_no_more: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    """Set it to let what hangs end at once."""

    most_in_flight: int = 0
    """At the same time, since this was last set."""

    def __post_init__(self) -> None:
        self._ids: set[str] = set()
        self._in_flight = 0

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/", self._take)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    @property
    def taken(self) -> int:
        """How many different events came."""
        return len(self._ids)

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        event, problem = _read(request, body)
        headers = request.headers
        worker = headers.get("x-worker", "")
        arrival = Arrival(time.time(), headers.get("webhook-id", ""), body, event, problem, worker)
        self.arrivals.append(arrival)
        if not problem:
            self._remember(arrival)
        self.notice(arrival)
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            said = Said(400) if problem else self.respond(arrival)
            if self.fail_every and len(self.arrivals) % self.fail_every == 0 and said.status == 200:
                said = Said(500)
            wait_s = self.delay_s + said.after_s
            self.answered.append(Answered(arrival, said, time.time() + wait_s))
            if said.after_s > 1:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.is_hung_no_more.wait(), wait_s)
            elif wait_s:
                await asyncio.sleep(wait_s)
        finally:
            self._in_flight -= 1
        if not said.status and request.transport:
            request.transport.abort()
        rest = {} if said.retry_after_s is None else {"retry-after": str(said.retry_after_s)}
        return web.Response(status=said.status or 500, headers=rest)

    def _remember(self, arrival: Arrival) -> None:
        if arrival.id not in self._ids:
            self._ids.add(arrival.id)
            data = arrival.event["data"]
            if data["asset"]:
                self.balances[arrival.account, data["asset"]["id"]] = data["after"]


def _read(request: web.Request, body: bytes) -> tuple[Event, str | None]:
    try:
        return verify(request.headers, body, SECRET), None
    except InvalidWebhook as problem:
        return {}, str(problem)
