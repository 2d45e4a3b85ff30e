"""What is kept of a provider's answers: its list of assets, and the last answer of each account, row by row.

The list is fetched when an asset is missing from it, and not too often. Refuses to let an asset change its
unit by accident: what a list once said stays known. An asset counts as unlisted only if a list that was
fetched after it turned up lacks it, and every row of that list names its asset.

If an answer differs from the last one in a few rows, only these are parsed and read. Refuses to guess: if
anything else differs, the whole answer is read.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence, Set
from functools import lru_cache
from itertools import compress
from operator import is_, ne
from typing import Any, NamedTuple

from watcher.providers.contract import PERMANENT, AssetList, ByRow, Catalogue, Rejected
from watcher.providers.strict_json import NotJson, parse
from watcher.snapshot import Asset, Balance, Row, Snapshot, asset_id

RENEW_S = 600.0
"""Between two fetches for assets that were unlisted the last time: a delisted token may stay for ever."""
RETRY_S = 10.0
"""Between any two fetches."""

_MOST_UNLISTED = 10_000

_FIRST_ROW = re.compile(rb'\[\s*(\{\s*"[^"\\]*")')
"""Where a list of objects begins, and how its first object does."""

_LONGEST_REST = 64
"""Polls after which answers are cut into rows again although they never resemble the previous one."""

_MEMO_BYTES, _ROW_BYTES = 800, 400
"""What a memo takes in memory, and each row of an answer."""

_STAND_IN = "\0 a row"


def is_sound(balance: Balance) -> bool:
    """Say whether nothing is negative that must not be: only a total may be."""
    _, locked, deposit, withdrawal = balance
    return not (locked[0] == "-" or (deposit or "0")[0] == "-" or (withdrawal or "0")[0] == "-")


class KeptCatalogue:
    """The last list that was read, and the assets that it is known to lack. `refused`: why the last fetch
    failed."""

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
        """Say why the unit of these assets is unknown."""
        for asset in sorted(unknown & self._odd.keys()):
            return Rejected("malformed", f"the list of assets is odd for asset {asset}: {self._odd[asset]}")
        if self.refused is None and not self._is_whole:
            why = "the list of assets has rows that cannot be read, and an asset is missing from it"
            return Rejected("malformed", why)
        refused = self.refused or Rejected("transient", "it was fetched a moment ago")
        is_permanent = refused.error_class in PERMANENT
        reason = f"an asset that is not in the list of assets yet: {refused}"
        return Rejected(refused.error_class if is_permanent else "transient", reason, status=refused.status)


class _Form(NamedTuple):
    """A document without the content of its rows: the `head` before the first row; the `seam` between two
    rows, from the last brace of one to the `start` of the next; the `tail`, from the last brace of the last
    row."""

    head: bytes
    start: bytes
    seam: bytes
    tail: bytes

    def parts(self, body: bytes) -> Sequence[bytes] | None:
        """Cut a document at its seams; None if it has another form."""
        if body.startswith(self.head) and body.endswith(self.tail):
            return body.split(self.seam) if self.seam else (body,)
        return None

    def row(self, parts: Sequence[bytes], place: int) -> bytes:
        """The text of a row."""
        start, first = (self.start, 0) if place else (b"", len(self.head))
        end = -len(self.tail) if place == len(parts) - 1 else None
        return b"%b%b}" % (start, parts[place][first:end])

    def with_stand_ins(self, rows: int) -> bytes:
        """Return the document with so many rows, each replaced by something else."""
        stand_ins = [json.dumps(_STAND_IN).encode()] * rows
        return b"%b%b%b" % (self.head, self.seam[1 : -len(self.start)].join(stand_ins), self.tail[1:])


@lru_cache(maxsize=1000)
def _shared(form: _Form) -> _Form:
    """The one of its kind: all accounts of a provider have the same."""
    return form


def _form_of(body: bytes) -> _Form | None:
    """Return the form of a document, by what looks like its rows; None if nothing does."""
    first = _FIRST_ROW.search(body)
    if not first:
        return None
    start, head = first[1], body[: first.start(1)]
    seam = re.search(rb"\}\s*,\s*" + re.escape(start), body)
    last = start + body.rpartition(seam[0])[2] if seam else body[len(head) :]
    text = last.decode()
    try:
        end = json.JSONDecoder().raw_decode(text)[1]
    except (ValueError, RecursionError):
        return None
    return _shared(_Form(head, start, seam[0] if seam else b"", text[end - 1 :].encode()))


class Memo:
    """The last answer of one account, row by row, and what was read of it.

    If an answer is the last one's document with other rows, then the document without its rows says the same,
    and each row says what its text says. So reading the rows that differ gives the same result as reading
    everything. Texts are compared by their hashes, which have 64 bits and another key in each process.
    """

    __slots__ = (
        "_about",
        "_besides",
        "_differing",
        "_forms",
        "_hashes",
        "_led_to",
        "_owner",
        "_rest",
        "_rested",
        "_rows",
        "_watched",
    )

    def __init__(self) -> None:
        self._forms: Sequence[_Form] = ()
        self._hashes: Sequence[list[int]] = ()
        self._rows: Mapping[str, Row] = {}
        self._about: tuple[Any, ...] = ()
        self._owner: str | None = None
        self._watched: Set[str] | None = None
        self._besides: tuple[Any, ...] = ()
        self._rest, self._rested = 1, 0  # an answer is only worth cutting if another one follows soon
        self._differing: Collection[str] | None = None
        self._led_to: object = None

    @property
    def bytes_held(self) -> int:
        """About how much memory it takes."""
        return _MEMO_BYTES + _ROW_BYTES * len(self._rows)

    def read(
        self, provider: ByRow, account: Any, bodies: Sequence[bytes], catalogue: Catalogue
    ) -> Snapshot | None:
        """Read an answer by the rows that differ from the last one; None: the whole answer has to be read."""
        forms, self._forms, self._differing = self._forms, (), None
        about = (provider, account, catalogue)
        if len(bodies) != len(forms) or not all(map(is_, about, self._about)):
            return None
        self._rest = min(2 * self._rest + 1, _LONGEST_REST)
        rows, assets = {**self._rows}, [*self._rows]
        hashes: list[list[int]] = []
        differing: list[str] = []
        first = 0
        for form, body, before in zip(forms, bodies, self._hashes, strict=True):
            parts = form.parts(body)
            if not parts or len(parts) != len(before):
                return None
            now = [*map(hash, parts)]
            for place in compress(range(len(parts)), map(ne, now, before)):
                try:
                    said = parse(form.row(parts, place))
                    row, owner = provider.read_row(account, said, catalogue, watched=self._watched)
                except (NotJson, Rejected):  # the whole answer shows what is wrong with it
                    return None
                asset = assets[first + place]
                if not row or row.asset.id != asset or owner not in (None, self._owner):
                    return None
                if not is_sound(row.balance):
                    return None
                rows[asset] = row
                differing.append(asset)
            hashes.append(now)
            first += len(parts)
        self._forms, self._hashes, self._rows, self._rest = forms, hashes, rows, 0
        self._differing = differing
        return Snapshot(rows, *self._besides)

    def rests_at(self, entries: object) -> None:
        """Remember what the last answer led to, which the same answer again would not change; nothing of an
        answer that is not remembered itself."""
        self._led_to = entries if self._forms else None

    def differing_from(self, entries: object) -> Collection[str] | None:
        """Return the assets whose rows were read, if nothing else differs from the answer that led to these
        very `entries`; else None. To be asked once after each answer."""
        led_to, self._led_to = self._led_to, None
        return self._differing if led_to is entries else None

    def learn(
        self,
        provider: ByRow,
        account: Any,
        bodies: Sequence[bytes],
        catalogue: Catalogue,
        snapshot: Snapshot,
        owner: str | None,
    ) -> None:
        """Remember an answer that was read whole, if its rows can be distinguished: not the first one, and
        the more seldom, the less answers resemble the previous ones."""
        self._rows = {}
        self._rested += 1
        if self._rested <= self._rest:
            return
        self._rested = 0
        forms = [form for body in bodies if (form := _form_of(body))]
        parts = [form.parts(body) or () for form, body in zip(forms, bodies, strict=False)]
        if len(forms) < len(bodies) or not _is_each_a_row(provider, forms, parts, len(snapshot.row_by_asset)):
            self._rest = _LONGEST_REST
        else:
            self._forms, self._rows = forms, snapshot.row_by_asset
            self._hashes = [[*map(hash, its)] for its in parts]
            self._about, self._owner = (provider, account, catalogue), owner
            self._watched = None if snapshot.watched is None else frozenset(snapshot.watched)
            self._besides = snapshot[1:]


def _is_each_a_row(
    provider: ByRow, forms: Sequence[_Form], parts: Sequence[Sequence[bytes]], assets: int
) -> bool:
    """Say whether each part is one row, and each row is about another asset."""
    try:
        answers = [parse(form.with_stand_ins(len(its))) for form, its in zip(forms, parts, strict=True)]
        for form, its in zip(forms, parts, strict=True):
            for place in range(len(its)):
                parse(form.row(its, place))
        return [*provider.rows(answers)] == [_STAND_IN] * assets
    except (NotJson, Rejected):
        return False
