"""Whatever a provider answers in the place of something good, it is not read as zero, nor as another amount.

Over a real socket, for every source there is: each value, member and row of a good answer is spoilt, one at a
time (`tests/support/odd_answers.py` has the ways). Either the poll is rejected, or it reads what the good
answer says; what else there may be is written down here.
"""

import json
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.evm_scenes import evm_account, evm_settings, recorded
from tests.support.odd_answers import Odd, complaint, oddities
from tests.support.provider_staging import (
    LOOPRING_DECLARED,
    TOKENS_PATH,
    Reply,
    Seen,
    Stage,
    a_balance,
    a_token_list,
    answer,
    declared_account,
    declared_settings,
    loopring_account,
    loopring_settings,
    metakeep_account,
    metakeep_settings,
)
from watcher.providers.contract import PLACE_BY_KIND, Rejected, provider_class
from watcher.providers.http import ProviderClient
from watcher.settings import AccountSettings, ProviderSettings
from watcher.snapshot import Snapshot

MK = "0x1456b21890f920110190063921f6bc7f7b027fa6"
COIN = "0x0186b21890f920110190063921f6bc7f7b027fa6"


@dataclass(frozen=True)
class Source:
    """What is asked, and the good answers to the requests of one poll, in their order. `is_meant` says of an
    odd answer that reads as something else, or blames somebody, that this is what it says.
    """

    settings: Callable[[str], ProviderSettings]
    account: AccountSettings
    good: Sequence[Any]
    is_meant: Callable[[Odd], bool] = lambda odd: False
    what_for: Callable[[Seen], Hashable] = lambda seen: (seen.target, seen.body)
    """Tells the requests of a poll apart."""
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


SOURCE_BY_NAME: Mapping[str, Source] = {
    "evm": of_a_chain("withdrawal"),
    "evm, without Multicall3": of_a_chain("withdrawal, without Multicall3"),
    "http": Source(
        lambda url: declared_settings(url, requests_per_second=10_000, **LOOPRING_DECLARED),
        declared_account(id=10110),
        [[a_balance(0, "99476758000000000", "12", "500000000000000000"), a_balance(1, "7", withdraw="3")]],
    ),
    "loopring": Source(
        lambda url: loopring_settings(url, requests_per_second=10_000),
        loopring_account(),
        [[a_balance(0, "99476758000000000", "12", "500000000000000000"), a_balance(1, "7", withdraw="3")]],
        is_meant=lambda odd: (
            odd.kind == "whole" and odd.value == "[]"
        ),  # nothing is left, if it says so again
        reply_by_path={TOKENS_PATH: answer(a_token_list(0, 1, decimals=18))},
    ),
    "metakeep": Source(
        lambda url: metakeep_settings(url, requests_per_second=10_000, currencies_per_request=1),
        metakeep_account(MK, COIN),
        [
            {"status": "SUCCESS", "balances": [{"currency": MK, "balance": "1.12", "symbol": "MK"}]},
            {
                "status": "SUCCESS",
                "balances": [{"currency": COIN, "balance": "100041.234567", "locked": "10.12"}],
            },
        ],
    ),
}


OTHER_STATUSES = (*range(201, 207), 300, 304, 400, 404, 429, 500, 503)


class Asked:
    """A client of a source whose replies may be spoilt, one at a time. `good` are its good answers."""

    def __init__(self, source: Source, stage: Stage, client: ProviderClient) -> None:
        self.good = [said if isinstance(said, bytes) else json.dumps(said).encode() for said in source.good]
        self._source = source
        self._client = client
        self._replies: list[Reply] = []
        self._number_by_request: dict[Hashable, int] = {}
        self._is_learning = True
        stage.reply_by_path.update(source.reply_by_path)
        stage.reply_to = self._reply_to

    async def __call__(self, number: int | None = None, reply: Reply | None = None) -> Snapshot | Rejected:
        """Poll once, with this reply to the request of that number."""
        self._replies = [
            reply if reply and at == number else answer(body) for at, body in enumerate(self.good)
        ]
        try:
            return await self._client.read(self._source.account, await self._client.ask(self._source.account))
        except Rejected as rejected:
            return rejected
        finally:
            self._is_learning = False

    def _reply_to(self, seen: Seen) -> Reply | None:
        if seen.target in self._source.reply_by_path:
            return None
        what = self._source.what_for(seen)
        if self._is_learning:
            self._number_by_request.setdefault(what, len(self._number_by_request))
        number = self._number_by_request.get(what)
        return answer({"message": "not found"}, 404) if number is None else self._replies[number]


@asynccontextmanager
async def staged(name: str) -> AsyncIterator[tuple[Asked, Snapshot]]:
    """A source by name, and what its good answers say."""
    source = SOURCE_BY_NAME[name]
    async with Stage() as stage:
        settings = source.settings(stage.url)
        async with ProviderClient(provider_class(settings.kind)(settings), settings) as client:
            asked = Asked(source, stage, client)
            read = await asked()
            assert isinstance(read, Snapshot), read
            assert read.row_by_asset
            yield asked, read
            assert await asked() == read


SLOW = {"evm, without Multicall3"}
every_source = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SOURCE_BY_NAME],
)


@every_source
async def test_an_odd_answer_is_never_read_as_what_it_does_not_say(name: str) -> None:
    complaints: list[str] = []
    tried = 0
    async with staged(name) as (asked, read):
        for number, good in enumerate(asked.good):
            for odd in oddities(good):
                wrong = complaint(odd, await asked(number, answer(odd.body)), read)
                if wrong and not SOURCE_BY_NAME[name].is_meant(odd):
                    complaints.append(f"answer {number}, {odd}: {wrong}")
                tried += 1
    assert tried > 200
    assert not complaints, "\n".join(complaints)


@every_source
async def test_a_good_answer_that_is_not_whole_or_has_another_status_is_rejected(name: str) -> None:
    async with staged(name) as (asked, _):
        for number, good in enumerate(asked.good):
            replies = [
                answer(good, status) for status in (*range(201, 207), 300, 304, 400, 404, 429, 500, 503)
            ]
            replies += [answer(good, promised=len(good) + 1), answer(good[:-1], promised=len(good))]
            for reply in replies:
                assert isinstance(await asked(number, reply), Rejected)


def test_every_kind_of_source_is_asked() -> None:
    settings = [source.settings("http://127.0.0.1:9") for source in SOURCE_BY_NAME.values()]
    asked_elsewhere = {"exchange"}  # which may be missing: test_exchange.py
    assert {one.kind for one in settings} | asked_elsewhere == PLACE_BY_KIND.keys()
