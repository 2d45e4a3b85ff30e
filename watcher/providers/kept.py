"""What is kept of a provider's answers: its list of assets, and the last answer of each account, row by row.

The list is fetched when an asset is not in it, and not too often. Refuses to let an asset change its unit by
accident: what a list once held stays known. An asset counts as unlisted only if a list that was fetched after
it turned up lacks it, and every row of that list names its asset.

Where an answer differs from the last one in a few rows, only these are parsed and read. Refuses to guess:
where anything else differs, the answer is read whole.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from operator import is_
from typing import Any, NamedTuple

from watcher.providers.contract import PERMANENT, AssetList, ByRow, Catalogue, Rejected
from watcher.providers.strict_json import NotJson, parse
from watcher.snapshot import Asset, Row, Snapshot, asset_id

RENEW_S = 600.0
"""Between two fetches for assets that were unlisted the last time: a delisted token may stay for ever."""
RETRY_S = 10.0
"""Between any two fetches."""

_MOST_UNLISTED = 10_000

_FIRST_ROW = re.compile(rb'\[\s*(\{\s*"[^"\\]*")')
"""Where a list of objects begins, and how its first object does."""

_LONGEST_REST = 64
"""Polls after which answers are cut into rows again that never are like the one before."""

_MEMO_BYTES, _ROW_BYTES = 1_000, 420
"""What a memo takes in memory, and each row of an answer, besides its text."""

_STAND_IN = "\0 a row"


class KeptCatalogue:
    """The last list that was read, and what it is known not to hold. `refused`: why the last fetch failed."""

    def __init__(self, fetch: Callable[[], Awaitable[AssetList]], *, clock: Callable[[], float]) -> None:
        self.asset_by_id: Catalogue = {}
        self.unlisted: Set[str] = frozenset()
        self.refused: Rejected | None = None
        self._odd: Mapping[str, str] = {}
        self._is_whole = True
        self._fetch = fetch
        self._clock = clock
        self._turn = asyncio.Lock()
        self._fetched_at = float("-inf")

    async def look_up(self, ids: Set[str]) -> None:
        """Fetch the list if it lacks some of `ids` and its time has come. A failure keeps the last list."""
        async with self._turn:
            missing = ids - self.asset_by_id.keys()
            pause_s = RETRY_S if missing - self.unlisted else RENEW_S
            if not missing or self._clock() < self._fetched_at + pause_s:
                return
            try:
                listed = await self._fetch()
            except Rejected as refused:
                self.refused = refused
            else:
                self.refused = None
                self.asset_by_id = {**self.asset_by_id, **listed.asset_by_id}
                self._odd, self._is_whole = listed.odd, listed.is_whole
                remembered = self.unlisted if len(self.unlisted) < _MOST_UNLISTED else frozenset()
                absent = missing - listed.odd.keys() if listed.is_whole else frozenset[str]()
                self.unlisted = (remembered | absent) - self.asset_by_id.keys() - listed.odd.keys()
            self._fetched_at = self._clock()

    def find(self, text: str) -> Asset | None:
        """Find an asset by its id or its symbol; if several share the symbol, the first."""
        if found := self.asset_by_id.get(asset_id(text)):
            return found
        return next((asset for asset in self.asset_by_id.values() if asset.symbol == text), None)

    def refusal(self, unknown: Set[str]) -> Rejected:
        """Say why the unit of these assets is not known."""
        for asset in sorted(unknown & self._odd.keys()):
            return Rejected("malformed", f"the list of assets is odd for asset {asset}: {self._odd[asset]}")
        if self.refused is None and not self._is_whole:
            why = "the list of assets has rows that cannot be read, and an asset is missing from it"
            return Rejected("malformed", why)
        refused = self.refused or Rejected("transient", "it was fetched a moment ago")
        is_permanent = refused.error_class in PERMANENT
        reason = f"an asset that is not in the list of assets yet: {refused}"
        return Rejected(refused.error_class if is_permanent else "transient", reason, status=refused.status)


class _Cut(NamedTuple):
    """A body, cut where a row ends and the next one begins.

    A part is the text of a row, but for the `start` and the last brace of it: between two parts these belong
    to the `seam`. The `head` of the document is in front of the first row, its `tail` begins with the last
    brace of the last one.
    """

    parts: Sequence[bytes]
    seam: bytes
    start: bytes
    head: bytes
    tail: bytes

    @classmethod
    def of(cls, body: bytes) -> "_Cut | None":
        """Cut a document at what looks like its rows; None where nothing does."""
        first = _FIRST_ROW.search(body)
        if not first:
            return None
        start, head = first[1], body[: first.start(1)]
        seam = re.search(rb"\}\s*,\s*" + re.escape(start), body)
        parts = body.split(seam[0]) if seam else [body]
        last = (start + parts[-1] if seam else body[len(head) :]).decode()
        try:
            end = json.JSONDecoder().raw_decode(last)[1]
        except (ValueError, RecursionError):
            return None
        return cls(parts, seam[0] if seam else b"", start, head, last[end - 1 :].encode())

    def again(self, body: bytes) -> "_Cut":
        """Cut another body at the same seams."""
        return self._replace(parts=body.split(self.seam) if self.seam else [body])

    def is_like(self, other: "_Cut") -> bool:
        """Say whether this is the same document as another, but for what its rows say."""
        first, last = self.parts[0], self.parts[-1]
        return (
            len(self.parts) == len(other.parts) and first.startswith(self.head) and last.endswith(self.tail)
        )

    def row(self, place: int) -> bytes:
        """The text of a row."""
        start, first = (self.start, 0) if place else (b"", len(self.head))
        end = -len(self.tail) if place == len(self.parts) - 1 else None
        return b"%b%b}" % (start, self.parts[place][first:end])

    def without_rows(self) -> bytes:
        """The document with a stand-in for each row."""
        between = self.seam[1 : -len(self.start)]
        stand_ins = [json.dumps(_STAND_IN).encode()] * len(self.parts)
        return b"%b%b%b" % (self.head, between.join(stand_ins), self.tail[1:])


class Memo:
    """The last answer of one account, row by row, and what was read of it.

    An answer that is the last one's document with other rows is what the document without its rows is, and
    each row is what its text says. So reading the rows that differ says what reading the whole would say.
    """

    __slots__ = ("_about", "_cuts", "_owner", "_rest", "_rested", "_snapshot", "_watched")

    def __init__(self) -> None:
        self._cuts: Sequence[_Cut] = ()
        self._snapshot = Snapshot({}, None, absent_is_zero=False)
        self._about: tuple[Any, ...] = ()
        self._owner: str | None = None
        self._watched: Set[str] | None = None
        self._rest = self._rested = 0

    @property
    def bytes_held(self) -> int:
        """About how much memory it takes."""
        return _MEMO_BYTES + sum(len(part) + _ROW_BYTES for cut in self._cuts for part in cut.parts)

    def read(
        self, provider: ByRow, account: Any, bodies: Sequence[bytes], catalogue: Catalogue
    ) -> Snapshot | None:
        """Read an answer by the rows that differ from the last one; None: it has to be read whole."""
        last, last_cuts, self._cuts = self._snapshot, self._cuts, ()
        about = (provider, account, catalogue)
        if len(bodies) != len(last_cuts) or not all(map(is_, about, self._about)):
            return None
        self._rest = min(2 * self._rest + 1, _LONGEST_REST)
        cuts = [cut.again(body) for cut, body in zip(last_cuts, bodies, strict=True)]
        if not all(map(_Cut.is_like, cuts, last_cuts)):
            return None
        assets, changed = iter(last.row_by_asset), dict[str, Row]()
        for cut, before in zip(cuts, last_cuts, strict=True):
            for place, (part, part_before) in enumerate(zip(cut.parts, before.parts, strict=True)):
                asset = next(assets)
                if part == part_before:
                    continue
                try:
                    said = parse(cut.row(place))
                    row, owner = provider.read_row(account, said, catalogue, watched=self._watched)
                except (NotJson, Rejected):  # the whole answer shows what is wrong with it
                    return None
                if row is None or row.asset.id != asset or owner not in (None, self._owner):
                    return None
                changed[asset] = row
        self._cuts, self._rest = cuts, 0
        rows = {**last.row_by_asset, **changed}
        self._snapshot = Snapshot(rows, last.watched, last.absent_is_zero)
        return self._snapshot

    def learn(
        self,
        provider: ByRow,
        account: Any,
        bodies: Sequence[bytes],
        catalogue: Catalogue,
        snapshot: Snapshot,
        owner: str | None,
    ) -> None:
        """Take note of an answer that was read whole, if each of its rows can be told from the next."""
        self._rested += 1
        if self._rested <= self._rest:
            return
        self._rested = 0
        cuts = [cut for body in bodies if (cut := _Cut.of(body))]
        if len(cuts) == len(bodies) and _is_cut_right(provider, cuts, len(snapshot.row_by_asset)):
            self._about, self._owner = (provider, account, catalogue), owner
            self._watched = None if snapshot.watched is None else frozenset(snapshot.watched)
            self._cuts, self._snapshot = cuts, snapshot
        else:
            self._rest = _LONGEST_REST


def _is_cut_right(provider: ByRow, cuts: Sequence[_Cut], assets: int) -> bool:
    """Say whether each part is one row, and each row another asset's."""
    try:
        answers = [parse(cut.without_rows()) for cut in cuts]
        for cut in cuts:
            for place in range(len(cut.parts)):
                parse(cut.row(place))
        return [*provider.rows(answers)] == [_STAND_IN] * assets
    except (NotJson, Rejected):
        return False
