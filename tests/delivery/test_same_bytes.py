"""An event's text is the same in every way a subscription gets it, and stored once for all of them."""

import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from structlog.testing import capture_logs

from tests.delivery.staged_subscriber import CommandLine, StagedSubscriber
from tests.support.rig import TREASURY, Rig, a_rig, quick
from watcher.store.keys import SHARDS, Keys
from watcher.store.pipe import Pipe

pytest_plugins = ("tests.delivery.subscribers",)


@pytest.fixture
async def rig(redis_server_url: str, namespace: str) -> AsyncIterator[Rig]:
    async with a_rig(redis_server_url, namespace) as rig:
        yield rig


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with capture_logs():
        yield


async def bodies(redis: Redis, namespace: str) -> dict[str, tuple[int, bytes]]:
    """What is kept of events, by id: how many refer to it, and its JSON up to `subscription`."""
    found: dict[str, tuple[int, bytes]] = {}
    for shard in range(SHARDS):
        kept = await Pipe(redis).command("HGETALL", Keys(namespace).bodies(shard))
        for reference, body in zip(kept[::2], kept[1::2], strict=True):
            head, _, content = body.partition(b"\n")
            found[reference.split()[0].decode()] = int(head.split()[0]), content
    return found


def has_taken(subscriber: StagedSubscriber, events: int) -> bool:
    return len(subscriber.taken) == events


async def test_an_event_has_the_same_bytes_in_attempts_dead_letters_and_the_log(
    rig: Rig,
    redis_client: Redis,
    namespace: str,
    subscriber: StagedSubscriber,
    second: StagedSubscriber,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filters = {"url": SecretStr(subscriber.url), "events": ("total.*",), "retries": quick(3)}
    ops = rig.settings.subscription_by_name["ops"].model_copy(update=filters)
    audit = ops.model_copy(update={"name": "audit", "url": SecretStr(second.url)})
    rig.settings = rig.settings.model_copy(update={"subscription_by_name": {"ops": ops, "audit": audit}})
    run = CommandLine(rig.settings, tmp_path / "watcher.toml", capsys)
    subscriber.status = 400
    async with rig.worker() as worker:
        await second.until(lambda: worker.counters.changes == 2)  # the baselines
        for number in range(1, 4):
            rig.sandbox.world.credit(TREASURY, "ETH", number)
            await second.until(partial(has_taken, second, number))
        await subscriber.until(lambda: len(subscriber.arrivals) == 9)
    assert {count for count, _ in (await bodies(redis_client, namespace)).values()} == {2}
    await run("resend", "--dead", "--subscription", "ops")
    async with rig.worker():
        await subscriber.until(lambda: len(subscriber.arrivals) == 10)
        subscriber.status = 200
        await subscriber.until(partial(has_taken, subscriber, 3))
    await run("resend", "--subscription", "ops", "--since", "1h")
    assert {count for count, _ in (await bodies(redis_client, namespace)).values()} == {2}
    async with rig.worker():
        await subscriber.until(partial(has_taken, subscriber, 6))
    kept = await bodies(redis_client, namespace)
    ids = [event["id"] for event in second.taken]
    assert kept.keys() == set(ids)
    before = None
    for event_id in ids:
        texts = [arrival.body for arrival in subscriber.arrivals if arrival.event["id"] == event_id]
        assert len(texts) >= 5, "three attempts, and two that were taken"
        count, content = kept[event_id]
        assert count == 1, "the log's"
        tail = {"subscription": {"name": "ops", "previous_sequence": before}}
        assert {*texts} == {content + b"," + json.dumps(tail, separators=(",", ":")).encode()[1:]}
        (other,) = (arrival.body for arrival in second.arrivals if arrival.event["id"] == event_id)
        assert other == texts[0].replace(b'"name":"ops","previous', b'"name":"audit","previous')
        before = json.loads(content + b"}")["data"]["sequence"]
