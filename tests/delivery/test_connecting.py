"""Connecting to a subscriber: names, addresses, certificates, and the error when it fails."""

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from ipaddress import ip_network

import pytest
from yarl import URL

from tests.support.raw_subscribers import (
    OK,
    SHORT_S,
    FakeDns,
    Peer,
    Script,
    a_delivery,
    a_sink,
    a_target,
    answering,
    never_answer,
    not_speaking_tls,
    open_files,
    subscribing,
)
from tests.support.tls_subscribers import a_certificate, a_client_trusting
from watcher.delivery.egress import Policy
from watcher.delivery.sink import Attempt
from watcher.delivery.webhook import WebhookSink
from watcher.engine.breaker import Answer

NO_ANSWER = f"no answer within {SHORT_S} s"
NO_CONNECTION = f"no connection within {SHORT_S} s"
HOST = "in.hooks.example"
KNOWN = {HOST: ["127.0.0.1"]}
STRICTER = Policy((ip_network("127.0.0.2/32"),), allow_http=True)


async def post(sink: WebhookSink, url: str) -> Attempt:
    """Post to a URL that was acceptable when it was read: all of loopback was allowed then."""
    return await sink.send(a_target(url), [a_delivery()], 1)


async def test_idle_connections_are_bounded() -> None:
    async with AsyncExitStack() as stack:
        many = [await stack.enter_async_context(subscribing(answering(OK))) for _ in range(5)]
        sink = await stack.enter_async_context(a_sink(keep=2))
        attempts = [await post(sink, one.url) for one in many for _ in range(2)]
        kept = [len(one.peers) for one in many]
    assert {attempt.status for attempt in attempts} == {200}
    assert kept == [1, 1, 2, 2, 2], "two are used again, the others are new each time"


# The guard says no


async def test_a_denied_address_is_refused_by_policy_and_not_dialled() -> None:
    async with subscribing(answering(OK)) as canary:
        async with a_sink(STRICTER) as sink:
            attempt = await post(sink, canary.url)
        assert await canary.visits() == 0
    assert (attempt.status, attempt.error) == (None, "refused: loopback address")
    assert attempt.answer is Answer.FORBIDDEN


@pytest.mark.parametrize(
    ("addresses", "reason"),
    [
        (["10.1.2.3"], "private address"),
        (["169.254.169.254"], "link-local address"),
        (["93.184.216.34", "127.0.0.1"], "loopback address"),
        (["::ffff:127.0.0.1"], "loopback address"),
        (["fd00:ec2::254"], "private address"),
        (["127.1"], "not an address in its usual spelling"),
    ],
)
async def test_a_name_that_resolves_to_an_internal_address_is_refused_by_policy(
    addresses: list[str], reason: str
) -> None:
    dns = FakeDns({"hooks.example": addresses})
    async with subscribing(answering(OK)) as canary:
        async with a_sink(STRICTER, resolver=dns) as sink:
            attempts = await asyncio.gather(*(post(sink, canary.url_at("hooks.example")) for _ in range(5)))
        assert await canary.visits() == 0
    assert {(attempt.error, attempt.answer) for attempt in attempts} == {
        (f"refused: {reason}", Answer.FORBIDDEN)
    }


async def test_a_name_is_judged_again_at_each_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("watcher.http.dial.CACHE_S", 0)
    known = {"hooks.example": ["127.0.0.2"]}
    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    async with (
        subscribing(answering(closing), host="0.0.0.0") as subscriber,
        a_sink(STRICTER, resolver=FakeDns(known)) as sink,
    ):
        assert (await post(sink, subscriber.url_at("hooks.example"))).status == 200
        known["hooks.example"] = ["127.0.0.1"]
        assert (await post(sink, subscriber.url_at("hooks.example"))).error == "refused: loopback address"
    assert subscriber.connections == 1


# Names


async def test_an_unknown_name_is_a_failed_attempt() -> None:
    dns = FakeDns({"gone.example": OSError(None, "DNS lookup failed")})
    async with a_sink(resolver=dns) as sink:
        attempt = await post(sink, "http://gone.example/")
    assert attempt.error == "its name does not resolve"
    assert attempt.answer is Answer.NO_ANSWER


async def test_a_silent_name_server_ends_the_attempt_at_its_deadline() -> None:
    async with a_sink(resolver=FakeDns({}), deadline_s=SHORT_S) as sink:
        attempts = await asyncio.gather(*(post(sink, "http://silent.example/") for _ in range(3)))
    assert [attempt.error for attempt in attempts] == 3 * [NO_CONNECTION]


@pytest.mark.parametrize("host", ["a..b", ".example", 64 * "x" + ".example", "127.1", "0x7f000001", "xn--a"])
async def test_an_invalid_name_is_an_error_of_the_attempt(host: str) -> None:
    target = a_target("http://hooks.example/")
    target.lead_to(URL.build(scheme="http", host=host, path="/", encoded=True))
    async with a_sink(resolver=FakeDns({host: UnicodeError("label empty or too long")})) as sink:
        attempt = await sink.send(target, [a_delivery()], 1)
    assert attempt.status is None
    assert attempt.error
    assert attempt.error != NO_CONNECTION
    assert host not in attempt.error


# Addresses


async def test_a_refused_connection_is_named_as_such() -> None:
    async with subscribing(never_answer) as subscriber:
        pass
    async with a_sink() as sink:
        attempt = await post(sink, subscriber.url)
    assert attempt.error == "cannot connect: connection refused"
    assert attempt.answer is Answer.NO_ANSWER


async def test_the_next_address_of_a_name_is_tried() -> None:
    dns = FakeDns({"hooks.example": ["127.0.0.9", "127.0.0.1"]})
    async with subscribing(answering(OK)) as subscriber, a_sink(resolver=dns) as sink:
        assert (await post(sink, subscriber.url_at("hooks.example"))).status == 200


# Certificates


def trust(certificate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of what the system trusts."""
    monkeypatch.setattr("watcher.http.dial.system_tls", lambda: a_client_trusting(certificate))


@pytest.mark.parametrize(
    ("name", "lasts_days", "outcome"),
    [
        (HOST, 1, 200),
        ("*.hooks.example", 1, 200),
        ("other.example", 1, "its certificate does not verify: hostname mismatch"),
        (HOST, -1, "its certificate does not verify: certificate has expired"),
    ],
)
async def test_a_certificate_has_to_be_valid_and_for_this_name(
    name: str, lasts_days: int, outcome: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls, certificate = a_certificate(name, expires_in=timedelta(days=lasts_days))
    trust(certificate, monkeypatch)
    async with (
        subscribing(answering(OK), tls=tls) as subscriber,
        a_sink(resolver=FakeDns(KNOWN)) as sink,
    ):
        attempt = await post(sink, subscriber.url_at(HOST))
    assert (attempt.status or attempt.error) == outcome
    assert len(subscriber.requests) == (outcome == 200), "nothing is sent to an unverified peer"


async def test_an_untrusted_certificate_is_refused() -> None:
    tls, _ = a_certificate(HOST)
    async with (
        subscribing(answering(OK), tls=tls) as subscriber,
        a_sink(resolver=FakeDns(KNOWN)) as sink,
    ):
        attempt = await post(sink, subscriber.url_at(HOST))
    assert attempt.error
    assert attempt.error.startswith("its certificate does not verify: self")  # -signed, spelled in two ways
    assert not subscriber.requests


async def hanging_up(peer: Peer) -> None:
    await peer.reader.read(1)


@pytest.mark.parametrize(
    ("script", "errors"),
    [
        (not_speaking_tls, {"TLS failed: its port does not speak TLS"}),
        (hanging_up, {"TLS failed: it hung up during the handshake"}),
        (never_answer, {NO_CONNECTION}),
    ],
)
async def test_a_port_that_does_not_speak_tls_ends_the_attempt(script: Script, errors: set[str]) -> None:
    async with subscribing(script) as subscriber, a_sink(deadline_s=SHORT_S) as sink:
        attempt = await post(sink, subscriber.url.replace("http:", "https:"))
    assert attempt.error in errors


async def test_a_peer_that_never_closes_tls_holds_no_connection_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tls, certificate = a_certificate(HOST)
    trust(certificate, monkeypatch)
    is_counted = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.receive()
        peer.stop_reading()
        await is_counted.wait()
        peer.read_on()

    async with (
        subscribing(script, tls=tls) as subscriber,
        a_sink(resolver=FakeDns(KNOWN), deadline_s=SHORT_S) as sink,
    ):
        before = open_files()
        attempt = await post(sink, subscriber.url_at(HOST))
        await asyncio.sleep(0.01)
        assert attempt.error == NO_ANSWER
        assert open_files() - before <= 1  # the subscriber's end
        is_counted.set()
