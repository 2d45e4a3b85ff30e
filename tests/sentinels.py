"""A Sentinel over a real server and its replica, which takes over about a second after the server died."""

import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import ConnectionError as NoConnection
from servers import FAST, RealServer

NAME = "main"

_HOST = "127.0.0.1"
_WITHIN_S = 15
_SENTINEL = """
bind {host}
port {port}
dir {directory}
sentinel monitor {name} {host} {primary} 1
sentinel down-after-milliseconds {name} 500
sentinel failover-timeout {name} 3000
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind((_HOST, 0))
        return int(taken.getsockname()[1])


def on_port(port: int) -> tuple[str, ...]:
    """Flags with which a server can be watched: no delay, so that a replica is in step at once."""
    return ("--bind", _HOST, "--port", str(port), "--repl-diskless-sync-delay", "0")


@contextlib.contextmanager
def watched(primary: RealServer, port: int) -> Iterator[str]:
    """Inside the block, a replica and a Sentinel stand by for a server that was started `on_port`.

    Yields the URL under which whoever is the primary is found.
    """
    with tempfile.TemporaryDirectory(prefix="watcher-") as place, contextlib.ExitStack() as stack:
        follow = ("--replicaof", f"{_HOST} {port}")
        replica = RealServer(primary.binary, Path(place), (*FAST, *on_port(free_port()), *follow))
        replica.start()
        stack.callback(replica.kill)
        _until(lambda: _asked(port).info("replication").get("slave0", {}).get("state") == "online")
        sentinel = free_port()
        stack.enter_context(_sentinel_process(primary.binary, Path(place), sentinel, port))
        _until(lambda: _asked(sentinel).sentinel_master(NAME)["num-slaves"] == 1)
        yield f"redis+sentinel://{_HOST}:{sentinel}/{NAME}"


@contextlib.contextmanager
def _sentinel_process(binary: Path, directory: Path, port: int, primary: int) -> Iterator[None]:
    settings = directory / "sentinel.conf"
    settings.write_text(
        _SENTINEL.format(host=_HOST, port=port, directory=directory, name=NAME, primary=primary)
    )
    command = (binary, settings, "--sentinel")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def _asked(port: int) -> Any:
    return Redis(host=_HOST, port=port, socket_timeout=2)


def _until(is_so: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + _WITHIN_S
    while True:
        with contextlib.suppress(NoConnection):
            if is_so():
                return
        assert time.monotonic() < give_up_at, "the Sentinel's scene was not set in time"
        time.sleep(0.02)
