"""Claims about the guard at the socket, proved with real sessions and a canary that must stay silent."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import AsyncResolver
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from watcher.delivery.connector import (
    EgressRefused,
    GuardedResolver,
    guarded_connector,
    guarded_sockets,
    refusal_in,
)
from watcher.delivery.egress import Policy, RefusedUrl, check_url, read_address

CASES = json.loads((Path(__file__).parents[1] / "data" / "ssrf_urls.json").read_text())["cases"]
PUBLIC = "93.184.216.34"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

# Loopback is one network of 16 million addresses: 127.0.0.2 plays the subscriber, 127.0.0.1 the inside.
SUBSCRIBER = Policy((ip_network("127.0.0.2/32"),), allow_http=True)
EVERYWHERE = Policy((ip_network("0.0.0.0/0"), ip_network("::/0")), allow_http=True)


@dataclass
class Listener:
    """A server that answers every request alike and remembers each connection, also one without a request."""

    host: str
    answer: bytes = OK
    port: int = 0
    peers: list[object] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/in"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(writer.get_extra_info("peername"))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(self.answer)
        writer.close()

    async def visits(self) -> int:
        """Count the connections so far. One of our own queues behind them: none can still be on its way."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        own = self.peers.index(writer.get_extra_info("sockname"))
        del self.peers[own]
        writer.close()
        await writer.wait_closed()
        return own


@contextlib.asynccontextmanager
async def listening(host: str = "127.0.0.1", answer: bytes = OK) -> AsyncIterator[Listener]:
    listener = Listener(host, answer)
    async with await asyncio.start_server(listener.serve, host) as server:
        listener.port = server.sockets[0].getsockname()[1]
        yield listener


class ScriptedDns(AbstractResolver):
    """Answers each look-up with the next of `rounds`, and goes on with the last one."""

    def __init__(self, *rounds: Sequence[str]) -> None:
        self._rounds = list(rounds)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        answers = self._rounds.pop(0) if len(self._rounds) > 1 else self._rounds[0]
        return [
            ResolveResult(hostname=host, host=answer, port=port, family=family, proto=0, flags=0)
            for answer in answers
        ]

    async def close(self) -> None:
        pass


def a_session(
    policy: Policy, resolver: AbstractResolver | None = None, **options: Any
) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=guarded_connector(policy, resolver or AsyncResolver()), **options)


async def status_of(session: aiohttp.ClientSession, url: str | URL, **options: Any) -> int:
    async with session.post(url, **options) as response:
        return response.status


async def refusal_of(session: aiohttp.ClientSession, url: str | URL, **options: Any) -> str | None:
    """Say why the guard refused. Anything but aiohttp's own error for connections fails the test."""
    with pytest.raises(aiohttp.ClientConnectorError) as caught:
        await status_of(session, url, **options)
    return refusal_in(caught.value)


# Every verdict of the list


def policy_of(case: dict[str, Any]) -> Policy:
    changes = case.get("policy", {})
    allow = tuple(ip_network(network) for network in changes.get("allow", ()))
    return Policy(allow, allow_http=changes.get("allow_http", False), nat64=changes.get("nat64", False))


def verdicts(expected: str) -> list[Any]:
    cases = [case for case in CASES if case["expected"] == expected]
    return [pytest.param(case, id=f"{case['url'][:40]!a} {case['why'][:40]}") for case in cases]


def test_every_case_of_the_list_is_judged() -> None:
    assert len(verdicts("allow")) + len(verdicts("deny")) == len(CASES) >= 83


@pytest.mark.parametrize("case", verdicts("allow"))
async def test_an_allowed_url_passes_the_check_the_look_up_and_the_socket(case: dict[str, Any]) -> None:
    policy = policy_of(case)
    url = check_url(case["url"], policy)
    host, port = url.raw_host, url.port
    assert host
    assert port
    addresses = [host]
    if not read_address(host):
        resolver = GuardedResolver(policy, ScriptedDns(case["resolves_to"]))
        addresses = [answer["host"] for answer in await resolver.resolve(host, port)]
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        guarded_sockets(policy)((family, socket.SOCK_STREAM, 0, "", (address, port))).close()


@pytest.mark.parametrize("case", verdicts("deny"))
async def test_a_denied_url_fails_at_the_check_or_at_the_look_up(case: dict[str, Any]) -> None:
    policy = policy_of(case)
    try:
        url = check_url(case["url"], policy)
    except RefusedUrl:
        return
    async with a_session(policy, ScriptedDns(case["resolves_to"])) as session:
        assert await refusal_of(session, url)


# Live proofs: nothing may reach the canary


async def test_a_name_that_turns_inward_after_its_first_answer_reaches_nothing() -> None:
    dns = ScriptedDns([PUBLIC], ["127.0.0.1"])
    async with listening() as canary, a_session(SUBSCRIBER, dns) as session:
        url = f"http://rebinding.example:{canary.port}/"
        assert await GuardedResolver(SUBSCRIBER, dns).resolve("rebinding.example", canary.port)
        assert await refusal_of(session, url) == "loopback address"
        assert await canary.visits() == 0


async def test_the_same_request_arrives_where_the_address_is_allowed() -> None:
    async with listening() as canary, a_session(EVERYWHERE, ScriptedDns(["127.0.0.1"])) as session:
        assert await status_of(session, f"http://rebinding.example:{canary.port}/") == 200
        assert await canary.visits() == 1


async def test_one_bad_answer_refuses_the_whole_name() -> None:
    dns = ScriptedDns(["127.0.0.2", "127.0.0.1"])
    async with listening("127.0.0.2") as subscriber, a_session(SUBSCRIBER, dns) as session:
        assert await refusal_of(session, f"http://mixed.example:{subscriber.port}/") == "loopback address"
        assert await subscriber.visits() == 0


async def test_everybody_who_waits_for_the_same_look_up_is_refused() -> None:
    async with listening() as canary, a_session(SUBSCRIBER, ScriptedDns(["127.0.0.1"])) as session:
        url = f"http://rebinding.example:{canary.port}/"
        refusals = await asyncio.gather(*(refusal_of(session, url) for _ in range(5)))
        assert refusals == ["loopback address"] * 5
        assert await canary.visits() == 0


async def test_what_the_real_resolver_says_is_judged() -> None:
    async with listening() as canary, a_session(SUBSCRIBER) as session:
        assert await refusal_of(session, f"http://localhost:{canary.port}/") == "loopback address"
        assert await canary.visits() == 0


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "①②⑦.⓪.⓪.①", "１２７.0.0.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"]
)
async def test_an_address_in_the_url_is_judged_at_the_socket(host: str) -> None:
    async with listening() as canary, a_session(SUBSCRIBER) as session:
        assert await refusal_of(session, URL(f"http://{host}:{canary.port}/")) == "loopback address"
        assert await canary.visits() == 0


async def test_the_socket_judges_again_what_a_resolver_let_through() -> None:
    connector = aiohttp.TCPConnector(
        resolver=ScriptedDns(["127.0.0.1", "0.0.0.0", "::1"]), socket_factory=guarded_sockets(SUBSCRIBER)
    )
    async with listening() as canary, aiohttp.ClientSession(connector=connector) as session:
        assert await refusal_of(session, f"http://unguarded.example:{canary.port}/")
        assert await canary.visits() == 0


async def test_happy_eyeballs_dial_only_the_allowed_ones_of_several_addresses() -> None:
    connector = aiohttp.TCPConnector(
        resolver=ScriptedDns(["127.0.0.1", "::1", "127.0.0.2"]), socket_factory=guarded_sockets(SUBSCRIBER)
    )
    async with listening("127.0.0.2") as subscriber, aiohttp.ClientSession(connector=connector) as session:
        assert await status_of(session, f"http://unguarded.example:{subscriber.port}/") == 200
        assert await subscriber.visits() == 1


@pytest.mark.parametrize("is_followed", [False, True])
async def test_a_redirect_inward_reaches_nothing_even_if_it_were_followed(is_followed: bool) -> None:
    async with listening() as canary:
        inward = b"HTTP/1.1 307 -\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % canary.url.encode()
        async with listening("127.0.0.2", inward) as subscriber, a_session(SUBSCRIBER) as session:
            if is_followed:
                assert await refusal_of(session, subscriber.url, allow_redirects=True) == "loopback address"
            else:
                assert await status_of(session, subscriber.url, allow_redirects=False) == 307
            assert await subscriber.visits() == 1
        assert await canary.visits() == 0


@pytest.mark.parametrize("is_trusted", [False, True])
async def test_a_proxy_from_the_environment_is_not_asked_and_would_be_judged(
    is_trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with listening() as canary, listening("127.0.0.2") as subscriber:
        monkeypatch.setenv("http_proxy", canary.url)
        async with a_session(SUBSCRIBER, trust_env=is_trusted) as session:
            if is_trusted:
                assert await refusal_of(session, subscriber.url) == "loopback address"
            else:
                assert await status_of(session, subscriber.url) == 200
        assert await subscriber.visits() == (not is_trusted)
        assert await canary.visits() == 0


async def test_a_connection_kept_alive_does_not_serve_a_stricter_policy() -> None:
    async with listening() as canary, a_session(EVERYWHERE) as before, a_session(SUBSCRIBER) as after:
        assert [await status_of(before, canary.url) for _ in range(2)] == [200, 200]
        assert await refusal_of(after, canary.url) == "loopback address"
        assert await canary.visits() == 1


# How a refusal looks


@pytest.mark.parametrize(
    "answer", ["2606:4700:4700::1111%eth0", "127.1", "0x7f000001", "", "hooks.example.com"]
)
async def test_an_answer_that_is_no_plain_address_refuses_the_name(answer: str) -> None:
    with pytest.raises(EgressRefused):
        await GuardedResolver(EVERYWHERE, ScriptedDns([answer])).resolve("odd.example")


async def test_a_look_up_that_fails_by_itself_is_no_refusal() -> None:
    class DeadDns(ScriptedDns):
        async def resolve(self, *_: object) -> list[ResolveResult]:
            raise OSError(None, "DNS lookup failed")

    async with a_session(SUBSCRIBER, DeadDns()) as session:
        assert await refusal_of(session, "http://dead.example/") is None


async def test_a_refused_connection_is_no_refusal_of_ours() -> None:
    async with listening("127.0.0.2") as subscriber:
        url = subscriber.url
    async with a_session(SUBSCRIBER) as session:
        assert await refusal_of(session, url) is None


def test_a_refusal_is_found_bare_as_well() -> None:
    assert refusal_in(EgressRefused("loopback address")) == "loopback address"
    assert refusal_in(OSError("loopback address")) is None
