"""Many subscribers that are dead at the same time do not slow the live ones."""

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from statistics import median

import pytest

from tests.support.raw_subscribers import (
    OK,
    FakeDns,
    Subscriber,
    a_delivery,
    a_sink,
    a_target,
    answering,
    never_answer,
    not_speaking_tls,
    open_files,
    subscribing,
)
from watcher.delivery.webhook import WebhookSink, WebhookTarget

pytestmark = pytest.mark.slow


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if enough < 4096:
        pytest.skip("not enough file descriptors for a thousand connections")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, enough), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def latencies_ms(sink: WebhookSink, target: WebhookTarget, count: int) -> list[float]:
    latencies = []
    for _ in range(count):
        started = time.perf_counter()
        assert (await sink.send(target, [a_delivery()], 1)).status == 200
        latencies.append(1000 * (time.perf_counter() - started))
    return latencies


@contextlib.asynccontextmanager
async def dead_endpoints() -> AsyncIterator[tuple[dict[str, list[str]], Subscriber]]:
    """URLs by the way in which they are dead, and the servers that hang, one address for each URL."""
    refusing = socket.create_server(("127.0.0.1", 0))
    refused = refusing.getsockname()[1]
    refusing.close()
    async with subscribing(never_answer, host="0.0.0.0") as hung, subscribing(not_speaking_tls) as plain:
        urls_by_death = {
            "hung": [hung.url_at(f"127.0.{n // 250 + 1}.{n % 250 + 1}") for n in range(1000)],
            "unnamed": [f"http://{n}.dead.example/" for n in range(100)],
            "refused": [f"http://127.0.0.1:{refused}/{n}" for n in range(100)],
            "not TLS": [f"https://127.0.0.1:{plain.port}/{n}" for n in range(100)],
        }
        yield urls_by_death, hung


DEATHS = {
    "refused": "cannot connect: connection refused",
    "not TLS": "TLS failed: its port does not speak TLS",
}
"""The others hang until they are cut off here: what becomes of them by themselves is asked elsewhere."""

HANG_S = 150


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("many_files")
async def test_a_thousand_dead_endpoints_do_not_delay_a_live_one() -> None:
    files_before = open_files()
    dns = FakeDns({"live.example": ["127.0.0.1"]})
    async with (
        dead_endpoints() as (urls_by_death, hung),
        subscribing(answering(OK)) as subscriber,
        a_sink(deadline_s=HANG_S, resolver=dns) as sink,
        asyncio.TaskGroup() as group,
    ):
        live = a_target(subscriber.url_at("live.example"))
        before = await latencies_ms(sink, live, 200)
        posts_by_death = {
            death: [group.create_task(sink.send(a_target(url), [a_delivery()], 1)) for url in urls]
            for death, urls in urls_by_death.items()
        }
        await asyncio.wait(posts_by_death["refused"] + posts_by_death["not TLS"])
        await hung.until(lambda hung: hung.connections == 1000)
        beside = await latencies_ms(sink, live, 200)
        hanging = posts_by_death.pop("hung") + posts_by_death.pop("unnamed")
        assert not any(post.done() for post in hanging), "they should have been hanging meanwhile"
        assert len(dns.asked) == 1 + len(urls_by_death["unnamed"])
        for post in hanging:
            post.cancel()
        await asyncio.wait(hanging)
        after = await latencies_ms(sink, live, 200)
    for name, ms in (("before", before), ("beside", beside), ("after", after)):
        print(f"{name} them p50 {median(ms):.1f} ms, p99 {sorted(ms)[197]:.1f} ms")
    # The machine is as busy as others make it: what was slow before or after was not slow for the dead ones.
    assert median(beside) <= 2 * max(median(before), median(after)) + 2
    assert sorted(beside)[197] <= max(sorted(before)[197], sorted(after)[197]) + 100
    for death, posts in posts_by_death.items():
        assert {post.result().error for post in posts} == {DEATHS[death]}
    assert open_files() - files_before < 10, "a few may be the loop's own"


async def test_running_out_of_descriptors_only_fails_attempts() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)  # the kernel connects, no program accepts
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with subscribing(answering(OK)) as subscriber, a_sink(deadline_s=0.5) as sink:
        assert (await sink.send(a_target(subscriber), [a_delivery()], 1)).status == 200
        target = a_target(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files() + 30, hard))
        try:
            attempts = await asyncio.gather(*(sink.send(target, [a_delivery()], 1) for _ in range(60)))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (await sink.send(a_target(subscriber), [a_delivery()], 1)).status == 200
    listener.close()
    assert {attempt.error for attempt in attempts} == {
        "no answer within 0.5 s",
        "cannot connect: too many open files",
    }
