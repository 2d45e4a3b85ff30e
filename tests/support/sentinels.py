"""A Sentinel over a real server and its replica, which takes over about a second after the server died."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redis import Redis

from tests.support.servers import FAST, RealServer, a_free_port, until

NAME = "main"

_HOST = "127.0.0.1"
_SENTINEL = """
bind {host}
port {port}
dir {directory}
sentinel monitor {name} {host} {primary} 1
sentinel down-after-milliseconds {name} 500
sentinel failover-timeout {name} 3000
"""


def on_port(port: int) -> tuple[str, ...]:
    """Flags with which a server can be watched: no delay, so that a replica is in step at once."""
    return ("--bind", _HOST, "--port", str(port), "--repl-diskless-sync-delay", "0")


@contextlib.contextmanager
def watched(primary: RealServer, port: int) -> Iterator[str]:
    """Inside the block, a replica and a Sentinel stand by for a server that was started `on_port`.

    Yields the URL that leads to the current primary.
    """
    with tempfile.TemporaryDirectory(prefix="watcher-") as place, contextlib.ExitStack() as stack:
        follow = ("--replicaof", f"{_HOST} {port}")
        replica = RealServer(primary.binary, Path(place), (*FAST, *on_port(a_free_port()), *follow))
        replica.start()
        stack.callback(replica.kill)
        until(lambda: _follows(port), "the replica did not catch up")
        sentinel = a_free_port()
        stack.enter_context(_sentinel_process(primary.binary, Path(place), sentinel, port))
        until(lambda: _asked(sentinel).sentinel_master(NAME)["num-slaves"] == 1, "no replica was found")
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


def _follows(primary: int) -> bool:
    replica = _asked(primary).info("replication").get("slave0", {})
    return bool(replica.get("state") == "online")


def _asked(port: int) -> Any:
    return Redis(host=_HOST, port=port, socket_timeout=2)
