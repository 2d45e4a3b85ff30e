"""Connecting, whatever a peer, a name or a caller does meanwhile, on both event loops."""

import asyncio
import collections
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from tests.support.raw_subscribers import (
    OK,
    FakeDns,
    Peer,
    Script,
    answering,
    never_answer,
    open_files,
    subscribing,
)
from tests.support.tls_subscribers import NAME, a_certificate, a_client_trusting
from watcher.http.dial import Dialer, NoConnection, NoHostName, Unresolved
from watcher.http.pool import Connection, Pool
from watcher.http.wire import Answer, Disconnected, Limits, NoAnswer, NotHttp, Place, TimedOut, TooLong

KNOWN = {NAME: ["127.0.0.1"]}
on_both_loops = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])


def a_pool(dialer: Dialer | None = None, **options: Any) -> Pool:
    return Pool(dialer or Dialer(FakeDns(KNOWN)), **{"keep_alive_s": 4.0, **options})


async def get(
    pool: Pool, port: int, *, host: str = NAME, is_tls: bool = False, deadline_s: float = 5
) -> Answer:
    request = b"GET / HTTP/1.1\r\nHost: x\r\ncontent-length: 0\r\n\r\n"
    deadline = asyncio.get_running_loop().time() + deadline_s
    return await pool.send(Place(host, port, is_tls), request, Limits(1000, 1000), deadline=deadline)


def run(loop: Callable[[], asyncio.AbstractEventLoop], main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main)


@on_both_loops
@pytest.mark.parametrize("is_tls", [False, True])
def test_a_request_that_is_given_up_at_any_turn_of_the_loop_leaves_nothing_open(
    loop: Callable[[], asyncio.AbstractEventLoop], is_tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that is closed while a transport has it fails whatever gets the same descriptor next."""
    tls, certificate = a_certificate(NAME)
    context = a_client_trusting(certificate)
    monkeypatch.setattr("watcher.http.dial.system_tls", lambda: context)
    outcomes: collections.Counter[type[BaseException] | int] = collections.Counter()

    async def main() -> None:
        async with subscribing(answering(OK), tls=tls if is_tls else None) as server:
            pool = a_pool(keep=0)
            await get(pool, server.port, is_tls=is_tls)
            before = open_files()
            for turns in range(50):
                request = asyncio.create_task(get(pool, server.port, is_tls=is_tls))
                for _ in range(turns):
                    await asyncio.sleep(0)
                request.cancel()
                (outcome,) = await asyncio.gather(request, return_exceptions=True)
                outcomes[outcome.status if isinstance(outcome, Answer) else type(outcome)] += 1
                assert (await get(pool, server.port, is_tls=is_tls)).status == 200
            async with asyncio.timeout(5):  # the server's own are among them
                while open_files() > before:  # noqa: ASYNC110 -- nothing says that a descriptor was closed
                    await asyncio.sleep(0.01)
            await pool.close()

    run(loop, main())
    assert outcomes.keys() <= {200, asyncio.CancelledError}
    assert outcomes[asyncio.CancelledError] > 5


@on_both_loops
@pytest.mark.parametrize(
    ("says", "outcome"),
    [(b"HTTP/1.1 503 Full\r\nContent-Length: 0\r\n\r\n", 503), (b"220 mail.example ESMTP\r\n", NotHttp)],
)
def test_an_answer_sent_before_the_request_is_read_is_the_answer(
    loop: Callable[[], asyncio.AbstractEventLoop], says: bytes, outcome: int | type[NoAnswer]
) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(says)
        await peer.wait_for_the_end()

    async def main() -> None:
        async with subscribing(script) as server:
            for _ in range(5):
                pool = a_pool()
                (found,) = await asyncio.gather(get(pool, server.port), return_exceptions=True)
                assert (found.status if isinstance(found, Answer) else type(found)) == outcome
                await pool.close()

    run(loop, main())


async def test_closing_a_pool_ends_its_lookups_and_cancels_no_caller() -> None:
    pool = a_pool(Dialer(FakeDns({})))
    requests = [asyncio.create_task(get(pool, 80, host="silent.example")) for _ in range(2)]
    await asyncio.sleep(0)
    await pool.close()
    assert [type(error) for error in await asyncio.gather(*requests, return_exceptions=True)] == 2 * [
        Unresolved
    ]


async def test_a_cancelled_caller_leaves_the_lookup_to_the_others() -> None:
    are_here = asyncio.Event()

    class SlowDns(FakeDns):
        async def resolve(self, *args: Any, **options: Any) -> Any:
            await are_here.wait()
            return await super().resolve(*args, **options)

    dns = SlowDns(KNOWN)
    async with subscribing(answering(OK)) as server:
        pool = a_pool(Dialer(dns))
        first, second = (asyncio.create_task(get(pool, server.port)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        are_here.set()
        assert (await second).status == 200
        assert dns.asked == [NAME]
        await pool.close()


@pytest.mark.parametrize("host", [".hooks.example", "a..b", 64 * "x" + ".example"])
async def test_a_name_that_tls_cannot_send_is_invalid(host: str) -> None:
    async with subscribing(never_answer) as server:
        pool = a_pool(Dialer(FakeDns({host: ["127.0.0.1"]})))
        with pytest.raises(NoHostName):
            await get(pool, server.port, host=host, is_tls=True)
        await pool.close()


async def test_of_thousands_of_addresses_some_are_judged_and_fewer_tried() -> None:
    async with subscribing(never_answer) as server:
        pass
    judged = []
    many = [f"127.0.{number // 250}.{number % 250 + 1}" for number in range(5000)]
    dialer = Dialer(FakeDns({NAME: [*many, "::1"]}), lambda address: judged.append(address))
    pool = a_pool(dialer)
    with pytest.raises(NoAnswer):
        await get(pool, server.port)
    assert len(judged) == 64 + 4
    await pool.close()


def saying(*pieces: bytes) -> Script:
    async def script(peer: Peer) -> None:
        await peer.receive()
        await peer.send(*pieces)

    return script


FAILURES: dict[type[NoAnswer], tuple[Script, str]] = {
    Disconnected: (saying(), NAME),
    NotHttp: (saying(b"220 mail.example ESMTP\r\n"), NAME),
    TooLong: (saying(1000 * b"HTTP/1.1 100 Continue\r\n\r\n"), NAME),
    TimedOut: (never_answer, NAME),
    NoConnection: (never_answer, "refusing.example"),
    Unresolved: (never_answer, "unknown.example"),
}


@pytest.mark.parametrize("error", FAILURES)
def test_an_error_and_its_frames_form_no_reference_cycle(error: type[NoAnswer]) -> None:
    """Of a thousand subscribers that fail, each would leave what it had read to the collector."""
    script, host = FAILURES[error]
    dns = FakeDns({**KNOWN, "refusing.example": ["127.0.0.9"], "unknown.example": OSError(None, "none")})

    async def fail(pool: Pool, port: int) -> None:
        with pytest.raises(error):
            await get(pool, port, host=host, deadline_s=0.01 if error is TimedOut else 5)

    async def main() -> None:
        async with subscribing(script) as server:
            pool = a_pool(Dialer(dns))
            await fail(pool, server.port)
            await asyncio.sleep(0.01)
            gc.collect()
            gc.disable()
            try:
                for _ in range(10):
                    await fail(pool, server.port)
                await asyncio.sleep(0.01)
                assert gc.collect() < 10
            finally:
                gc.enable()
            await pool.close()

    run(uvloop.new_event_loop, main())


def test_a_connection_cancelled_as_it_is_made_leaves_no_reference_cycle() -> None:
    class GivenUp(Connection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.connecting.cancel()

        connecting: asyncio.Task[None]

    async def main() -> None:
        async with subscribing(never_answer) as server:
            dialer, place = Dialer(FakeDns(KNOWN)), Place(NAME, server.port, False)
            pool = a_pool(dialer)

            async def give_up() -> None:
                connection = GivenUp(pool, place)
                connection.ask(b"GET / HTTP/1.1\r\n\r\n", Limits(1000, 1000), 1e9, None)
                connection.connecting = asyncio.create_task(dialer.connect(place, connection))
                await asyncio.wait([connection.connecting])
                assert connection.connecting.cancelled()
                del connection.connecting

            await give_up()
            await asyncio.sleep(0.01)
            gc.collect()
            gc.disable()
            try:
                for _ in range(10):
                    await give_up()
                await asyncio.sleep(0.01)
                assert gc.collect() < 10
            finally:
                gc.enable()
            await pool.close()

    run(uvloop.new_event_loop, main())
