"""How an account's state is written down in Redis, and read back without trusting it.

Compact on purpose: it is most of what an account costs. A state is one line of bytes and a JSON list:

    VVVVVVVVVVVVVVVV TTTTTTTTTTTTTT S…      version, polled_at_ms, sequence; the first two at fixed places
    [source, {asset id: row}, watched, stale_since_ms, crossed, emptiness]

Where the provider says heights, the last one stands behind the time, in 20 digits: `touch` writes both.
`emptiness` is `[since_ms, repeats]`, or `[]`. The usual null, 0, [], [] at the end is not written.

A row is `=total locked pending_deposit pending_withdrawal`, `-` for null, without the ` 0` at its end. While
something is pending confirmation or suspect it is `[row, confirmation_polls, seen, suspect]`. What an asset
is called, and its decimals, lie once per provider in a table (`Names`). A row of other decimals, as of an
asset that changed its unit, says them itself: `decimals total …`; one that is called otherwise is wrapped as
`{"is": row, "symbol": …, "name": …}`. Anything odd is a BadState.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress
from operator import is_not
from typing import Any, Protocol, TypeVar

import orjson

from watcher.amounts import MAX_FRACTION_DIGITS, NotAnAmount, check_canonical
from watcher.journal.account import AccountState, Emptiness, Entry
from watcher.journal.events import shown
from watcher.snapshot import LOST, Asset, Balance
from watcher.store.errors import DamagedKey
from watcher.store.keys import Keys, check_count, read_count, stamp_of
from watcher.store.pipe import Pipe, in_parts, load_script


class Held(Protocol):
    """Something that knows about how much memory it takes, and takes as much while it is kept."""

    @property
    def bytes_held(self) -> int: ...


H = TypeVar("H", bound=Held)

SCHEMA = 1
"""Of the body of layout 1."""

Called = tuple[str | None, str | None, int | None]
"""The symbol and the name of an asset, and its decimals."""

UNKNOWN: Called = (None, None, LOST)
_UNNAMED = (None, None)

STATE_BYTES = 3_400_000
"""Memory for the states that are kept: those of a thousand accounts with ten assets."""

_STATE_BYTES, _ENTRY_BYTES = 900, 200
"""What a state takes in memory, and each of its assets, without balances that it shares with an answer."""

MOST_NAMES = 10_000
"""Names in the table of one provider: about a megabyte. The rows of further assets carry their names
themselves."""

_HEAD = re.compile(rb"(?=.{16} [0-9]{14} )([!-~]+) +([0-9]{14}) (?:([0-9]{20}) )?(0|[1-9][0-9]{0,13})\n")
_DECIMALS: Mapping[str, int | None] = {"-": None, **{str(n): n for n in range(MAX_FRACTION_DIGITS + 1)}}
_ZEROS = ("0", "0", "0", "0")
_NO_MORE = _ZEROS[1:]
_USUAL: tuple[Any, ...] = (None, 0, [], [])
"""The end of most states, which is not written."""

_WRAPPED = {"is", "symbol", "name"}
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, RecursionError, NotAnAmount)

_AT_ONCE = 500
"""Names in one command."""

_NOTE_NAMES = load_script("note_names")


class BadState(Exception):
    """The value of a state key is not what this program writes: another version, or damage.

    The account is quarantined: it is not polled, and nothing of it is overwritten, until the operator
    restores the key or deletes it (then the next poll is a new baseline).
    """


@dataclass(slots=True)
class Kept:
    """A state as it was read or written, its length in Redis, and what was touched of it since: when its
    account was last polled (Unix ms), and at which height. `body` is what this process wrote of it behind the
    first line."""

    state: AccountState
    length: int
    polled_at_ms: int
    height: int | None
    body: bytes
    bytes_held: int
    """About how much memory it takes."""

    @classmethod
    def of(cls, state: AccountState, text: bytes, *, is_ours: bool) -> "Kept":
        """Keep a state and its text, which was read or (`is_ours`) written here."""
        body = text[text.index(b"\n") + 1 :] if is_ours else b""
        held = _STATE_BYTES + _ENTRY_BYTES * len(state.entry_by_asset) + len(body)
        return cls(state, len(text), state.polled_at_ms, state.height, body, held)

    @property
    def touched(self) -> AccountState:
        """The state as it is now."""
        if self.polled_at_ms == self.state.polled_at_ms and self.height == self.state.height:
            return self.state
        return self.state._replace(polled_at_ms=self.polled_at_ms, height=self.height)

    @property
    def fence(self) -> str:
        """Return what must be stored for `commit` to replace it."""
        return f"{self.state.version:16} {stamp_of(self.polled_at_ms, self.height)} {self.length}"

    def body_with(self, state: AccountState, names: Mapping[str, Called]) -> bytes | None:
        """Put the rows of a later state into what was written; None where more has to be written anew.

        A quote in a text of JSON has a backslash before it. So the id of an asset and `:"=` follow a brace or
        a comma where its row begins, and nowhere else; but the names of a wrapped row may look like ids.
        """
        was, now, body = self.state.entry_by_asset, state.entry_by_asset, self.body
        if len(was) != len(now) or _besides(self.state) != _besides(state):
            return None
        for asset_id in compress(now, map(is_not, now.values(), was.values())):
            key = orjson.dumps(asset_id) + b":"
            start = body.find(key + b'"=')
            if start < 0 or body[start - 1] not in b"{," or asset_id in _WRAPPED:
                return None
            start += len(key)
            end = body.index(b'"', start + 1) + 1
            body = b"%b%b%b" % (body[:start], orjson.dumps(_row(now[asset_id], names)), body[end:])
        return body or None


class Within(dict[str, H]):
    """Values by account, within a limit in bytes: the one that was put there longest ago goes first. Only
    `keep` and `take` change it."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self._most_bytes = most_bytes
        self.bytes_held = 0

    def take(self, account: str) -> H | None:
        """Return the value of an account, and keep it no longer."""
        kept = self.pop(account, None)
        if kept is not None:
            self.bytes_held -= kept.bytes_held
        return kept

    def keep(self, account: str, kept: H) -> None:
        """Keep this value of an account."""
        if account in self:
            self.take(account)
        self[account] = kept
        self.bytes_held += kept.bytes_held
        while self.bytes_held > self._most_bytes:
            self.take(next(iter(self)))


def dump_state(state: AccountState, names: Mapping[str, Called], before: Kept | None = None) -> bytes:
    """Write a state, for a reader with at least the same `names`. Raises ValueError if its version, time,
    sequence or height does not fit. Only what differs from the state `before` is written anew."""
    stamp = stamp_of(state.polled_at_ms, state.height)
    head = f"{state.version:16} {stamp} {state.sequence}\n".encode()
    if not _HEAD.fullmatch(head):
        raise ValueError("a version has 16 characters; a time and a sequence have 14 digits, a height 20")
    if before and (again := before.body_with(state, names)):
        return head + again
    row_by_asset = {asset_id: _row(entry, names) for asset_id, entry in state.entry_by_asset.items()}
    crossed, emptiness = sorted(state.crossed), [*(state.emptiness or ())]
    body = [state.source, row_by_asset, state.watched, state.stale_since_ms, crossed, emptiness]
    while len(body) > 2 and body[-1] == _USUAL[len(body) - 3]:
        body.pop()
    return head + orjson.dumps(body)


def _row(entry: Entry, names: Mapping[str, Called]) -> Any:
    asset, published, seen, confirmation_polls, suspect = entry
    asset_id, symbol, name, decimals = asset
    called = names.get(asset_id, UNKNOWN)
    amounts = published[0] if published[1:] == _NO_MORE else _amounts(published)
    if decimals == called[2] or decimals == LOST:
        row: Any = "=" if amounts == "0" else f"={amounts}"
    else:
        scale = "-" if decimals is None else str(decimals)
        row = scale if amounts == "0" else f"{scale} {amounts}"
    if confirmation_polls or suspect:
        row = [row, confirmation_polls, _amounts(seen), suspect and _amounts(suspect)]
    if (symbol, name) != called[:2] and (symbol, name) != _UNNAMED:
        row = {"is": row, "symbol": symbol, "name": name}
    return row


def _besides(state: AccountState) -> tuple[Any, ...]:
    return state.source, state.watched, state.stale_since_ms, state.crossed, state.emptiness


def load_state(text: bytes, names: Mapping[str, Called]) -> AccountState:
    """Read a state. An asset without a known name has none, and its decimals are LOST unless its row has
    them. Raises BadState."""
    try:
        head = _HEAD.match(text)
        if not head:
            raise ValueError("no version, time and sequence")
        body = json.loads(text[head.end() :].decode())  # of bytes, it would read UTF-16 too
        source, row_by_asset, *rest = _list(body)
        watched, stale_since_ms, crossed, emptiness = *rest, *_USUAL[len(rest) :]
        return AccountState(
            source=_text(source),
            watched=None if watched is None else tuple(map(_text, _list(watched))),
            entry_by_asset={
                _text(asset_id): _read_entry(asset_id, row, names) for asset_id, row in row_by_asset.items()
            },
            version=head[1].decode(),
            sequence=int(head[4]),
            polled_at_ms=int(head[2]),
            stale_since_ms=check_count(stale_since_ms),
            crossed=frozenset(map(_text, _list(crossed))),
            emptiness=Emptiness(*map(check_count, emptiness)) if _list(emptiness) else None,
            height=None if head[3] is None else int(head[3]),
        )
    except _UNREADABLE as error:
        raise BadState(f"not readable: {type(error).__name__}") from error


class Names:
    """What assets are called, and their decimals: a table per provider, and what this process has read of it.

    What was noted first stays: states rely on it. A lost name shows as None and costs nothing else, because
    names are carried and never compared; lost decimals are those of the next answer. Methods raise
    StoreError.
    """

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._keys = keys
        self._called_by_asset: defaultdict[str, dict[str, Called]] = defaultdict(dict)
        self._absent: set[tuple[str, str]] = set()

    async def load(self, provider: str, text: bytes) -> AccountState:
        """Read a state, with the names that it refers to. Raises BadState."""
        state = load_state(text, self._called_by_asset[provider])
        entries = state.entry_by_asset
        # Another process may have noted what was not there a moment ago, and written rows that refer to it.
        self._absent.difference_update(
            (provider, name) for name, entry in entries.items() if entry.asset.decimals == LOST
        )
        if self._unread(provider, entries):
            state = load_state(text, await self.of(provider, entries))
        return state

    async def dump(self, provider: str, state: AccountState, before: Kept | None = None) -> bytes:
        """Write a state, as `dump_state` does, after noting the names that it refers to."""
        called_by_asset = self._called_by_asset[provider]
        if not state.entry_by_asset.keys() <= called_by_asset.keys():
            await self.note(provider, state.assets().values())
        return dump_state(state, called_by_asset, before)

    async def of(self, provider: str, ids: Iterable[str]) -> Mapping[str, Called]:
        """Read the names of these assets that this process does not know. Returns all that it knows."""
        called_by_asset = self._called_by_asset[provider]
        for part in in_parts(self._unread(provider, ids), _AT_ONCE):
            texts: list[bytes | None] = [None] * len(part)
            with suppress(DamagedKey):  # `keep` writes it again
                texts = await self._pipe.command("HMGET", self._keys.names(provider), *part)
            for asset_id, text in zip(part, texts, strict=True):
                if text is None:
                    self._absent.add((provider, asset_id))
                else:
                    called_by_asset[asset_id] = _read_called(text)
        return called_by_asset

    async def note(self, provider: str, assets: Iterable[Asset]) -> Mapping[str, Called]:
        """Note the names of these assets that are not noted yet. Returns all that this process knows."""
        called_by_asset = self._called_by_asset[provider]
        new = {
            asset.id: asset[1:]
            for asset in assets
            if asset.id not in called_by_asset and asset.decimals != LOST and asset[1:3] != _UNNAMED
        }
        await self._write(provider, new)
        return called_by_asset

    async def keep(self) -> None:
        """Write again what the server has lost, and read again what was not there. Once a minute."""
        self._absent.clear()
        for provider, called_by_asset in [*self._called_by_asset.items()]:
            named = {asset_id: called for asset_id, called in called_by_asset.items() if called != UNKNOWN}
            for asset_id in called_by_asset.keys() - named.keys():
                del called_by_asset[asset_id]
            await self._write(provider, named)

    def _unread(self, provider: str, ids: Iterable[str]) -> list[str]:
        known = self._called_by_asset[provider]
        return [one for one in ids if one not in known and (provider, one) not in self._absent]

    async def _write(self, provider: str, new: Mapping[str, Called]) -> None:
        """Note names, and take over those that were noted before, perhaps by another process."""
        for part in in_parts([*new], _AT_ONCE):
            arguments = [text for asset_id in part for text in (asset_id, orjson.dumps(new[asset_id]))]
            texts = await self._pipe.script(_NOTE_NAMES, [self._keys.names(provider)], MOST_NAMES, *arguments)
            for asset_id, text in zip(part, texts, strict=True):
                self._called_by_asset[provider][asset_id] = _read_called(text)


def _amounts(balance: Balance) -> str:
    total, locked, pending_deposit, pending_withdrawal = balance
    if pending_deposit == pending_withdrawal == "0":
        return total if locked == "0" else f"{total} {locked}"
    most = f"{total} {locked} {pending_deposit or '-'}"
    return most if pending_withdrawal == "0" else f"{most} {pending_withdrawal or '-'}"


def _read_entry(asset_id: str, row: Any, names: Mapping[str, Called]) -> Entry:
    symbol, name, decimals = names.get(asset_id, UNKNOWN)
    if type(row) is dict:
        if row.keys() != _WRAPPED:
            raise ValueError("not a row with names of its own")
        symbol, name = _maybe_text(row["symbol"]), _maybe_text(row["name"])
        row = row["is"]
    rest = None
    if type(row) is list:
        row, *rest = row
    scale, *amounts = _words(row)
    if scale[:1] == "=":
        amounts = [scale[1:], *amounts] if row != "=" else amounts
        if amounts == ["0"]:
            raise ValueError("a zero that is not written")
    else:
        decimals = _DECIMALS[scale]
    asset, published = Asset(asset_id, symbol, name, decimals), _read_balance(amounts)
    if rest is None:
        return Entry(asset, published, published)
    confirmation_polls, seen, suspect = rest
    if not confirmation_polls and suspect is None:
        raise ValueError("neither pending confirmation nor suspect")
    return Entry(
        asset,
        published,
        _read_balance(_words(seen)),
        check_count(confirmation_polls),
        None if suspect is None else _read_balance(_words(suspect)),
    )


def _words(text: str) -> list[str]:
    words = text.split(" ")
    if words[-1] == "0" and len(words) > 1:
        raise ValueError("a zero that is not written")
    return words


def _read_balance(amounts: list[str]) -> Balance:
    # A published field may stand below zero while the other half of a movement is pending confirmation.
    if len(amounts) == 1:
        return Balance(check_canonical(amounts[0]), "0", "0", "0")
    if len(amounts) == 2:
        return Balance(check_canonical(amounts[0]), check_canonical(amounts[1]), "0", "0")
    total, locked, pending_deposit, pending_withdrawal = *amounts, *_ZEROS[len(amounts) :]
    return Balance(
        check_canonical(total),
        check_canonical(locked),
        None if pending_deposit == "-" else check_canonical(pending_deposit),
        None if pending_withdrawal == "-" else check_canonical(pending_withdrawal),
    )


def _read_called(text: bytes | None) -> Called:
    """Read a noted name; one that is damaged, or found no place, is unknown."""
    try:
        symbol, name, *rest = _list(json.loads(text or b""))
        (decimals,) = rest or (LOST,)
        if decimals not in (None, LOST):
            decimals = _DECIMALS[str(check_count(decimals))]
        return _maybe_text(symbol), _maybe_text(name), decimals
    except _UNREADABLE:
        return UNKNOWN


# Layout 1, which is read and written where a store is moved.


def dump_body(state: AccountState, previous_by_subscription: Mapping[str, int]) -> bytes:
    """Write the field `body` of a state HASH. One asset is a list `[total, locked, pending_deposit,
    pending_withdrawal, symbol, name, decimals]`; `confirmation_polls, seen, suspect` may follow."""
    row_by_asset = {}
    for asset_id, entry in state.entry_by_asset.items():
        asset = entry.asset
        _, symbol, name, decimals = shown(asset).values()
        row: list[Any] = [*entry.published, symbol, name, decimals]
        row_by_asset[asset_id] = row
        if entry.confirmation_polls or entry.suspect:
            row += [entry.confirmation_polls, [*entry.seen], entry.suspect and [*entry.suspect]]
    body = {
        "schema": SCHEMA,
        "source": state.source,
        "watched": state.watched,
        "previous": dict(previous_by_subscription),
        "assets": row_by_asset,
    }
    if state.stale_since_ms:
        body["stale"] = state.stale_since_ms
    if state.crossed:
        body["crossed"] = sorted(state.crossed)
    return orjson.dumps(body)


def load_hash(fields: Mapping[str, bytes]) -> tuple[AccountState, dict[str, int]]:
    """Read the fields of a state HASH, and by subscription the sequence queued last. Raises BadState."""
    try:
        body = json.loads(fields["body"])
        if body["schema"] != SCHEMA:
            raise BadState("written by another version of watcher")
        previous = {_text(key): check_count(value) for key, value in body["previous"].items()}
        state = AccountState(
            source=_text(body["source"]),
            watched=None if body["watched"] is None else tuple(map(_text, _list(body["watched"]))),
            entry_by_asset={_text(key): _load_entry(key, value) for key, value in body["assets"].items()},
            version=fields["version"].decode("ascii"),
            sequence=read_count(fields["sequence"]),
            polled_at_ms=read_count(fields.get("polled_at", b"0")),
            stale_since_ms=check_count(body.get("stale", 0)),
            crossed=frozenset(map(_text, _list(body.get("crossed", [])))),
        )
    except _UNREADABLE as error:
        raise BadState(f"not readable: {type(error).__name__}") from error
    return state, previous


def _load_entry(asset_id: str, value: object) -> Entry:
    row = _list(value)
    published, (symbol, name, decimals), rest = _balance(row[:4]), row[4:7], row[7:]
    if decimals is not None and check_count(decimals) > MAX_FRACTION_DIGITS:
        raise ValueError("too many decimals")
    asset = Asset(asset_id, _maybe_text(symbol), _maybe_text(name), decimals)
    if not rest:
        return Entry(asset, published, published)
    confirmation_polls, seen, suspect = rest
    if not confirmation_polls and suspect is None:
        raise ValueError("neither pending confirmation nor suspect")
    return Entry(
        asset,
        published,
        _balance(seen),
        check_count(confirmation_polls),
        None if suspect is None else _balance(suspect),
    )


def _balance(row: object) -> Balance:
    total, locked, pending_deposit, pending_withdrawal = _list(row)
    # A published field may stand below zero while the other half of a movement is pending confirmation.
    return Balance(
        check_canonical(total),
        check_canonical(locked),
        None if pending_deposit is None else check_canonical(pending_deposit),
        None if pending_withdrawal is None else check_canonical(pending_withdrawal),
    )


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    value.encode()  # half a surrogate pair can be read from JSON, but never be written again
    return value


def _maybe_text(value: object) -> str | None:
    return None if value is None else _text(value)
