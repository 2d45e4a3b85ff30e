"""An exit code says what is at fault: every command against every kind of unusable server.

69: the server's state, or no listener. 78: the address or the credentials. 0 or 1: it answered all
the same. Never 70, never a traceback; one sentence.
"""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from tests.support.clusters import a_cluster
from tests.support.replying import ReplyingServer
from tests.support.sentinels import NAME, on_port, watched
from tests.support.servers import PASSWORD, RealServer, a_free_port, real_server, until
from tests.support.stories import Ended, ended
from tests.support.tls_front import a_certificate_file
from watcher.cli import COMMANDS
from watcher.store import client

HERE = "127.0.0.1"
NAMESPACE = "watcher"

EXPORTED = "exported.jsonl"

Call = tuple[str, ...]

LOOKS: tuple[Call, ...] = (
    ("store", "layout"),
    ("status",),
    ("balances",),
    ("history", "treasury"),
    ("events",),
    ("deliveries",),
    ("deliveries", "--dead"),
    ("deliveries", "--attempts"),
    ("subscriptions",),
    ("audit",),
    ("accounts",),
    ("accounts", "show", "treasury"),
    ("resend", "--subscription", "ops", "--dead", "--dry-run"),
    ("resend", "--subscription", "ops", "--since", "1d", "--dry-run"),
)
ACTS: tuple[Call, ...] = (
    ("subscriptions", "pause", "ops"),
    ("subscriptions", "resume", "ops"),
    ("accounts", "reset", "treasury", "--yes"),
    ("poll", "treasury"),
    ("export", "--to", "exported"),
    ("import", EXPORTED),
)
TRIES: tuple[Call, ...] = (("check", "--connect"),)
RUNS: tuple[Call, ...] = (("run", "--once"),)

WITHOUT_A_STORE = {
    *("demo", "init", "health", "tail", "ping", "explain", "listen", "verify", "schema", "sandbox", "secret"),
    "recipes",
}
"""These open none, or one of their own."""

CONFIGURATION = """
[redis]
url = "{url}"
namespace = "{namespace}"

[egress]
allow = ["127.0.0.0/8"]
allow_http = true

[providers.loopring]
base_url = "http://127.0.0.1:{closed}"
api_key = "canaryApiKey"

[[accounts]]
name = "treasury"
provider = "loopring"
account_id = 1

[[subscriptions]]
name = "ops"
url = "http://127.0.0.1:{closed}/in"
secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]

[api]
secret_key = "wkey_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
"""


@pytest.fixture(autouse=True)
def _without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry without waits: each command here is refused by its server several times."""
    monkeypatch.setattr(client, "ExponentialWithJitterBackoff", lambda **_: NoBackoff())


def asked(server: RealServer, *command: object) -> object:
    with Redis(unix_socket_path=str(server.socket), socket_timeout=5) as client:
        return client.execute_command(*command)


@asynccontextmanager
async def on_a_port(
    *flags: str, engine: str = "redis", options: str = ""
) -> AsyncIterator[tuple[RealServer, str]]:
    port = a_free_port()
    with real_server(engine, *on_port(port), *flags) as server:
        yield server, f"redis://{HERE}:{port}{options}"


@asynccontextmanager
async def no_listener() -> AsyncIterator[str]:
    yield f"redis://{HERE}:{a_free_port()}"


@asynccontextmanager
async def an_unknown_name() -> AsyncIterator[str]:
    yield "redis://no-such-host.invalid"


@asynccontextmanager
async def another_password() -> AsyncIterator[str]:
    async with on_a_port("--requirepass", PASSWORD) as (_, url):
        yield url.replace("//", "//:canaryPassword@")


@asynccontextmanager
async def no_password() -> AsyncIterator[str]:
    async with on_a_port("--requirepass", PASSWORD) as (_, url):
        yield url


@asynccontextmanager
async def a_password_too_many() -> AsyncIterator[str]:
    async with on_a_port() as (_, url):
        yield url.replace("//", "//:canaryPassword@")


@asynccontextmanager
async def no_such_database() -> AsyncIterator[str]:
    async with on_a_port(options="/99") as (_, url):
        yield url


@asynccontextmanager
async def a_node_of_a_cluster() -> AsyncIterator[str]:
    with a_cluster("redis") as cluster:
        owner = cluster.owner(f"{NAMESPACE}:{{meta}}")
        yield f"redis://{HERE}:{next(node.port for node in cluster.nodes if node is not owner)}"


@asynccontextmanager
async def a_sentinel() -> AsyncIterator[str]:
    port = a_free_port()
    with real_server("redis", *on_port(port)) as primary, watched(primary, port) as url:
        yield f"redis://{url.removeprefix('redis+sentinel://').removesuffix(f'/{NAME}')}"


@asynccontextmanager
async def no_sentinel() -> AsyncIterator[str]:
    async with on_a_port() as (_, url):
        yield url.replace("redis://", "redis+sentinel://") + "/main"


@asynccontextmanager
async def no_cluster() -> AsyncIterator[str]:
    async with on_a_port() as (_, url):
        yield url.replace("redis://", "redis+cluster://")


@asynccontextmanager
async def a_web_server() -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, HERE, 0) as server:
        yield f"redis://{HERE}:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def tls_asked_without() -> AsyncIterator[str]:
    port = a_free_port()
    with TemporaryDirectory() as place:
        certificate = str(a_certificate_file(Path(place)))
        files = (
            "--tls-cert-file",
            certificate,
            "--tls-key-file",
            certificate,
            "--tls-ca-cert-file",
            certificate,
        )
        with real_server("redis", "--tls-port", str(port), "--tls-auth-clients", "no", *files):
            yield f"redis://{HERE}:{port}"


@asynccontextmanager
async def a_script_without_end() -> AsyncIterator[str]:
    async with on_a_port("--lua-time-limit", "20") as (server, url):
        thread = threading.Thread(target=_loop_for_ever, args=(server,))
        thread.start()
        try:
            until(lambda: _is_busy(server), "the script did not begin")
            yield url
        finally:
            asked(server, "SCRIPT", "KILL")
            thread.join()


def _loop_for_ever(server: RealServer) -> None:
    with suppress(RedisError), Redis(unix_socket_path=str(server.socket)) as client:
        client.execute_command("EVAL", "while true do end", 0)


def _is_busy(server: RealServer) -> bool:
    try:
        asked(server, "PING")
    except RedisError as error:
        return "BUSY" in str(error)
    return False


@asynccontextmanager
async def full_memory() -> AsyncIterator[str]:
    async with on_a_port("--maxmemory", "1", "--maxmemory-policy", "noeviction") as (_, url):
        yield url


@asynccontextmanager
async def a_full_disk() -> AsyncIterator[str]:
    async with on_a_port("--save", "3600 1") as (server, url):
        (server.directory / "dump.rdb").mkdir()
        asked(server, "BGSAVE")
        until(lambda: _has_failed_to_save(server), "the disk is not full")
        yield url


def _has_failed_to_save(server: RealServer) -> bool:
    said: Any = asked(server, "INFO", "persistence")
    return bool(said["rdb_last_bgsave_status"] == "err")


@asynccontextmanager
async def a_replica() -> AsyncIterator[str]:
    async with on_a_port("--replicaof", f"{HERE} 1") as (_, url):
        yield url


@asynccontextmanager
async def a_replica_without_its_primary() -> AsyncIterator[str]:
    async with on_a_port() as (server, url):
        asked(server, "CONFIG", "SET", "replica-serve-stale-data", "no")
        asked(server, "REPLICAOF", HERE, 1)
        yield url


def replying(reply: str, *only: str) -> Callable[[], AbstractAsyncContextManager[str]]:
    @asynccontextmanager
    async def server() -> AsyncIterator[str]:
        with real_server("redis") as real:
            async with ReplyingServer(reply.encode(), only=only, upstream=real.socket) as front:
                yield front.url

    return server


Server = Callable[[], AbstractAsyncContextManager[str]]

UNUSABLE: dict[str, tuple[Server, int, str]] = {
    "closed port": (no_listener, 69, "cannot be reached; is it running?"),
    "unknown name": (an_unknown_name, 69, "its name cannot be resolved"),
    "wrong password": (another_password, 78, "refuses the credentials in its URL"),
    "no password": (no_password, 78, "asks for credentials"),
    "a password too many": (a_password_too_many, 78, "take the credentials out of its URL"),
    "wrong database": (no_such_database, 78, "no database of this number"),
    "cluster node": (a_node_of_a_cluster, 78, "name it by redis+cluster://"),
    "sentinel": (a_sentinel, 78, "is a Sentinel"),
    "no sentinel": (no_sentinel, 78, "is no Sentinel"),
    "no cluster": (no_cluster, 78, "is not part of a Cluster"),
    "web server": (a_web_server, 78, "is not Redis"),
    "TLS": (tls_asked_without, 78, "speaks TLS; use rediss://"),
    "BUSY": (a_script_without_end, 69, "is busy with a script that does not end"),
    "MASTERDOWN": (a_replica_without_its_primary, 69, "is a replica"),
    "quota": (replying("-ERR max requests limit exceeded"), 69, "unknown error: ERR max requests limit"),
    "full of clients": (replying("-ERR max number of clients reached"), 69, "raise its maxclients"),
    "loading": (replying("-LOADING Redis is loading"), 69, "still loading its data"),
    "nonsense": (replying("+OK"), 78, "is not Redis"),
}
"""By what every command says of it, and exits with."""

READABLE: dict[str, tuple[Server, str]] = {
    "replica": (a_replica, "it is a replica"),
    "OOM": (full_memory, "its memory is full"),
    "MISCONF": (a_full_disk, "could not write to its disk"),
}
"""By what is said by the commands that write: those that look answer."""


class Place:
    """Where commands are run: one configuration, for a store at `url`."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str], url: str) -> None:
        self.file = directory / "watcher.toml"
        self.file.write_text(CONFIGURATION.format(url=url, namespace=NAMESPACE, closed=a_free_port()))
        (directory / EXPORTED).write_text('{"name": "bob", "provider": "loopring", "account_id": 2}\n')
        self._capsys = capsys

    async def run(self, name: str, *arguments: str) -> Ended:
        """Run a command to its end: in this process, but for the worker, which needs one of its own."""
        words = 1 if name in ("accounts", "store") else 0  # its options belong to its subcommand
        call = (name, *arguments[:words], "--config", str(self.file), *arguments[words:])
        call = tuple(str(self.file.parent / EXPORTED) if word == EXPORTED else word for word in call)
        if name == "run":
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "watcher", *call), stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            out, err = await process.communicate()
            return Ended(process.returncode, out.decode(), err.decode())
        return await asyncio.to_thread(ended, self._capsys, *call)


async def within(limit_s: float, ending: Awaitable[Ended]) -> Ended:
    async with asyncio.timeout(limit_s):
        return await ending


def complaint(done: Ended) -> str:
    """The message of a command that failed: one sentence on stderr."""
    assert "Traceback" not in done.out + done.err
    assert "canary" not in done.out + done.err
    (line,) = (line for line in done.err.splitlines() if not line.startswith("warning:"))
    return line


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNUSABLE)
async def test_every_command_says_why_a_server_cannot_be_used(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, code, words = UNUSABLE[kind]
    async with server() as url:
        place = Place(tmp_path, capsys, url)
        for call in (*LOOKS, *ACTS, *RUNS):
            done = await place.run(*call)
            assert (done.code, words in complaint(done)) == (code, True), (call, done)
        for call in TRIES:
            done = await place.run(*call)
            assert done.code == 1, done
            assert words in next(line for line in done.lines if line.startswith("redis ")), done


@pytest.mark.slow
@pytest.mark.parametrize("kind", READABLE)
async def test_a_server_that_only_refuses_writes_can_still_be_read(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, words = READABLE[kind]
    async with server() as url:
        place = Place(tmp_path, capsys, url)
        for call in LOOKS:
            done = await place.run(*call)
            assert done.code == 0, (call, done)
            assert "Traceback" not in done.err
        for call in RUNS:
            done = await place.run(*call)
            assert (done.code, words in complaint(done)) == (69, True), (call, done)
        for call in TRIES:
            done = await place.run(*call)
            assert done.code == 1, done


@pytest.mark.slow
async def test_a_server_that_hangs_is_given_up_within_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with ReplyingServer() as server:
        place = Place(tmp_path, capsys, server.url)
        async with asyncio.timeout(24), asyncio.TaskGroup() as beside:
            running = beside.create_task(within(12, place.run(*RUNS[0])))  # in a process of its own
            found = [await within(12, place.run(*call)) for call in (*LOOKS[:1], *ACTS[:1])]
        for done in (*found, running.result()):
            assert done.code == 69, done
            assert "does not answer in time" in complaint(done)


def test_every_command_that_uses_redis_is_tried() -> None:
    tried = {call[0] for call in (*LOOKS, *ACTS, *TRIES, *RUNS)}
    assert tried | WITHOUT_A_STORE == {*COMMANDS}
    assert not tried & WITHOUT_A_STORE
