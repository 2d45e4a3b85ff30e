"""Serves the simulators on this machine: real HTTP on real sockets; every request is recorded.

Refuses any interface but loopback.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from random import Random
from types import TracebackType
from typing import Self

from aiohttp import web

from watcher.printable import why_not_listening
from watcher.sandbox.answers import Answer, Call, Declined, Reply, call_of, drop_default_type, send
from watcher.sandbox.bank import Bank
from watcher.sandbox.book import ProviderName
from watcher.sandbox.knobs import BankKnobs, Knobs, LoopringKnobs, MetakeepKnobs, RateLimit, Traffic
from watcher.sandbox.loopring import Loopring
from watcher.sandbox.metakeep import Metakeep
from watcher.sandbox.world import World, default_world

HOST = "127.0.0.1"
CUT_OFF_S = 0.05
"""How long a stop waits for answers in flight. It may not be 0, which aiohttp reads as for ever."""


class Sandbox:
    """All providers, served while the context lasts. See `default_world` for what the accounts hold.

    `world` is the truth; `loopring`, `metakeep` and `bank` are the knobs; `traffic` has the requests. Port 0
    is any free port; it stays the same when a provider is taken down and brought back.
    """

    def __init__(
        self,
        world: World | None = None,
        *,
        loopring: LoopringKnobs | None = None,
        metakeep: MetakeepKnobs | None = None,
        bank: BankKnobs | None = None,
        loopring_port: int = 0,
        metakeep_port: int = 0,
        bank_port: int = 0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        seed: int = 0,
    ) -> None:
        self.world = world or default_world()
        self.loopring = loopring or LoopringKnobs()
        self.metakeep = metakeep or MetakeepKnobs()
        self.bank = bank or BankKnobs()
        self.traffic = Traffic()
        random = Random(seed)

        def now_ms() -> int:
            return int(now() * 1000)

        loopring_simulator = Loopring(self.world, self.loopring, random=random, now_ms=now_ms)
        metakeep_simulator = Metakeep(self.world, self.metakeep, random=random, now_ms=now_ms)
        bank_simulator = Bank(self.world, self.bank, random=random)
        self._site_by_provider: dict[ProviderName, _Site] = {
            "loopring": _Site(loopring_simulator, self.traffic, clock, loopring_port),
            "metakeep": _Site(metakeep_simulator, self.traffic, clock, metakeep_port),
            "bank": _Site(bank_simulator, self.traffic, clock, bank_port),
        }

    @property
    def knobs(self) -> Mapping[ProviderName, Knobs]:
        """The knobs by provider."""
        return {"loopring": self.loopring, "metakeep": self.metakeep, "bank": self.bank}

    @property
    def loopring_url(self) -> str:
        """Scheme, host and port of Loopring."""
        return self._site_by_provider["loopring"].url

    @property
    def metakeep_url(self) -> str:
        """Scheme, host and port of MetaKeep."""
        return self._site_by_provider["metakeep"].url

    @property
    def bank_url(self) -> str:
        """Scheme, host and port of the bank."""
        return self._site_by_provider["bank"].url

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as started:
            for site in self._site_by_provider.values():
                started.push_async_callback(site.stop)
                await site.start()
            started.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for site in self._site_by_provider.values():
            await site.stop()

    async def take_down(self, provider: ProviderName) -> None:
        """Refuse connections to one provider, and cut those it has."""
        await self._site_by_provider[provider].stop()

    async def bring_back(self, provider: ProviderName) -> None:
        """Serve that provider again, on the same port."""
        await self._site_by_provider[provider].start()


class _Site:
    """One simulator on one port."""

    def __init__(
        self, simulator: Loopring | Metakeep | Bank, traffic: Traffic, clock: Callable[[], float], port: int
    ) -> None:
        self._simulator = simulator
        self._traffic = traffic
        self._clock = clock
        self._limit = RateLimit()
        self._runner: web.AppRunner | None = None
        self.port = port

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def start(self) -> None:
        app = web.Application()
        app.on_response_prepare.append(drop_default_type)
        for (method, path), endpoint in self._simulator.endpoints.items():
            app.router.add_route(method, path, partial(self._answer, endpoint))
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=CUT_OFF_S
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, HOST, self.port).start()
        except OSError as error:
            raise OSError(error.errno, f"{HOST}:{self.port}: {why_not_listening(error)}") from error
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner:
            await runner.cleanup()

    async def _answer(self, endpoint: Callable[[Call], Reply], request: web.Request) -> web.StreamResponse:
        """Answer by outage, limit or fault, in this order, else truly; then the poll is recorded."""
        at, simulator = self._clock(), self._simulator
        call = await call_of(request)
        self._traffic.arrived(call, at)
        knobs = simulator.knobs
        fault = knobs.outage
        if not fault and not self._limit.admits(simulator.rate_scope(call), at, knobs.requests_per_second):
            fault = knobs.rate_limited
        fault = fault or simulator.fault(call.path)
        if isinstance(fault, Answer):
            answer = fault
        else:
            try:
                reply = endpoint(call)
            except Declined as declined:
                reply = Reply(declined.answer)
            answer = fault(reply.answer) if fault else reply.answer
            if reply.polled is not None and not fault:
                simulator.replicas.polled(reply.polled)
        self._traffic.answered(call.path, answer.status)
        return await send(request, replace(answer, delay_s=answer.delay_s + knobs.latency_s))
