"""What the client itself guards: sizes, statuses, connections, and the list of assets."""

import asyncio
import gzip
import json
import zlib
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest

from tests.support.memory import growing_at_most
from tests.support.provider_staging import (
    TOKENS_PATH,
    Reply,
    Stage,
    a_balance,
    a_token_list,
    answer,
    loopring_account,
    loopring_client,
    metakeep_account,
    metakeep_client,
    metakeep_settings,
    never_answer,
    raw,
)
from watcher.providers.contract import ErrorClass, Rejected
from watcher.providers.http import LIMIT, ProviderClient
from watcher.providers.kept import RETRY_S
from watcher.providers.metakeep import MetaKeep
from watcher.snapshot import Asset

ALLOWED_GROWTH_MIB = 8
COIN = "0x0186b21890f920110190063921f6bc7f7b027fa6"
ACCOUNT = loopring_account()


async def refusal(client: ProviderClient, account: object = ACCOUNT) -> Rejected:
    with pytest.raises(Rejected) as raised:
        await client.ask(account)
    return raised.value


@pytest.mark.parametrize(
    ("status", "error_class"),
    [
        (201, "malformed"),
        (202, "malformed"),
        (204, "malformed"),
        (206, "malformed"),
        (304, "malformed"),
        (400, "configuration"),
        (401, "auth"),
        (403, "auth"),
        (404, "configuration"),
        (408, "transient"),
        (409, "configuration"),
        (410, "configuration"),
        (425, "transient"),
        (429, "rate"),
        (500, "transient"),
        (502, "transient"),
        (503, "transient"),
        (504, "transient"),
    ],
)
async def test_a_status_alone_says_what_to_do(status: int, error_class: ErrorClass) -> None:
    async with Stage() as stage, loopring_client(stage.url) as client:
        stage.reply = answer(b"" if status in (204, 304) else b"<html>", status, content_type="text/html")
        refused = await refusal(client)
    assert (refused.error_class, refused.status, refused.retry_after_s) == (error_class, status, None)


async def test_over_the_rate_limit_no_body_overrules_the_status() -> None:
    async with Stage() as stage, loopring_client(stage.url) as client:
        stage.reply = answer({"resultInfo": {"code": 104002}}, 429, headers={"Retry-After": "7"})
        refused = await refusal(client)
    assert (refused.error_class, refused.retry_after_s) == ("rate", 7)


async def test_a_retry_after_date_is_read_against_our_clock() -> None:
    now = datetime(2026, 11, 20, 14, 3, 5, tzinfo=UTC)
    async with Stage() as stage, loopring_client(stage.url, utc_now=lambda: now) as client:
        stage.reply = answer(b"", 503, headers={"Retry-After": "Fri, 20 Nov 2026 14:03:35 GMT"})
        assert (await refusal(client)).retry_after_s == 30


async def test_an_error_whose_body_breaks_off_is_still_that_error() -> None:
    async with Stage() as stage, loopring_client(stage.url) as client:
        stage.reply = answer(b"{", 503, headers={"Retry-After": "7"}, promised=100)
        refused = await refusal(client)
    assert (refused.error_class, refused.status, refused.retry_after_s) == ("transient", 503, 7)


async def test_a_large_cookie_or_many_headers_reject_no_poll() -> None:
    cookies = {"Set-Cookie": "session=" + 20_000 * "x", **{f"x-{number}": "1" for number in range(300)}}
    async with Stage() as stage, loopring_client(stage.url) as client:
        stage.reply = answer([], headers=cookies)
        assert await client.ask(ACCOUNT) == (b"[]",)


async def test_a_refused_connection_is_the_error_class_gone() -> None:
    async with Stage() as stage:
        url = stage.url
    for unreachable, reason in (
        (url, "cannot connect: connection refused; look at base_url, and at the firewalls"),
        (
            "http://no-such-host.invalid",
            "the name does not resolve; look at base_url",
        ),
    ):
        async with loopring_client(unreachable, timeout_s=0.5) as client:
            refused = await refusal(client)
            assert refused.error_class == "gone"
            assert reason in refused.reason
            assert refused.detail == urlsplit(unreachable).hostname
            assert refused.detail not in refused.reason, "subscribers get the reason"


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example"])
async def test_an_impossible_host_is_rejected_like_any_other(host: str) -> None:
    async with loopring_client(f"http://{host}", timeout_s=0.5) as client:
        assert (await refusal(client)).error_class in ("configuration", "gone")


def endless(head: bytes, block: bytes) -> Reply:
    """10 GB if all of it is read."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        for _ in range(10_000_000_000 // len(block)):
            writer.write(block)
            await writer.drain()

    return reply


def a_bomb() -> Reply:
    """1 GiB of spaces as one gzip stream of 1 MB."""
    packer = zlib.compressobj(9, wbits=31)
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(b" " * LIMIT) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(b" " * LIMIT) + packer.flush(zlib.Z_FULL_FLUSH)  # the first carries the head
    return answer(head + block * 1000, headers={"Content-Encoding": "gzip"})


HUGE = {
    "a 1 GiB gzip bomb": a_bomb(),
    "10 GB in chunks": endless(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65536 + b"\r\n"
    ),
    "10 GB with a length": endless(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n", b" " * 65536),
    "10 GB of an error": endless(b"HTTP/1.1 400 No\r\nContent-Length: 10000000000\r\n\r\n", b" " * 65536),
    "one byte too many": answer(b" " * (LIMIT + 1)),
    "one byte too many, packed": answer(
        gzip.compress(b" " * (LIMIT + 1)), headers={"Content-Encoding": "gzip"}
    ),
}


@pytest.mark.parametrize("reply", HUGE.values(), ids=HUGE.keys())
async def test_a_huge_answer_is_cut_at_a_mebibyte_and_uses_no_memory(reply: Reply) -> None:
    async with Stage() as stage, loopring_client(stage.url) as client:
        stage.reply = reply
        with growing_at_most(ALLOWED_GROWTH_MIB):
            refused = await refusal(client)
    assert refused.error_class in ("malformed", "configuration")


@pytest.mark.parametrize("is_packed", [False, True])
async def test_a_body_of_just_a_mebibyte_is_read(is_packed: bool) -> None:
    body = b"[]" + b" " * (LIMIT - 2)
    async with Stage() as stage, loopring_client(stage.url) as client:
        stage.reply = answer(body)
        if is_packed:
            stage.reply = answer(gzip.compress(body), headers={"Content-Encoding": "GZip"})
        assert await client.ask(ACCOUNT) == (body,)


PACKED = gzip.compress(b"[]", mtime=0)  # its bytes name the cases below: each run must give the same


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (PACKED[:-1], "gzip"),
        (PACKED[:-8], "gzip"),
        (PACKED[:-8] + b"\0" * 8, "gzip"),
        (PACKED + b"x", "gzip"),
        (PACKED + PACKED, "gzip"),
        (b"", "gzip"),
        (b"[]", "gzip"),
        (zlib.compress(b"[]"), "deflate"),
        (b"[]", "br"),
        (PACKED, "gzip, gzip"),
    ],
    ids=repr,
)
async def test_a_wrong_content_encoding_is_rejected(body: bytes, encoding: str) -> None:
    async with Stage() as stage, loopring_client(stage.url) as client:
        stage.reply = answer(body, headers={"Content-Encoding": encoding})
        assert (await refusal(client)).error_class == "malformed"


SUCCESS = answer({"status": "SUCCESS", "balances": []})
HANG_UP = raw(b"", hang_up=True)


async def test_a_post_on_a_connection_that_was_just_closed_is_sent_again_once() -> None:
    async with Stage() as stage, metakeep_client(stage.url) as client:
        stage.replies = [SUCCESS, HANG_UP, SUCCESS, HANG_UP, HANG_UP, SUCCESS]
        await client.ask(metakeep_account(COIN))
        await client.ask(metakeep_account(COIN))
        assert len(stage.seen) == 3
        assert (await refusal(client, metakeep_account(COIN))).error_class == "gone"
        assert len(stage.seen) == 5


async def test_a_post_that_is_hung_up_on_late_is_not_sent_again() -> None:
    times_s = iter([100.0, 101.1])
    async with Stage() as stage, metakeep_client(stage.url, clock=lambda: next(times_s)) as client:
        stage.reply = HANG_UP
        assert (await refusal(client, metakeep_account(COIN))).error_class == "gone"
    assert len(stage.seen) == 1


async def test_a_get_that_is_hung_up_on_is_left_to_aiohttp() -> None:
    async with Stage() as stage, loopring_client(stage.url) as client:
        stage.reply = HANG_UP
        assert (await refusal(client)).error_class == "gone"
    assert len(stage.seen) <= 2


async def test_a_failed_part_ends_the_poll() -> None:
    many = [f"0x{number:040x}" for number in range(50)]
    async with Stage() as stage:
        settings = metakeep_settings(stage.url, requests_per_second=3)  # the third part is far off
        async with ProviderClient(MetaKeep(settings), settings) as client:
            stage.replies = [SUCCESS, answer(b"", 500)]
            assert client.cost(metakeep_account(*many)) == 3
            assert (await refusal(client, metakeep_account(*many))).status == 500
    assert len(stage.seen) == 2


async def test_a_cancelled_poll_stays_cancelled_and_leaves_the_client_usable() -> None:
    async with Stage() as stage, loopring_client(stage.url) as client:
        stage.replies = [never_answer]
        asking = asyncio.create_task(client.ask(ACCOUNT))
        await stage.arrived.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await client.ask(ACCOUNT) == (b"[]",)


async def test_without_a_list_of_assets_a_poll_is_rejected_and_not_read_in_other_units() -> None:
    now_s = 0.0
    async with Stage() as stage, loopring_client(stage.url, clock=lambda: now_s) as client:
        stage.reply = answer([a_balance(1, "1000000000000000000")])
        stage.reply_by_path[TOKENS_PATH] = answer(b"", 503)
        bodies = await client.ask(ACCOUNT)
        for _ in range(3):
            with pytest.raises(Rejected) as raised:
                await client.read(ACCOUNT, bodies)
            assert raised.value.error_class == "transient"
        stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(0, 1, decimals=18))
        now_s += RETRY_S
        snapshot = await client.read(ACCOUNT, bodies)
    assert snapshot.row_by_asset["1"].balance.total == "1"
    assert [seen.target for seen in stage.seen].count(TOKENS_PATH) == 2


async def test_without_a_list_of_assets_the_decimals_of_the_last_state_are_enough() -> None:
    async with Stage() as stage, loopring_client(stage.url) as client:
        stage.reply = answer([a_balance(1, "1500000")])
        stage.reply_by_path[TOKENS_PATH] = answer(b"", 503)
        known = {"1": Asset("1", "LRC", "Loopring", 6)}
        snapshot = await client.read(ACCOUNT, await client.ask(ACCOUNT), known=lambda: known)
    assert snapshot.row_by_asset["1"].balance.total == "1.5"


async def test_an_asset_missing_from_a_valid_list_is_read_in_its_smallest_unit() -> None:
    async with Stage() as stage, loopring_client(stage.url) as client:
        stage.reply = answer([a_balance(1, "1000000"), a_balance(28, "5")])
        stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(0, 1, decimals=6))
        bodies = await client.ask(ACCOUNT)
        snapshot = await client.read(ACCOUNT, bodies)
        await client.read(ACCOUNT, bodies)
    assert [(row.asset.decimals, row.balance.total) for row in snapshot.row_by_asset.values()] == [
        (6, "1"),
        (None, "5"),
    ]
    assert [seen.target for seen in stage.seen].count(TOKENS_PATH) == 1


ODD_ROWS = {
    "decimals null": b'{"tokenId": 9, "decimals": null}',
    "decimals in a string": b'{"tokenId": 9, "decimals": "18"}',
    "decimals with a fraction": b'{"tokenId": 9, "decimals": 18.0}',
    "NaN": b'{"tokenId": 9, "decimals": NaN}',
    "a name twice": b'{"tokenId": 9, "decimals": 18, "decimals": 6}',
    "two rows": b'{"tokenId": 9, "decimals": 18}, {"tokenId": 9, "decimals": 6}',
    "no id": b'{"tokenId": null, "decimals": 18}',
    "no object": b"null",
}


@pytest.mark.parametrize("odd", ODD_ROWS.values(), ids=ODD_ROWS.keys())
async def test_an_odd_row_of_the_list_of_assets_rejects_only_polls_that_need_it(odd: bytes) -> None:
    listed = json.dumps(a_token_list(1, decimals=6)).encode()
    async with Stage() as stage, loopring_client(stage.url) as client:
        stage.reply_by_path[TOKENS_PATH] = answer(listed[:-1] + b", " + odd + b"]")
        stage.replies = [answer([a_balance(1, "1000000")]), answer([a_balance(1, "1"), a_balance(9, "5")])]
        snapshot = await client.read(ACCOUNT, await client.ask(ACCOUNT))
        assert snapshot.row_by_asset["1"].balance.total == "1"
        bodies = await client.ask(ACCOUNT)
        with pytest.raises(Rejected, match="list of assets") as raised:
            await client.read(ACCOUNT, bodies)
        known = await client.read(ACCOUNT, bodies, known=lambda: {"9": Asset("9", decimals=1)})
    assert raised.value.error_class in ("malformed", "transient")
    assert known.row_by_asset["9"].balance.total == "0.5"


async def test_an_empty_account_needs_no_list_of_assets() -> None:
    async with Stage() as stage, loopring_client(stage.url) as client:
        assert (await client.read(ACCOUNT, await client.ask(ACCOUNT))).row_by_asset == {}
    assert len(stage.seen) == 1


async def test_a_watched_asset_that_is_absent_is_zero_by_its_id_or_symbol() -> None:
    now_s = 0.0
    async with Stage() as stage, loopring_client(stage.url, clock=lambda: now_s) as client:
        stage.reply = answer([a_balance(1)])
        stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(0, 1, 2))
        snapshot = await client.read(ACCOUNT, await client.ask(ACCOUNT))
        now_s += RETRY_S
        wanted = ["1", "T1", "T2", "0", "t2", "9", f"0x{'1' * 40}"]
        found = await client.add_zeros(snapshot, wanted)
        assert [(row.asset.id, row.balance.total) for row in found.zeros] == [("2", "0"), ("0", "0")]
        assert not found.is_open
        filtered = await client.add_zeros(snapshot._replace(absent_is_zero=False), wanted)
    assert filtered.zeros == ()
    assert [seen.target for seen in stage.seen].count(TOKENS_PATH) == 2  # once more for what it did not hold


async def test_without_its_list_of_assets_zeros_stay_unknown_and_no_poll_is_rejected() -> None:
    now_s = 0.0
    async with Stage() as stage, loopring_client(stage.url, clock=lambda: now_s) as client:
        stage.reply_by_path[TOKENS_PATH] = answer(b"", 503)
        snapshot = await client.read(ACCOUNT, await client.ask(ACCOUNT))
        waiting = await client.add_zeros(snapshot, ["T1"])
        assert (waiting.zeros, waiting.is_open) == ((), True)
        stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(0, 1))
        now_s += RETRY_S
        found = await client.add_zeros(snapshot, ["T1"])
    assert ([row.asset.id for row in found.zeros], found.is_open) == (["1"], False)


async def test_the_list_of_assets_waits_for_its_turn_and_carries_no_key() -> None:
    turns = 0

    async def wait_turn() -> None:
        nonlocal turns
        turns += 1

    async with Stage() as stage, loopring_client(stage.url, wait_turn=wait_turn) as client:
        stage.reply = answer([a_balance(1)])
        stage.reply_by_path[TOKENS_PATH] = answer(a_token_list(1))
        await client.read(ACCOUNT, await client.ask(ACCOUNT))
    assert turns == 1
    assert "x-api-key" not in stage.seen[1].header_by_name


async def test_a_base_url_may_have_a_path() -> None:
    async with Stage() as stage, loopring_client(stage.url + "/gateway/") as client:
        await client.ask(ACCOUNT)
    assert stage.seen[0].target == "/gateway/api/v3/user/balances?accountId=10110"
