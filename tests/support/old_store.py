"""A store in layout 1, written as version 0.1 writes it; and all bytes of a store."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from tests.support.stores import Store
from watcher.store.keys import SHARDS, OldKeys, shard_of

AT_MS = 1_700_000_000_000
STATE = {
    "schema": 1,
    "source": "somewhere",
    "watched": None,
    "previous": {},
    "assets": {"1": ["1.5", "0", "0", "0", "LRC", "Loopring", 18]},
}


def an_event(number: int, event_type: str = "total.increased", **data: Any) -> bytes:
    """The JSON of an event as 0.1 logs it: its body but for the subscription's part."""
    said = {"sequence": AT_MS + number, "amount": "1", **data}
    return orjson.dumps({"id": f"evt_{number}", "type": event_type, "timestamp": "2026-11-20", "data": said})


def an_entry(event: bytes, subscription: str, previous: int | None = None) -> bytes:
    """An event as it waits, or is dead, in layout 1."""
    said = orjson.loads(event)
    head = f"{said['id']} {said['data']['sequence']} {said['type']}\n".encode()
    tail = orjson.dumps({"name": subscription, "previous_sequence": previous})
    return head + event[:-1] + b',"subscription":' + tail + b"}"


class OldStore:
    """Writes layout 1 into the namespace of a store."""

    def __init__(self, store: Store, *, providers: Sequence[str] = ("loopring",)) -> None:
        self.keys = OldKeys(store.keys.namespace)
        self._store = store
        self._providers = providers

    async def ask(self, *command: Any) -> Any:
        return await self._store.pipe.command(*command)

    async def begin(self) -> None:
        """Write what every worker of 0.1 writes at its start."""
        fields = (
            "shards",
            SHARDS,
            "schema",
            1,
            "providers",
            json.dumps([*self._providers]),
            "enrolled",
            "list",
        )
        await self.ask("HSET", self.keys.meta(), *fields)

    async def account(
        self, name: str, *, provider: str = "loopring", due_ms: float = AT_MS, **body: Any
    ) -> None:
        """Write a state, and when its poll is due."""
        text = orjson.dumps({**STATE, **body})
        fields = ("version", f"{shard_of(name):016x}", "sequence", AT_MS, "body", text, "polled_at", AT_MS)
        await self.ask("HSET", self.keys.state(name), *fields)
        await self.ask("ZADD", self.keys.polls(shard_of(name), provider), due_ms, name)

    async def queue(
        self,
        subscription: str,
        account: str,
        entries: Iterable[bytes],
        *,
        due_ms: float = AT_MS,
        tries: int = 0,
    ) -> None:
        """Write a queue, when it is due, and how often its head has failed."""
        entries, shard = [*entries], shard_of(account)
        await self.ask("RPUSH", self.keys.queue(subscription, account), *entries)
        await self.ask("ZADD", self.keys.queues(shard, subscription), due_ms, account)
        await self.ask("ZADD", self.keys.due_subscriptions(shard), "LT", due_ms, subscription)
        if tries:
            head = entries[0].partition(b"\n")[0] + b"\n"
            await self.ask("HSET", self.keys.tries(shard, subscription), account, b"%d %b" % (tries, head))

    async def record(self, account: str, content: bytes, record_id: str = "*") -> None:
        """Write a record of the log."""
        fields = ("account", account, "entry", b"%d %b" % (AT_MS, content))
        await self.ask("XADD", self.keys.log(shard_of(account)), record_id, *fields)

    async def letter(self, subscription: str, account: str, delivery: bytes, letter_id: str = "*") -> None:
        """Write a dead letter."""
        fields = ("account", account, "reason", "410", "delivery", delivery)
        await self.ask("XADD", self.keys.dead(shard_of(account), subscription), letter_id, *fields)


def without_numbers(contents: Mapping[str, Any]) -> dict[str, Any]:
    """What lies in a store but for what only says how it was moved, and for the table of names."""
    kept = {}
    for key, value in contents.items():
        if key.endswith((":layout", ":mover")) or ":names:" in key:
            continue
        if key.endswith(":meta"):
            value = {
                name: text
                for name, text in value.items()
                if name in (b"shards", b"schema", b"providers", b"enrolled")
            }
        kept[key] = value
    return kept
