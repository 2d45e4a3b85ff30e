"""Requests to an EVM chain, and how a node's answers are read: those of Anvil, and odd ones."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.evm_scenes import (
    BROKEN_TOKEN,
    NAMELESS_TOKEN,
    NO_CONTRACT,
    OLD_TOKEN,
    TOKEN,
    WORDLESS_TOKEN,
    Scene,
    evm_account,
    evm_settings,
    recorded,
)
from tests.support.nodes import EMPTY, MULTICALL3
from tests.support.provider_staging import API_KEY, Stage, answer
from watcher.providers.contract import Rejected
from watcher.providers.evm import (
    BALANCE_OF,
    ERROR_CLASS_BY_CODE,
    MOST_TOKENS,
    NATIVE,
    SYMBOL,
    Call,
    Evm,
    aggregate,
    returned,
)
from watcher.providers.http import ProviderClient
from watcher.snapshot import Balance, Snapshot

SCENES = recorded()
NOTHING = Balance("0", "0", "0", "0")
ARRIVING = {
    NATIVE: Balance("0", "0", "123.456789012345678901", "0"),
    TOKEN: Balance("0", "0", "7.000000000000000001", "0"),
    OLD_TOKEN: Balance("0", "0", "5.000001", "0"),
    NAMELESS_TOKEN: Balance("0", "0", "2", "0"),
}
ARRIVED = {
    asset: Balance(balance.pending_deposit or "", "0", "0", "0") for asset, balance in ARRIVING.items()
}
UNKNOWN = {asset: Balance(balance.total, "0", None, None) for asset, balance in ARRIVED.items()}
ETH = ARRIVED[NATIVE].total
BALANCES = {
    "empty": dict.fromkeys(ARRIVING, NOTHING),
    "pending": ARRIVING,
    "pending, one call at a time": ARRIVING,
    "pending, by confirmations": ARRIVING,
    "pending, without Multicall3": ARRIVING,
    "latest": UNKNOWN,
    "cleared": ARRIVED,
    "another deposit": {NATIVE: Balance(ETH, "0", "5", "0")},
    "reorganised": {NATIVE: Balance(ETH, "0", "0", "0")},
    "withdrawal": {NATIVE: Balance(ETH, "0", "0", "1")},
    "withdrawal, without Multicall3": {NATIVE: Balance(ETH, "0", "0", "1")},
}


def read(scene: Scene, answers: Sequence[Any] | None = None, **settings: Any) -> Snapshot:
    provider = Evm(evm_settings(**{**scene.settings, **settings}))
    return provider.read(evm_account(*scene.tokens), scene.answers if answers is None else answers, {})


def balances(snapshot: Snapshot) -> dict[str, Balance]:
    return {asset: row.balance for asset, row in snapshot.row_by_asset.items()}


def refused(scene: Scene, answers: Sequence[Any], **settings: Any) -> Rejected:
    with pytest.raises(Rejected) as raised:
        read(scene, answers, **settings)
    return raised.value


@pytest.mark.parametrize("name", BALANCES)
def test_what_a_node_answered_is_read_to_the_last_digit(name: str) -> None:
    snapshot = read(SCENES[name])
    assert balances(snapshot) == BALANCES[name]
    assert snapshot.watched == tuple(BALANCES[name])
    assert not snapshot.absent_is_zero


def test_symbols_and_decimals_are_the_contracts_own() -> None:
    rows = read(SCENES["pending"]).row_by_asset.values()
    assert [(row.asset.symbol, row.asset.decimals) for row in rows] == [
        ("ETH", 18),
        ("TST", 18),
        ("OLD", 6),  # 32 bytes, as the first tokens had it
        (None, 0),
    ]


def test_the_height_is_that_of_the_latest_block() -> None:
    heights = {name: read(SCENES[name]).height for name in BALANCES}
    assert len({heights[name] for name in BALANCES if name.startswith("pending")}) == 1
    assert (heights["empty"], heights["pending"], heights["cleared"]) == (10, 11, 17)


def test_a_poll_is_one_post_of_two_calls_and_the_settled_block_comes_first() -> None:
    provider, account = Evm(evm_settings()), evm_account(TOKEN)
    (request,) = provider.requests(account)
    assert (request.method, request.path) == ("POST", f"/v2/{API_KEY}")
    assert [(call["id"], call["method"], call["params"][1]) for call in request.json] == [
        (0, "eth_call", "finalized"),
        (1, "eth_call", "latest"),
    ]
    assert {call["params"][0]["to"] for call in request.json} == {MULTICALL3}
    assert provider.requests(evm_account(), SCENES["another deposit"].answers) == ()


def test_confirmations_are_counted_back_from_the_height_that_is_asked_first() -> None:
    provider, account = Evm(evm_settings(confirmations=12)), evm_account()
    (first,) = provider.requests(account)
    assert [call["method"] for call in first.json] == ["eth_blockNumber"]
    (second,) = provider.requests(account, [[{"jsonrpc": "2.0", "id": 0, "result": hex(100)}]])
    assert [int(call["params"][1], 16) for call in second.json] == [89, 100]
    (young,) = provider.requests(account, [[{"jsonrpc": "2.0", "id": 0, "result": hex(5)}]])
    assert [int(call["params"][1], 16) for call in young.json] == [0, 5]


def test_without_multicall_each_balance_is_requested_at_the_same_heights() -> None:
    scene = SCENES["pending, without Multicall3"]
    provider, account = Evm(evm_settings(**scene.settings)), evm_account(*scene.tokens)
    first, second, third = scene.answers
    (heights,) = provider.requests(account, [first])
    assert [call["method"] for call in heights.json] == ["eth_getBlockByNumber"] * 2
    (each,) = provider.requests(account, [first, second])
    at = [call["params"][-1] for call in each.json if call["method"] in ("eth_getBalance", "eth_call")]
    assert at == ["0x7"] * 4 + ["0xb"] * 10
    blocks = [call["params"] for call in each.json if call["method"] == "eth_getBlockByNumber"]
    assert blocks == [["0x7", False], ["0xb", False]], "a missing block is no block without balances"
    assert provider.requests(account, [first, second, third]) == ()


def test_many_calls_are_several_batches_whose_ids_go_on() -> None:
    scene = SCENES["pending, without Multicall3"]
    provider = Evm(evm_settings(**scene.settings, calls_per_request=5))
    requests = provider.requests(evm_account(*scene.tokens), scene.answers[:2])
    assert [[call["id"] for call in request.json] for request in requests] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [10, 11, 12, 13, 14],
        [15, 16, 17],
    ]
    parts = scene.answers[2]
    split = [*scene.answers[:2], parts[:5], parts[5:10], parts[10:15], parts[15:]]
    assert balances(read(scene, split, calls_per_request=5)) == ARRIVING


@pytest.mark.parametrize("name", ["pending", "pending, without Multicall3", "pending, by confirmations"])
def test_a_node_of_another_chain_is_a_configuration_error_that_names_both(name: str) -> None:
    found = refused(SCENES[name], SCENES[name].answers, chain_id=8453)
    assert found.error_class == "configuration"
    assert "on chain 31337, not on 8453" in found.reason


def test_a_settled_block_ahead_of_the_latest_comes_from_two_nodes() -> None:
    settled, latest = SCENES["another deposit"].answers[0]
    swapped = [[settled | {"id": 1}, latest | {"id": 0}]]
    found = refused(SCENES["another deposit"], swapped)
    assert (found.error_class, "two nodes" in found.reason) == ("transient", True)


@pytest.mark.parametrize("more", ["", ", without Multicall3"])
@pytest.mark.parametrize(("number", "token"), [*enumerate((WORDLESS_TOKEN, BROKEN_TOKEN, NO_CONTRACT))])
def test_an_address_that_does_not_answer_as_a_token_rejects_the_poll_and_is_named(
    number: int, token: str, more: str
) -> None:
    scene = SCENES[f"no token {number}{more}"]
    found = refused(scene, scene.answers)
    assert found.error_class == "configuration"
    assert token in found.reason


# One answer of Multicall3, made here so that each of its parts can be odd.

CHAIN, HEIGHT = (31337).to_bytes(32), (100).to_bytes(32)
GOOD = [CHAIN, HEIGHT, (5).to_bytes(32), (7).to_bytes(32), (2).to_bytes(32), b"T".ljust(32, b"\0")]
MADE = Scene({"settled": "latest"}, [TOKEN], [])


def packed(values: Sequence[bytes | None]) -> str:
    """What `aggregate3` returns, as the ABI has it."""
    parts = []
    for value in values:
        data = value or b""
        padded = data.ljust(-(-len(data) // 32) * 32, b"\0")
        parts.append(b"".join(map(word, (value is not None, 64, len(data)))) + padded)
    offsets, at = [], 32 * len(parts)
    for part in parts:
        offsets.append(word(at))
        at += len(part)
    return "0x" + b"".join((word(32), word(len(parts)), *offsets, *parts)).hex()


def word(number: int) -> bytes:
    return number.to_bytes(32)


def one(result: Any) -> list[Any]:
    return [[{"jsonrpc": "2.0", "id": 0, "result": result}]]


def test_the_generated_answer_is_valid() -> None:
    snapshot = read(MADE, one(packed(GOOD)))
    assert {asset: balance.total for asset, balance in balances(snapshot).items()} == {
        NATIVE: "0.000000000000000005",
        TOKEN: "0.07",
    }


ODD_NUMBERS = {
    "nothing": b"",
    "a failed call": None,
    "31 bytes": bytes(31),
    "33 bytes": bytes(33),
    "two words": bytes(64),
}


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("value", ODD_NUMBERS.values(), ids=ODD_NUMBERS.keys())
def test_a_number_is_exactly_32_bytes_or_rejects_the_poll(value: bytes | None, place: int) -> None:
    refused(MADE, one(packed([*GOOD[:place], value, *GOOD[place + 1 :]])))


def test_more_decimals_than_an_amount_has_places_are_refused() -> None:
    found = refused(MADE, one(packed([*GOOD[:4], word(79), GOOD[5]])))
    assert TOKEN in found.reason


@pytest.mark.parametrize("height", [10**19, 2**256 - 1])
def test_a_height_that_no_chain_can_have_is_refused(height: int) -> None:
    assert refused(MADE, one(packed([CHAIN, word(height), *GOOD[2:]]))).error_class == "malformed"
    assert read(MADE, one(packed([CHAIN, word(10**19 - 1), *GOOD[2:]]))).height == 10**19 - 1


def test_the_largest_possible_balance_is_read() -> None:
    most = read(MADE, one(packed([*GOOD[:3], word(2**256 - 1), word(78), GOOD[5]])))
    assert balances(most)[TOKEN].total == f"0.{2**256 - 1}"


SYMBOLS = {
    "a string": (word(32) + word(4) + b"USDC".ljust(32, b"\0"), "USDC"),
    "an empty string": (word(32) + word(0), None),
    "32 bytes": (b"MKR".ljust(32, b"\0"), "MKR"),
    "nothing": (b"", None),
    "a failed call": (None, None),
    "a string that is cut off": (word(32) + word(400) + b"USDC", "USDC"),
    "an offset far away": (word(2**255) + word(4) + b"USDC".ljust(32, b"\0"), None),
    "a string that turns what follows around": (word(32) + word(6) + "‮USD".encode(), "USD"),
    "a long string": (word(32) + word(640) + b"A" * 640, "A" * 64),
}


@pytest.mark.parametrize(("value", "symbol"), SYMBOLS.values(), ids=SYMBOLS.keys())
def test_a_symbol_is_a_string_or_32_bytes_or_absent(value: bytes | None, symbol: str | None) -> None:
    snapshot = read(MADE, one(packed([*GOOD[:5], value])))
    assert snapshot.row_by_asset[TOKEN].asset.symbol == symbol


ODD_RESULTS: dict[str, Any] = {
    "null": None,
    "a number": 5,
    "no hex": "0xzz",
    "half a byte": "0x" + "0" * 65,
    "spaces between the bytes": packed(GOOD).replace("0x", "0x ", 1),
    "no 0x": "00" * 32,
    "a word": "0x" + "00" * 32,
    "10**80 answers": "0x" + word(32).hex() + f"{10**76:064x}",
    "an object": {},
}


@pytest.mark.parametrize("result", ODD_RESULTS.values(), ids=ODD_RESULTS.keys())
def test_an_invalid_answer_of_multicall3_is_rejected(result: Any) -> None:
    assert refused(MADE, one(result)).error_class == "malformed"


def test_an_answer_cut_off_anywhere_is_rejected() -> None:
    whole = packed(GOOD)
    for length in range(4, len(whole) - 2, 2):
        refused(MADE, one(whole[:length]))


@pytest.mark.parametrize(
    "quantity", ["0x", "0x" + "1" * 65, f"0x{10**80:x}", "12", "-0x1", "0x1.8", 5, None, True]
)
def test_a_balance_without_multicall3_is_hex_of_at_most_32_bytes(quantity: Any) -> None:
    scene = SCENES["pending, without Multicall3"]
    for place in (2, 8):  # of the settled block, and of the latest
        first, second, third = scene.answers
        third[place] = third[place] | {"result": quantity}
        refused(scene, [first, second, third])


def test_a_block_that_the_node_does_not_have_is_never_a_balance() -> None:
    scene = SCENES["pending, without Multicall3"]
    for stage, place in ((1, 0), (1, 1), (2, 1), (2, 7)):
        answers = scene.answers
        answers[stage][place] = answers[stage][place] | {"result": None}
        assert refused(scene, answers).error_class == "transient"


ODD_BATCHES: dict[str, Callable[[list[Any]], Any]] = {
    "an answer is missing": lambda batch: batch[:1],
    "an id twice": lambda batch: [batch[0], batch[0]],
    "one answer too many": lambda batch: [*batch, batch[0]],
    "another id": lambda batch: [batch[0], batch[1] | {"id": 7}],
    "an id in text": lambda batch: [batch[0], batch[1] | {"id": "1"}],
    "true is not 1": lambda batch: [batch[0], batch[1] | {"id": True}],
    "no id": lambda batch: [batch[0], batch[1] | {"id": None}],
    "no objects": lambda batch: ["a", "b"],
    "nothing": lambda batch: [],
    "null": lambda batch: None,
    "an object": lambda batch: batch[0],
    "text": lambda batch: "ok",
}


@pytest.mark.parametrize("odd", ODD_BATCHES.values(), ids=ODD_BATCHES.keys())
def test_a_batch_that_does_not_answer_each_call_once_is_rejected(odd: Callable[[list[Any]], Any]) -> None:
    scene = SCENES["pending"]
    assert refused(scene, [odd(scene.answers[0])]).error_class == "malformed"


def test_answers_may_come_in_any_order() -> None:
    scene = SCENES["pending"]
    assert balances(read(scene, [scene.answers[0][::-1]])) == ARRIVING


def error(code: Any, message: str = "") -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 0, "error": {"code": code, "message": message}}


@pytest.mark.parametrize(("code", "meant"), ERROR_CLASS_BY_CODE.items())
def test_an_error_means_what_its_code_says_alone_and_in_a_batch(code: int, meant: tuple[str, str]) -> None:
    provider = Evm(evm_settings())
    for said in (error(code), [SCENES["pending"].answers[0][0], error(code)]):
        found = provider.refusal(200, said)
        assert found
        assert (found.error_class, meant[1] in found.reason) == (meant[0], True)


@pytest.mark.parametrize("code", [-32016, -32099, 17, "-32005", None, 10**80, 1.5, True])
def test_any_other_error_rejects_the_poll_too(code: Any) -> None:
    found = Evm(evm_settings()).refusal(200, [error(code)])
    assert found
    assert found.error_class in ("transient", "malformed")


@pytest.mark.parametrize("status", [401, 403, 429])
def test_a_status_of_a_gateway_says_more_than_the_error_beside_it(status: int) -> None:
    assert Evm(evm_settings()).refusal(status, error(-32600, "Must be authenticated!")) is None


def test_a_node_that_takes_no_batches_says_what_to_set() -> None:
    provider = Evm(evm_settings())
    found = provider.refusal(400, error(-32700, "parse error"))
    assert found
    assert "set calls_per_request to 1" in found.reason
    assert "calls_per_request" in refused(SCENES["pending"], [SCENES["pending"].answers[0][0]]).reason


@pytest.mark.parametrize("code", [-32000, -39001, -32602])
def test_a_chain_without_finality_says_what_to_set(code: int) -> None:
    for settings, is_said in (({}, True), ({"confirmations": 12}, False), ({"settled": "latest"}, False)):
        found = Evm(evm_settings(**settings)).refusal(200, [error(code, "finalized block not found")])
        assert found
        assert ("set confirmations" in found.reason) == is_said


def test_a_number_that_is_out_of_range_is_a_node_that_lags_behind() -> None:
    at_numbers, at_tags = Evm(evm_settings(confirmations=12)), Evm(evm_settings())
    found = [provider.refusal(200, [error(-32602, "BlockOutOfRange")]) for provider in (at_numbers, at_tags)]
    assert [one and one.error_class for one in found] == ["transient", "configuration"]


@pytest.mark.parametrize(
    "failure",
    [
        error(3, "execution reverted"),
        error(-32000, "invalid opcode: INVALID"),
        error(-32015, "VM execution error."),
    ],
)
def test_a_contracts_own_failure_is_no_failure_of_the_node(failure: dict[str, Any]) -> None:
    scene = SCENES["pending, without Multicall3"]
    answers = scene.answers
    answers[2][13] = failure | {"id": 13}  # the symbol of the first token
    assert Evm(evm_settings()).refusal(200, answers[2]) is None
    assert read(scene, answers).row_by_asset[TOKEN].asset.symbol is None
    answers[2][13] = error(-32000, "header not found") | {"id": 13}
    assert refused(scene, answers).error_class == "malformed"


# The configuration.


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"path": "/v2/"}, "path: must say {api_key}"),
        ({"api_key": None}, "path: must say {api_key}"),
        ({"path": "/v2/{key}"}, "nothing but {api_key}"),
        ({"path": "v2/{api_key}"}, "must begin with /"),
        ({"path": "/v2/{api_key}#a"}, "must begin with /"),
        ({"base_url": "https://node.example/v3/0123456789abcdef"}, "belongs into path"),
        ({"settled": "safe", "confirmations": 12}, "confirmations: stands instead of settled"),
        ({"confirmations": 1}, "greater than or equal to 2"),
        ({"chain_id": 0}, "greater than or equal to 1"),
        ({"settled": "pending"}, "'finalized', 'safe' or 'latest'"),
        ({"multicall": "0x12"}, "must be an address"),
    ],
)
def test_a_mistake_in_the_section_is_found_before_anything_runs(settings: Any, words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        evm_settings(**settings)
    assert words in str(raised.value)
    assert "0123456789abcdef" not in str(raised.value)


def test_an_address_may_be_written_with_its_checksum_and_counts_in_lower_case() -> None:
    account = evm_account(
        "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", address=EMPTY.upper().replace("0X", "0x")
    )
    assert account.tokens == ("0x833589fcd6edb6e08f4c7c32d4f71b54bda02913",)
    assert account.address == EMPTY


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([TOKEN, TOKEN.upper().replace("0X", "0x")], "given twice"),
        (["0x5fbdb2315678afecb367f032d93f642f64180aa"], "must be an address"),
        (["USDC"], "must be an address"),
        ([f"0x{number:040x}" for number in range(MOST_TOKENS + 1)], "at most 200"),
    ],
)
def test_a_mistake_in_the_tokens_is_found_before_anything_runs(tokens: list[str], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        evm_account(*tokens)


def test_which_assets_an_account_may_hold_is_known_as_far_as_it_can_be() -> None:
    provider, account = Evm(evm_settings(symbol="POL")), evm_account(TOKEN)
    asked = [NATIVE, "POL", TOKEN, TOKEN.upper().replace("0X", "0x"), OLD_TOKEN, "USDC"]
    assert [provider.may_hold(account, asset) for asset in asked] == [True, True, True, True, False, None]
    assert provider.may_hold(evm_account(), "USDC") is False


def test_the_same_address_on_two_chains_is_two_accounts() -> None:
    on_base, on_mainnet = (Evm(evm_settings(chain_id=chain)) for chain in (8453, 1))
    assert on_base.source(evm_account()) != on_mainnet.source(evm_account())
    assert on_base.source(evm_account()) == on_base.source(evm_account(TOKEN))


def test_another_block_that_settles_is_another_source_and_no_change_of_a_balance() -> None:
    blocks: tuple[dict[str, Any], ...] = ({"settled": "safe"}, {"confirmations": 2}, {"confirmations": 3}, {})
    assert len({Evm(evm_settings(**block)).source(evm_account()) for block in blocks}) == len(blocks)
    again = Evm(evm_settings(settled="finalized", symbol="POL", calls_per_request=1))
    assert again.source(evm_account()) == Evm(evm_settings()).source(evm_account())


def test_pendings_are_unknown_where_nothing_is_later_than_what_is_settled() -> None:
    assert Evm(evm_settings(settled="latest")).unknown_fields == {"pending_deposit", "pending_withdrawal"}
    assert not Evm(evm_settings()).unknown_fields
    assert not Evm(evm_settings(confirmations=2)).unknown_fields


def test_a_key_with_url_characters_stays_one_segment_of_the_path() -> None:
    (request,) = Evm(evm_settings(api_key="a/b?c#d%e")).requests(evm_account())
    assert request.path == "/v2/a%2Fb%3Fc%23d%25e"


async def test_the_key_is_in_the_path_only() -> None:
    async with Stage() as stage:
        settings = evm_settings(stage.url)
        provider, account = Evm(settings), evm_account()
        async with ProviderClient(provider, settings) as client:
            stage.reply = answer(error(-32600, API_KEY), 400)
            with pytest.raises(Rejected) as raised:
                await client.ask(account)
    (seen,) = stage.seen
    assert seen.target == f"/v2/{API_KEY}"
    said = f"{raised.value!r}{raised.value.reason}{raised.value.__cause__!r}"
    shown = f"{settings!r}{settings}{list(provider.requests(account))!r}{client.source(account)}"
    assert API_KEY not in f"{seen.header_by_name}{seen.body!r}{said}{shown}"


# Calls, and what a contract may answer.


def test_a_call_of_multicall3_is_packed_as_the_abi_says() -> None:
    calls = [
        Call(TOKEN, f"{BALANCE_OF}{EMPTY[2:]:0>64}"),
        Call(OLD_TOKEN, SYMBOL),
    ]
    words = [0x20, 2, 0x40, 0x100, int(TOKEN, 16), 1, 0x60, 36]
    text = aggregate(calls)
    assert text[:8] == "82ad56cb"
    assert [int(text[at : at + 64], 16) for at in range(8, 8 + 64 * len(words), 64)] == words
    assert text[8 + 64 * 8 :][:128] == f"70a08231{EMPTY[2:]:0>64}".ljust(128, "0")
    assert text[-64 * 5 :] == f"{int(OLD_TOKEN, 16):064x}{1:064x}{0x60:064x}{4:064x}{'95d89b41':0<64}"


@given(st.lists(st.none() | st.binary(max_size=100), max_size=6))
def test_packed_calls_are_read_back(values: list[bytes | None]) -> None:
    assert returned(bytes.fromhex(packed(values)[2:]), len(values)) == values


def test_every_scene_was_answered_in_json() -> None:
    assert all(json.loads(body) for scene in SCENES.values() for body in scene.bodies)
