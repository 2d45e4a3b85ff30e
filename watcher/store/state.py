"""How an account's state is written down in Redis, and read back without trusting it.

Compact on purpose: it is most of what an account costs. One asset is a list
`[total, locked, pending_deposit, pending_withdrawal, symbol, name, decimals]`, and while something is
pending confirmation or suspect, `confirmation_polls, seen, suspect` follow. Anything odd is a BadState.
"""

import json
from typing import Any

import orjson

from watcher.amounts import MAX_FRACTION_DIGITS, NotAnAmount, check_canonical
from watcher.journal.account import AccountState, Entry
from watcher.snapshot import Asset, Balance
from watcher.store.keys import check_count, read_count

SCHEMA = 1


class BadState(Exception):
    """What lies under a state key is not what this program writes there: another version, or damage.

    The account is quarantined: it is not polled further and nothing of it is overwritten, until the operator
    restores the key or deletes it (then the next poll is a new baseline).
    """


def head_version(version: str) -> str:
    """Write a version as a state begins with it; '' is that of no state."""
    return f"{version:16}" if version else ""


def head_time(ms: int) -> str:
    """Write a time as it stands in a state behind its version."""
    return f"{ms:014d}"


def dump_state(state: AccountState) -> bytes:
    head = f"{head_version(state.version)} {head_time(state.polled_at_ms)} {state.sequence}\n"
    return head.encode() + dump_body(state)


def dump_body(state: AccountState) -> bytes:
    row_by_asset = {}
    for asset_id, entry in state.entry_by_asset.items():
        asset = entry.asset
        row: list[Any] = [*entry.published, asset.symbol, asset.name, asset.decimals]
        row_by_asset[asset_id] = row
        if entry.confirmation_polls or entry.suspect:
            row += [entry.confirmation_polls, [*entry.seen], entry.suspect and [*entry.suspect]]
    body = {
        "schema": SCHEMA,
        "source": state.source,
        "watched": state.watched,
        "assets": row_by_asset,
    }
    if state.stale_since_ms:
        body["stale"] = state.stale_since_ms
    if state.crossed:
        body["crossed"] = sorted(state.crossed)
    return orjson.dumps(body)


def load_state(text: bytes) -> AccountState:
    """Read a state. Raises BadState."""
    try:
        head, _, said = text.partition(b"\n")
        version, polled_at, sequence = head[:16].rstrip(), head[17:31], head[32:]
        if not version:
            raise BadState("not readable: it has no version")
        body = json.loads(said)
        if body["schema"] != SCHEMA:
            raise BadState("written by another version of watcher")
        return AccountState(
            source=_text(body["source"]),
            watched=None if body["watched"] is None else tuple(map(_text, _list(body["watched"]))),
            entry_by_asset={_text(key): _load_entry(key, value) for key, value in body["assets"].items()},
            version=version.decode("ascii"),
            sequence=read_count(sequence),
            polled_at_ms=read_count(polled_at),
            stale_since_ms=check_count(body.get("stale", 0)),
            crossed=frozenset(map(_text, _list(body.get("crossed", [])))),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, NotAnAmount) as error:
        raise BadState(f"not readable: {type(error).__name__}") from error


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
