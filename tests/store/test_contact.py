"""First contact with a server: a wrong one is recognised and named, even if it does not say what it is."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.clusters import a_cluster
from tests.support.replying import ReplyingServer
from tests.support.sentinels import on_port, watched
from tests.support.servers import ENGINES, a_free_port, real_server
from tests.support.tls_front import a_certificate_file, a_tls_front
from watcher.service.serve import loop_factory
from watcher.settings import RedisSettings
from watcher.store import opening
from watcher.store.address import check_address, several
from watcher.store.client import ClusterPipe, connect
from watcher.store.exceptions import ConfigurationRefused, StoreError, StoreUnreachable
from watcher.store.opening import make_contact, open_store
from watcher.store.pipe import Pipe

HERE = "127.0.0.1"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def refusal(url: str, *, patience_s: float = 5.0) -> StoreError:
    """What first contact at that address raises."""
    check_address(url)
    found = several(url)
    pipe = ClusterPipe(found) if found and found.kind == "cluster" else Pipe(connect(url))
    try:
        with pytest.raises(StoreError) as caught:
            await make_contact(pipe, url, patience_s=patience_s)
    finally:
        await pipe.aclose()
    return caught.value


@asynccontextmanager
async def listening(serve: Serve, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Something else than Redis; yields its port."""
    async with await asyncio.start_server(serve, HERE, 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(100)
    writer.close()


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def serve_the_web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As a web server that waits for the end of a request's head."""
    while await reader.readline() not in (b"\r\n", b""):
        pass
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_certificate_file(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server(redis_server_url: str) -> Path:
    return Path(redis_server_url.removeprefix("unix://"))


async def test_a_tls_port_contacted_without_tls_is_named(server: Path, certificate: Path) -> None:
    async with a_tls_front(certificate, server) as port:
        error = await refusal(f"redis://{HERE}:{port}")
    assert isinstance(error, ConfigurationRefused)
    assert str(error) == f"Redis at {HERE}:{port} speaks TLS; use rediss://, or its port without TLS"


@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster"])
async def test_a_port_without_tls_contacted_with_tls_is_named(server: Path, scheme: str) -> None:
    async with ReplyingServer(upstream=server) as plain:
        error = await refusal(f"{scheme}://{HERE}:{plain.port}", patience_s=1)
    assert isinstance(error, ConfigurationRefused)
    assert str(error) == f"Redis at {HERE}:{plain.port} does not speak TLS; use redis://, or its TLS port"


async def test_a_web_server_is_distinguished_from_redis() -> None:
    async with listening(serve_the_web) as port:
        error = await refusal(f"redis://{HERE}:{port}", patience_s=0.3)
    assert isinstance(error, ConfigurationRefused)
    assert str(error) == f"what answers at {HERE}:{port} is not Redis, but a web server; check the URL"


@pytest.mark.parametrize(
    ("scheme", "serve", "words"),
    [
        ("redis", say_nothing, "does not answer in time"),
        ("redis", hang_up, "closes the connection without an answer; is it a working Redis?"),
        (
            "rediss",
            say_nothing,
            "does not complete the TLS handshake; is it the TLS port of a working Redis?",
        ),
        ("rediss", hang_up, "does not complete the TLS handshake; is it the TLS port of a working Redis?"),
    ],
)
async def test_a_silent_server_is_named_as_silent_only(
    scheme: str, serve: Serve, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_TRY_S", 0.3)
    async with listening(serve) as port:
        error = await refusal(f"{scheme}://{HERE}:{port}", patience_s=1)  # tries again first
    assert isinstance(error, StoreUnreachable)
    assert words in str(error)


@pytest.mark.parametrize(
    "answer", [b"+OK", b":1", b"$-1", b"*0", b"*2\r\n+a\r\n+b", b"*1\r\n:1", b"*2\r\n:1\r\n:2"]
)
async def test_foreign_answers_are_not_taken_for_those_of_redis(answer: bytes) -> None:
    async with ReplyingServer(answer) as server:
        error = await refusal(server.url)
    assert isinstance(error, ConfigurationRefused)
    assert "is not Redis" in str(error)


async def test_a_refused_connection_and_an_unknown_name_have_different_messages() -> None:
    assert "is it running?" in str(await refusal(f"redis://{HERE}:{a_free_port()}"))
    unknown = await refusal("redis://no-such-host.invalid")
    assert isinstance(unknown, StoreUnreachable)
    assert "its name cannot be resolved" in str(unknown)


async def test_a_missing_database_number_is_a_configuration_error(server: Path) -> None:
    async with ReplyingServer(upstream=server) as front:
        assert "no database of this number" in str(await refusal(f"{front.url}/99"))


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_sentinel_in_place_of_a_server_is_named(engine: str) -> None:
    port = a_free_port()
    with real_server(engine, *on_port(port)) as primary, watched(primary, port) as url:
        sentinel = url.removeprefix("redis+sentinel://").partition("/")[0]
        error = await refusal(f"redis://{sentinel}")
        assert isinstance(error, ConfigurationRefused)
        assert str(error).startswith(f"{sentinel} is a Sentinel: name it by redis+sentinel://")
        assert "is not part of a Cluster" in str(await refusal(f"redis+cluster://{sentinel}"))
        assert "is not part of a Cluster" in str(await refusal(f"redis+cluster://{HERE}:{port}"))


async def test_a_cluster_node_in_place_of_a_server_is_named_at_the_first_command() -> None:
    with a_cluster(nodes=3) as cluster:
        for node in cluster.nodes:
            async with connect(f"redis://{HERE}:{node.port}") as client:
                for key in "abcd":
                    if cluster.owner(key) is not node:
                        with pytest.raises(ConfigurationRefused, match=r"name it by redis\+cluster://"):
                            await Pipe(client).command("GET", key)
                        break
        assert isinstance(await refusal(f"redis://{HERE}:{cluster.nodes[0].port}/3"), ConfigurationRefused)


def a_tls_server(certificate: Path, port: int, *flags: str) -> tuple[str, ...]:
    files = ("--tls-cert-file", "--tls-key-file", "--tls-ca-cert-file")
    own = (argument for name in files for argument in (name, str(certificate)))
    return ("--tls-port", str(port), *own, *flags)


@pytest.mark.skipif("redis" not in ENGINES, reason="the server that comes along has no TLS of its own")
@pytest.mark.parametrize(
    ("flags", "options", "words"),
    [
        (
            ("--tls-auth-clients", "yes"),
            "",
            "wants a client certificate: name one in its URL by ?ssl_certfile",
        ),
        (
            ("--tls-auth-clients", "yes", "--tls-protocols", "TLSv1.2"),
            "",
            "breaks off the TLS handshake: it wants a client certificate",
        ),
        (
            ("--tls-auth-clients", "yes"),
            "&ssl_certfile={other}&ssl_keyfile={other}",
            "does not trust the client certificate that ssl_certfile names",
        ),
        (
            ("--tls-auth-clients", "no", "--tls-protocols", "TLSv1.1", "--tls-ciphers", "DEFAULT@SECLEVEL=0"),
            "",
            "speaks no version of TLS that this machine speaks",
        ),
    ],
)
def test_a_tls_error_names_its_cause(
    flags: tuple[str, ...], options: str, words: str, certificate: Path, tmp_path: Path
) -> None:
    """With the loop of workers: asyncio's own may see only the reset that follows the server's alert."""
    port = a_free_port()
    with real_server("redis", *a_tls_server(certificate, port, *flags)):
        more = options.format(other=a_certificate_file(tmp_path))
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            error = runner.run(refusal(f"rediss://{HERE}:{port}?ssl_ca_certs={certificate}{more}"))
    assert isinstance(error, ConfigurationRefused)
    assert words in str(error)


def test_an_unusable_certificate_is_found_before_the_first_connection(
    tmp_path: Path, certificate: Path
) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    other = a_certificate_file(tmp_path)
    for options, words in (
        (f"ssl_ca_certs={junk}", "ssl_ca_certs names holds no certificate"),
        (f"ssl_certfile={junk}", "ssl_certfile and ssl_keyfile are not a certificate and its key"),
        (f"ssl_certfile={certificate}&ssl_keyfile={other}", "are not a certificate and its key"),
        (f"ssl_keyfile={other}", "ssl_keyfile needs ssl_certfile"),
    ):
        with pytest.raises(ConfigurationRefused, match=words):
            check_address(f"rediss://{HERE}?{options}")
    check_address(f"rediss://{HERE}?ssl_certfile={certificate}&ssl_keyfile={certificate}")


async def test_a_store_is_open_when_it_has_answered(server: Path) -> None:
    async with ReplyingServer(b"-ERR quota", upstream=server) as front:
        settings = RedisSettings.model_validate({"url": front.url})
        with pytest.raises(StoreUnreachable, match="unknown error: ERR quota"):
            async with open_store(settings):
                raise AssertionError
        front.reply = None
        async with open_store(settings) as store:
            assert await store.pipe.command("EXISTS", "x") == 0
