"""The event log: what every commit told, in order, for people, replays and audits. Never for delivery.

A record is an event as it was sent (but for its subscription), or `baseline` (`assets`: balances that
start anew; `whole`: of an account with nothing before) or `forgotten` (`assets`: ids no longer watched).
Refuses to judge a record: it says what cannot be read, and goes on.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from watcher.store.keys import SHARDS, Keys, shard_of
from watcher.store.pipe import Pipe

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the log. `follows` is the account's sequence before the commit that wrote it."""

    account: str
    follows: int
    content: dict[str, Any]
    id: str = ""


def dump_record(follows: int, content: bytes) -> bytes:
    """Write down a record whose content is JSON."""
    return b"%d %b" % (follows, content)


class History:
    """The event log of one namespace."""

    def __init__(self, pipe: Pipe, keys: Keys) -> None:
        self._pipe = pipe
        self._keys = keys

    async def records(self, account: str | None = None) -> AsyncIterator[Record]:
        """Read the log, oldest first within each shard; of one account, or of all.

        A record that cannot be read comes with the content {}.
        """
        shards = range(SHARDS) if account is None else (shard_of(account),)
        for shard in shards:
            async for record in self._of_shard(shard):
                if account in (None, record.account):
                    yield record

    async def _of_shard(self, shard: int) -> AsyncIterator[Record]:
        start = "-"
        while True:
            page = await self._pipe.command("XRANGE", self._keys.log(shard), start, "+", "COUNT", _PAGE)
            for entry_id, fields in page:
                yield _record(entry_id.decode(), fields)
            if len(page) < _PAGE:
                return
            start = f"({page[-1][0].decode()}"


def _record(entry_id: str, fields: list[bytes]) -> Record:
    by_name = dict(zip(fields[::2], fields[1::2], strict=True))
    account = by_name.get(b"account", b"").decode("utf-8", "replace")
    follows, _, content = by_name.get(b"entry", b"").partition(b" ")
    try:
        return Record(account, int(follows), dict(json.loads(content)), entry_id)
    except (ValueError, TypeError, RecursionError):
        return Record(account, 0, {}, entry_id)
