"""The receiver of `watcher listen`, over real connections."""

import asyncio
import contextlib
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.support.signed_webhooks import NOW, OTHER_SECRET, SECRET, Webhook, a_change, an_event, signed
from tests.support.tls_front import a_certificate_file
from watcher.captured import Captured, read, save
from watcher.receive import Step
from watcher.receiver import Fail, Receipt, Receiver

Post = Callable[[Receiver, Webhook], Awaitable[int]]


@pytest.fixture
async def post() -> AsyncIterator[Post]:
    async with aiohttp.ClientSession() as session:

        async def post_to(receiver: Receiver, webhook: Webhook) -> int:
            url = receiver.url + "hooks"
            async with session.post(url, data=webhook.body, headers=webhook.headers) as answer:
                return answer.status

        yield post_to


def a_receiver(
    secret: str | None = SECRET,
    *,
    fail: Fail | None = None,
    forward_to: str | None = None,
    delay_s: float = 0,
) -> Receiver:
    secrets = [secret] if secret else []
    return Receiver(secrets, fail=fail, forward_to=forward_to, delay_s=delay_s, clock=lambda: NOW)


@contextlib.asynccontextmanager
async def serving(answer: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[str]:
    """Answer whatever is asked inside the block, at the address that this yields."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()


def numbered(number: int) -> Webhook:
    return signed(an_event(number), event_id=f"evt_{number}")


async def test_events_are_taken_once_and_in_order(post: Post) -> None:
    async with a_receiver() as receiver:
        statuses = [await post(receiver, numbered(number)) for number in (1, 2, 2, 3)]
    assert statuses == [200] * 4
    assert [event["id"] for event in receiver.events] == ["evt_1", "evt_2", "evt_3"]
    assert [receipt.is_repeat for receipt in receiver.receipts] == [False, False, True, False]
    assert {receipt.order for receipt in receiver.receipts} == {None}


async def test_a_gap_is_noticed(post: Post) -> None:
    async with a_receiver() as receiver:
        for number in (1, 2, 4):
            await post(receiver, numbered(number))
    assert [receipt.order for receipt in receiver.receipts] == [None, None, "gap"]


async def test_a_known_id_under_another_sequence_is_a_repeat_and_no_gap_follows(post: Post) -> None:
    def sent(number: int, sequence: int, previous: int | None) -> Webhook:
        data = a_change(sequence=sequence)
        subscription = {"name": "ops", "previous_sequence": previous}
        body = an_event(number, data=data, subscription=subscription)
        return signed(body, event_id=f"evt_{number}")

    async with a_receiver() as receiver:
        for number, sequence, previous in ((1, 10, None), (2, 20, 10), (2, 30, 10), (3, 40, 30)):
            await post(receiver, sent(number, sequence, previous))
    assert [receipt.is_repeat for receipt in receiver.receipts] == [False, False, True, False]
    assert [receipt.order for receipt in receiver.receipts] == [None, None, "rewound", None]
    assert [event["id"] for event in receiver.events] == ["evt_1", "evt_2", "evt_3"]


async def test_waiting_ends_with_the_event_that_was_waited_for(post: Post) -> None:
    async with a_receiver() as receiver:
        waiting = asyncio.ensure_future(receiver.wait_for(2))
        await post(receiver, numbered(1))
        assert not waiting.done()
        await post(receiver, numbered(1))
        assert not waiting.done()
        await post(receiver, numbered(2))
        assert [event["id"] for event in await waiting] == ["evt_1", "evt_2"]


async def test_a_webhook_signed_with_another_secret_is_refused(post: Post) -> None:
    async with a_receiver(OTHER_SECRET) as receiver:
        assert await post(receiver, signed()) == 400
    (receipt,) = receiver.receipts
    assert receipt.problem
    assert receipt.problem.step is Step.NO_MATCH
    assert not receipt.is_taken
    assert not receiver.events


async def test_the_answer_says_why_a_webhook_is_refused() -> None:
    webhook = signed()
    async with (
        a_receiver(OTHER_SECRET) as receiver,
        aiohttp.ClientSession() as session,
        session.post(receiver.url, data=webhook.body, headers=webhook.headers) as answer,
    ):
        assert (await answer.text()).startswith("no signature matches: signed as v1, ")


async def test_without_a_secret_nothing_is_verified_and_everything_is_taken(post: Post) -> None:
    async with a_receiver(None) as receiver:
        assert await post(receiver, Webhook({}, b'{"hello": 1}')) == 200
        assert await post(receiver, Webhook({}, b'{"hello": 1}')) == 200
        assert await post(receiver, Webhook({}, b"hello")) == 400
    assert [(receipt.is_verified, receipt.is_repeat) for receipt in receiver.receipts] == [(False, False)] * 3
    assert receiver.taken == 2


async def test_the_first_attempts_of_each_event_fail_as_asked(post: Post) -> None:
    async with a_receiver(fail=Fail(503, 2)) as receiver:
        statuses = [await post(receiver, numbered(number)) for number in (1, 1, 2, 1, 2, 2, 1)]
    assert statuses == [503, 503, 503, 200, 503, 200, 200]
    assert [receipt.attempt for receipt in receiver.receipts] == [1, 2, 1, 3, 2, 3, 4]
    assert [receipt.is_repeat for receipt in receiver.receipts] == [False] * 6 + [True]
    assert [event["id"] for event in receiver.events] == ["evt_1", "evt_2"]


async def test_an_answer_is_delayed_and_the_event_is_shown_at_once(post: Post) -> None:
    async with a_receiver(delay_s=30) as receiver:
        posting = asyncio.ensure_future(post(receiver, signed()))
        assert await receiver.wait_for(1) == [an_event()]
        assert not posting.done()
        posting.cancel()


async def test_each_attempt_is_reported_once(post: Post) -> None:
    noticed: list[Receipt] = []
    async with a_receiver() as receiver:
        receiver.notice = noticed.append
        await post(receiver, signed())
        await post(receiver, signed().but(signature="v1"))
    assert noticed == list(receiver.receipts)
    assert len(noticed) == 2


async def test_the_next_receiver_gets_the_same_bytes_and_verifies_them(post: Post) -> None:
    async with a_receiver() as behind, a_receiver(forward_to=behind.url) as before:
        assert await post(before, signed()) == 200
    assert list(behind.events) == list(before.events) == [an_event()]


async def test_the_answer_of_the_target_is_the_answer(post: Post) -> None:
    async with a_receiver(fail=Fail(503, 1)) as behind, a_receiver(forward_to=behind.url) as before:
        assert [await post(before, signed()) for _ in range(2)] == [503, 200]
    assert before.taken == 1


async def test_refused_and_deliberately_failed_webhooks_are_not_forwarded(post: Post) -> None:
    async with a_receiver(None) as behind, a_receiver(forward_to=behind.url, fail=Fail(500, 1)) as before:
        assert await post(before, signed().but(signature="v1")) == 400
        assert await post(before, signed()) == 500
    assert not behind.receipts


async def test_an_unreachable_target_is_a_bad_gateway(post: Post) -> None:
    with socket.socket() as taken:  # bound and not listening: a connection is refused
        taken.bind(("127.0.0.1", 0))
        async with a_receiver(forward_to=f"http://127.0.0.1:{taken.getsockname()[1]}/") as receiver:
            assert await post(receiver, signed()) == 502
    assert receiver.taken == 0
    assert receiver.receipts[0].forwarded == "not forwarded: cannot connect: connection refused"


async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close with nothing left unread: that could cause a reset, depending on the system."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: ([0-9]+)", head)
    assert length
    await reader.readexactly(int(length[1]))
    writer.close()


async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


async def mumble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"220 mail.example.com ESMTP\r\n")
    writer.close()


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


@pytest.mark.parametrize(
    ("scheme", "behave", "is_tls", "status", "words"),
    [
        ("https", leave, True, 502, "its certificate does not verify: self-signed certificate"),
        ("https", mumble, False, 502, "TLS failed"),
        ("http", mumble, False, 502, "its answer is not HTTP"),
        ("http", leave, False, 502, "it closed the connection without an answer"),
        ("http", reset, False, 502, "it reset the connection"),
        ("http", hang, False, 504, "no answer within 0.2 s"),
    ],
)
async def test_errors_of_forwarding_have_messages_of_their_own(
    post: Post,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    behave: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    is_tls: bool,
    status: int,
    words: str,
) -> None:
    monkeypatch.setattr("watcher.receiver._FORWARD_TIMEOUT_S", 0.2 if behave is hang else 20)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if is_tls else None
    if context:
        context.load_cert_chain(a_certificate_file(tmp_path))
    async with await asyncio.start_server(behave, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        async with a_receiver(forward_to=f"{scheme}://127.0.0.1:{port}/") as receiver:
            assert await post(receiver, signed()) == status
            (receipt,) = receiver.receipts
    assert receipt.forwarded is not None
    assert words in receipt.forwarded
    assert receiver.taken == 0


async def test_an_unresolved_name_and_an_answer_of_the_target_are_distinguished(post: Post) -> None:
    async with a_receiver(forward_to="http://a..invalid/") as receiver:
        assert await post(receiver, signed()) == 502
    assert receiver.receipts[0].forwarded == "not forwarded: its name does not resolve"

    async def fail(_: web.Request) -> web.Response:
        return web.Response(status=502)

    async with serving(fail) as behind, a_receiver(forward_to=behind) as receiver:
        assert await post(receiver, signed()) == 502
    assert receiver.receipts[0].forwarded == "forwarded, and answered 502 there"


async def test_a_large_cookie_of_the_target_hides_no_status(post: Post) -> None:
    async def take(_: web.Request) -> web.Response:
        return web.Response(status=202, headers={"Set-Cookie": "session=" + 20_000 * "x"})

    async with serving(take) as behind, a_receiver(forward_to=behind) as receiver:
        assert await post(receiver, signed()) == 202


async def test_a_request_is_forwarded_to_the_url_as_it_was_written(post: Post) -> None:
    asked: list[str] = []

    async def look(request: web.Request) -> web.Response:
        asked.append(request.raw_path)
        return web.Response()

    async with serving(look) as behind, a_receiver(forward_to=behind + "a%2Fb/../c?d=%40") as receiver:
        assert await post(receiver, signed()) == 200
    assert asked == ["/a%2Fb/../c?d=%40"]


async def test_a_request_is_captured_as_it_came(post: Post, tmp_path: Path) -> None:
    paths: list[Path] = []

    def capture(captured: Captured) -> str:
        paths.append(save(captured, tmp_path))
        return paths[-1].name

    body = b"\xff\r\n\r\n{}"
    webhook = Webhook(signed().headers | {"X-Own": "J\xfcrgen", "Watcher-Received-At": "1"}, body)
    async with a_receiver() as receiver:
        receiver.capture = capture
        for _ in range(2):
            assert await post(receiver, webhook) == 400
    assert [receipt.captured for receipt in receiver.receipts] == [path.name for path in paths]
    assert len(set(paths)) == 2
    captured = read(paths[0].read_bytes())
    assert captured
    assert (captured.method, captured.target, captured.body) == ("POST", "/hooks", body)
    assert captured.received_at == NOW
    assert {name for name, _ in captured.headers} >= {"X-Own", "webhook-id"}
    assert "Watcher-Received-At" not in dict(captured.headers)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"a":"POST / HTTP/1.1\r\n\r\n"}', b"POST / HTTP/1.1\r\n", b"\r\n\r\n"]
)
def test_another_file_is_not_read_as_a_captured_request(data: bytes) -> None:
    assert read(data) is None


async def test_hop_by_hop_headers_are_not_forwarded() -> None:
    headers_behind: list[Mapping[str, str]] = []

    async def look(request: web.Request) -> web.Response:
        headers_behind.append(request.headers)
        return web.Response()

    async def in_chunks() -> AsyncIterator[bytes]:
        yield signed().body

    async with serving(look) as behind, a_receiver(forward_to=behind) as receiver:
        headers = signed().headers | {"x-own": "kept", "host": "before.example", "connection": "close"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(receiver.url, data=in_chunks(), headers=headers) as answer,
        ):
            assert answer.status == 200
    (got,) = headers_behind
    assert (got["x-own"], got["content-length"]) == ("kept", str(len(signed().body)))
    assert f"http://{got['host']}/" == behind
    assert not {"transfer-encoding", "connection"} & {name.lower() for name in got}


async def test_a_redirect_is_passed_back_and_not_followed(post: Post) -> None:
    visited: list[str] = []

    async def redirect(request: web.Request) -> web.Response:
        visited.append(request.path)
        return web.Response(status=302, headers={"location": "/elsewhere"})

    async with serving(redirect) as behind, a_receiver(forward_to=behind + "start") as receiver:
        assert await post(receiver, signed()) == 302
    assert visited == ["/start"]


async def test_memory_is_bounded(post: Post) -> None:
    async with Receiver([SECRET], keep=2, clock=lambda: NOW) as receiver:
        for number in (1, 2, 3):
            await post(receiver, numbered(number))
    assert [event["id"] for event in receiver.events] == ["evt_2", "evt_3"]
    assert len(receiver.receipts) == 2
    assert receiver.taken == 3


async def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_open() -> None:
    async with a_receiver() as first:
        port = int(first.url.rsplit(":", 1)[1].rstrip("/"))
        with pytest.raises(OSError, match="address already in use"):
            await Receiver(port=port).__aenter__()


async def test_only_posts_are_accepted() -> None:
    async with a_receiver() as receiver, aiohttp.ClientSession() as session:
        async with session.get(receiver.url) as answer:
            assert answer.status == 405
        assert not receiver.receipts
