"""From a change at a provider to a line that people read, through a running worker."""

import asyncio
import json
from typing import Any

from redis.asyncio import Redis

from tests.delivery.staged_subscriber import backlogs_of
from tests.delivery.test_sentences import a_change
from tests.support.chat import Answer, ChatService
from tests.support.rig import TREASURY, a_rig, quick, workers
from watcher.settings import SubscriptionSettings


def a_chat(service: ChatService, name: str, **fields: Any) -> SubscriptionSettings:
    given = {"name": name, "url": service.url, "format": service.format, "retries": quick(20)}
    return SubscriptionSettings.model_validate({**given, **fields})


async def test_a_moved_group_gets_its_backlog_once_its_new_id_is_configured(
    redis_client: Redis, redis_server_url: str, namespace: str
) -> None:
    moved = {"ok": False, "error_code": 400, "parameters": {"migrate_to_chat_id": -1002}}
    moved["description"] = "Bad Request: group chat was upgraded to a supergroup chat"
    async with ChatService("telegram", mood=lambda _: Answer(400, json.dumps(moved))) as telegram:
        one = backlogs_of(redis_client, redis_server_url, namespace)
        settings = one.settings.model_copy(
            update={"subscription_by_name": {"ops": a_chat(telegram, "ops", chat="-1001")}}
        )
        await one.queues.enqueue("ops", "treasury", [a_change()])
        async with workers(settings, "w") as (worker,), asyncio.timeout(10):
            while "ops" not in (breakers := await one.breakers.read()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # Redis sends no signal
            assert breakers["ops"].reason.endswith("write the new id of the group: chat = -1002")
            telegram.mood = lambda _: None
            there = a_chat(telegram, "ops", chat="-1002", requests_per_second=1000)
            worker.reload(settings.model_copy(update={"subscription_by_name": {"ops": there}}))
            await telegram.until(lambda: bool(telegram.messages))
            assert await one.breakers.read() == {}
    assert [message.body["chat_id"] for message in telegram.messages] == [-1002]
    assert telegram.flaws == []


async def test_a_change_is_a_line_in_slack_and_a_channel_that_is_gone_pauses_with_its_reason(
    redis_server_url: str, namespace: str
) -> None:
    async with (
        a_rig(redis_server_url, namespace) as rig,
        ChatService("slack") as slack,
        ChatService("discord") as desk,
    ):
        team = a_chat(slack, "team", accounts=("treasury",), alerts_to="desk", requests_per_second=1000)
        desk_chat = a_chat(desk, "desk", events=("subscription.paused",))
        chats = {"team": team, "desk": desk_chat}
        async with rig.worker(rig.settings.model_copy(update={"subscription_by_name": chats})):
            async with asyncio.timeout(10):
                while rig.sandbox.traffic.count("/api/v3/user/balances") < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)  # the simulator only counts
            rig.sandbox.world.credit(TREASURY, "LRC", "12.5")
            await slack.until(lambda: bool(slack.lines))
            slack.mood = lambda _: Answer(404, "channel_not_found")
            rig.sandbox.world.credit(TREASURY, "LRC", "1")
            await desk.until(lambda: bool(desk.lines))
    (line,), (paused,) = slack.lines, desk.lines
    assert line == "treasury: total increased, +12.5 LRC (total 1012.5)"
    assert paused.startswith("subscription team is paused since 20")
    why = "channel_not_found; make a new webhook and write its URL into the subscription's url"
    assert paused.replace("\u200b", "").endswith(f"UTC: {why}")
    assert (slack.flaws, desk.flaws, slack.refused) == ([], [], 1)
