"""Names are looked up by the current resolver files, with a name server on loopback."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import AsyncResolver
from pydantic import SecretStr
from yarl import URL

from tests.support.name_server import name_server
from tests.support.raw_subscribers import FakeDns, open_files
from tests.support.rig import TREASURY, Rig, a_rig
from watcher.http.dial import CurrentResolver
from watcher.settings import Settings

NOWHERE = "nameserver 127.0.0.1:1\n"
AN_HOUR = timedelta(hours=1)


@pytest.fixture
def resolv_conf(tmp_path: Path) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text("")
    return path


def following(path: Path) -> CurrentResolver:
    """A resolver that follows `path`, and in place of /etc/hosts what lies beside it.

    c-ares cannot be given a path (pycares 5 frees the name before it is read), so it is given the lines.
    """

    def make() -> AsyncResolver:
        lines = path.read_text().split() if path.exists() else []
        host, _, port = lines[1].partition(":") if lines else ("127.0.0.1", "", "1")
        return AsyncResolver(nameservers=[host], udp_port=int(port), tcp_port=1)

    return CurrentResolver((path, path.with_name("hosts")), make)


@asynccontextmanager
async def a_resolver(path: Path) -> AsyncIterator[CurrentResolver]:
    resolver = following(path)
    yield resolver
    await resolver.close()


async def address_of(resolver: CurrentResolver, host: str = "ops.test") -> str:
    return (await resolver.resolve(host))[0]["host"]


def fill_in_place(path: Path, text: str) -> None:
    path.write_text(text)


def replace(path: Path, text: str) -> None:
    other = path.with_suffix(".new")
    other.write_text(text)
    other.rename(path)


def move_the_link(path: Path, text: str) -> None:
    target = path.with_suffix(".target")
    target.write_text(text)
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize("change", [fill_in_place, replace, move_the_link])
async def test_a_resolv_conf_that_is_filled_later_takes_effect(
    change: Callable[[Path, str], None], resolv_conf: Path
) -> None:
    async with name_server() as server, a_resolver(resolv_conf) as resolver:
        with pytest.raises(OSError, match="DNS"):
            await resolver.resolve("ops.test")
        change(resolv_conf, server.resolv_conf)
        assert await address_of(resolver) == "127.0.0.1"


async def test_a_resolv_conf_that_appears_later_takes_effect(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    async with name_server() as server, a_resolver(path) as resolver:
        with pytest.raises(OSError, match="DNS"):
            await resolver.resolve("ops.test")
        fill_in_place(path, server.resolv_conf)
        assert await address_of(resolver) == "127.0.0.1"


async def test_a_new_name_server_replaces_the_old_one_at_once(
    resolv_conf: Path,
) -> None:
    async with name_server("127.0.0.2") as old, name_server("127.0.0.3") as new:
        fill_in_place(resolv_conf, old.resolv_conf)
        async with a_resolver(resolv_conf) as resolver:
            assert await address_of(resolver) == "127.0.0.2"
            asked = old.asked
            fill_in_place(resolv_conf, new.resolv_conf)
            assert await address_of(resolver) == "127.0.0.3"
            assert old.asked == asked


async def test_an_edit_that_keeps_the_files_size_and_time_takes_effect(resolv_conf: Path) -> None:
    async with name_server("127.0.0.2") as one, name_server("127.0.0.3") as other:
        fill_in_place(resolv_conf, f"{one.resolv_conf:<40}")
        before = os.stat(resolv_conf)
        async with a_resolver(resolv_conf) as resolver:
            assert await address_of(resolver) == "127.0.0.2"
            fill_in_place(resolv_conf, f"{other.resolv_conf:<40}")
            os.utime(resolv_conf, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert os.stat(resolv_conf).st_size == before.st_size
            assert await address_of(resolver) == "127.0.0.3"


async def test_a_lookup_that_hangs_when_the_file_changes_is_answered_by_the_new_server(
    resolv_conf: Path,
) -> None:
    async with name_server(is_silent=True) as silent, name_server() as server:
        fill_in_place(resolv_conf, silent.resolv_conf)
        async with a_resolver(resolv_conf) as resolver, asyncio.TaskGroup() as group:
            waiting = group.create_task(address_of(resolver))
            await silent.was_asked.wait()
            fill_in_place(resolv_conf, server.resolv_conf)
            assert await resolver.follow()
            async with asyncio.timeout(1.5):  # the first question is repeated after 2 s
                assert await waiting == "127.0.0.1"


async def test_a_name_server_that_is_not_ready_at_the_start_is_asked_again(resolv_conf: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    fill_in_place(resolv_conf, f"nameserver 127.0.0.1:{port}\n")
    async with a_resolver(resolv_conf) as resolver:
        with pytest.raises(OSError, match="DNS"):
            await resolver.resolve("ops.test")
        async with name_server(port=port):
            assert await address_of(resolver) == "127.0.0.1"


async def test_an_edited_hosts_file_takes_effect(tmp_path: Path) -> None:
    answers = iter([["127.0.0.1"], ["127.0.0.5"]])
    files = (tmp_path / "resolv.conf", tmp_path / "hosts")
    resolver = CurrentResolver(files, lambda: FakeDns({"ops.test": next(answers)}))
    assert await address_of(resolver) == "127.0.0.1"
    assert await address_of(resolver) == "127.0.0.1"
    fill_in_place(files[1], "127.0.0.5 ops.test\n")
    assert await address_of(resolver) == "127.0.0.5"


async def test_a_change_logs_the_hosts_that_failed_once(resolv_conf: Path) -> None:
    async with name_server() as server, a_resolver(resolv_conf) as resolver:
        for host in ("ops.test", "api.test"):
            with pytest.raises(OSError, match="DNS"):
                await resolver.resolve(host)
        assert not await resolver.follow()
        assert resolver.take_change() is None
        fill_in_place(resolv_conf, server.resolv_conf)
        assert await resolver.follow()
        assert resolver.take_change() == {"ops.test", "api.test"}
        assert resolver.take_change() is None
        await resolver.resolve("ops.test")
        with pytest.raises(OSError, match="not found"):
            await resolver.resolve("ops.example")
        fill_in_place(resolv_conf, NOWHERE)
        assert await resolver.follow()
        assert resolver.take_change() == {"ops.example"}


async def test_a_hundred_changes_leave_no_thread_and_no_file_open(resolv_conf: Path) -> None:
    async with name_server() as server, a_resolver(resolv_conf) as resolver:
        await _change(resolver, resolv_conf, server.resolv_conf, times=2)
        before = _threads() + open_files()
        await _change(resolver, resolv_conf, server.resolv_conf, times=100)
        async with asyncio.timeout(10):
            while _threads() + open_files() > before + 10:  # noqa: ASYNC110 - the last few end beside us
                await asyncio.sleep(0.05)


async def _change(resolver: CurrentResolver, path: Path, text: str, *, times: int) -> None:
    for number in range(times):
        fill_in_place(path, f"{text}# {number}\n")
        assert await address_of(resolver) == "127.0.0.1"


def _threads() -> int:
    """Count threads as the kernel does: those of c-ares are none of Python's."""
    return len(os.listdir("/proc/self/task"))


# A whole worker


@pytest.fixture
def late(resolv_conf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file by which workers look names up."""
    monkeypatch.setattr("watcher.run.configured.CurrentResolver", lambda: following(resolv_conf))
    return resolv_conf


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        yield rig


def with_names(rig: Rig, **hosts: str) -> Settings:
    """The rig's settings, with names instead of addresses; what fails once is tried again after an hour."""
    settings = rig.settings
    ops, loopring = settings.subscription_by_name["ops"], settings.provider_by_name["loopring"]
    url, base_url = URL(ops.url.get_secret_value()), URL(loopring.base_url)
    moved = {
        "url": SecretStr(str(url.with_host(hosts.get("ops", "127.0.0.1")))),
        "retries": (timedelta(0), AN_HOUR),
    }
    return settings.model_copy(
        update={
            "subscription_by_name": {"ops": ops.model_copy(update=moved)},
            "provider_by_name": {
                **settings.provider_by_name,
                "loopring": loopring.model_copy(
                    update={"base_url": str(base_url.with_host(hosts.get("api", "127.0.0.1")))}
                ),
            },
        }
    )


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110 - a counter sends no signal
            await asyncio.sleep(0.01)


async def test_a_delivery_that_waits_for_its_name_goes_out_as_soon_as_a_name_server_answers(
    rig: Rig, late: Path
) -> None:
    async with name_server() as server, rig.worker(with_names(rig, ops="ops.test")) as worker:
        await until(lambda: worker.counters.changes == 2)  # both baselines
        rig.sandbox.world.credit(TREASURY, "ETH", "1")
        await until(lambda: worker.counters.retried)
        fill_in_place(late, server.resolv_conf)
        assert [event["type"] for event in await rig.events(1)] == ["total.increased"]


async def test_a_delivery_to_a_denied_address_goes_out_as_soon_as_its_name_changes(
    rig: Rig, late: Path
) -> None:
    async with name_server("10.0.0.1") as inside, name_server() as server:
        fill_in_place(late, inside.resolv_conf)
        async with rig.worker(with_names(rig, ops="ops.test")) as worker:
            await until(lambda: worker.counters.changes == 2)  # both baselines
            rig.sandbox.world.credit(TREASURY, "ETH", "1")
            await until(lambda: worker.counters.retried)
            fill_in_place(late, server.resolv_conf)
            assert [event["type"] for event in await rig.events(1)] == ["total.increased"]


async def test_a_provider_whose_name_did_not_resolve_is_polled_as_soon_as_there_is_a_name_server(
    rig: Rig, late: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("watcher.polling.poll.waits_ms", lambda *_, **__: [3_600_000])
    async with name_server() as server, rig.worker(with_names(rig, api="api.test")) as worker:
        await until(lambda: worker.counters.by_poll["loopring", "rejected"])
        fill_in_place(late, server.resolv_conf)
        await until(lambda: worker.counters.by_request["loopring"] >= 3)


async def test_names_are_looked_up_by_the_files_of_this_machine_by_default() -> None:
    resolver = CurrentResolver()
    assert {answer["host"] for answer in await resolver.resolve("localhost")} <= {"127.0.0.1", "::1"}
    await resolver.close()
