"""A poll of several rounds: pages, a height first, whatever a provider needs."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence, Set
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from tests.support.builders import a_provider, an_account
from tests.support.provider_staging import Stage, answer, declared_account, declared_client
from watcher.providers.contract import AssetList, Catalogue, Rejected, Request
from watcher.providers.http import ProviderClient
from watcher.settings import AccountSettings, ProviderSettings
from watcher.snapshot import Asset, Balance, Row, Snapshot


class Paged:
    """A provider that lists balances in pages: each answer names the next page, if there is one."""

    Settings: ClassVar[type[ProviderSettings]] = ProviderSettings
    Account: ClassVar[type[AccountSettings]] = AccountSettings
    unknown_fields: Set[str] = frozenset()
    most_rounds: int = 3

    def __init__(self, settings: ProviderSettings) -> None:
        pass

    def source(self, account: Any) -> str:
        return str(account.name)

    def may_hold(self, account: Any, asset: str) -> bool:
        return True

    def requests(self, account: Any, answers: Sequence[Any] = ()) -> Sequence[Request]:
        if not answers:
            return [Request("GET", "/balances?sig=%2F%2b", {})]
        following = answers[-1]["next"]
        return [Request("POST", "/balances", body=f'{{"page":"{following}"}}'.encode())] if following else []

    def read(self, account: Any, answers: Sequence[Any], catalogue: Catalogue) -> Snapshot:
        totals = {asset: total for page in answers for asset, total in page["totals"].items()}
        rows = {asset: Row(Asset(asset), Balance(total, "0", "0", "0")) for asset, total in totals.items()}
        return Snapshot(rows, None, absent_is_zero=True)

    def refusal(self, status: int, answer: Any) -> Rejected | None:
        return None

    def catalogue_request(self) -> Request | None:
        return None

    def read_catalogue(self, answer: Any) -> AssetList:
        raise AssertionError("there is none")


ACCOUNT = an_account(provider="paged")


class Turns:
    """Counts the turns that were waited for and the requests that were sent."""

    def __init__(self) -> None:
        self.waited = 0
        self.requests = Counter[str]()

    async def wait(self) -> None:
        self.waited += 1

    @property
    def sent(self) -> int:
        return self.requests.total()


@asynccontextmanager
async def paged(stage: Stage, turns: Turns) -> AsyncIterator[ProviderClient]:
    settings = a_provider("paged", base_url=stage.url)
    provider = Paged(settings)
    async with ProviderClient(provider, settings, wait_turn=turns.wait, requests=turns.requests) as client:
        yield client


def page(number: int, following: str | None) -> Any:
    return answer({"totals": {f"T{number}": str(number)}, "next": following})


async def test_all_pages_are_one_snapshot_each_asked_at_a_turn_of_its_own() -> None:
    turns = Turns()
    async with Stage() as stage, paged(stage, turns) as client:
        stage.replies = [page(1, "two"), page(2, "three"), page(3, None)]
        snapshot = await client.read(ACCOUNT, await client.ask(ACCOUNT))
    assert {asset: row.balance.total for asset, row in snapshot.row_by_asset.items()} == {
        "T1": "1",
        "T2": "2",
        "T3": "3",
    }
    assert (turns.sent, turns.waited) == (3, 2), "the turn of the first one is reserved by the loop"


async def test_signed_requests_are_sent_byte_for_byte() -> None:
    async with Stage() as stage, paged(stage, Turns()) as client:
        stage.replies = [page(1, "two"), page(2, None)]
        await client.ask(ACCOUNT)
    first, second = stage.seen
    assert first.target == "/balances?sig=%2F%2b"
    assert second.body == b'{"page":"two"}'


class Stamped(Paged):
    """Its requests say how many turns were over when they were made, as one that is signed says the time."""

    turns: Turns

    def requests(self, account: Any, answers: Sequence[Any] = ()) -> Sequence[Request]:
        made = super().requests(account, answers)
        return [request._replace(body=f"{self.turns.waited}".encode()) for request in made]


async def test_the_next_request_is_made_at_its_turn_and_not_before() -> None:
    turns = Turns()
    async with Stage() as stage:
        settings = a_provider("paged", base_url=stage.url)
        provider = Stamped(settings)
        provider.turns = turns
        async with ProviderClient(provider, settings, wait_turn=turns.wait) as client:
            stage.replies = [page(1, "two"), page(2, "three"), page(3, None)]
            await client.ask(ACCOUNT)
    assert [seen.body for seen in stage.seen] == [b"0", b"1", b"2"]


async def test_a_page_that_fails_rejects_the_whole_poll() -> None:
    async with Stage() as stage, paged(stage, Turns()) as client:
        stage.replies = [page(1, "two"), answer({"error": "busy"}, 503)]
        with pytest.raises(Rejected) as refused:
            await client.ask(ACCOUNT)
    assert refused.value.error_class == "transient"


async def test_a_page_that_is_no_json_rejects_the_whole_poll() -> None:
    async with Stage() as stage, paged(stage, Turns()) as client:
        stage.replies = [page(1, "two"), answer("<html>")]
        with pytest.raises(Rejected) as refused:
            await client.ask(ACCOUNT)
    assert refused.value.error_class == "malformed"


async def test_endless_pages_are_rejected_after_a_bound() -> None:
    turns = Turns()
    async with Stage() as stage, paged(stage, turns) as client:
        stage.reply = page(1, "again")
        with pytest.raises(Rejected, match="more to ask for after 3 rounds"):
            await client.ask(ACCOUNT)
    assert turns.sent == 3


@pytest.mark.parametrize("is_paged", [True, False])
async def test_the_answers_of_a_poll_are_bounded_in_all(is_paged: bool) -> None:
    """Each of them may have a megabyte, of which 350,000 objects can be made."""
    following = {"next": {"cursor": "n", "query": "c", "most": 100}}
    declared: dict[str, Any] = {
        "ask": [{"path": "/"} | following] if is_paged else [{"path": "/"}] * 6,
        "read": [{"id": "X", "total": "t"}],
        "requests_per_second": 1000,
    }
    async with Stage() as stage, declared_client(stage.url, **declared) as client:
        stage.reply_to = lambda _: answer({"t": "1", "n": len(stage.seen), "padding": "x" * 1_000_000})
        with pytest.raises(Rejected, match="larger than 4 MiB in all"):
            await client.ask(declared_account())
        assert len(stage.seen) in (5, 6)


@pytest.mark.parametrize("field", [1, 2, 3])
async def test_any_negative_amount_but_a_total_is_malformed(
    field: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def balances(negative: int) -> Snapshot:
        amounts = ["-2.5" if each == negative else "0" for each in range(4)]
        row = Row(Asset("USD"), Balance(*amounts))
        return Snapshot({"USD": row}, None, absent_is_zero=True)

    async with Stage() as stage, paged(stage, Turns()) as client:
        monkeypatch.setattr(Paged, "read", lambda *_: balances(0))
        assert (await client.read(ACCOUNT, [b"{}"])).row_by_asset["USD"].balance.total == "-2.5"
        monkeypatch.setattr(Paged, "read", lambda *_: balances(field))
        with pytest.raises(Rejected) as refused:
            await client.read(ACCOUNT, [b"{}"])
    assert (refused.value.error_class, refused.value.reason) == (
        "malformed",
        "asset USD: only a total may be negative",
    )


@pytest.mark.parametrize(("height", "is_one"), [(0, True), (10**20 - 1, True), (10**20, False), (-1, False)])
async def test_a_height_that_no_chain_has_is_malformed(
    height: int, is_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Snapshot({}, None, absent_is_zero=True, height=height)
    monkeypatch.setattr(Paged, "read", lambda *_: said)
    async with Stage() as stage, paged(stage, Turns()) as client:
        if is_one:
            assert await client.read(ACCOUNT, [b"{}"]) is said
            return
        with pytest.raises(Rejected) as refused:
            await client.read(ACCOUNT, [b"{}"])
    assert refused.value.error_class == "malformed"
