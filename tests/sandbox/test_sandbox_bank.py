"""The simulated bank, asked by `kind = "http"` with what `watcher sandbox` prints."""

import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from watcher.providers.contract import Rejected
from watcher.providers.declared import Http, HttpAccount, HttpSettings
from watcher.providers.http import ProviderClient
from watcher.sandbox.answers import FAULTS
from watcher.sandbox.bank import BALANCES, section
from watcher.sandbox.book import Impossible
from watcher.sandbox.server import Sandbox
from watcher.sandbox.world import ACME
from watcher.snapshot import Balance, Snapshot

PATH = BALANCES.format(account=ACME)
BACKING_OFF = {"EUR": "1250.5", "JPY": "300000", "KWD": "70.125"}


class Asked:
    """A sandbox and a client of its bank."""

    def __init__(self, sandbox: Sandbox, client: ProviderClient) -> None:
        self.sandbox = sandbox
        self._client = client

    async def __call__(self, account: str = ACME) -> Snapshot:
        asked = HttpAccount(name="acme", provider="bank", of={"account": account})
        return await self._client.read(asked, await self._client.ask(asked))

    async def rejection(self, account: str = ACME) -> str:
        with pytest.raises(Rejected) as rejected:
            await self(account)
        return rejected.value.error_class


@asynccontextmanager
async def asking(**changes: Any) -> AsyncIterator[Asked]:
    async with Sandbox() as sandbox:
        sandbox.bank.requests_per_second = None
        declared = tomllib.loads(section(sandbox.bank_url))["providers"]["bank"]
        settings = HttpSettings.model_validate(
            declared | {"name": "bank", "timeout": timedelta(seconds=0.3)} | changes
        )
        async with ProviderClient(Http(settings), settings) as client:
            yield Asked(sandbox, client)


def totals(snapshot: Snapshot) -> dict[str, str]:
    return {asset: row.balance.total for asset, row in snapshot.row_by_asset.items()}


async def test_all_four_fields_are_read_from_two_pages() -> None:
    async with asking() as asked:
        world = asked.sandbox.world
        world.lock(ACME, "EUR", "100.25")
        world.deposit_seen(ACME, "JPY", "7")
        world.withdrawal_debited(ACME, "KWD", "0.001")
        snapshot = await asked()
        assert asked.sandbox.traffic.count(PATH) == 2
    assert {asset: row.balance for asset, row in snapshot.row_by_asset.items()} == {
        "EUR": Balance("1250.5", "100.25", "0", "0"),
        "JPY": Balance("300000", "0", "7", "0"),
        "KWD": Balance("70.124", "0", "0", "0.001"),
    }
    assert (snapshot.watched, snapshot.absent_is_zero) == (None, True)


@pytest.mark.parametrize("longest_page", [1, 2, 100])
async def test_however_long_a_page_is_every_currency_is_there_once(longest_page: int) -> None:
    async with asking() as asked:
        asked.sandbox.bank.longest_page = longest_page
        assert totals(await asked()) == BACKING_OFF


async def test_an_account_may_be_overdrawn_and_owes_to_the_last_digit() -> None:
    async with asking() as asked:
        world = asked.sandbox.world
        world.debit(ACME, "EUR", "1250.51")
        world.withdrawal_debited(ACME, "KWD", "71.126", split=1, first="pending")
        await asked()
        assert totals(await asked()) == BACKING_OFF | {"EUR": "-0.01", "KWD": "-1.001"}
        for step in (world.unlock, world.deposit_cleared):
            with pytest.raises(Impossible, match="of EUR would fall to -1"):
                step(ACME, "EUR", "1")


async def test_numbers_are_as_exact_as_text() -> None:
    async with asking() as asked:
        asked.sandbox.bank.amounts = "numbers"
        asked.sandbox.world.credit(ACME, "KWD", "9007199254740993.001")
        assert totals(await asked()) == BACKING_OFF | {"KWD": "9007199254741063.126"}


async def test_a_currency_without_a_row_is_zero_in_a_full_listing() -> None:
    async with asking() as asked:
        asked.sandbox.world.set(ACME, "JPY", total="0")
        assert (await asked()).row_by_asset["JPY"].balance.total == "0"
        asked.sandbox.bank.zero_rows = "omitted"
        assert totals(await asked()).keys() == {"EUR", "KWD"}


@pytest.mark.parametrize("errors_with_200", [False, True])
async def test_its_errors_are_understood(errors_with_200: bool) -> None:
    async with asking() as asked:
        asked.sandbox.bank.errors_with_200 = errors_with_200
        assert await asked.rejection("somebody") == "configuration"
        assert await asked.rejection("10110") == "configuration", "an account of another provider"
        asked.sandbox.bank.api_keys.clear()
        assert await asked.rejection() == "auth"


@pytest.mark.parametrize(
    ("limit", "cursor"), [("two", ""), ("2", "after-"), ("2", "after-x"), ("2", "after-٣")]
)
async def test_a_page_that_does_not_exist_is_refused(limit: str, cursor: str) -> None:
    query = {"limit": limit} | ({"cursor": cursor} if cursor else {})
    async with asking(ask=[{"path": BALANCES, "query": query}]) as asked:
        assert await asked.rejection() == "configuration"


async def test_some_of_the_pages_are_no_listing() -> None:
    async with asking(ask=[{"path": BALANCES, "query": {"limit": "2"}}], more="next_cursor") as asked:
        assert await asked.rejection() == "configuration"


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_on_the_second_page_rejects_the_poll_and_the_next_is_good(fault: str) -> None:
    async with asking() as asked:
        # Twice, as what is asked on a connection that has just been closed is asked once more.
        asked.sandbox.bank.next_answers.extend([lambda honest: honest, FAULTS[fault], FAULTS[fault]])
        assert await asked.rejection() in ("rate", "transient", "gone", "malformed")
        asked.sandbox.bank.next_answers.clear()
        assert totals(await asked()) == BACKING_OFF


async def test_a_halved_movement_shows_its_second_half_a_poll_later_however_many_pages_there_are() -> None:
    async with asking() as asked:
        asked.sandbox.world.deposit_seen(ACME, "EUR", "5")
        asked.sandbox.world.deposit_cleared(ACME, "EUR", "5", split=1, first="pending")
        first, second = await asked(), await asked()
    assert first.row_by_asset["EUR"].balance == Balance("1250.5", "0", "0", "0")
    assert second.row_by_asset["EUR"].balance == Balance("1255.5", "0", "0", "0")


async def test_over_its_rate_limit_it_says_so() -> None:
    async with asking() as asked:
        asked.sandbox.bank.requests_per_second = 1
        assert await asked.rejection() == "rate"
        assert asked.sandbox.traffic.statuses(PATH) == {200: 1, 429: 1}
