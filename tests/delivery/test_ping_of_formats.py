"""`watcher ping` of messages for people: without worker or Redis, to a service that checks them."""

from pathlib import Path

import pytest

from tests.delivery.staged_subscriber import CommandLine, Ended, some_settings
from tests.delivery.test_chat import NEEDS
from tests.support.chat import Answer, ChatService, Mood
from watcher.delivery.formats.services import SERVICES


class Pinging:
    """A command line whose configuration has one chat only."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._path, self._capsys = path, capsys
        self._run = CommandLine(some_settings("redis://127.0.0.1:1", "nowhere", {}), path, capsys)
        self._head = path.read_text()

    async def __call__(
        self, format_: str, *arguments: str, mood: Mood = lambda _: None
    ) -> tuple[Ended, ChatService]:
        async with ChatService(format_, mood=mood) as service:
            given = {"name": "chat", "url": service.url, "format": format_, **NEEDS.get(format_, {})}
            lines = "".join(f'{key} = "{value}"\n' for key, value in given.items())
            self._path.write_text(f"{self._head}[[subscriptions]]\n{lines}")
            return await self._run("ping", "chat", *arguments), service


@pytest.fixture
def ping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Pinging:
    return Pinging(tmp_path / "watcher.toml", capsys)


@pytest.mark.parametrize("format_", SERVICES)
async def test_a_ping_of_a_chat_is_a_message(ping: Pinging, format_: str) -> None:
    ended, service = await ping(format_)
    assert (ended.code, ended.err, service.flaws) == (0, "", [])
    assert service.lines == ["chat: ping from watcher, no balance changed"]


async def test_a_ping_may_be_of_any_type_and_shows_no_secret(ping: Pinging) -> None:
    key = str(NEEDS["pagerduty"]["routing_key"])
    repeated = Answer(403, f'{{"ok":false,"description":"Forbidden: bot123:token was kicked, {key}"}}')
    for format_, secret in (("telegram", "123:token"), ("pagerduty", key)):
        ended, service = await ping(format_, "--event", "deposit.cleared", mood=lambda _: repeated)
        assert (ended.code, service.refused) == (1, 1)
        assert "[secret]" in ended.out
        assert secret not in ended.out + ended.err


@pytest.mark.parametrize(
    ("format_", "answer", "first", "advice"),
    [
        ("slack", Answer(404, "channel_not_found"), "channel_not_found", "make a new webhook"),
        ("slack", Answer(404, "what is this"), "answered 404", "look at the subscription's url and format"),
        ("ntfy", Answer(403, '{"code":40301}'), "forbidden", "write an access token"),
    ],
)
async def test_a_failed_ping_shows_the_services_own_error(
    ping: Pinging, format_: str, answer: Answer, first: str, advice: str
) -> None:
    ended, _ = await ping(format_, mood=lambda _: answer)
    said, says, what_to_do = ended.out.splitlines()
    assert ended.code == 1
    assert said.startswith(f"chat: {first}, after ")
    assert says == f"  it says: {answer.text}"
    assert what_to_do.startswith(f"  what to do: {advice}")
