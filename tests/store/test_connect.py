"""The client and its address: what is accepted, what is refused with which message, what is never shown."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import pytest
import uvloop
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as NoConnection

from tests.support.servers import DURABLE, ENGINES, EVERY_ENGINE, RealServer, a_free_port, real_server
from tests.support.tls_front import a_certificate_file, a_tls_front
from watcher.settings import RedisSettings, Settings, secrets_of
from watcher.store.address import check_address, safe_url, several
from watcher.store.client import CONNECTIONS, connect, connect_node
from watcher.store.errors import translated
from watcher.store.exceptions import ConfigurationRefused, StoreError, StoreUnreachable
from watcher.store.guarantee import guarantee

PASSWORD = "canary-7f3a"  # no secret: it must never show
ANYONE = "127.0.0.1"
NOTHING: Mapping[str, Any] = {"provider_by_name": {}, "account_by_name": {}, "subscription_by_name": {}}


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest) -> Iterator[RealServer]:
    """A server of this file's own, whose settings its tests may change; each puts them back."""
    with real_server(request.param) as server:
        yield server


@pytest.mark.parametrize("engine", EVERY_ENGINE)
async def test_replies_are_bytes(redis_client: Redis, namespace: str) -> None:
    await redis_client.set(namespace, "1")
    assert await redis_client.get(namespace) == b"1"


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_client_reconnects_after_a_crash_of_the_server(engine: str) -> None:
    with real_server(engine, *DURABLE) as server:
        async with connect(server.url) as client:
            await client.set("x", "1")
            server.restart()
            assert await client.get("x") == b"1"


async def test_watcher_is_named_in_the_list_of_clients(server: RealServer) -> None:
    async with connect(server.url) as client:
        assert "watcher" in {each["name"] for each in await client.client_list()}


async def test_more_commands_than_connections_wait_for_their_turn(server: RealServer) -> None:
    async with connect(server.url) as client:
        many = 3 * CONNECTIONS
        answers = await asyncio.gather(*(client.echo(str(n)) for n in range(many)))
        assert answers == [str(n).encode() for n in range(many)]
        assert len(await client.client_list()) <= CONNECTIONS


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("embedded", "embedded"),
        ("redis://db.example.com", "redis://db.example.com:6379"),
        (f"rediss://me:{PASSWORD}@db.example.com:7000/3", "rediss://db.example.com:7000/3"),
        (f"redis://:{PASSWORD}@[::1]/", "redis://[::1]:6379"),
        (f"redis://db.example.com?password={PASSWORD}", "redis://db.example.com:6379"),
        (f"unix://me@/run/redis@1/redis.sock?password={PASSWORD}", "unix:///run/redis@1/redis.sock"),
    ],
)
def test_a_logged_address_shows_its_host_and_no_credential(url: str, shown: str) -> None:
    assert safe_url(url) == shown


HOSTILE = [
    f"redis://:{PASSWORD}/x@db.example.com",
    f"redis://:{PASSWORD}#x@db.example.com",
    f"redis://:{PASSWORD}?x@db.example.com",
    f"redis://me:12/{PASSWORD}@db.example.com",
    f"redis://me:12#{PASSWORD}@db.example.com",
    f"redis://:[{PASSWORD}@db.example.com",
    f"redis://db.example.com:{PASSWORD}",
    f"redis://db.example.com/{PASSWORD}",
    f"redis://db.example.com?{PASSWORD}",
    f"redis://db.example.com?password={PASSWORD}&decode_responses=yes",
    f"redis://db.example.com?db=1&password={PASSWORD}&db=2",
    f"redis://db.example.com?ssl_cert_reqs=none&password={PASSWORD}",
    f"redis:///{PASSWORD}",
    f"unix://:{PASSWORD}/x@/run/redis.sock",
    f"unix://{PASSWORD}",
    f"https://:{PASSWORD}@db.example.com",
    f"{PASSWORD}",
    f"redis+sentinel://:{PASSWORD}@db.example.com",
    "",
]


@pytest.mark.parametrize("url", HOSTILE)
def test_an_invalid_address_is_refused_and_never_quoted(url: str) -> None:
    with pytest.raises(ConfigurationRefused) as caught:
        connect(url)
    assert PASSWORD not in f"{caught.value}{caught.value.__cause__}{safe_url(url)}"


NO_NAMES = ("redis..svc", ".redis.svc", "x" * 64, f"{'x' * 64}.svc", ".")


@pytest.mark.parametrize("url", ["redis://{}", "rediss://{}:1/2", "redis+cluster://a.svc,{}"])
@pytest.mark.parametrize("host", NO_NAMES)
def test_an_impossible_host_is_refused_before_its_lookup(url: str, host: str) -> None:
    with pytest.raises(ConfigurationRefused, match="is not a name: each part between dots"):
        check_address(url.format(host))


@pytest.mark.parametrize("host", ["redis.svc.", "my_redis", "bücher.example", "x" * 63])
def test_a_possible_host_is_left_to_its_lookup(host: str) -> None:
    check_address(f"redis://{host}")


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("ssl_ca_certs=/nowhere.pem", "cannot be found"),
        ("ssl_cert_reqs=NONE", "none or required"),
        ("ssl_check_hostname=maybe", "yes or no"),
        ("db=first", "db is a number"),
    ],
)
def test_a_bad_option_is_found_before_the_first_connection(option: str, complaint: str) -> None:
    with pytest.raises(ConfigurationRefused, match=complaint):
        connect(f"rediss://db.example.com?{option}")


def as_newer_pythons_do(url: str, scheme: str = "", allow_fragments: bool = True) -> SplitResult:
    """`urlsplit` since 3.11.12, 3.12.9 and 3.13.2 (CVE-2025-0938): brackets hold a whole host, or none."""
    parts = urlsplit(url, scheme, allow_fragments)
    before, bracket, rest = parts.netloc.rpartition("@")[2].partition("[")
    if bracket and (before or not re.fullmatch(r"[^][]*\](:[0-9]*)?", rest)):
        raise ValueError("Invalid IPv6 URL")
    return parts


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis+sentinel://:{PASSWORD}@[::1]:1,[::2]:2/m", "redis+sentinel://[::1]:1,[::2]:2/m"),
        (f"redis+sentinel://:{PASSWORD}@h1:1,[::2]:2/m/3", "redis+sentinel://h1:1,[::2]:2/m/3"),
        (f"redis+sentinel://[::1],[::2]/m?password={PASSWORD}", "redis+sentinel://[::1]:26379,[::2]:26379/m"),
        (f"redis+cluster://me:{PASSWORD}@[2001:db8::1],h2:7", "redis+cluster://[2001:db8::1]:6379,h2:7"),
        (f"redis://me:{PASSWORD}@[fe80::1%25eth0]:7/1", "redis://[fe80::1%25eth0]:7/1"),
    ],
)
async def test_every_python_reads_ipv6_addresses_the_same(
    url: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("urllib.parse", "watcher.store.address", "watcher.settings"):
        monkeypatch.setattr(f"{place}.urlsplit", as_newer_pythons_do, raising=False)
    check_address(url)
    assert safe_url(url) == shown
    assert PASSWORD in set(secrets_of(Settings(redis=RedisSettings.model_validate({"url": url}), **NOTHING)))
    found = several(url)
    if found and found.kind == "cluster":
        await connect_node(found, *found.hosts[0]).aclose()
    else:
        await connect(url).aclose()


async def test_the_number_of_the_database_is_taken_from_the_address(server: RealServer) -> None:
    async with connect(f"{server.url}?db=3") as third, connect(server.url) as first:
        await third.set("only-in-3", "1")
        assert await first.exists("only-in-3") == 0


async def refusal(url: str) -> StoreError:
    """What a command on that address raises, in our words."""
    async with connect(url) as client:
        with pytest.raises(StoreError) as caught, translated(client):
            await client.ping()
    return caught.value


async def test_a_missing_server_is_unreachable_within_seconds(tmp_path: Path) -> None:
    async with asyncio.timeout(4):
        error = await refusal(f"unix://{tmp_path}/s")
    assert isinstance(error, StoreUnreachable)
    assert str(error) == f"Redis at {tmp_path}/s cannot be reached; is it running?"


async def test_a_wrong_password_is_a_configuration_error_that_does_not_show_it(server: RealServer) -> None:
    error = await refusal(f"{server.url}?username=nobody&password={PASSWORD}")
    assert isinstance(error, ConfigurationRefused)
    assert "credentials" in str(error)
    assert PASSWORD not in f"{error!r} {error.__cause__!r} {error.__cause__}"


async def test_something_else_than_redis_is_a_configuration_error() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(greet, ANYONE, 0) as front:
        error = await refusal(f"redis://{ANYONE}:{front.sockets[0].getsockname()[1]}")
    assert isinstance(error, ConfigurationRefused)
    assert "is not Redis" in str(error)


@asynccontextmanager
async def a_full_disk(server: RealServer) -> AsyncIterator[None]:
    """Make the server's snapshots fail: it cannot replace a directory by a file."""
    (server.directory / "dump.rdb").mkdir()
    async with connect(server.url) as client:
        await client.config_set("save", "3600 1")
        await client.bgsave()
        async with asyncio.timeout(5):
            while (await client.info("persistence"))["rdb_last_bgsave_status"] == "ok":  # noqa: ASYNC110 - only it knows
                await asyncio.sleep(0.002)
        try:
            yield
        finally:
            await client.config_set("save", "")


async def test_a_full_disk_means_refused_writes_and_not_an_unreachable_server() -> None:
    with real_server() as server:
        async with connect(server.url) as client:
            await client.set("before", "1")
            async with a_full_disk(server):
                with pytest.raises(StoreUnreachable, match=r"refuses writes \(MISCONF\)"), translated(client):
                    await client.set("after", "1")
                assert isinstance(await refusal(server.url), StoreUnreachable), "even PING fails"
                assert await client.get("before") == b"1"


@pytest.mark.parametrize("command", [("SET", "x", "1"), ("EVAL", "redis.call('SET', KEYS[1], 1)", "1", "x")])
async def test_full_memory_means_refused_writes(server: RealServer, command: tuple[str, ...]) -> None:
    async with connect(server.url) as client:
        await client.config_set("maxmemory", "1")
        try:
            with pytest.raises(StoreUnreachable, match=r"refuses writes \(OOM\)"), translated(client):
                await client.execute_command(*command)  # type: ignore[no-untyped-call]
        finally:
            await client.config_set("maxmemory", "0")


async def test_a_replica_means_refused_writes(server: RealServer) -> None:
    async with connect(server.url) as client:
        await client.replicaof(ANYONE, "1")
        try:
            with pytest.raises(StoreUnreachable, match=r"refuses writes \(READONLY\)"), translated(client):
                await client.set("x", "1")
        finally:
            await client.replicaof("NO", "ONE")


@pytest.mark.parametrize("engine", EVERY_ENGINE)
async def test_an_error_that_no_server_state_explains_is_not_translated(
    redis_client: Redis, namespace: str
) -> None:
    await redis_client.set(namespace, "1")
    with pytest.raises(Exception, match="WRONGTYPE") as caught, translated(redis_client):
        await redis_client.hgetall(namespace)
    assert not isinstance(caught.value, StoreError)


async def test_a_user_with_least_privilege_can_connect(server: RealServer) -> None:
    async with connect(server.url) as admin:
        rights = ("reset", "on", f">{PASSWORD}", "~w:*", "resetchannels", "-@all", "+ping", "+get")
        await admin.execute_command("ACL", "SETUSER", "worker", *rights)  # type: ignore[no-untyped-call]
        async with connect(f"{server.url}?username=worker&password={PASSWORD}") as client:
            assert await client.get("w:x") is None
            with pytest.raises(ConfigurationRefused, match="forbids its user"), translated(client):
                await client.get("x")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_certificate_file(tmp_path_factory.mktemp("tls"))


async def test_a_certificate_is_verified_unless_that_is_disabled(
    server: RealServer, certificate: Path
) -> None:
    async with a_tls_front(certificate, server.socket) as port:
        url = f"rediss://{ANYONE}:{port}"
        error = await refusal(url)
        assert isinstance(error, ConfigurationRefused)
        assert "does not verify" in str(error)
        assert "?ssl_cert_reqs=none" in str(error), "the way out is named"
        for trusting in (f"{url}?ssl_ca_certs={certificate}", f"{url}?ssl_cert_reqs=none"):
            async with connect(trusting) as client:
                assert await client.ping()


async def test_a_certificate_for_another_name_is_refused(server: RealServer, certificate: Path) -> None:
    async with a_tls_front(certificate, server.socket) as port:
        error = await refusal(f"rediss://localhost:{port}?ssl_ca_certs={certificate}")
        assert isinstance(error, ConfigurationRefused)
        assert "?ssl_check_hostname=no" in str(error)
        lax = f"rediss://localhost:{port}?ssl_ca_certs={certificate}&ssl_check_hostname=no"
        async with connect(lax) as client:
            assert await client.ping()


async def test_a_server_without_tls_is_named_as_such() -> None:
    async def take_for_an_inline_command(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"-ERR unknown command\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(take_for_an_inline_command, ANYONE, 0) as plain:
        error = await refusal(f"rediss://{ANYONE}:{plain.sockets[0].getsockname()[1]}")
    assert isinstance(error, ConfigurationRefused)
    assert "does not speak TLS" in str(error)


@pytest.mark.skipif("redis" not in ENGINES, reason="the server that comes along has no TLS of its own")
async def test_a_server_with_tls_is_verified_by_its_authority(certificate: Path) -> None:
    port = a_free_port()
    files = ("--tls-cert-file", "--tls-key-file", "--tls-ca-cert-file")
    own = (argument for name in files for argument in (name, str(certificate)))
    with real_server("redis", "--tls-port", str(port), "--tls-auth-clients", "no", *own):
        error = await refusal(f"rediss://{ANYONE}:{port}")
        assert isinstance(error, ConfigurationRefused)
        assert "if it is self-signed, name it or its authority" in str(error)
        for switch in (f"ssl_ca_certs={certificate}", "ssl_cert_reqs=none"):
            async with connect(f"rediss://{ANYONE}:{port}?{switch}") as client:
                assert await client.ping()
                warnings = (await guarantee(client)).warnings
                assert bool(warnings) == (switch == "ssl_cert_reqs=none"), "said at every start"


def test_a_connection_closed_during_its_handshake_is_no_bug(
    redis_server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a TLS port closes it, which was asked without TLS: uvloop says so in its own way."""

    async def close(connection: AbstractConnection) -> None:
        assert connection._writer
        connection._writer.transport.abort()
        await connection._writer.wait_closed()

    async def ask() -> None:
        async with connect(redis_server_url) as client:
            await client.ping()

    monkeypatch.setattr(AbstractConnection, "on_connect", close)
    with (
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        pytest.raises(NoConnection, match="the connection was closed"),
    ):
        runner.run(ask())
