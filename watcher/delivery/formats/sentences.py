"""Writes an event as one plain sentence for people, with its exact amounts. Pure.

Texts from outside (symbols, ids, names, reasons) are made harmless here: one line, bounded, and nothing that
a service would turn into a link or a mention by itself. Refuses to escape markup: each service has its own.
"""

import re
from collections.abc import Iterator, Mapping
from string import Formatter
from typing import Any

import orjson

from watcher.journal.events import Delivery

WIDTHS = (200, 40, 12)
"""Characters of a text from outside: normally, and if the message is too long. Amounts are never
shortened."""

_FIELDS = ("total", "locked", "available", "pending_deposit", "pending_withdrawal")
SLOTS = (
    *("sentence", "account", "provider", "type", "event", "amount", "asset", "asset_id", *_FIELDS),
    *("reason", "subscription", "id", "sequence", "time"),
)
"""What a template may name."""

_SHOWN_ID = 14
_WORD = re.compile(r"[\w.$-]+")
_QUOTES = re.compile(r"[“”\"]")
_NOT_JOINED = "\N{ZERO WIDTH SPACE}"
_JOINT = re.compile(r"[@#$/:.+](?=\S|\Z)")
"""Where services find a link, an address, a mention, a tag, a command or a telephone number in plain text."""


def harmless(text: object, width: int = WIDTHS[0]) -> str:
    """Make a text from outside one line of at most `width` characters that no service links by itself.

    Control, bidirectional and other invisible characters are dropped. A zero-width space, which does not
    count, is put into what would be a link, by itself or with what follows.
    """
    kept = "".join(one if one.isprintable() else " " if one.isspace() else "" for one in str(text))
    line = " ".join(kept.split())
    line = line if len(line) <= width else line[: width - 1] + "…"
    return _JOINT.sub(lambda found: found[0] + _NOT_JOINED, line)


def slots_in(template: str) -> Iterator[str]:
    """Name the slots of a template; `{{` and `}}` stand for braces. Raises ValueError."""
    try:
        parts = [*Formatter().parse(template)]
    except ValueError:
        raise ValueError("has a single brace: write {{ or }} for a brace in the text") from None
    for _, slot, spec, conversion in parts:
        if spec or conversion:
            raise ValueError(f"write {{{slot}}} alone: a slot takes no ':' and no '!'")
        if slot is not None:
            yield slot


def sentence(delivery: Delivery, template: str | None = None, *, width: int = WIDTHS[0]) -> str:
    """Write what happened in one line; with a template, if its slots are known."""
    try:
        slots = _slots(orjson.loads(delivery.body), width)
    except (ValueError, LookupError, TypeError, AttributeError):  # its stored event is damaged
        return f"event {delivery.event_id} ({delivery.type}): its stored event cannot be read"
    return template.format_map(slots) if template is not None else slots["sentence"]


def _slots(event: Mapping[str, Any], width: int) -> dict[str, str]:
    data, type_ = event["data"], event["type"]
    account, asset, after = data["account"] or {}, data["asset"] or {}, data.get("after", {})
    moved = data["effect"]["locked" if type_.startswith("locked.") else "total"]
    sign = "" if moved == "0" else "-" if moved.startswith("-") else "+"
    slots = {
        "account": harmless(account.get("name", ""), width),
        "provider": harmless(account.get("provider", ""), width),
        "type": type_,
        "event": type_.replace(".", " "),
        "amount": f"{sign}{data['amount']}" if data["asset"] else "",
        "asset": _called(asset, width),
        "asset_id": harmless(asset.get("id", "")),
        **{field: after.get(field) or "" for field in _FIELDS},
        "reason": harmless(data.get("reason", ""), width),
        "subscription": harmless(data.get("paused") or event["subscription"]["name"], width),
        "id": event["id"],
        "sequence": str(data["sequence"]),
        "time": _time(event["timestamp"]),
    }
    return slots | {"sentence": _sentence(data, slots, width)}


def _called(asset: Mapping[str, Any], width: int) -> str:
    """Name an asset by its symbol, or else by its id, shortened if it is long.

    A symbol that is no plain word is put in quotes: it must not read as a part of the sentence.
    """
    if symbol := asset.get("symbol"):
        shown = harmless(symbol, width)
        return shown if _WORD.fullmatch(symbol) else f"“{_QUOTES.sub('', shown)}”"
    identity = str(asset.get("id", ""))
    return harmless(identity if len(identity) <= _SHOWN_ID else f"{identity[:6]}…{identity[-4:]}", width)


def _sentence(data: Mapping[str, Any], slots: Mapping[str, str], width: int) -> str:
    account, asset = slots["account"], slots["asset"]
    # A shortened name does not identify the asset.
    exact = f", asset {slots['asset_id']}" if data["asset"] and not data["asset"].get("symbol") else ""
    exact = exact if "…" in asset else ""
    match slots["type"]:
        case "account.baseline":
            part = f" (part {data['part']} of {data['parts']})" if data["parts"] > 1 else ""
            return f"{account}: baseline{part}, {_balances(data['balances'], width)}"
        case "account.stale":
            return f"{account}: stale, no successful poll since {_time(data['since'])}: {slots['reason']}"
        case "account.recovered":
            return f"{account}: recovered, it was stale since {_time(data['since'])}"
        case "threshold.crossed":
            threshold = data["threshold"]
            side = "above" if threshold["below"] is None else "below"
            field = threshold["field"].replace("_", " ")
            return f"{account}: {field} is {slots['amount']} {asset}, {side} {threshold[side]}{exact}"
        case "subscription.paused":
            since = _time(data["since"])
            return f"subscription {slots['subscription']} is paused since {since}: {slots['reason']}"
        case "subscription.ping":
            return f"{slots['subscription']}: ping from watcher, no balance changed"
        case _:
            totals = f"total {slots['total']}"
            if slots["type"].startswith("locked."):
                totals = f"locked {slots['locked']}, {totals}"
            return f"{account}: {slots['event']}, {slots['amount']} {asset} ({totals}{exact})"


def _balances(balances: list[Mapping[str, Any]], width: int) -> str:
    """Write the balances of an account: all, or as many as a narrow sentence takes."""
    most = len(balances) if width == WIDTHS[0] else 5 if width == WIDTHS[1] else 1
    shown = [f"{one['total']} {_called(one['asset'], width)}" for one in balances[:most]]
    if len(balances) > most:
        shown.append(f"{len(balances) - most} more")
    return ", ".join(shown) or "no balance"


def _time(iso: str) -> str:
    """Write `2026-11-20T14:03:05.120Z` to the second, as people read it."""
    return f"{iso[:10]} {iso[11:19]} UTC"
