"""Reading only the rows that changed gives the same as reading the whole answer."""

import asyncio
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.test_provider_answers import CASES, CONTEXT
from tests.support.builders import a_subscription
from tests.support.fuzzing import damaged, damaged_bytes, tried
from tests.support.provider_staging import (
    TOKENS_PATH,
    Stage,
    a_balance,
    a_token_list,
    answer,
    body_of,
    declared_account,
    declared_settings,
    loopring_account,
    loopring_settings,
    metakeep_account,
    metakeep_settings,
)
from watcher.journal.account import AccountState, Rules
from watcher.journal.interest import Interest
from watcher.journal.step import Reading, Step, diff
from watcher.polling.cadence import wait_s
from watcher.providers.contract import Line, Rejected
from watcher.providers.declared import Http
from watcher.providers.http import ProviderClient
from watcher.providers.kept import RENEW_S, Memo
from watcher.providers.loopring import Loopring
from watcher.providers.metakeep import MetaKeep
from watcher.settings import AccountSettings
from watcher.snapshot import Snapshot
from watcher.store.state import Kept, dump_state, load_state

COINS = [f"0x{number:040x}" for number in range(1, 5)]
NAMES = (
    "accountId",
    "tokenId",
    "total",
    "pending",
    "withdraw",
    "status",
    "balances",
    "currency",
    "balance",
    "asset",
)


def tokens(random: Random, account_id: int | None = 10110) -> Any:
    rows = [
        a_balance(token, str(random.choice((0, 7, 10**20))), deposit=random.choice("0000000003"))
        for token in range(4)
    ]
    return [row if account_id is None else row | {"accountId": account_id} for row in rows]


def coins(random: Random, which: Sequence[str] = COINS) -> Any:
    rows = [{"currency": coin, "balance": random.choice(("0", "1.5", "10.00"))} for coin in which]
    return {"status": "SUCCESS", "balances": rows}


def listed(random: Random) -> Any:
    rows = [{"asset": f"A{n}", "free": random.choice(("0", "1.5", 7)), "locked": "0.5"} for n in range(4)]
    return {"error": None, "fees": "0.25", "balances": rows, "more": False}


DECLARED: Mapping[str, Any] = {
    "error": "error.code",
    "more": "more",
    "absent_is_zero": True,
    "ask": [{"path": "/"}],
    "read": [{"rows": "balances", "asset": "asset", "total": ["free", "locked"], "locked": "locked"}],
}
DECLARED_BY_KIND: Mapping[str, Any] = {
    "http": DECLARED,
    "http in parts": {**DECLARED, "read": [*DECLARED["read"], {"id": "A1", "total": "fees"}]},
}
ANSWERS: Mapping[str, tuple[str, AccountSettings, Callable[[Random], list[Any]]]] = {
    "by number": ("loopring", loopring_account(), lambda random: [tokens(random)]),
    "by address": (
        "loopring",
        loopring_account(address="0x" + "a" * 40),
        lambda random: [tokens(random, random.choice((None, 7, 7, 7, 8)))],
    ),
    "of some": ("loopring", loopring_account(tokens=(0, 1, 2, 3)), lambda random: [tokens(random)]),
    "of fewer than it gets": ("loopring", loopring_account(tokens=(0, 3)), lambda random: [tokens(random)]),
    **{
        f"declared, {kind}": (kind, declared_account(), lambda random: [listed(random)])
        for kind in DECLARED_BY_KIND
    },
    "coins": ("metakeep", metakeep_account(*COINS), lambda random: [coins(random)]),
    "in two parts": (
        "metakeep",
        metakeep_account(*COINS),
        lambda random: [coins(random, COINS[:3]), coins(random, COINS[3:])],
    ),
}
STYLES: Sequence[Mapping[str, Any]] = ({}, {}, {"separators": (",", ":")}, {"indent": 1})


class Counted:
    """Counts the rows that a provider reads."""

    rows_read = 0

    def read_row(self, *arguments: Any, **named: Any) -> Line:
        self.rows_read += 1
        return super().read_row(*arguments, **named)  # type: ignore[misc,no-any-return]


class CountedLoopring(Counted, Loopring):
    pass


class CountedMetaKeep(Counted, MetaKeep):
    pass


class CountedHttp(Counted, Http):
    pass


def a_provider(kind: str, url: str = "http://127.0.0.1:9", **more: Any) -> tuple[Any, ProviderClient]:
    """A provider that counts, and a client of it."""
    settings: Any
    if kind in DECLARED_BY_KIND:
        settings = declared_settings(url, **DECLARED_BY_KIND[kind])
        declared: Any = CountedHttp(settings)
        return declared, ProviderClient(declared, settings, **more)
    settings = (loopring_settings if kind == "loopring" else metakeep_settings)(url)
    provider: Any = (CountedLoopring if kind == "loopring" else CountedMetaKeep)(settings)
    return provider, ProviderClient(provider, settings, **more)


def offline(kind: str) -> tuple[Any, ProviderClient]:
    """The same without a list of assets: amounts are in the smallest unit."""
    provider, client = a_provider(kind)
    client.lists_assets = False
    return provider, client


async def verdict(
    client: ProviderClient, account: AccountSettings, bodies: Sequence[bytes], memo: Memo | None = None
) -> Any:
    """What an answer says, in its order, or why it is refused."""
    try:
        snapshot = await client.read(account, bodies, memo=memo)
    except Rejected as refused:
        return refused.error_class, refused.reason, refused.status
    return snapshot, [*snapshot.row_by_asset]


@pytest.mark.timeout(600)  # in the long form, on a busy machine
@pytest.mark.parametrize("kind", ANSWERS)
@tried(60)
@given(data=st.data())
def test_reading_changed_rows_equals_reading_the_whole_answer(kind: str, data: st.DataObject) -> None:
    provider, account, make = ANSWERS[kind]
    (_, client), memo = offline(provider), Memo()
    random = Random(data.draw(st.integers(0, 2**64 - 1)))
    style = random.choice(STYLES)
    for _ in range(8):
        good = make(random)
        bodies = [json.dumps(one, **style).encode() for one in good]
        at = random.randrange(len(good))
        if (fate := random.random()) < 0.3:
            bodies[at] = json.dumps(data.draw(damaged(good[at], *NAMES)), **style).encode()
        elif fate < 0.5:
            bodies[at] = data.draw(damaged_bytes(bodies[at]))
        elif fate < 0.55:
            style = random.choice(STYLES)
        whole = asyncio.run(verdict(client, account, bodies))
        assert asyncio.run(verdict(client, account, bodies, memo)) == whole


def a_step(state: AccountState | None, snapshot: Snapshot, differing: Collection[str] | None) -> Step | None:
    reading = Reading("treasury", "loopring", "here", snapshot, 1_000, differing)
    interest = Interest({"ops": a_subscription()})
    return diff(state, reading, rules=Rules(), interest=interest, version="v" * 16, now_ms=2_000)


@pytest.mark.timeout(600)  # in the long form, on a busy machine
@pytest.mark.parametrize("kind", ANSWERS)
@tried(10)
@given(data=st.data())
def test_moving_on_by_changed_rows_equals_moving_on_by_the_whole_answer(
    kind: str, data: st.DataObject
) -> None:
    provider, account, make = ANSWERS[kind]
    (_, client), memo = offline(provider), Memo()
    state: AccountState | None = None
    kept: Kept | None = None
    random = Random(data.draw(st.integers(0, 2**64 - 1)))
    for _ in range(10):
        good = make(random)
        at = random.randrange(len(good))
        if random.random() < 0.2:
            good[at] = data.draw(damaged(good[at], *NAMES))
        try:
            snapshot = asyncio.run(
                client.read(account, [json.dumps(one).encode() for one in good], memo=memo)
            )
        except Rejected:
            memo = Memo()
            continue
        differing = memo.differing_from(state.entry_by_asset) if state else None
        step = a_step(state, snapshot, differing)
        assert step == a_step(state, snapshot, None)
        after = step.state if step else state
        assert after
        is_at_rest = after.is_at_rest(needs_decimals=False)
        assert after.is_at_rest(needs_decimals=False, among=differing) == is_at_rest
        text = dump_state(after, {}, kept)
        assert text == dump_state(after, {})
        kept = Kept.of(after, text, is_ours=True)
        state = after if is_at_rest else load_state(text, {})
        wait = wait_s(account, after, among=differing)
        assert wait == wait_s(account, after)
        if is_at_rest and wait == account.interval.total_seconds():
            memo.rests_at(state.entry_by_asset)


async def test_only_what_the_last_answer_led_to_is_moved_on_by_changed_rows() -> None:
    (_, client), memo = offline("loopring"), Memo()
    entries, equal = {"0": None}, {"0": None}
    for total in ("7", "8"):
        memo.rests_at(entries)
        await read(client, memo, a_balance(0, total), *ROWS[1:])
        assert memo.differing_from(entries) is None, "the whole answer was read"
    for led_to, asked, differing in (
        (entries, entries, ["0"]),
        (entries, equal, None),
        (None, entries, None),
    ):
        total = str(int(total) + 1)
        memo.rests_at(led_to)
        await read(client, memo, a_balance(0, total), *ROWS[1:])
        assert memo.differing_from(asked) == differing
        assert memo.differing_from(entries) is None, "they followed another answer"


@pytest.mark.parametrize("kind", ["loopring", "metakeep"])
async def test_after_any_odd_answer_any_other_is_judged_as_usual(kind: str) -> None:
    cases = [case for case in CASES if case["provider"] == kind and not case.get("transport_fault")]
    bodies = [body for case in cases if len(body := body_of(case)) < 10_000]
    watched = CONTEXT[kind]["watch"]
    account = metakeep_account(*watched) if kind == "metakeep" else loopring_account(tokens=(0, 1))
    provider, client = offline(kind)
    whole = {body: await verdict(client, account, [body]) for body in bodies}
    good = [body for body in bodies if isinstance(whole[body][0], Snapshot)]
    quick = 0
    for first in good:
        for second in bodies:
            memo = Memo()
            for _ in range(2):
                await client.read(account, [first], memo=memo)
            provider.rows_read = 0
            assert await verdict(client, account, [second], memo) == whole[second], (first, second)
            quick += first != second and provider.rows_read == 1
    assert quick > 20, "rows alone were read at all"


def body(*rows: Any, **style: Any) -> list[bytes]:
    return [json.dumps(rows, **style).encode()]


ACCOUNT = loopring_account()
ROWS = [a_balance(token, str(token)) for token in range(10)]


async def read(
    client: ProviderClient, memo: Memo, *rows: Any, account: Any = ACCOUNT, **style: Any
) -> Snapshot:
    return await client.read(account, body(*rows, **style), memo=memo)


@pytest.mark.parametrize("style", STYLES)
async def test_of_ten_rows_only_the_changed_ones_are_read(style: Mapping[str, Any]) -> None:
    provider, client = offline("loopring")
    memo = Memo()
    for _ in range(2):
        await read(client, memo, *ROWS, **style)
    for changed in ((0,), (4,), (9,), (0, 9), ()):
        provider.rows_read = 0
        rows = [a_balance(token, "77" if token in changed else str(token)) for token in range(10)]
        snapshot = await read(client, memo, *rows, **style)
        totals = {asset: row.balance.total for asset, row in snapshot.row_by_asset.items()}
        assert totals == {str(token): "77" if token in changed else str(token) for token in range(10)}
        await read(client, memo, *ROWS, **style)
        assert provider.rows_read == 2 * len(changed), "there and back"


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ('"status"', '"at": 5, "status"'),
        ("]}", '], "more": 1}'),
        ("]}", "] }"),
        (COINS[1], COINS[2]),
        ("SUCCESS", "UNAUTHORIZED"),
        ("SUCCESS", "FAILURE"),
    ],
)
async def test_a_difference_outside_the_rows_has_the_whole_answer_read(was: str, becomes: str) -> None:
    provider, client = offline("metakeep")
    account, memo = metakeep_account(*COINS), Memo()
    good = json.dumps(coins(Random(1)))
    if becomes == "FAILURE":  # as long as the other, and behind the rows
        good = good.replace('"status": "SUCCESS", ', "").replace("]}", '], "status": "SUCCESS"}')
    for _ in range(2):
        await client.read(account, [good.encode()], memo=memo)
    other = [good.replace(was, becomes).encode()]
    provider.rows_read = 0
    whole = await verdict(client, account, other)
    reads = provider.rows_read
    assert await verdict(client, account, other, memo) == whole
    assert provider.rows_read >= 2 * reads


async def test_a_row_of_another_account_is_rejected_even_if_only_the_address_is_known() -> None:
    _, client = offline("loopring")
    account, memo = loopring_account(address="0x" + "a" * 40), Memo()
    for _ in range(2):
        await read(client, memo, *ROWS, account=account)
    with pytest.raises(Rejected, match="row 3: a balance of another account"):
        await read(client, memo, *ROWS[:3], ROWS[3] | {"accountId": 7}, *ROWS[4:], account=account)


async def test_a_truncated_row_is_no_row() -> None:
    """As many rows as there are pieces, and yet two of these are none: what is between two rows stands in the
    midst of one as well, and between two others stands something else."""
    zero, one, two, three = (json.dumps(a_balance(token, "5")) for token in range(4))
    inner = '[{"accountId": 1}, {"accountId": 1}]'
    good = f'[{zero}, {one[:-1]}, "parts": {inner}}},{two}, {three}]'
    _, client = offline("loopring")
    memo = Memo()
    for _ in range(2):
        await client.read(ACCOUNT, [good.encode()], memo=memo)
    assert memo.bytes_held == Memo().bytes_held
    odd = [good.replace(inner[: inner.index(",")], "[]").encode()]
    assert await verdict(client, ACCOUNT, odd, memo) == await verdict(client, ACCOUNT, odd)


async def test_another_list_is_no_list_of_rows() -> None:
    _, client = offline("metakeep")
    account, memo = metakeep_account(*COINS), Memo()
    for price in ("3", "3", "4"):
        prices = [{"at": 1, "currency": coin, "balance": price} for coin in COINS]
        said = json.dumps({"status": "SUCCESS", "prices": prices} | coins(Random(1))).encode()
        assert await verdict(client, account, [said], memo) == await verdict(client, account, [said])


async def test_rows_are_read_anew_after_a_change_of_the_list_of_assets_or_the_account() -> None:
    now_s = 1000.0
    async with Stage() as stage:
        stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(*range(10), decimals=1))
        provider, client = a_provider("loopring", stage.url, clock=lambda: now_s)
        async with client:
            memo = Memo()
            for reads in (20, 10, 10, 0):  # without the list, with it twice, and not at all
                provider.rows_read = 0
                snapshot = await read(client, memo, *ROWS)
                assert (provider.rows_read, snapshot.row_by_asset["3"].balance.total) == (reads, "0.3")
            stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(*range(11), decimals=2))
            now_s += RENEW_S
            await read(client, Memo(), *ROWS, a_balance(10, "1"))  # another account's
            assert (await read(client, memo, *ROWS)).row_by_asset["3"].balance.total == "0.03"
            some = loopring_account(tokens=(3,))
            assert (await read(client, memo, *ROWS, account=some)).row_by_asset.keys() == {"3"}


async def test_answers_that_always_differ_are_rarely_compared_by_row() -> None:
    _, client = offline("loopring")
    memo, random, learned = Memo(), Random(7), 0
    for _ in range(200):
        await read(client, memo, *random.sample(ROWS, 10))
        learned += memo.bytes_held > Memo().bytes_held
    assert learned < 10


async def test_two_answers_are_read_whole_and_then_changed_rows_only_until_a_row_is_added() -> None:
    provider, client = offline("loopring")
    memo = Memo()
    reads = []
    for number in range(20):
        provider.rows_read = 0
        await read(client, memo, *ROWS[1 : 8 if number < 10 else 10], a_balance(0, str(number)))
        reads.append(provider.rows_read)
    assert reads == [8, 8, *[1] * 8, 10, 10, *[1] * 8]


async def test_of_a_declared_listing_only_changed_rows_are_read() -> None:
    provider, client = offline("http")
    account, memo = declared_account(), Memo()
    said = listed(Random(1))
    for free in ("1", "2"):
        said["balances"][2]["free"] = free
        await client.read(account, [json.dumps(said).encode()], memo=memo)
    provider.rows_read = 0
    said["balances"][2]["free"] = "3.25"
    snapshot = await client.read(account, [json.dumps(said).encode()], memo=memo)
    assert provider.rows_read == 1
    assert snapshot.row_by_asset["A2"].balance.total == "3.75"
    assert snapshot.absent_is_zero
    said["more"] = True
    with pytest.raises(Rejected, match="more pages"):
        await client.read(account, [json.dumps(said).encode()], memo=memo)


class Careless(CountedLoopring):
    """Reads an odd locked amount as an impossible one."""

    def read_row(self, *arguments: Any, **named: Any) -> Line:
        row, owner = super().read_row(*arguments, **named)
        assert row
        balance = row.balance
        locked = f"-{balance.locked}" if balance.locked == "13" else balance.locked
        return row._replace(balance=balance._replace(locked=locked)), owner


async def test_an_impossible_balance_in_a_single_row_is_rejected() -> None:
    provider = Careless(loopring_settings("http://127.0.0.1:9"))
    client, memo = ProviderClient(provider, loopring_settings("http://127.0.0.1:9")), Memo()
    client.lists_assets = False
    for locked, reads in (("1", 4), ("2", 4), ("3", 1), ("13", 5), ("13", 4), ("3", 4)):
        provider.rows_read = 0
        bodies = body(*ROWS[:3], a_balance(3, "20", locked=locked))
        found = await verdict(client, ACCOUNT, bodies, memo)
        assert isinstance(found[0], Snapshot) == (locked != "13")
        assert provider.rows_read == reads
        assert found == await verdict(client, ACCOUNT, bodies)


@pytest.mark.parametrize(
    "other",
    [
        {"read": [*DECLARED["read"], {"id": "X", "total": "x"}]},
        {"read": [DECLARED["read"][0] | {"rows": "balances[?asset != 'A9']"}]},
        {"read": [DECLARED["read"][0] | {"rows": "[0].balances"}]},
        {"read": [DECLARED["read"][0] | {"unique": "asset"}]},
        {"ask": [{"path": "/"}, {"path": "/more"}]},
        {"ask": [{"path": "/", "next": {"cursor": "next", "query": "after"}}]},
        {"error": "balances[0].error"},
        {"more": "length(balances) == `100`"},
        {"height": "height"},
    ],
)
def test_a_provider_whose_rows_depend_on_one_another_is_read_whole(other: Any) -> None:
    assert Http(declared_settings(**DECLARED)).is_by_row
    assert not Http(declared_settings(**{**DECLARED, **other})).is_by_row
