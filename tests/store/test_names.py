"""Names of assets, once per provider: written before a state relies on them, kept, restored if lost."""

from collections.abc import Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.builders import a_balance
from tests.support.servers import EVERY_ENGINE
from tests.support.stores import PROVIDER
from watcher.journal.account import AccountState, Entry
from watcher.snapshot import LOST, Asset
from watcher.store import state as module
from watcher.store.keys import Keys
from watcher.store.pipe import Pipe, Script
from watcher.store.state import UNKNOWN, Called, Names, load_state

pytestmark = pytest.mark.parametrize("engine", EVERY_ENGINE)

ETH, WETH, LRC = (
    Asset("0", "ETH", "Ether", 18),
    Asset("0", "WETH", "Wrapped", 18),
    Asset("1", "LRC", None, 18),
)


class Counting(Pipe):
    """A pipe that counts what it sends."""

    sent = 0

    async def command(self, *command: Any) -> Any:
        self.sent += 1
        return await super().command(*command)

    async def script(self, script: Script, keys: list[str], *arguments: Any) -> Any:
        self.sent += 1
        return await super().script(script, keys, *arguments)


class Process:
    """A worker's names: what it has read, and how often it asked."""

    def __init__(self, client: Redis, namespace: str) -> None:
        self.pipe = Counting(client)
        self.key = Keys(namespace).names(PROVIDER)
        self.names = Names(self.pipe, Keys(namespace))

    async def table(self) -> dict[str, bytes]:
        pairs = await self.pipe.command("HGETALL", self.key)
        return {name.decode(): text for name, text in zip(pairs[::2], pairs[1::2], strict=True)}

    async def note(self, *assets: Asset) -> dict[str, Called]:
        return dict(await self.names.note(PROVIDER, assets))

    async def of(self, *ids: str) -> dict[str, Called]:
        return dict(await self.names.of(PROVIDER, ids))


@pytest.fixture
def processes(redis_client: Redis, namespace: str) -> Iterator[Process]:
    """Makes one process after another in the same namespace."""
    return iter(lambda: Process(redis_client, namespace), None)


def holding(*assets: Asset) -> AccountState:
    entries = {asset.id: Entry(asset, a_balance("1"), a_balance("1")) for asset in assets}
    return AccountState("here", None, entries, version="0" * 16, sequence=1, polled_at_ms=1)


async def test_a_state_has_the_numbers_and_the_table_the_names(processes: Iterator[Process]) -> None:
    writer, reader = next(processes), next(processes)
    text = await writer.names.dump(PROVIDER, holding(ETH, LRC))
    assert await writer.table() == {"0": b'["ETH","Ether",18]', "1": b'["LRC",null,18]'}
    assert b"ETH" not in text
    assert await reader.names.load(PROVIDER, text) == holding(ETH, LRC)


async def test_known_names_are_not_read_again(processes: Iterator[Process]) -> None:
    one = next(processes)
    text = await one.names.dump(PROVIDER, holding(ETH, LRC))
    assert one.pipe.sent == 1
    for _ in range(3):
        await one.names.load(PROVIDER, await one.names.dump(PROVIDER, holding(LRC, ETH)))
    assert one.pipe.sent == 1
    other = next(processes)
    for _ in range(3):
        await other.names.load(PROVIDER, text)
        await other.of("0", "1")
    assert other.pipe.sent == 1


async def test_the_first_written_name_stays(processes: Iterator[Process]) -> None:
    first, second = next(processes), next(processes)
    await first.note(ETH)
    assert await second.note(WETH) == {"0": ("ETH", "Ether", 18)}
    assert await first.note(WETH) == {"0": ("ETH", "Ether", 18)}
    text = await second.names.dump(PROVIDER, holding(WETH))
    assert await next(processes).names.load(PROVIDER, text) == holding(WETH)


async def test_each_provider_has_names_of_its_own(processes: Iterator[Process]) -> None:
    one = next(processes)
    await one.note(ETH)
    assert await one.names.note("other", [WETH]) == {"0": ("WETH", "Wrapped", 18)}
    assert await next(processes).of("0") == {"0": ("ETH", "Ether", 18)}


async def test_an_asset_without_a_name_leaves_its_place_free(processes: Iterator[Process]) -> None:
    one = next(processes)
    text = await one.names.dump(PROVIDER, holding(Asset("0", decimals=18)))
    assert await one.table() == {}
    await one.note(ETH)
    assert await next(processes).names.load(PROVIDER, text) == holding(ETH)


async def test_a_missing_name_is_read_again_a_minute_later(processes: Iterator[Process]) -> None:
    one, other = next(processes), next(processes)
    for _ in range(3):
        assert await one.of("0", "1") == {}
    assert one.pipe.sent == 1
    await other.note(ETH, LRC)
    assert await one.of("0", "1") == {}
    await one.names.keep()
    assert await one.of("0") == {"0": ("ETH", "Ether", 18)}
    assert await one.note(WETH, LRC) == {"0": ("ETH", "Ether", 18), "1": ("LRC", None, 18)}


async def test_a_table_that_is_lost_is_written_again(processes: Iterator[Process]) -> None:
    one, other = next(processes), next(processes)
    text = await one.names.dump(PROVIDER, holding(ETH, LRC))
    await one.pipe.command("DEL", one.key)
    nameless = await other.names.load(PROVIDER, text)
    assert nameless == holding(Asset("0", decimals=LOST), Asset("1", decimals=LOST))
    await one.names.keep()
    await other.names.keep()
    assert await other.names.load(PROVIDER, text) == holding(ETH, LRC)


async def test_a_row_that_refers_to_a_just_written_name_is_read_completely(
    processes: Iterator[Process],
) -> None:
    writer, reader = next(processes), next(processes)
    assert await reader.of("0") == {}
    text = await writer.names.dump(PROVIDER, holding(ETH))
    assert await reader.names.load(PROVIDER, text) == holding(ETH)


async def test_names_that_another_process_wrote_after_a_loss_are_used(
    processes: Iterator[Process],
) -> None:
    one, other = next(processes), next(processes)
    await one.note(ETH)
    await one.pipe.command("DEL", one.key)
    await other.note(WETH)
    await one.names.keep()
    text = await one.names.dump(PROVIDER, holding(ETH))
    assert await next(processes).names.load(PROVIDER, text) == holding(ETH)


async def test_a_table_of_another_type_loses_only_names_and_is_replaced(
    processes: Iterator[Process],
) -> None:
    one, other = next(processes), next(processes)
    text = await one.names.dump(PROVIDER, holding(ETH))
    await one.pipe.command("DEL", one.key)
    await one.pipe.command("LPUSH", one.key, "x")
    assert await other.names.load(PROVIDER, text) == holding(Asset("0", decimals=LOST))
    await other.note(LRC)
    await one.names.keep()
    assert await one.table() == {"0": b'["ETH","Ether",18]', "1": b'["LRC",null,18]'}


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"x",
        b"{}",
        b"[]",
        b'["ETH"]',
        b'["ETH",1]',
        b'["ETH","E",79]',
        b'["ETH","E",18.0]',
        b'["ETH","E",18,1]',
        b'["ETH","E",""]',
        b"[" * 100_000,
        b'["\\ud800","E"]',
        b"\xff",
    ],
)
async def test_a_damaged_name_is_ignored_and_rows_have_their_own(
    processes: Iterator[Process], damage: bytes
) -> None:
    one, other = next(processes), next(processes)
    await one.pipe.command("HSET", one.key, "0", damage)
    assert await one.note(ETH, LRC) == await other.of("0", "1") == {"0": UNKNOWN, "1": ("LRC", None, 18)}
    text = await one.names.dump(PROVIDER, holding(ETH))
    assert await other.names.load(PROVIDER, text) == load_state(text, {}) == holding(ETH)


async def test_a_full_table_takes_no_more_and_rows_have_their_own(
    processes: Iterator[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_NAMES", 1)
    one = next(processes)
    text = await one.names.dump(PROVIDER, holding(ETH, LRC))
    assert await one.table() == {"0": b'["ETH","Ether",18]'}
    for _ in range(3):
        assert await one.names.dump(PROVIDER, holding(ETH, LRC)) == text
    assert one.pipe.sent == 2
    assert await next(processes).names.load(PROVIDER, text) == holding(ETH, LRC)
    await one.pipe.command("DEL", one.key)
    monkeypatch.setattr(module, "MOST_NAMES", 2)
    await one.names.keep()
    await one.note(ETH, LRC)
    assert len(await one.table()) == 2


async def test_more_names_than_one_command_takes_are_read(processes: Iterator[Process]) -> None:
    one, other = next(processes), next(processes)
    assets = [Asset(str(n), f"T{n}", f"Token\n{n}") for n in range(1100)]
    await one.note(*assets)
    assert await other.of(*(asset.id for asset in assets)) == {asset.id: asset[1:] for asset in assets}
    await one.pipe.command("DEL", one.key)
    await other.names.keep()
    assert len(await one.table()) == 1100


async def test_changed_names_are_written_in_the_state_only(processes: Iterator[Process]) -> None:
    one = next(processes)
    state = holding(ETH)
    renamed = state._replace(entry_by_asset={"0": state.entry_by_asset["0"]._replace(asset=WETH)})
    await one.names.dump(PROVIDER, state)
    assert await one.names.load(PROVIDER, await one.names.dump(PROVIDER, renamed)) == renamed
    assert await one.table() == {"0": b'["ETH","Ether",18]'}
