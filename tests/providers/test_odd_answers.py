"""No odd answer of a provider is read as zero, nor as another amount.

Over a real socket, for every source there is: each value, member and row of a good answer is spoilt, one at a
time (`tests/support/odd_answers.py` has the ways). Either the poll is rejected, or it reads what the good
answer says; what else there may be is written down here.
"""

import json
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from yarl import URL

from tests.recipes.test_recipes import NAMES as RECIPES
from tests.recipes.test_recipes import bodies, section
from tests.recipes.test_spoilt_answers import is_meant as recipe_is_meant
from tests.support.evm_scenes import evm_account, evm_settings, recorded
from tests.support.odd_answers import Odd, complaint, oddities
from tests.support.provider_staging import (
    BANK_DECLARED,
    LOOPRING_DECLARED,
    TOKENS_PATH,
    Reply,
    Seen,
    Stage,
    a_balance,
    a_bank_page,
    a_token_list,
    answer,
    declared_account,
    declared_settings,
    loopring_account,
    loopring_settings,
    metakeep_account,
    metakeep_settings,
)
from watcher.providers.contract import PLACE_BY_KIND, Provider, Rejected, provider_class
from watcher.providers.http import ProviderClient
from watcher.providers.kept import Memo
from watcher.providers.strict_json import parse
from watcher.settings import AccountSettings, ProviderSettings
from watcher.snapshot import Snapshot

MK = "0x1456b21890f920110190063921f6bc7f7b027fa6"
COIN = "0x0186b21890f920110190063921f6bc7f7b027fa6"
METAKEEP_ROWS = (
    {"currency": MK, "balance": "1.12", "symbol": "MK"},
    {"currency": COIN, "balance": "100041.234567", "locked": "10.12"},
)


@dataclass(frozen=True)
class Source:
    """What is asked, and the good answers to the requests of one poll, in their order. `is_meant` says of an
    odd answer that reads as something else, or names another account, that this is what it says. Where
    requests are signed, none is ever sent twice as it is, and each is known by its path.
    """

    settings: Callable[[str], ProviderSettings]
    account: AccountSettings
    good: Sequence[Any]
    is_meant: Callable[[Odd], bool] = lambda odd: False
    base_path: str = ""
    is_signed: bool = False
    reply_by_path: Mapping[str, Reply] = field(default_factory=dict)


def of_a_chain(name: str) -> Source:
    """A poll that was recorded at an Ethereum node, of its blocks only what is read of them."""
    scene = recorded()[name]
    answers = scene.answers
    for part in (part for batch in answers for part in batch if isinstance(part["result"], dict)):
        part["result"] = {"number": part["result"]["number"]}
    return Source(
        lambda url: evm_settings(url, requests_per_second=10_000, **scene.settings),
        evm_account(*scene.tokens),
        answers,
        # Another chain, height or amount, which is hex; or a block that the node does not have.
        is_meant=lambda odd: odd.value in ("0x12", None) and odd.place in ("[].result", "[].result.number"),
    )


def of_a_recipe(name: str) -> Source:
    """What a recipe reads of its samples."""
    settings, account = section(name)
    path = URL(settings.base_url).path.rstrip("/")
    return Source(
        lambda url: section(name, base_url=url + path, requests_per_second=10_000)[0],
        account,
        bodies(name, "answer"),
        partial(recipe_is_meant, name),
        base_path=path,
    )


SOURCE_BY_NAME: Mapping[str, Source] = {
    "evm": of_a_chain("withdrawal"),
    "evm, without Multicall3": of_a_chain("withdrawal, without Multicall3"),
    "http": Source(
        lambda url: declared_settings(url, requests_per_second=10_000, **LOOPRING_DECLARED),
        declared_account(id=10110),
        [[a_balance(0, "99476758000000000", "12", "500000000000000000"), a_balance(1, "7", withdraw="3")]],
    ),
    "http, in pages": Source(
        lambda url: declared_settings(**BANK_DECLARED | {"base_url": url, "requests_per_second": 10_000}),
        declared_account(account="acme"),
        [
            a_bank_page("after-2", EUR="1250.5", JPY="300000"),
            a_bank_page(None, KWD="70.125"),
        ],
        # A listing that says that it is whole, or leads to a page that there is not.
        is_meant=lambda odd: odd.place == "next_cursor" or (odd.place == "balances" and odd.value == []),
    ),
    "loopring": Source(
        lambda url: loopring_settings(url, requests_per_second=10_000),
        loopring_account(),
        [[a_balance(0, "99476758000000000", "12", "500000000000000000"), a_balance(1, "7", withdraw="3")]],
        is_meant=lambda odd: odd.kind == "whole" and odd.value == "[]",  # nothing is left, if said again
        reply_by_path={TOKENS_PATH: answer(a_token_list(0, 1, decimals=18))},
    ),
    "metakeep": Source(
        lambda url: metakeep_settings(url, requests_per_second=10_000),
        metakeep_account(MK, COIN),
        [{"status": "SUCCESS", "balances": [*METAKEEP_ROWS]}],
    ),
    "metakeep, in parts": Source(
        lambda url: metakeep_settings(url, requests_per_second=10_000, currencies_per_request=1),
        metakeep_account(MK, COIN),
        [{"status": "SUCCESS", "balances": [row]} for row in METAKEEP_ROWS],
    ),
}


RECIPE_BY_NAME: Mapping[str, Source] = {name: of_a_recipe(name) for name in RECIPES}
"""Spoilt beside the recipes, too, and quicker: without a socket."""

OTHER_STATUSES = (*range(201, 207), 300, 304, 400, 404, 429, 500, 503)


class Answered:
    """A stage that gives a source's good answers, or another reply to one of its requests."""

    def __init__(self, source: Source, stage: Stage, provider: Provider) -> None:
        self.good = [said if isinstance(said, bytes) else json.dumps(said).encode() for said in source.good]
        self.source = source
        self._replies: list[Reply] = []
        self._number_by_request = {what: number for number, what in enumerate(self._all_asked(provider))}
        stage.reply_by_path.update(source.reply_by_path)
        stage.reply_to = self._reply_to
        self.with_reply()

    def with_reply(self, number: int | None = None, reply: Reply | None = None) -> None:
        """Answer the request of that number so, and the others well."""
        self._replies = [
            reply if reply and at == number else answer(body) for at, body in enumerate(self.good)
        ]

    def _all_asked(self, provider: Provider) -> Iterator[Hashable]:
        """Go through the requests of a poll, as the good answers lead from one to the next."""
        answers: list[Any] = []
        while len(answers) < len(self.good):
            asked = provider.requests(self.source.account, answers)
            for request in asked:
                url = URL(request.path, encoded=True).update_query(request.query)
                body = request.body if request.json is None else json.dumps(request.json).encode()
                yield self._what_for(url, body or b"")
            answers += map(parse, self.good[len(answers) :][: len(asked)])

    def _what_for(self, url: URL, body: bytes) -> Hashable:
        path = url.path.removeprefix(self.source.base_path)
        return path if self.source.is_signed else (path, *sorted(url.query.items()), body)

    def _reply_to(self, seen: Seen) -> Reply | None:
        if seen.target in self.source.reply_by_path:
            return None
        number = self._number_by_request.get(self._what_for(URL(seen.target, encoded=True), seen.body))
        return answer({"message": "not found"}, 404) if number is None else self._replies[number]


class Asked(Answered):
    """The same, and a client that asks."""

    def __init__(self, source: Source, stage: Stage, client: ProviderClient, provider: Provider) -> None:
        super().__init__(source, stage, provider)
        self._client = client

    async def __call__(self, number: int | None = None, reply: Reply | None = None) -> Snapshot | Rejected:
        """Poll once, with this reply to the request of that number. What was read of the good answers, row by
        row, makes no difference."""
        self.with_reply(number, reply)
        try:
            bodies = await self._client.ask(self.source.account)
        except Rejected as rejected:
            return rejected
        memo = Memo()
        for _ in range(2):
            await self._read(self.good, memo)
        by_row, whole = await self._read(bodies, memo), await self._read(bodies)
        assert by_row == whole or f"{by_row!r}" == f"{whole!r}"
        return whole

    async def _read(self, bodies: Sequence[bytes], memo: Memo | None = None) -> Snapshot | Rejected:
        try:
            return await self._client.read(self.source.account, bodies, memo=memo)
        except Rejected as rejected:
            return rejected


@asynccontextmanager
async def staged(name: str) -> AsyncIterator[tuple[Asked, Snapshot]]:
    """A source by name, and what its good answers say."""
    source = SOURCE_BY_NAME.get(name) or RECIPE_BY_NAME[name]
    async with Stage() as stage:
        settings = source.settings(stage.url)
        provider = provider_class(settings.kind)(settings)
        async with ProviderClient(provider, settings) as client:
            asked = Asked(source, stage, client, provider)
            read = await asked()
            assert isinstance(read, Snapshot), read
            assert read.row_by_asset
            yield asked, read
            assert await asked() == read


SLOW = [
    "evm, without Multicall3",
    "metakeep, in parts",
    # Several requests for each of thousands of spoilt answers would take long.
    *(name for name, source in RECIPE_BY_NAME.items() if len(source.good) == 1),
]
every_source = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in dict.fromkeys((*SOURCE_BY_NAME, *SLOW))
    ],
)


@every_source
async def test_an_odd_answer_is_never_misread(name: str) -> None:
    complaints: list[str] = []
    tried = 0
    async with staged(name) as (asked, read):
        for number, good in enumerate(asked.good):
            for odd in oddities(good):
                wrong = complaint(odd, await asked(number, answer(odd.body)), read)
                if wrong and not asked.source.is_meant(odd):
                    complaints.append(f"answer {number}, {odd}: {wrong}")
                tried += 1
    assert tried > 100
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("name", [*SOURCE_BY_NAME, *RECIPE_BY_NAME])
async def test_a_truncated_valid_answer_or_one_with_another_status_is_rejected(name: str) -> None:
    async with staged(name) as (asked, _):
        for number, good in enumerate(asked.good):
            replies = [answer(good, status) for status in OTHER_STATUSES]
            for reply in (*replies, answer(good, promised=len(good) + 1), answer(good.rstrip()[:-1])):
                assert isinstance(await asked(number, reply), Rejected)


def test_every_kind_of_source_is_tried() -> None:
    settings = [source.settings("http://127.0.0.1:9") for source in SOURCE_BY_NAME.values()]
    asked_elsewhere = {"exchange"}  # which may be missing: test_exchange.py
    assert {one.kind for one in settings} | asked_elsewhere == PLACE_BY_KIND.keys()
