"""The egress policy at the socket, with real sessions and a listener that must not be reached."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from watcher.delivery.egress import Policy, RefusedUrl, check_url
from watcher.http.dial import CurrentResolver, Dialer, EgressRefused, Judge, NoConnection
from watcher.http.pool import Pool
from watcher.http.wire import Head, Limits, place_of

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
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

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
    async with asyncio.timeout(60), asyncio.TaskGroup() as connections:  # and waits for the end of each

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.create_task(listener.serve(reader, writer))

        async with await asyncio.start_server(connected, host) as server:
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


@contextlib.asynccontextmanager
async def a_pool(judge: Policy | Judge, resolver: AbstractResolver | None = None) -> AsyncIterator[Pool]:
    asked = resolver or CurrentResolver()
    pool = Pool(Dialer(asked, judge.judge if isinstance(judge, Policy) else judge), keep_alive_s=4.0)
    try:
        yield pool
    finally:
        await pool.close()
        await asked.close()


async def status_of(pool: Pool, url: str | URL) -> int:
    url = URL(url)
    request = Head.of("POST", url, [("Content-Length", "0")]).written() + b"\r\n"
    deadline = asyncio.get_running_loop().time() + 10
    return (await pool.send(place_of(url), request, Limits(65_536, 0), deadline=deadline)).status


async def refusal_of(pool: Pool, url: str | URL) -> str | None:
    """Say why the guard refused. Anything but an error for connections fails the test."""
    with pytest.raises(NoConnection) as caught:
        await status_of(pool, url)
    return caught.value.reason if isinstance(caught.value, EgressRefused) else None


def judging_after(count: int, policy: Policy) -> Judge:
    """A judge that lets the first ones pass: what is looked up, and not what is dialled."""
    passed: list[str] = []

    def judge(address: str) -> str | None:
        passed.append(address)
        return policy.judge(address) if len(passed) > count else None

    return judge


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
async def test_an_allowed_url_passes_the_check_the_lookup_and_the_connection(case: dict[str, Any]) -> None:
    policy = policy_of(case)
    url = check_url(case["url"], policy)
    host, port = url.raw_host, url.port
    assert host
    assert port
    dns = ScriptedDns(case.get("resolves_to", []))
    for address in await Dialer(dns, policy.judge).look_up(host, port):
        assert policy.judge(address) is None


@pytest.mark.parametrize("case", verdicts("deny"))
async def test_a_denied_url_fails_at_the_check_or_the_lookup(case: dict[str, Any]) -> None:
    policy = policy_of(case)
    try:
        url = check_url(case["url"], policy)
    except RefusedUrl:
        return
    async with a_pool(policy, ScriptedDns(case["resolves_to"])) as pool:
        assert await refusal_of(pool, url)


# Live proofs: nothing may reach the canary


async def test_a_name_that_is_rebound_to_an_internal_address_reaches_nothing() -> None:
    dns = ScriptedDns([PUBLIC], ["127.0.0.1"])
    async with listening() as canary, a_pool(SUBSCRIBER, dns) as pool:
        url = f"http://rebinding.example:{canary.port}/"
        assert await Dialer(dns, SUBSCRIBER.judge).look_up("rebinding.example", canary.port)
        assert await refusal_of(pool, url) == "loopback address"
        assert await canary.visits() == 0


async def test_the_same_request_arrives_where_the_address_is_allowed() -> None:
    async with listening() as canary, a_pool(EVERYWHERE, ScriptedDns(["127.0.0.1"])) as pool:
        assert await status_of(pool, f"http://rebinding.example:{canary.port}/") == 200
        assert await canary.visits() == 1


async def test_one_denied_address_refuses_the_whole_name() -> None:
    dns = ScriptedDns(["127.0.0.2", "127.0.0.1"])
    async with listening("127.0.0.2") as subscriber, a_pool(SUBSCRIBER, dns) as pool:
        assert await refusal_of(pool, f"http://mixed.example:{subscriber.port}/") == "loopback address"
        assert await subscriber.visits() == 0


async def test_all_callers_of_a_shared_lookup_are_refused() -> None:
    async with listening() as canary, a_pool(SUBSCRIBER, ScriptedDns(["127.0.0.1"])) as pool:
        url = f"http://rebinding.example:{canary.port}/"
        refusals = await asyncio.gather(*(refusal_of(pool, url) for _ in range(5)))
        assert refusals == ["loopback address"] * 5
        assert await canary.visits() == 0


async def test_answers_of_the_real_resolver_are_judged() -> None:
    async with listening() as canary, a_pool(SUBSCRIBER) as pool:
        assert await refusal_of(pool, f"http://localhost:{canary.port}/") == "loopback address"
        assert await canary.visits() == 0


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "①②⑦.⓪.⓪.①", "１２７.0.0.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"]
)
async def test_an_address_in_the_url_is_judged_when_it_is_dialled(host: str) -> None:
    async with listening() as canary, a_pool(SUBSCRIBER) as pool:
        assert await refusal_of(pool, URL(f"http://{host}:{canary.port}/")) == "loopback address"
        assert await canary.visits() == 0


async def test_an_address_is_judged_again_when_it_is_dialled() -> None:
    dns = ScriptedDns(["127.0.0.1", "0.0.0.0", "::1"])
    async with listening() as canary, a_pool(judging_after(3, SUBSCRIBER), dns) as pool:
        assert await refusal_of(pool, f"http://unguarded.example:{canary.port}/")
        assert await canary.visits() == 0


async def test_happy_eyeballs_dial_only_the_allowed_ones_of_several_addresses() -> None:
    dns = ScriptedDns(["127.0.0.1", "::1", "127.0.0.2"])
    async with listening("127.0.0.2") as subscriber, a_pool(judging_after(3, SUBSCRIBER), dns) as pool:
        assert await status_of(pool, f"http://unguarded.example:{subscriber.port}/") == 200
        assert await subscriber.visits() == 1


async def test_a_redirect_to_an_internal_address_reaches_nothing() -> None:
    async with listening() as canary:
        inward = b"HTTP/1.1 307 -\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % canary.url.encode()
        async with listening("127.0.0.2", inward) as subscriber, a_pool(SUBSCRIBER) as pool:
            assert await status_of(pool, subscriber.url) == 307
            assert await subscriber.visits() == 1
        assert await canary.visits() == 0


async def test_a_proxy_from_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with listening() as canary, listening("127.0.0.2") as subscriber:
        monkeypatch.setenv("http_proxy", canary.url)
        async with a_pool(SUBSCRIBER) as pool:
            assert await status_of(pool, subscriber.url) == 200
        assert await subscriber.visits() == 1
        assert await canary.visits() == 0


async def test_a_stricter_policy_does_not_reuse_an_older_connection() -> None:
    async with listening() as canary, a_pool(EVERYWHERE) as before, a_pool(SUBSCRIBER) as after:
        assert [await status_of(before, canary.url) for _ in range(2)] == [200, 200]
        assert await refusal_of(after, canary.url) == "loopback address"
        assert await canary.visits() == 1


# How a refusal looks


@pytest.mark.parametrize(
    "answer", ["2606:4700:4700::1111%eth0", "127.1", "0x7f000001", "", "hooks.example.com"]
)
async def test_a_lookup_that_returns_no_plain_address_refuses_the_name(answer: str) -> None:
    with pytest.raises(EgressRefused):
        await Dialer(ScriptedDns([answer]), EVERYWHERE.judge).look_up("odd.example", 443)


async def test_a_failed_lookup_is_no_refusal_by_policy() -> None:
    class DeadDns(ScriptedDns):
        async def resolve(self, *_: object) -> list[ResolveResult]:
            raise OSError(None, "DNS lookup failed")

    async with a_pool(SUBSCRIBER, DeadDns()) as pool:
        assert await refusal_of(pool, "http://dead.example/") is None


async def test_a_refused_connection_is_no_refusal_by_policy() -> None:
    async with listening("127.0.0.2") as subscriber:
        url = subscriber.url
    async with a_pool(SUBSCRIBER) as pool:
        assert await refusal_of(pool, url) is None
