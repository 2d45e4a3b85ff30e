"""The user of deploy/users.acl can do all that watcher does, and nothing else."""

import ast
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from redis import exceptions
from redis.asyncio import Redis

import watcher.store
from tests.support.builders import a_state
from tests.support.old_store import OldStore
from tests.support.rig import TREASURY, a_rig
from tests.support.servers import (
    ACL,
    ENGINES,
    LIMITED_NAMESPACE,
    PASSWORD,
    TESTS_ASK,
    RealServer,
    real_server,
    shipped_users,
)
from tests.support.stores import a_commit, a_delivery, a_store
from watcher.journal.events import Delivery
from watcher.run.worker import Worker
from watcher.store.client import connect
from watcher.store.exceptions import ConfigurationRefused
from watcher.store.guarantee import OLDEST, guarantee
from watcher.store.history import History
from watcher.store.keys import Keys, shard_of
from watcher.store.members import Roster
from watcher.store.move import Mover
from watcher.store.pipe import Pipe
from watcher.store.polls import Polls
from watcher.store.queues import Queues
from watcher.store.schedule import Lease, Reply, Schedule

STORE = Path(watcher.store.__file__).parent
NAMESPACE = LIMITED_NAMESPACE

SAID_OTHERWISE = {"info", "client|setname", "cluster|slots"}
"""What redis-py says for us (`client.info()`), and the subcommands."""

NOT_SAID = {"client", "cluster", "readonly"}
"""Words in the code that are names of commands and mean something else: half a command, an error."""


@pytest.fixture(scope="module", params=sorted(ENGINES))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A server whose users are the ones in the file."""
    path = tmp_path_factory.mktemp("acl") / "users.acl"
    path.write_text(shipped_users())
    with real_server(request.param, "--aclfile", str(path)) as server:
        yield server


def url_of(server: RealServer, user: str = "watcher", password: str = PASSWORD) -> str:
    return f"{server.url}?username={user}&password={password}"


@pytest.fixture
async def client(server: RealServer) -> AsyncIterator[Redis]:
    async with connect(url_of(server)) as client:
        yield client


@pytest.fixture
def account() -> str:
    """A name that no other test has: they share the server and must share the namespace."""
    return f"treasury-{Random().getrandbits(64):x}"


def granted(user: str) -> set[str]:
    (line,) = (line for line in ACL.read_text().splitlines() if line.startswith(f"user {user} "))
    return set(re.findall(r" \+(\S+)", line))


def said_in_scripts() -> set[str]:
    texts = [path.read_text() for path in STORE.glob("scripts/**/*.lua")]
    calls = [call for text in texts for call in re.findall(r"redis\.p?call\(\s*(.*)", text)]
    named = {match[1].lower() for call in calls if (match := re.match(r"'([A-Z]+)'", call))}
    # What a move writes is said in Python.
    assert {call for call in calls if not call.startswith("'")} == {
        "ask, KEYS[tonumber(place)])",
        "command, key, unpack(ARGV, at + 3, at + 2 + count))",
    }
    return named


def words_in_python() -> set[str]:
    """Every text in capitals: all commands are among them, and what else is, no server knows."""
    trees = [ast.parse(path.read_text()) for path in STORE.rglob("*.py")]
    constants = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return {text.lower() for text in constants if isinstance(text, str) and re.fullmatch("[A-Z]+", text)}


async def test_exactly_the_commands_of_the_code_are_granted(redis_client: Redis) -> None:
    known = await redis_client.command_list()
    words = words_in_python() & {name.decode() for name in known if isinstance(name, bytes)}
    assert {"eval", "evalsha", "hmget", "unlink"} <= words
    assert granted("watcher") == (said_in_scripts() | words | SAID_OTHERWISE) - NOT_SAID


OF_0_1 = {
    *("client|setname", "cluster|slots", "asking", "info", "eval", "evalsha", "time", "del", "unlink"),
    *("get", "set", "hdel", "hget", "hgetall", "hlen", "hmget", "hset"),
    *("lindex", "llen", "lpop", "lrange", "rpush", "xadd", "xdel", "xlen", "xrange", "xrevrange"),
    *("zadd", "zcard", "zcount", "zmscore", "zrange", "zrangebyscore", "zrem", "zscore"),
}
"""What version 0.1 granted."""


@pytest.mark.parametrize("file", ["CHANGELOG.md", "deploy/UPGRADE.md"])
def test_the_texts_name_the_rights_that_an_upgrade_from_0_1_needs(file: str) -> None:
    text = " ".join((STORE.parents[1] / file).read_text().split())
    (named,) = re.findall(r"needs ([A-Z]+(?:, [A-Z]+)* and [A-Z]+) besides", text)
    assert {*named.lower().replace(" and ", ", ").split(", ")} == granted("watcher") - OF_0_1
    assert granted("watcher") >= OF_0_1, "while the last workers of 0.1 run"


def test_rights_that_only_tests_need_are_not_granted_to_the_program() -> None:
    assert not granted("watcher") & set(TESTS_ASK)


CHANGED_LATER = {"set", "xadd", "info", "cluster|slots", "pexpire"}
"""Commands that can do more since a server after 6.2: SET NX with GET, SET IFEQ, an XADD to `<ms>-*`, INFO of
several sections, PEXPIRE on a condition, and more in an answer. None of that is used."""


@pytest.mark.parametrize("engine", ENGINES)
async def test_every_command_is_as_old_as_the_oldest_server(redis_client: Redis) -> None:
    docs = await Pipe(redis_client).command("COMMAND", "DOCS", *granted("watcher"))
    said = {name.decode(): _paired(doc) for name, doc in _paired(docs).items()}
    assert said.keys() | {"client|setname", "cluster|slots"} >= granted("watcher")
    assert [name for name, doc in said.items() if _version(doc[b"since"]) > OLDEST] == []
    changes = {name: [_version(since) for since, _ in doc.get(b"history", [])] for name, doc in said.items()}
    assert {
        name for name, versions in changes.items() if max(versions, default=OLDEST) > OLDEST
    } <= CHANGED_LATER


def _paired(answer: list[Any]) -> dict[bytes, Any]:
    return dict(zip(answer[::2], answer[1::2], strict=True))


def _version(text: bytes) -> tuple[int, ...]:
    return tuple(map(int, text.split(b".")[:2]))


ASKING = ("execute_command", "send_command", "send_packed_command")


def test_only_the_store_package_speaks_to_redis() -> None:
    calls = [
        (path, ast.unparse(node.func.value), node.func.attr)
        for path in STORE.parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    asking = {path.name for path, _, name in calls if name in ASKING}
    assert asking == {"pipe.py", "client.py"}
    assert {path for path, on, name in calls if name == "command" and on.endswith("pipe")} <= {
        *STORE.glob("*.py")
    }
    on_client = {name for path, on, name in calls if path.parent == STORE and on.endswith("client")}
    assert on_client == {"info", "config_get", "aclose"}


async def a_lease(polls: Polls, roster: Roster, account: str) -> Lease:
    enrolled = await roster.enroll({account: [account]}, now_ms=0)  # a provider of its own: due alone
    assert enrolled.added == 1
    claimed = await polls.claim(account, shard_of(account), lease_ms=60_000, at_most=1)
    assert [lease.member for lease in claimed.leases] == [account]
    return claimed.leases[0]


async def test_a_whole_poll_needs_no_more_rights(client: Redis, account: str) -> None:
    schedule, keys = Schedule(Pipe(client)), Keys(NAMESPACE)
    await schedule.read_clock()
    polls, roster, queues = Polls(schedule, keys), Roster(schedule.pipe, keys), Queues(schedule, keys)
    await roster.check_layout()
    lease = await a_lease(polls, roster, account)
    assert await polls.take_turns(account, 1, spacing_ms=10) == 0
    deliveries = [a_delivery(n, previous=n - 1 or None, subscription=account) for n in (1, 2, 3)]
    step = a_commit(lease, provider=account, notes=[b"{}"], deliveries={account: deliveries}, ETH="1")
    assert (await polls.commit(step._replace(due_ms=0))).reply is Reply.DONE
    assert (await polls.read_state(account, account)) == a_state(ETH="1")
    (lease,) = (await polls.claim(account, shard_of(account), lease_ms=60_000, at_most=1)).leases
    assert await polls.touch(account, lease, version="v1", polled_at_ms=2, due_ms=0) is Reply.DONE
    (lease,) = (await polls.claim(account, shard_of(account), lease_ms=60_000, at_most=1)).leases
    assert await polls.release(account, lease) is Reply.DONE
    assert [one.waits_for for one in await roster.wake([account])] == ["turn"]
    (lease,) = (await polls.claim(account, shard_of(account), lease_ms=60_000, at_most=1)).leases
    assert await polls.postpone(account, lease, why="auth no", at_least_ms=1, waits_ms=[1])
    records = [record async for record in History(schedule.pipe, keys).records(account)]
    assert [bool(record.raw) for record in records] == [False, True, True, True], "the note, and the events"
    await delivered_to_the_end(queues, account, deliveries)
    await roster.make_due(account, [account], now_ms=0)
    assert (await roster.enroll({}, now_ms=0)).removed == 1
    assert await roster.forget(int(1e14)) == 1
    assert await polls.read_state(account, account) is None


async def delivered_to_the_end(queues: Queues, account: str, deliveries: list[Delivery]) -> None:
    """One retry, one success, one dead letter, one lease given back."""
    shard = shard_of(account)
    assert account in await queues.due_subscriptions(shard)
    (lease,) = (await queues.claim(account, shard, lease_ms=60_000, at_most=1)).leases
    until = queues.until(lease, 60_000)
    begun = await queues.begin(account, lease, until=until, at_most=9)
    assert begun.deliveries == [(delivery.entry, delivery) for delivery in deliveries]
    lease = Lease(account, until)
    first, second, third = (delivery.entry for delivery in deliveries)
    assert await queues.retry(account, lease, first, wait_ms=3_600_000) is Reply.DONE
    assert await queues.make_due(account, shard, lease_ms=60_000) == 1
    (lease,) = (await queues.claim(account, shard, lease_ms=60_000, at_most=1)).leases
    until = queues.until(lease, 60_000)
    begun = await queues.begin(account, lease, until=until, at_most=1)
    assert (begun.tries, begun.tried) == (1, first)
    lease = Lease(account, until)
    reply, deadline = await queues.delivered(account, lease, first, until=queues.until(lease, 60_000))
    assert reply is Reply.DONE
    lease = Lease(account, deadline)
    until = queues.until(lease, 60_000)
    reply, deadline = await queues.dead(account, lease, second, until=until, reason="no")
    assert reply is Reply.DONE
    assert await queues.release(account, Lease(account, deadline)) is Reply.DONE
    await queues.hold(shard, {account: 1})
    (lease,) = (await queues.claim(account, shard, lease_ms=60_000, at_most=1)).leases
    assert await queues.delivered(account, lease, third, until=queues.until(lease, 60_000)) == (Reply.DONE, 0)


async def test_a_whole_worker_needs_no_more_rights(server: RealServer) -> None:
    async with a_rig(url_of(server), NAMESPACE) as rig:
        await Worker(rig.settings, name="first").run(once=True)
        rig.sandbox.world.credit(TREASURY, "ETH", "1")
        await Worker(rig.settings, name="second").run(once=True)
    assert [event["type"] for event in rig.receiver.events] == ["total.increased"]


async def test_the_guarantee_is_read_without_the_config_command(client: Redis) -> None:
    said = await guarantee(client)
    assert (said.eviction, said.persistence) == ("noeviction", "hidden")


FOREIGN = Keys("other").state("treasury")


@pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("CONFIG", "SET", "maxmemory", "1"),
        ("CONFIG", "GET", "*"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("ACL", "WHOAMI"),
        ("CLIENT", "LIST"),
        ("SCRIPT", "FLUSH"),
        ("SHUTDOWN",),
        ("SUBSCRIBE", "watcher:x"),
        ("PUBLISH", "watcher:x", "y"),
        ("HGET", FOREIGN, "version"),
        ("HSET", FOREIGN, "version", "v1"),
        ("UNLINK", "watcherx"),
        ("EVAL", "return redis.call('HGET', KEYS[1], 'version')", "1", FOREIGN),
        ("EVAL", "return redis.call('HGET', 'other:meta', 'schema')", "0"),
        ("EVAL", "return redis.call('FLUSHALL')", "0"),
        ("EVAL", "return redis.call('KEYS', '*')", "0"),
    ],
    ids=" ".join,
)
async def test_everything_else_is_refused(client: Redis, command: tuple[str, ...]) -> None:
    with pytest.raises(exceptions.ResponseError, match=r"(?i)no permission|can't (run|access)|ACL fail"):
        await client.execute_command(*command)  # type: ignore[no-untyped-call]


async def test_a_key_of_another_namespace_is_an_error_that_says_so(client: Redis) -> None:
    with pytest.raises(ConfigurationRefused, match="forbids its user a command or key"):
        await Roster(Pipe(client), Keys("other")).check_layout()


@pytest.mark.parametrize(
    ("user", "answer"),
    [
        ("default", "refuses the credentials"),
        ("watcher", "refuses the credentials"),
        ("health", "forbids its user a command or key"),
    ],
)
async def test_without_the_password_nothing_is_allowed(server: RealServer, user: str, answer: str) -> None:
    async with connect(url_of(server, user, "guess")) as client:
        with pytest.raises(ConfigurationRefused, match=answer):
            await Roster(Pipe(client), Keys(NAMESPACE)).check_layout()


async def test_the_health_check_may_ping_without_a_password(server: RealServer) -> None:
    async with connect(url_of(server, "health", "none")) as client:
        assert await client.ping()


@pytest.mark.parametrize("engine", sorted(ENGINES))
async def test_the_acl_line_works_on_a_server_with_other_users_too(engine: str) -> None:
    (line,) = (line for line in shipped_users().splitlines() if line.startswith("user watcher "))
    with real_server(engine) as server:
        async with connect(server.url) as admin:
            await admin.execute_command("ACL", "SETUSER", *line.split()[1:])  # type: ignore[no-untyped-call]
        async with connect(url_of(server)) as client:
            await Roster(Pipe(client), Keys(NAMESPACE)).check_layout()


@pytest.mark.parametrize("engine", sorted(ENGINES))
async def test_with_the_rights_of_version_0_1_the_worker_refuses_to_start(engine: str) -> None:
    (line,) = (line for line in shipped_users().splitlines() if line.startswith("user watcher "))
    lacks = [
        *("exists", "getrange", "hscan", "ltrim", "mget", "mset", "pexpire", "rename", "setrange"),
        "zremrangebyscore",
    ]
    rights = (*line.split()[1:], *(f"-{command}" for command in lacks))
    stated = re.escape(f"may not use {', '.join(lacks).upper()} on keys {NAMESPACE}:*")
    with real_server(engine) as server:
        async with connect(server.url) as admin, connect(url_of(server)) as client:
            await admin.execute_command("ACL", "SETUSER", *rights)  # type: ignore[no-untyped-call]
            store = a_store(admin, NAMESPACE)
            old = OldStore(store)
            await old.begin()
            await old.account("treasury")
            before = await store.contents()
            with pytest.raises(ConfigurationRefused, match=stated):
                await Mover(Pipe(client), store.keys, "mover").advance()
            async with a_rig(url_of(server), NAMESPACE) as rig:
                with pytest.raises(ConfigurationRefused, match=stated):
                    await Worker(rig.settings, name="worker").run()
                await admin.execute_command("ACL", "SETUSER", "watcher", "+hscan")  # type: ignore[no-untyped-call]
            assert await store.contents() == before


@pytest.mark.parametrize("engine", sorted(ENGINES))
def test_the_server_does_not_start_without_a_password(engine: str) -> None:
    with pytest.raises(AssertionError, match="ACL errors"), real_server(engine, "--aclfile", str(ACL)):
        pass
