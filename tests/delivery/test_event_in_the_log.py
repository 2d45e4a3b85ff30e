"""One event can be followed by its id from the poll to the receiver, in the log of a running worker."""

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.support.processes import a_process, lines, until_logged
from tests.support.raw_subscribers import OK, answering, subscribing
from tests.support.rig import ALICE, MK, TREASURY
from watcher.receiver import Receiver
from watcher.sandbox.server import Sandbox

NOT_NOW = b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"


def log_of(place: Path, account: str) -> list[dict[str, Any]]:
    """What the log says of an account after its baseline, but for polls that found nothing new."""
    shown = [json.loads(line) for line in (place / "log").read_text().splitlines()]
    of_account = [line for line in shown if line.get("account") == account]
    events = [line["event"] for line in of_account]
    start = events.index("poll.finished", events.index("account.baseline")) + 1
    return [line for line in of_account[start:] if not line.get("unchanged")]


async def test_an_event_is_logged_once_when_emitted_and_once_per_attempt_under_one_id(
    place: Path, sandbox: Sandbox, receiver: Receiver
) -> None:
    async with subscribing(answering(NOT_NOW, OK)) as subscriber:
        text = (place / "watcher.toml").read_text().replace(receiver.url, subscriber.url)
        (place / "watcher.toml").write_text(text + 'max_in_flight = 1\nretries = ["0s", "100ms", "100ms"]\n')
        async with a_process(place, "run") as worker:
            await until_logged(place, "account.baseline", 2)
            sandbox.world.credit(TREASURY, "ETH", "1")
            await until_logged(place, "delivery.delivered", 1)
            sandbox.world.credit(TREASURY, "ETH", "1")
            sandbox.world.credit(TREASURY, "LRC", "2")
            sandbox.world.credit(ALICE, MK, "3")
            await until_logged(place, "delivery.delivered", 4)
            worker.terminate()
            assert await asyncio.wait_for(worker.wait(), 10) == 0
    arrived = [
        (each.headers["webhook-id"], int(each.headers["watcher-attempt"])) for each in subscriber.requests
    ]
    attempts = [line for line in log_of(place, "treasury") + log_of(place, "alice") if "attempt" in line]
    assert sorted((line["event_id"], line["attempt"]) for line in attempts) == sorted(arrived)
    assert all(each.headers["webhook-id"] == json.loads(each.body)["id"] for each in subscriber.requests)
    created = {line["event_id"]: line for line in lines(place, "event.created") if line["subscriptions"]}
    assert len(created) == len(lines(place, "delivery.delivered")) == 4
    assert created.keys() == {event_id for event_id, _ in arrived}
    for line in attempts:
        same = ("account", "event_type", "sequence")
        assert [line[name] for name in same] == [created[line["event_id"]][name] for name in same]


async def test_the_lines_of_an_event_come_in_the_order_in_which_it_happened(
    place: Path, sandbox: Sandbox, receiver: Receiver
) -> None:
    async with a_process(place, "run"):
        await until_logged(place, "account.baseline", 2)
        await until_logged(place, "poll.finished", 2)
        sandbox.world.credit(TREASURY, "ETH", "1")
        sandbox.world.credit(TREASURY, "LRC", "2")
        await until_logged(place, "delivery.delivered", 2)
    first, second = receiver.events
    shown = [(line["event"], line.get("event_id"), line.get("changes")) for line in log_of(place, "treasury")]
    assert shown == [
        ("event.created", first["id"], None),
        ("event.created", second["id"], None),
        ("poll.finished", None, 2),
        ("delivery.delivered", first["id"], None),
        ("delivery.delivered", second["id"], None),
    ]
