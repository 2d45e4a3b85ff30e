"""What a server guarantees: read from real servers, judged from what they may answer."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.servers import DURABLE, ENGINES, a_free_port, real_server
from watcher.store.client import connect
from watcher.store.errors import of_reply
from watcher.store.exceptions import ConfigurationRefused, ServerRefused, StoreUnreachable
from watcher.store.guarantee import _POLICIES, Guarantee, guarantee, judge, judge_connection
from watcher.store.pipe import Verdict
from watcher.store.queues import Bounds

INFO = {"redis_version": "7.2.4", "role": "master", "aof_enabled": 1, "maxmemory_policy": "noeviction"}
CONFIG = {"appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction"}
HIDDEN = dict.fromkeys(CONFIG)


async def promised(engine: str, *flags: str) -> Guarantee:
    """What a private server with these flags promises."""
    with real_server(engine, *flags) as server:
        async with connect(server.url) as client:
            return await guarantee(client)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("flags", "persistence", "promise"),
    [
        (DURABLE, "everysec", "a crash of Redis while its disk is slow, takes back at most its last 2 s"),
        ((*DURABLE, "--appendfsync", "always"), "always", "a power loss of Redis loses nothing"),
        ((*DURABLE, "--appendfsync", "no"), "no", "what its system had not yet written"),
        (("--save", "3600 1"), "snapshots", "back to its last snapshot"),
        ((), "none", "a restart of Redis loses all state"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
async def test_the_guarantee_matches_the_persistence_of_the_server(
    engine: str, flags: tuple[str, ...], persistence: str, promise: str
) -> None:
    said = await promised(engine, *flags)
    assert (said.engine, said.persistence, said.warnings) == (engine, persistence, ())
    assert said.sentence.startswith(f"{engine} {said.version}: ")
    assert promise in said.sentence


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_server_that_evicts_any_key_is_refused(engine: str) -> None:
    said = await promised(engine, "--maxmemory", "100mb", "--maxmemory-policy", "noeviction")
    assert said.memory == 100 << 20
    assert Bounds.within(said.memory) == Bounds(819_200, 819_200, 204_800), "an eighth, over 16 shards"
    with pytest.raises(ConfigurationRefused, match=r"allkeys-lru.*set maxmemory-policy noeviction"):
        await promised(engine, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")


@pytest.mark.parametrize(
    "flags",
    [("--maxmemory", "100mb", "--maxmemory-policy", "volatile-ttl"), ("--maxmemory-policy", "volatile-lfu")],
)
async def test_a_server_that_might_evict_keys_is_a_warning(flags: tuple[str, ...]) -> None:
    (warning,) = (await promised("valkey", *flags)).warnings
    assert flags[-1] in warning


async def test_a_replica_refuses_writes_and_says_so() -> None:
    with pytest.raises(StoreUnreachable, match=r"refuses writes \(READONLY\): it is a replica") as judged:
        await promised("valkey", "--replicaof", "127.0.0.1 1")
    refused = of_reply("READONLY You can't write against a read only replica.", "here")
    assert judged.value.cause == getattr(refused, "cause", None), "else it would be a second line of log"


async def test_a_node_of_a_cluster_is_refused() -> None:
    with pytest.raises(ConfigurationRefused, match="part of a Cluster"):
        await promised("valkey", "--cluster-enabled", "yes")


async def test_a_server_that_forbids_config_is_read_from_info_alone() -> None:
    with real_server("valkey", *DURABLE) as server:
        async with connect(server.url) as admin:
            rights = ("on", ">pw", "~*", "-@all", "+info")
            await admin.execute_command("ACL", "SETUSER", "worker", *rights)  # type: ignore[no-untyped-call]
        async with connect(f"{server.url}?username=worker&password=pw") as client:
            said = await guarantee(client)
    assert (said.persistence, said.eviction) == ("aof", "noeviction")


async def test_a_server_without_any_information_is_used_without_a_guarantee() -> None:
    with real_server() as server:
        async with connect(server.url) as admin:
            rights = ("on", ">pw", "~*", "-@all", "+get")
            await admin.execute_command("ACL", "SETUSER", "worker", *rights)  # type: ignore[no-untyped-call]
        async with connect(f"{server.url}?username=worker&password=pw") as client:
            said = await guarantee(client)
    assert (said.version, said.persistence, said.eviction) == ("unknown", "hidden", "unknown")
    assert "does not say" in said.sentence


async def test_a_missing_server_is_unreachable(tmp_path: Path) -> None:
    async with asyncio.timeout(4), connect(f"unix://{tmp_path}/s") as client:
        with pytest.raises(StoreUnreachable, match="cannot be reached"):
            await guarantee(client)


@pytest.mark.parametrize("version", ["6.0.16", "5.0.7", "2.8.24"])
def test_an_old_server_is_refused(version: str) -> None:
    with pytest.raises(ConfigurationRefused, match=r"too old; watcher needs 6\.2"):
        judge({**INFO, "redis_version": version}, CONFIG, at="db")


@pytest.mark.parametrize("version", ["6.2.0", "7.0.15", "10.1.0", "\x1b[2J"])
def test_a_server_of_a_new_or_unknown_version_is_used(version: str) -> None:
    said = judge({**INFO, "redis_version": version}, CONFIG, at="db")
    assert said.sentence.isprintable()


@pytest.mark.parametrize("key", ["redis_mode", "server_mode"])
def test_a_sentinel_is_refused(key: str) -> None:
    with pytest.raises(ConfigurationRefused, match="is a Sentinel"):
        judge({**INFO, key: "sentinel"}, HIDDEN, at="db")


def test_with_replicas_the_guarantee_names_the_loss_of_a_failover() -> None:
    assert "failover" in judge({**INFO, "connected_slaves": 1}, CONFIG, at="db").sentence
    assert "failover" not in judge(INFO, CONFIG, at="db").sentence


def test_the_eviction_policy_is_read_from_info_where_config_is_forbidden() -> None:
    with pytest.raises(ConfigurationRefused, match="allkeys-random"):
        judge({**INFO, "maxmemory": 1 << 30, "maxmemory_policy": "allkeys-random"}, HIDDEN, at="db")


@pytest.mark.parametrize("policy", sorted(_POLICIES))
def test_each_eviction_policy_is_refused_a_warning_or_accepted(policy: str) -> None:
    config = {**CONFIG, "maxmemory-policy": policy}
    if policy.startswith("allkeys-"):
        for memory in (0, 1 << 30):  # which may be set at any time
            with pytest.raises(ServerRefused, match=policy):
                judge({**INFO, "maxmemory": memory}, config, at="db")
    else:
        said = judge({**INFO, "maxmemory": 1 << 30}, config, at="db")
        assert [policy in warning for warning in said.warnings] == ([] if policy == "noeviction" else [True])


async def test_a_real_replica_is_counted() -> None:
    port = a_free_port()
    with (
        real_server("valkey", "--port", str(port), "--repl-diskless-sync-delay", "0") as primary,
        real_server("valkey", "--replicaof", "127.0.0.1", str(port)),
    ):
        async with connect(primary.url) as client, asyncio.timeout(10):
            while not (said := await guarantee(client)).replicas:  # noqa: ASYNC110 - it comes by itself
                await asyncio.sleep(0.05)
    assert "; a failover may take back its last seconds in the same way" in said.sentence


def test_loading_and_an_unverified_certificate_are_warnings() -> None:
    loading, unverified = judge({**INFO, "loading": 1}, CONFIG, at="db", is_verified=False).warnings
    assert "loading" in loading
    assert "not verified" in unverified


async def test_a_full_server_is_a_warning() -> None:
    said = await promised("redis", "--maxmemory", "1", "--maxmemory-policy", "noeviction")
    assert said.warnings == ("Redis refuses writes: its memory is full; raise its maxmemory",)
    assert not (await promised("redis", "--maxmemory", "1gb")).warnings


def test_a_server_that_cannot_write_to_its_disk_is_a_warning() -> None:
    (warning,) = judge({**INFO, "aof_last_write_status": "err"}, CONFIG, at="db").warnings
    assert "disk" in warning


def test_without_a_file_and_with_unknown_snapshots_there_is_no_guarantee() -> None:
    assert judge({**INFO, "aof_enabled": 0}, HIDDEN, at="db").persistence == "hidden"


EVICTING = b"# Server\r\nredis_version:7.2.4\r\nrole:master\r\nmaxmemory_policy:allkeys-lru\r\n"


@pytest.mark.parametrize(
    ("answer", "is_refused"),
    [
        (EVICTING, True),
        (EVICTING.replace(b"7.2.4", b"5.0.7").replace(b"allkeys-lru", b"noeviction"), True),
        (EVICTING.replace(b"allkeys-lru", b"noeviction"), False),
        (EVICTING.replace(b"master", b"slave"), False),
        (b"OK", False),  # the answer to what came before: INFO was forbidden
        (b"\xff:\xfe\r\n:::\r\nmaxmemory_policy", False),
        (None, False),
        (["maxmemory_policy:allkeys-lru"], False),
    ],
)
async def test_a_server_is_judged_at_each_new_connection(answer: object, is_refused: bool) -> None:
    verdict = Verdict()
    judge_connection(verdict, answer, at="db")
    assert (verdict.refusal is not None) == is_refused


@given(st.binary(max_size=300))
async def test_no_answer_of_a_server_is_too_odd_to_be_judged(answer: bytes) -> None:
    judge_connection(Verdict(), answer, at="db")


async def test_a_refusal_ends_only_after_a_check_of_all_servers() -> None:
    """Connections to the old primary and the new one may be made at the same moment."""
    verdict = Verdict()
    judge_connection(verdict, EVICTING, at="new")
    judge_connection(verdict, EVICTING.replace(b"allkeys-lru", b"noeviction"), at="old")
    assert "new" in str(verdict.refusal)
    assert verdict.has_connected.is_set()


def test_a_guarantee_is_weaker_if_a_restart_loses_more() -> None:
    kept = judge(INFO, CONFIG, at="db")
    always = judge(INFO, {**CONFIG, "appendfsync": "always"}, at="db")
    lost = judge({**INFO, "aof_enabled": 0}, CONFIG, at="db")
    assert lost.is_weaker_than(kept)
    assert kept.is_weaker_than(always)
    assert not any(one.is_weaker_than(other) for one, other in ((kept, kept), (always, kept), (kept, lost)))
