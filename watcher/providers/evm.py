"""Any EVM chain over JSON-RPC: the native coin and the tokens of one address, read by Multicall3 in one call.

What the latest block says and the settled one does not say yet is pending: a reorganisation takes it back
without `total` having moved. Refuses an answer from another chain, and a poll in which one token does not
answer: what is missing is never zero.
"""

import re
from collections.abc import Generator, Iterator, Mapping, Sequence, Set
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self
from urllib.parse import quote

from pydantic import AfterValidator, Field, field_validator, model_validator
from yarl import URL

from watcher.amounts import MAX_FRACTION_DIGITS, from_integer
from watcher.fields import ApiKey
from watcher.providers.contract import AssetList, Catalogue, ErrorClass, Rejected, Request
from watcher.settings import AccountSettings, ProviderSettings
from watcher.snapshot import Asset, Balance, Row, Snapshot, asset_id, spoken

NATIVE = "native"
"""The id of the chain's own coin. It has 18 decimals on every chain."""
_NATIVE_DECIMALS = 18

MULTICALL3 = "0xca11bde05977b3631167028862be2a173976ca11"
"""The same on nearly every chain: github.com/mds1/multicall3."""

MOST_TOKENS = 200
"""Tokens of an account: their answer has 284 KB, and may have 1 MiB."""

_ADDRESS = re.compile(r"0[xX][0-9a-fA-F]{40}\Z", re.ASCII)
_PATH = re.compile(r"/(?:[A-Za-z0-9._~/?&=%@:+,;-]|\{api_key\})*\Z", re.ASCII)
_SLOT = "{api_key}"
_HEIGHTS = 10**19
"""More blocks than there will be, and fewer than a state can hold."""
_QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}\Z", re.ASCII)

WORD = 32
"""Bytes of a word, of which the ABI of contracts is made."""
CHAIN_ID, BLOCK_NUMBER, ETH_BALANCE = "3408e470", "42cbb15c", "4d2301cc"
"""`getChainId()`, `getBlockNumber()` and `getEthBalance(address)` of Multicall3."""
BALANCE_OF, DECIMALS, SYMBOL = "70a08231", "313ce567", "95d89b41"
"""`balanceOf(address)`, `decimals()` and `symbol()` of a token."""
_AGGREGATE3 = "82ad56cb"

ERROR_CLASS_BY_CODE: Mapping[int, tuple[ErrorClass, str]] = {
    -32700: ("configuration", "the node cannot read the request"),
    -32600: ("configuration", "not a request that the node takes"),
    -32601: ("configuration", "the node has no such method"),
    -32602: ("configuration", "the node does not take these parameters"),
    -32603: ("transient", "an error in the node"),
    -32000: ("transient", "the node lacks this block, or its state"),
    -32001: ("transient", "the node lacks this block"),
    -32002: ("transient", "the node is not available"),
    -32004: ("configuration", "the node does not support the method"),
    -32005: ("rate", "over the node's limit"),
    -39001: ("transient", "the node does not know this block"),
    429: ("rate", "over the node's limit"),
}
"""What a JSON-RPC error means to a poll: JSON-RPC 2.0, EIP-1474, and what nodes and gateways were seen to say
besides (429: Alchemy, -39001: Erigon and geth)."""

_SERVER_ERRORS = range(-32099, -31999)
"""Left to each server by JSON-RPC."""
_BY_STATUS = (401, 403, 429)
"""Statuses that say more than the error beside them: gateways send -32600 with a wrong key."""
_NO_BATCH = (-32700, -32600)
"""The answers to a batch by servers that accept none."""
_IF_NO_BATCHES = "if the node takes no batches, set calls_per_request to 1"
_BAD_PARAMETERS, _NO_BLOCK = -32602, -32000
_UNKNOWN_BLOCK = (_BAD_PARAMETERS, _NO_BLOCK, -32001, -39001)
_IF_NO_ERC20 = "look whether it is an ERC-20 contract, and on this chain"
_IF_NO_FINALITY = "if the chain finalizes nothing, set confirmations"
_REVERT = 3
_REVERTED = ("revert", "invalid opcode", "vm execution error")
"""The code of a contract's own failure, and words in its message where a node has another code."""


def _address(text: str) -> str:
    if not _ADDRESS.match(text):
        raise ValueError("must be an address, 0x and 40 hexadecimal digits")
    return asset_id(text)


Address = Annotated[str, AfterValidator(_address)]


class EvmSettings(ProviderSettings):
    api_key: ApiKey | None = Field(None, description="stands in `path` where it says {api_key}")
    path: str = Field("/", description="behind base_url; {api_key} in it stands for the key")
    chain_id: int = Field(ge=1, lt=2**63, description="a node of another chain is refused: 1 is Ethereum")
    settled: Literal["finalized", "safe", "latest"] = Field(
        "finalized", description="the block whose balance is `total`; what later ones say is pending"
    )
    confirmations: int | None = Field(
        None, ge=2, le=10_000, description="instead of `settled`, on a chain that finalizes nothing"
    )
    symbol: str = Field("ETH", min_length=1, max_length=24, description="of the chain's own coin")
    multicall: Address = Field(
        MULTICALL3, description="where the chain has Multicall3; else tokens cost a call each"
    )
    calls_per_request: int = Field(
        100, ge=1, le=1000, description="of one batch; 1 for a node that takes no batches"
    )
    withdrawals: Literal["outside", "inside"] = Field(
        "inside", description="whether a pending withdrawal has already left `total`: it has not"
    )
    settle_polls: int = Field(
        0, ge=0, le=100, description="both halves of a movement are in one answer, so none waits"
    )

    @field_validator("base_url")
    @classmethod
    def _has_no_path(cls, base_url: str) -> str:
        if URL(base_url).path.strip("/"):
            raise ValueError("what follows the host belongs into path, where a key is kept out of sight")
        return base_url

    @field_validator("path")
    @classmethod
    def _is_path(cls, path: str) -> str:
        if not _PATH.match(path):
            raise ValueError("must begin with / and have nothing but {api_key} in braces")
        return path

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.api_key is not None) != (_SLOT in self.path):
            raise ValueError("path: must say {api_key} if, and only if, there is an api_key")
        if self.confirmations and "settled" in self.model_fields_set:
            raise ValueError("confirmations: stands instead of settled; give one of them")
        return self


class EvmAccount(AccountSettings):
    address: Address = Field(description="whose balances: 0x and 40 hexadecimal digits")
    tokens: tuple[Address, ...] = Field(
        (),
        max_length=MOST_TOKENS,
        description="addresses of ERC-20 contracts to watch besides the chain's own coin",
    )

    @field_validator("tokens")
    @classmethod
    def _are_different(cls, tokens: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(tokens)) < len(tokens):
            raise ValueError("an address is given twice")
        return tokens


Values = Sequence[bytes | None]
"""What one block says: the chain's id, its height, the native balance and that of each token; and of the
latest block decimals and symbol of each token. None if a contract failed."""

HEAD = 3
"""How many of them Multicall3 itself says: the chain's id, the height, the native balance."""
_OWNER = "-" * 2 * WORD
"""Stands in a call for the address, which is a word of hex."""


class Call(NamedTuple):
    """A call of a contract: its address, and what it is sent, in hex without 0x."""

    to: str
    data: str


class _Rpc(NamedTuple):
    """A call of the node itself."""

    method: str
    params: list[Any]


_Part = Mapping[str, Any]
"""The node's answer to one."""


class Evm:
    """Asks a node for the balances of one address in two blocks, and reads the answers.

    With Multicall3 that is one POST. If the chain lacks it, the heights are asked for next, and then each
    balance at these heights.
    """

    Settings: ClassVar[type[ProviderSettings]] = EvmSettings
    Account: ClassVar[type[AccountSettings]] = EvmAccount

    def __init__(self, settings: EvmSettings) -> None:
        key = settings.api_key.get_secret_value() if settings.api_key else ""
        self._path = settings.path.replace(_SLOT, quote(key, safe=""))
        self._settings = settings
        self._tags = tuple(dict.fromkeys((settings.settled, "latest")))
        self._has_pending = bool(settings.confirmations) or len(self._tags) > 1
        pendings = () if self._has_pending else ("pending_deposit", "pending_withdrawal")
        self.unknown_fields: Set[str] = frozenset(pendings)
        self.most_rounds = 3

    def source(self, account: EvmAccount) -> str:
        settled = self._settings.confirmations or self._settings.settled
        return f"{self._settings.chain_id} {account.address} {settled}"

    def may_hold(self, account: EvmAccount, asset: str) -> bool | None:
        if _ADDRESS.match(asset):
            return asset_id(asset) in account.tokens
        if asset in (NATIVE, self._settings.symbol):
            return True
        return None if account.tokens else False

    def requests(self, account: EvmAccount, answers: Sequence[Any] = ()) -> Sequence[Request]:
        return self._replay(account, answers)[0]

    def read(self, account: EvmAccount, answers: Sequence[Any], catalogue: Catalogue) -> Snapshot:
        blocks = self._replay(account, answers)[1]
        if not blocks:
            raise Rejected("malformed", "an answer is missing")
        for chain, *_ in blocks:
            if (found := _number(chain, "no chain id")) != self._settings.chain_id:
                words = f"the node is on chain {found}, not on {self._settings.chain_id}"
                raise Rejected("configuration", words, fix="look at base_url, path and chain_id")
        settled, latest = blocks[0], blocks[-1]
        height = _number(latest[1], "no height")
        if height >= _HEIGHTS:
            raise Rejected("malformed", "no height that a chain can have")
        if _number(settled[1], "no height") > height:
            raise Rejected("transient", "the settled block is ahead of the latest: two nodes answered")
        rows = {}
        for asset, then, now in zip(self._assets(account, latest), settled[2:], latest[2:], strict=False):
            called = "the native coin" if asset.id == NATIVE else f"token {asset.id}"
            after = _number(now, f"{called} has no balance", "configuration", _IF_NO_ERC20)
            before = _number(then, f"{called} has no balance in the settled block yet", "transient")
            total, incoming, outgoing = (
                from_integer(str(amount), asset.decimals or 0)
                for amount in (before, max(after - before, 0), max(before - after, 0))
            )
            pendings = (incoming, outgoing) if self._has_pending else (None, None)
            rows[asset.id] = Row(asset, Balance(total, "0", *pendings))
        return Snapshot(rows, tuple(rows), absent_is_zero=False, height=height)

    def _assets(self, account: EvmAccount, latest: Values) -> Iterator[Asset]:
        yield Asset(NATIVE, self._settings.symbol, None, _NATIVE_DECIMALS)
        about = iter(latest[HEAD + len(account.tokens) :])
        for token, decimals, symbol in zip(account.tokens, about, about, strict=True):
            places = _number(decimals, f"token {token} says no decimals", "configuration", _IF_NO_ERC20)
            if places > MAX_FRACTION_DIGITS:
                raise Rejected("configuration", f"token {token} has more than {MAX_FRACTION_DIGITS} decimals")
            yield Asset(token, symbol_of(symbol), None, places)

    def refusal(self, status: int, answer: Any) -> Rejected | None:
        """Find the error of an answer, or of one of a batch. A contract's own failure is none."""
        is_batch = isinstance(answer, list)
        parts = answer if is_batch else (answer,)
        errors = [part["error"] for part in parts if isinstance(part, dict) and "error" in part]
        error = next((one for one in errors if one is not None and not _is_failure(one)), None)
        if error is None or status in _BY_STATUS:
            return None
        code = error.get("code") if isinstance(error, dict) else None
        if type(code) is int and code in ERROR_CLASS_BY_CODE:
            fix = ""
            if code in _NO_BATCH and not is_batch and self._settings.calls_per_request > 1:
                fix = _IF_NO_BATCHES
            elif code in _UNKNOWN_BLOCK and self._has_pending and not self._settings.confirmations:
                fix = _IF_NO_FINALITY
            # Some nodes say that a block which they have not reached is out of range: this is no mistake.
            is_behind = code == _BAD_PARAMETERS and self._settings.confirmations
            error_class, words = ERROR_CLASS_BY_CODE[_NO_BLOCK if is_behind else code]
            return Rejected(error_class, f"{words} ({code})", fix=fix)
        if type(code) is int and code in _SERVER_ERRORS:
            return Rejected("transient", f"an error in the node ({code})")
        return Rejected("malformed", "an error whose code is not documented") if status == 200 else None

    def catalogue_request(self) -> None:
        return None

    def read_catalogue(self, answer: Any) -> AssetList:
        raise Rejected("malformed", "a node has no list of tokens")

    def _replay(
        self, account: EvmAccount, answers: Sequence[Any]
    ) -> tuple[Sequence[Request], Sequence[Values]]:
        """Go through a poll with the answers so far. Returns what to ask next, or in the end what the blocks
        say."""
        poll, rest, size = self._poll(account), answers, self._settings.calls_per_request
        calls = next(poll)
        while True:
            asked = [{"jsonrpc": "2.0", "id": number, **call._asdict()} for number, call in enumerate(calls)]
            batches = [asked[start : start + size] for start in range(0, len(asked), size)]
            if len(rest) < len(batches):
                said = asked if size == 1 else batches
                return [Request("POST", self._path, json=one) for one in said], ()
            parts, rest = self._parts(rest[: len(batches)], len(calls)), rest[len(batches) :]
            try:
                calls = poll.send(parts)
            except StopIteration as done:
                return (), done.value

    def _poll(self, account: EvmAccount) -> Generator[Sequence[_Rpc], Sequence[_Part], Sequence[Values]]:
        """Yield what to ask, receive the answers, and return what each block says, the latest last."""
        blocks: Sequence[str] = self._tags
        confirmations = self._settings.confirmations
        if confirmations:
            (height,) = yield [_Rpc("eth_blockNumber", [])]
            top = _quantity(height)
            blocks = hex(max(0, top - confirmations + 1)), hex(top)
        multicall, owner = self._settings.multicall, account.address[2:].rjust(2 * WORD, "0")
        asked = [packed(account.tokens, multicall, block == blocks[-1]) for block in blocks]
        parts = yield [
            _eth_call(Call(multicall, text.replace(_OWNER, owner)), block)
            for (text, _), block in zip(asked, blocks, strict=True)
        ]
        said = [data for part in parts if (data := _data(part))]
        if len(said) == len(parts):
            values = [returned(data, count) for data, (_, count) in zip(said, asked, strict=True)]
            if confirmations:  # a rollup may tell its contracts the height of the chain below it
                for one, block in zip(values, blocks, strict=True):
                    one[1] = int(block, 16).to_bytes(WORD)
            return values
        if not confirmations:
            parts = yield [_Rpc("eth_getBlockByNumber", [tag, False]) for tag in self._tags]
            blocks = [hex(_height(part)) for part in parts]
        plain = [
            [
                _Rpc("eth_chainId", []),
                _Rpc("eth_getBlockByNumber", [block, False]),  # a node that lacks it may say that all is zero
                _Rpc("eth_getBalance", [account.address, block]),
                *(
                    _eth_call(Call(call.to, call.data.replace(_OWNER, owner)), block)
                    for call in about_account(account.tokens, multicall, is_latest=block == blocks[-1])[HEAD:]
                ),
            ]
            for block in blocks
        ]
        rest = iter((yield [call for its in plain for call in its]))
        return [
            [
                _quantity(next(rest)).to_bytes(WORD),
                _height(next(rest)).to_bytes(WORD),
                _quantity(next(rest)).to_bytes(WORD),
                *map(_data, islice(rest, len(its) - HEAD)),
            ]
            for its in plain
        ]

    def _parts(self, answers: Sequence[Any], count: int) -> list[_Part]:
        """Assign the answers to the calls that they answer. Raises Rejected."""
        parts: list[Any] = []
        for answer in answers:
            if self._settings.calls_per_request == 1:
                parts.append(answer)
            elif isinstance(answer, list):
                parts += answer
            else:
                raise Rejected("malformed", "not a list of answers", fix=_IF_NO_BATCHES)
        part_by_id: dict[int, _Part] = {}
        for part in parts:
            number = part.get("id") if isinstance(part, dict) else None
            if type(number) is not int or not 0 <= number < count or number in part_by_id:
                raise Rejected("malformed", "an answer to nothing that was asked, or a second one")
            part_by_id[number] = part
        if len(part_by_id) < count:
            raise Rejected("malformed", "an answer is missing")
        return [part_by_id[number] for number in range(count)]


def _eth_call(call: Call, block: str) -> _Rpc:
    return _Rpc("eth_call", [{"to": call.to, "data": f"0x{call.data}"}, block])


def _is_failure(error: Any) -> bool:
    """Say whether an error is that of a contract, and not the node's."""
    if not isinstance(error, dict):
        return False
    message = error.get("message")
    return error.get("code") == _REVERT or (
        isinstance(message, str) and any(word in message.lower() for word in _REVERTED)
    )


def _data(part: _Part) -> bytes | None:
    """Read what a contract answered; None where it failed. Raises Rejected."""
    said = part.get("result")
    if said is None and _is_failure(part.get("error")):
        return None
    if not isinstance(said, str) or not said.startswith("0x"):
        raise Rejected("malformed", "a contract's answer is not hex")
    try:
        data = bytes.fromhex(said[2:])
    except ValueError:
        data = b""
    if 2 * len(data) != len(said) - 2:  # fromhex passes over spaces
        raise Rejected("malformed", "a contract's answer is not hex")
    return data


def _quantity(part: _Part) -> int:
    return _from_hex(part.get("result"))


def _from_hex(said: object) -> int:
    """Read a whole number as nodes write it. Raises Rejected."""
    if not isinstance(said, str) or not _QUANTITY.match(said):
        raise Rejected("malformed", "a number is not hex of at most 32 bytes")
    return int(said, 16)


def _height(part: _Part) -> int:
    """Read the height of a block. Raises Rejected."""
    block = part.get("result")
    if block is None:
        raise Rejected("transient", "the node does not know this block", fix=_IF_NO_FINALITY)
    return _from_hex(block.get("number") if isinstance(block, dict) else None)


def _number(value: bytes | None, words: str, error_class: ErrorClass = "malformed", fix: str = "") -> int:
    """Read what a contract answered as a whole number, which is exactly 32 bytes. Raises Rejected."""
    if value is None or len(value) != WORD:
        raise Rejected(error_class, words, fix=fix)
    return int.from_bytes(value)


# The little of Ethereum's ABI that balances need.


@lru_cache(maxsize=64)  # accounts of one kind have the same tokens; with 200 of them it is 270 kB
def packed(tokens: tuple[str, ...], multicall: str, is_latest: bool) -> tuple[str, int]:
    """What Multicall3 is sent about _OWNER for one block, and how many calls these are."""
    calls = about_account(tokens, multicall, is_latest=is_latest)
    return aggregate(calls), len(calls)


def about_account(tokens: Sequence[str], multicall: str, *, is_latest: bool) -> list[Call]:
    """What one block is asked about _OWNER: the three of HEAD, the balance of each token, and of the latest
    block decimals and symbol of each token."""
    calls = [
        Call(multicall, CHAIN_ID),
        Call(multicall, BLOCK_NUMBER),
        Call(multicall, ETH_BALANCE + _OWNER),
        *(Call(token, BALANCE_OF + _OWNER) for token in tokens),
    ]
    if is_latest:
        calls += [Call(token, asked) for token in tokens for asked in (DECIMALS, SYMBOL)]
    return calls


def aggregate(calls: Sequence[Call]) -> str:
    """What `aggregate3((address, bool, bytes)[])` of Multicall3 is sent: calls, each of which may fail."""
    parts = []
    for call in calls:
        size = len(call.data) // 2
        padded = call.data.ljust(-(-size // WORD) * 2 * WORD, "0")
        parts.append(f"{call.to[2:]:0>64}{1:064x}{3 * WORD:064x}{size:064x}{padded}")
    offsets, at = [], WORD * len(parts)
    for part in parts:
        offsets.append(f"{at:064x}")
        at += len(part) // 2
    return f"{_AGGREGATE3}{WORD:064x}{len(parts):064x}{''.join(offsets)}{''.join(parts)}"


def returned(data: bytes, count: int) -> list[bytes | None]:
    """Read what so many calls answered, `(bool, bytes)[]`: None where one failed. Raises Rejected."""

    def word(at: int) -> int:
        return _number(data[at : at + WORD], "not what Multicall3 answers")

    start = word(0) + WORD
    if word(start - WORD) != count:
        raise Rejected("malformed", "Multicall3 answers another number of calls")
    values: list[bytes | None] = []
    for number in range(count):
        at = start + word(start + WORD * number)
        place = at + word(at + WORD)
        end = place + WORD + word(place)
        is_good = word(at)
        if is_good > 1 or end > len(data):
            raise Rejected("malformed", "an answer of Multicall3 is cut off")
        values.append(data[place + WORD : end] if is_good else None)
    return values


def symbol_of(value: bytes | None) -> str | None:
    """Read a symbol: a string, or 32 bytes as the first tokens had it; None for anything else."""
    if value is None or len(value) < WORD:
        return None
    if len(value) == WORD:
        return spoken(value.decode(errors="replace"))
    at = int.from_bytes(value[:WORD]) + WORD
    return spoken(value[at : at + int.from_bytes(value[at - WORD : at])].decode(errors="replace"))
