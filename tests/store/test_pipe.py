"""The pipe: few round trips, no replies mixed up, and no harm by cancelled callers."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tests.support.servers import DURABLE, ENGINES, EVERY_ENGINE, real_server
from tests.support.stores import ACCOUNT, OPS, a_commit, a_delivery, a_store, running, some_deliveries
from watcher.service.serve import loop_factory
from watcher.store.client import CONNECTIONS, connect
from watcher.store.exceptions import ConfigurationRefused, ServerRefused, StoreUnreachable
from watcher.store.pipe import Call, Joints, Pipe, Verdict, exchange, load_script, packed
from watcher.store.schedule import Lease, Reply

everywhere = pytest.mark.parametrize("engine", EVERY_ENGINE)
on_real_servers = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many commands each round trip carried so far."""
    sizes: list[int] = []

    async def counted(connection: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        sizes.append(len(commands))
        return await exchange(connection, commands)

    monkeypatch.setattr("watcher.store.pipe.exchange", counted)
    return sizes


async def echo(pipe: Pipe, text: str) -> str:
    answer: bytes = await pipe.command("ECHO", text)
    return answer.decode()


@everywhere
async def test_commands_of_one_turn_of_the_loop_are_sent_together(
    redis_client: Redis, round_trips: list[int]
) -> None:
    pipe = Pipe(redis_client)
    texts = [str(n) for n in range(100)]
    async with running(pipe):
        answers = await asyncio.gather(*(echo(pipe, text) for text in texts))
    assert answers == texts
    assert round_trips == [100]


def some_joints(script: str = "touch", *, most: int = 64) -> Joints:
    return Joints(load_script(script), lambda shard, name: ((f"{{{shard}}}:{name}",), (name,)), most=most)


def test_commits_to_many_queues_are_sent_separately() -> None:
    """Each of 2,000 is a call of its own: so long one holds up the server."""
    joint = some_joints("commit")[0, "loopring"]

    async def sizes(queues: int) -> list[int]:
        keys = [tuple(f"{step} {number}" for number in range(1 + 2 * queues)) for step in range(3)]
        calls = [Call(("ops", "", 1, 1) * queues, joint=joint, keys=some) for some in keys]
        return [packet.steps for packet in packed(calls)]

    assert asyncio.run(sizes(2000)) == [1, 1, 1]
    assert asyncio.run(sizes(990)) == [2, 1]
    assert asyncio.run(sizes(10)) == [3]


def test_steps_of_all_shards_are_one_call_and_on_a_cluster_one_per_shard() -> None:
    async def sizes(*, is_apart: bool) -> list[dict[str, int]]:
        joints, others = some_joints(most=40), some_joints()
        calls = [Call((n,), joint=joints[n % 16, "a"], keys=(f"{{{n % 16}}}:{n}",)) for n in range(50)]
        calls.append(
            Call((1,), joint=others[0, "a"], keys=("{0}:0",))
        )  # of the same script, but another kind
        packets = [*packed(calls, is_apart=is_apart)]
        return [
            {joint.keys[0]: len(steps) for joint, steps in one.groups.items() if joint} for one in packets
        ]

    first, second, other = asyncio.run(sizes(is_apart=False))
    assert sum(first.values()) == 40
    assert len(first) == 16
    assert sum(second.values()) == 10
    assert other == {"{0}:a": 1}
    apart = asyncio.run(sizes(is_apart=True))
    assert len(apart) == 17
    assert all(len(one) == 1 for one in apart)


def test_a_second_step_on_the_same_key_follows_in_another_call() -> None:
    async def orders() -> list[list[int]]:
        joints = some_joints()
        numbers = [(0, "x"), (1, "y"), (0, "x"), (1, "z"), (0, "x")]
        calls = [
            Call((place,), joint=joints[shard, "a"], keys=(f"{{{shard}}}:{key}",))
            for place, (shard, key) in enumerate(numbers)
        ]
        return [
            [call.arguments[0] for steps in packet.groups.values() for call in steps.values()]
            for packet in packed(calls)
        ]

    assert asyncio.run(orders()) == [[0, 1], [2, 3], [4]]


@everywhere
async def test_the_size_of_a_round_trip_is_bounded(redis_client: Redis, round_trips: list[int]) -> None:
    pipe = Pipe(redis_client)
    texts = [str(n) for n in range(1200)]
    async with running(pipe):
        answers = await asyncio.gather(*(echo(pipe, text) for text in texts))
    assert answers == texts
    assert sorted(round_trips) == [176, 512, 512]


@everywhere
async def test_commands_made_during_a_round_trip_are_sent_together(
    redis_client: Redis, round_trips: list[int]
) -> None:
    pipe = Pipe(redis_client)

    async def ask_on(name: str) -> list[str]:
        return [await echo(pipe, f"{name}{turn}") for turn in range(10)]

    async with running(pipe):
        answers = await asyncio.gather(*(ask_on(f"{n}:") for n in range(50)))
    assert answers == [[f"{n}:{turn}" for turn in range(10)] for n in range(50)]
    assert len(round_trips) <= 40, "500 commands ought to share their round trips"


@everywhere
async def test_without_a_runner_each_command_is_sent_by_itself(
    redis_client: Redis, round_trips: list[int]
) -> None:
    pipe = Pipe(redis_client)
    first, second = await asyncio.gather(echo(pipe, "a"), echo(pipe, "b"))
    assert (first, second) == ("a", "b")
    assert round_trips == [1, 1]


@everywhere
@pytest.mark.parametrize("runners", [0, 2])
async def test_an_error_of_one_command_does_not_affect_others(
    redis_client: Redis, namespace: str, runners: int
) -> None:
    pipe = Pipe(redis_client)
    await pipe.command("SET", f"{namespace}:text", "x")
    async with running(pipe, runners):
        commands = (("ECHO", "a"), ("LLEN", f"{namespace}:text"), ("NOSUCHCOMMAND",), ("ECHO", "b"))
        first, wrong, unknown, last = await asyncio.gather(
            *(pipe.command(*command) for command in commands), return_exceptions=True
        )
    assert (first, last) == (b"a", b"b")
    assert isinstance(wrong, ResponseError)
    assert isinstance(unknown, ConfigurationRefused)


async def test_the_connections_of_a_pipe_leave_some_for_other_calls(redis_client: Redis) -> None:
    pipe = Pipe(redis_client)
    for _ in range(2):
        answers = await asyncio.gather(*(echo(pipe, "a") for _ in range(2 * CONNECTIONS)))
        assert answers == ["a"] * 2 * CONNECTIONS
    async with asyncio.timeout(2):
        assert await redis_client.ping()


def test_the_number_of_kept_joints_is_bounded() -> None:
    made = Joints(load_script("settle"), lambda shard, name: ((f"{shard}:{name}",), ()), most=64)
    kept = 0
    for number in range(50_000):
        assert made[number % 16, f"{number}"].keys == (f"{number % 16}:{number}",)
        kept = max(kept, len(made))
    assert kept <= 20_000


@pytest.mark.parametrize("runners", [0, 2])
async def test_an_unexpected_error_answers_its_calls_and_ends_no_runner(
    runners: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, faults = Pipe(FakeAsyncRedis()), [RuntimeError("closed"), KeyError("x")]

    async def faulty(connection: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if faults:
            raise faults.pop()
        return await exchange(connection, commands)

    monkeypatch.setattr("watcher.store.pipe.exchange", faulty)
    async with running(pipe, runners):
        for kind in (KeyError, RuntimeError):
            with pytest.raises(kind):
                await echo(pipe, "a")
        assert await echo(pipe, "b") == "b"


@everywhere
@pytest.mark.parametrize("runners", [0, 2])
async def test_scripts_that_the_server_forgot_are_sent_again(
    redis_client: Redis, namespace: str, runners: int
) -> None:
    store = a_store(redis_client, namespace)
    lease = await store.lease()
    async with running(store.pipe, runners):
        for version in ("v1", "v2", "v3"):
            await store.pipe.command("SCRIPT", "FLUSH")
            step = a_commit(lease, version=version, deliveries={OPS: [a_delivery()]})
            text, first, second = await asyncio.gather(
                echo(store.pipe, "beside"), store.polls.commit(step), store.polls.commit(step)
            )
            assert text == "beside"
            assert {first.reply, second.reply} == {Reply.DONE, Reply.DONE_BEFORE}
            await store.pipe.command("DEL", store.keys.state(ACCOUNT))
            lease = await store.lease()
    assert len(await store.queue()) == 3


@on_real_servers
async def test_a_restarted_server_is_sent_its_scripts_again(engine: str, namespace: str) -> None:
    with real_server(engine, *DURABLE) as server:
        async with connect(server.url) as client:
            store = a_store(client, namespace)
            await store.fill(a_delivery(1))
            server.stop()  # in order: what a kill takes back while the disk is slow is not asked here
            server.start()
            async with running(store.pipe):
                await store.fill(a_delivery(2))
            assert await store.queue() == [each.entry for each in some_deliveries(1, 2)]


@everywhere
async def test_a_batch_is_one_round_trip_and_an_error_in_it_answers_one_command(
    redis_client: Redis, namespace: str, round_trips: list[int]
) -> None:
    pipe = Pipe(redis_client)
    commands = [("SET", f"{namespace}:text", "x"), ("LLEN", f"{namespace}:text"), ("ECHO", "b")]
    _, wrong, last = await pipe.batch(commands)
    assert isinstance(wrong, ResponseError)
    assert last == b"b"
    assert round_trips == [3]
    await pipe.aclose()


@on_real_servers
async def test_batches_keep_a_connection_and_replace_a_broken_one(engine: str) -> None:
    with real_server(engine) as server:
        async with connect(server.url) as client:
            pipe = Pipe(client)
            ids = [(await pipe.batch([("CLIENT", "ID")]))[0] for _ in range(2)]
            assert ids[0] == ids[1]
            await pipe.command("CLIENT", "KILL", "ID", ids[0])
            assert (await pipe.batch([("ECHO", "another")])) == [b"another"]
            server.kill()
            for _ in range(2):
                with pytest.raises(StoreUnreachable):
                    await pipe.batch([("ECHO", "lost")])
            server.start()
            assert await pipe.batch([("ECHO", "back")]) == [b"back"]
            await pipe.aclose()


async def test_a_round_trip_gives_its_connection_back_for_the_next_one(redis_client: Redis) -> None:
    pipe = Pipe(redis_client)
    with pytest.raises(ResponseError):
        await pipe.command("GET")
    assert len({await pipe.command("CLIENT", "ID") for _ in range(3)}) == 1


@everywhere
async def test_a_cancelled_batch_leaves_no_answer_to_the_next(redis_client: Redis) -> None:
    pipe = Pipe(redis_client)
    for turns in range(8):
        asking = asyncio.create_task(pipe.batch([("ECHO", "cancelled")] * 3))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        one, other = await asyncio.gather(pipe.batch([("ECHO", "a")]), pipe.batch([("ECHO", "b")]))
        assert (one, other) == ([b"a"], [b"b"])
    await pipe.aclose()


@everywhere
async def test_a_cancelled_caller_harms_no_other(redis_client: Redis) -> None:
    pipe = Pipe(redis_client)
    async with running(pipe):
        for turns in range(6):  # cancelled before it is sent, on the way, and about when it is answered
            callers = [asyncio.create_task(echo(pipe, str(n))) for n in range(20)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for caller in callers[::2]:
                caller.cancel()
            answers = await asyncio.gather(*callers, return_exceptions=True)
            assert answers[1::2] == [str(n) for n in range(1, 20, 2)]
            assert all(isinstance(answer, asyncio.CancelledError | str) for answer in answers[::2])
        assert await echo(pipe, "still right") == "still right"


@everywhere
async def test_a_cancelled_caller_without_a_runner_harms_no_other(redis_client: Redis) -> None:
    pipe = Pipe(redis_client)
    for turns in range(6):
        caller = asyncio.create_task(echo(pipe, "cancelled"))
        for _ in range(turns):
            await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        assert await echo(pipe, "next") == "next"


@everywhere
@pytest.mark.parametrize("turns", range(8))
async def test_runners_end_when_stopped_and_no_caller_waits_for_them(redis_client: Redis, turns: int) -> None:
    pipe = Pipe(redis_client)
    async with asyncio.timeout(5):
        async with running(pipe):
            callers = [asyncio.create_task(echo(pipe, str(n))) for n in range(1100)]
            for _ in range(turns):
                await asyncio.sleep(0)
        answers = await asyncio.gather(*callers, return_exceptions=True)
    for n, answer in enumerate(answers):
        assert answer == str(n) or isinstance(answer, asyncio.CancelledError)
    assert await echo(pipe, "at once") == "at once"


async def test_one_runner_may_end_while_the_other_runs_on(redis_client: Redis) -> None:
    pipe = Pipe(redis_client)
    async with running(pipe, 1):
        async with running(pipe, 1):
            assert await echo(pipe, "two") == "two"
        assert await echo(pipe, "one") == "one"


async def test_an_ending_runner_does_not_affect_the_other(redis_client: Redis) -> None:
    pipe = Pipe(redis_client)
    texts = [str(n) for n in range(1100)]
    async with running(pipe, 1):
        ending = asyncio.create_task(pipe.run())
        await asyncio.sleep(0)
        callers = [asyncio.create_task(echo(pipe, text)) for text in texts]
        await asyncio.sleep(0)  # all of them wait, and both runners are woken
        ending.cancel()
        async with asyncio.timeout(5):
            assert await asyncio.gather(*callers) == texts


async def test_an_asking_call_is_sent_once_in_one_round_trip(
    redis_client: Redis, namespace: str, round_trips: list[int]
) -> None:
    """A server that is no Cluster answers ASKING with an error, and the call all the same."""
    pipe = Pipe(redis_client)
    assert await pipe.send_where_it_moves(Call(("INCR", f"{namespace}:count"))) == 1
    assert round_trips == [2]


async def test_a_call_goes_to_the_node_of_its_keys() -> None:
    joint = some_joints()[3, "shared"]
    assert Call((1,), joint=joint, keys=("own", "more")).first_key == "own"
    assert Call((1,), joint=joint).first_key == "{3}:shared"
    assert Call((1, "own"), script=load_script("touch")).first_key == "own"
    assert Call(("GET", "own")).first_key == "own"
    assert Call(("PING",)).first_key is None


def test_the_clock_is_the_servers_and_advances(redis_client: Redis) -> None:
    pipe = Pipe(redis_client)
    pipe.set_clock(5000.0)
    assert 5000 <= pipe.now_ms() < 15_000


@on_real_servers
@pytest.mark.parametrize("runners", [0, 2])
async def test_an_unreachable_server_fails_all_waiting_callers(engine: str, runners: int) -> None:
    with real_server(engine) as server:
        async with connect(server.url) as client:
            pipe = Pipe(client)
            async with running(pipe, runners):
                await echo(pipe, "there")
                server.kill()
                troubles = await asyncio.gather(
                    *(echo(pipe, str(n)) for n in range(5)), return_exceptions=True
                )
                assert all(isinstance(trouble, StoreUnreachable) for trouble in troubles)
                server.start()
                assert await echo(pipe, "back") == "back"


@on_real_servers
async def test_late_answers_of_a_hung_server_reach_no_caller(engine: str) -> None:
    with real_server(engine) as server:
        async with connect(server.url) as client:
            client.connection_pool.connection_kwargs["socket_timeout"] = 0.05
            pipe = Pipe(client)
            async with running(pipe):
                await echo(pipe, "there")  # else it is the connecting that takes too long
                with server.paused():
                    troubles = await asyncio.gather(
                        *(echo(pipe, f"before {n}") for n in range(5)), return_exceptions=True
                    )
                assert {str(trouble).partition("does not")[2] for trouble in troubles} == {
                    " answer in time; is it stopped or overloaded?"
                }
                texts = [f"after {n}" for n in range(20)]
                assert await asyncio.gather(*(echo(pipe, text) for text in texts)) == texts


async def test_a_bug_of_the_client_reaches_all_callers_and_ends_no_runner() -> None:
    client = FakeAsyncRedis()
    pipe = Pipe(client)
    async with client, running(pipe):
        for _ in range(3):  # more often than there are runners
            answers = await asyncio.gather(
                pipe.command("ECHO", object()), pipe.command("ECHO", "a"), return_exceptions=True
            )
            assert all(isinstance(answer, Exception) for answer in answers)
        assert await echo(pipe, "b") == "b"


@everywhere
async def test_a_script_is_named_by_the_digest_that_servers_compute(redis_client: Redis) -> None:
    script = load_script("touch")
    assert await Pipe(redis_client).command("SCRIPT", "LOAD", script.text) == script.digest.encode()


def test_a_connection_that_is_closed_under_a_command_is_replaced_on_every_event_loop() -> None:
    async def ask_after_the_transport_is_gone(url: str) -> bytes:
        async with connect(url) as client:
            pipe = Pipe(client)
            await pipe.command("PING")
            connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
            assert connection._writer
            connection._writer.transport.abort()
            await client.connection_pool.release(connection)
            answer: bytes = await pipe.command("PING")
            return answer

    with real_server() as server, asyncio.Runner(loop_factory=loop_factory()) as runner:
        assert runner.run(ask_after_the_transport_is_gone(server.url)) == b"PONG"


@everywhere
async def test_a_refused_server_gets_no_commit_but_other_commands(
    redis_client: Redis, namespace: str
) -> None:
    refusal = ServerRefused("Redis at db evicts keys")
    pipe = Pipe(redis_client, Verdict())
    store = a_store(redis_client, namespace, pipe=pipe)
    async with running(pipe):
        pipe.verdict.refusal = refusal
        commit = store.polls.commit(a_commit(Lease(ACCOUNT, 0)))
        fill = store.fill(a_delivery())
        answers = await asyncio.gather(commit, fill, echo(pipe, "x"), return_exceptions=True)
        assert [*answers] == [refusal, refusal, "x"]
        pipe.verdict.refusal = None
        assert await store.polls.commit(a_commit(Lease(ACCOUNT, 0)))


async def test_a_waiting_commit_is_not_sent_on_a_connection_whose_server_is_refused() -> None:
    """As after a failover to a primary that evicts: the connection is made for the commit itself."""
    with real_server("valkey", "--maxmemory-policy", "allkeys-lru") as server:
        verdict = Verdict()
        async with connect(server.url, verdict) as client:
            pipe = Pipe(client, verdict)
            with pytest.raises(ServerRefused, match="allkeys-lru"):
                await a_store(client, "evicting", pipe=pipe).polls.commit(a_commit(Lease(ACCOUNT, 0)))
            assert await client.dbsize() == 0
            assert await echo(pipe, "x") == "x"
