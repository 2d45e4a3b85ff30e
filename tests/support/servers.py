"""Real Redis and Valkey servers for tests: private, on a unix socket, stopped at the end."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import SystemRandom
from urllib.parse import quote

import pytest
from redis.exceptions import ConnectionError as NoConnection

from watcher.store.embedded import find_engine

FAST = ("--save", "", "--appendonly", "no")
"""In memory only: for tests that never restart their server."""

DURABLE = ("--save", "", "--appendonly", "yes", "--appendfsync", "everysec", "--aof-use-rdb-preamble", "no")
"""As the embedded server runs: a SIGKILL loses nothing that was answered, unless the disk is slow."""

FAKE = "fake"
"""Not a server but fakeredis: scripts and data commands only, no INFO, CONFIG or WAIT."""

_START_S = 10
_AGREE_S = 20


def _engines() -> dict[str, Path]:
    binaries = {"valkey": find_engine().binary, "redis": shutil.which("redis-server")}
    return {name: Path(binary) for name, binary in binaries.items() if binary}


ENGINES: Mapping[str, Path] = _engines()
"""The server programs of this machine: `valkey` as it comes with the package, and `redis` from PATH."""

LIMITED: Mapping[str, str] = {f"{engine}-acl": engine for engine in ENGINES}
"""The same with the users of deploy/users.acl: asked by its user `watcher`, as one should. What works
with these rights works with more."""

EVERY_ENGINE = (pytest.param(FAKE, marks=pytest.mark.slow), *LIMITED)
"""The fake one answers as the real ones do, and costs more: it is with the slow tests."""

ACL = Path(__file__).parents[2] / "deploy" / "users.acl"
PASSWORD = "swordfish"
LIMITED_NAMESPACE = "watcher"

TESTS_ASK = ("keys", "hkeys", "type", "pttl", "script", "echo", "lpush")
"""What tests ask besides, and the program never does (see tests/deploy/test_deploy_acl.py)."""


@dataclass
class RealServer:
    """One server process that a test may kill, pause and restart; its data survives in `directory`.

    Everything is synchronous and returns once it has happened: `start` when the server answers, `kill`
    and `stop` when the process is gone.
    """

    binary: Path
    directory: Path
    flags: tuple[str, ...] = FAST
    environment: Mapping[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def socket(self) -> Path:
        return self.directory / "s"

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket))}"

    @property
    def pid(self) -> int:
        assert self.process, "the server was not started"
        return self.process.pid

    def start(self) -> None:
        assert self.process is None, "the server runs already"
        log = self.directory / "log"
        flags = ("--port", "0", "--unixsocket", "s", "--dir", ".", "--logfile", log.name, *self.flags)
        environment = {**os.environ, **self.environment}
        self.process = subprocess.Popen(
            (self.binary, *flags), cwd=self.directory, env=environment, stdout=subprocess.DEVNULL
        )
        give_up_at = time.monotonic() + _START_S
        while not answers(self.socket):
            if self.process.poll() is not None or time.monotonic() > give_up_at:
                self.kill()
                raise AssertionError(
                    f"{self.binary} did not start:\n{log.read_text() if log.exists() else ''}"
                )
            time.sleep(0.002)

    def stop(self) -> None:
        """End in order, with everything written to disk."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End at once, as a crash would."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.kill()
        self.start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Hang inside the block: connections are accepted by the system and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(_START_S)
            self.process = None


@contextlib.contextmanager
def real_server(engine: str = "valkey", *flags: str) -> Iterator[RealServer]:
    """Run a server of that engine inside the block, with `flags` after (and over) FAST."""
    # Not in tmp_path: its name may be too long for a unix socket.
    with tempfile.TemporaryDirectory(prefix="watcher-") as directory:
        server = RealServer(ENGINES[engine], Path(directory), (*FAST, *flags))
        server.start()
        try:
            yield server
        finally:
            server.kill()


def shipped_users() -> str:
    """The users file of deploy/, with a password."""
    return ACL.read_text().replace("PASSWORD_SHA256", sha256(PASSWORD.encode()).hexdigest())


@contextlib.contextmanager
def limited_server(engine: str) -> Iterator[str]:
    """Run a server with the shipped users inside the block; yields the URL of the one that tests use."""
    more = "".join(f" +{command}" for command in TESTS_ASK)
    with tempfile.NamedTemporaryFile("w", prefix="watcher-", suffix=".acl") as users:
        users.write("".join(f"{line}{more}\n" for line in shipped_users().splitlines()))
        users.flush()
        with real_server(LIMITED[engine], "--aclfile", users.name) as server:
            yield f"{server.url}?username=watcher&password={PASSWORD}"


def answers(path: Path) -> bool:
    """Say whether a server on this unix socket has loaded its data and answers."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def a_free_port(*also: int) -> int:
    """A port of this machine without a listener, nor at the ports that are so far above it.

    It is none of those that the system gives away by itself, and stays free for a server started there again.
    """
    while True:
        port = SystemRandom().randrange(20_000, 32_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as taken:
            for above in (0, *also):
                taken.enter_context(socket.create_server(("127.0.0.1", port + above)))
            return port


def until(is_so: Callable[[], bool], complaint: str) -> None:
    """Wait for servers to come to something. As long as one of them does not answer, it is not so."""
    give_up_at = time.monotonic() + _AGREE_S
    while True:
        with contextlib.suppress(NoConnection):
            if is_so():
                return
        assert time.monotonic() < give_up_at, complaint
        time.sleep(0.02)
