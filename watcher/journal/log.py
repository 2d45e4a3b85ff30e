"""Reads the event log back into what was emitted, and says where it disagrees with itself or the state."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from watcher.amounts import to_text
from watcher.journal.account import AccountState, Moved
from watcher.journal.events import Origin, drafts_of, events_of, iso
from watcher.journal.explain import in_atoms, in_text
from watcher.settings import SERVICE_EVENTS
from watcher.snapshot import Asset, Balance


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the log. `follows` is the account's sequence before the commit that wrote it.

    Of an event, `content` is what its body says but for the subscription's part, `raw` the bytes of it, and
    `previous` says by subscription which sequence each that it was queued for got before it.
    """

    account: str
    follows: int
    content: dict[str, Any]
    id: str = ""
    raw: bytes = b""
    previous: Mapping[str, int | None] = field(default_factory=dict)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


class Damaged(Exception):
    """A record that does not say what this program writes. The message never holds what it says instead."""


@dataclass(frozen=True, slots=True)
class Started:
    """Balances that start anew. `whole`: and with them the account, whatever was before."""

    sequence: int
    at_ms: int
    balance_by_asset: Mapping[str, Balance]
    whole: bool


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Assets that are no longer watched."""

    sequence: int
    at_ms: int
    assets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Emitted:
    """An event. What moved nothing has no asset here, whatever it is about."""

    sequence: int
    at_ms: int
    id: str
    type: str
    asset: str | None = None
    before: Balance | None = None
    after: Balance | None = None


def read_back(record: Record) -> Started | Forgotten | Emitted:
    """Read a record. Raises Damaged."""
    content = record.content
    if not content:
        raise Damaged("it is not JSON as watcher writes it")
    try:
        at_ms = (datetime.fromisoformat(content["timestamp"]) - _EPOCH) // timedelta(milliseconds=1)
        if content["type"] == "baseline":
            balance_by_asset = {_text(asset): _balance(row) for asset, row in content["assets"].items()}
            if any(in_text(in_atoms(balance), balance) != balance for balance in balance_by_asset.values()):
                raise ValueError("not as amounts are written")
            return Started(_whole(content["sequence"]), at_ms, balance_by_asset, content["whole"] is True)
        if content["type"] == "forgotten":
            return Forgotten(_whole(content["sequence"]), at_ms, tuple(map(_text, content["assets"])))
        return _read_event(record, content["data"], at_ms)
    except _MALFORMED as error:
        raise Damaged("a part of it is missing or is no longer what it was") from error


class Moment(NamedTuple):
    """The balance of an asset from a record on; None if it is no longer watched. `type` is that of the event,
    or `baseline` or `forgotten`."""

    at_ms: int
    sequence: int
    asset: str
    symbol: str | None
    type: str
    balance: Balance | None
    effect: Mapping[str, str | None] | None = None


def moments(record: Record) -> list[Moment]:
    """Return the balances from a record on, of the assets that it is about. Raises Damaged."""
    match read_back(record):
        case Started() as entry:
            at = entry.at_ms, entry.sequence
            return [
                Moment(*at, asset, None, "baseline", held) for asset, held in entry.balance_by_asset.items()
            ]
        case Forgotten() as entry:
            return [
                Moment(entry.at_ms, entry.sequence, asset, None, "forgotten", None) for asset in entry.assets
            ]
        case Emitted(asset=str() as asset) as entry:
            data = record.content["data"]
            symbol, effect = data["asset"]["symbol"], data["effect"]
            return [Moment(entry.at_ms, entry.sequence, asset, symbol, entry.type, entry.after, effect)]
    return []


def oldest_after(record: Record) -> int:
    """Say after which sequence nothing of the account is missing where this is the first of its records that
    is held; 0 where the account begins. Raises Damaged."""
    entry = read_back(record)
    is_cut = isinstance(entry, Emitted) and entry.sequence != _first_of(record, entry)
    return entry.sequence - 1 if is_cut else record.follows


def follows_all(record: Record, sequence: int) -> bool:
    """Say whether a reader that has all of an account up to a sequence lacks nothing before this record. That
    of a beginning follows nothing: a sequence below it is one of before. Raises Damaged."""
    oldest = oldest_after(record)
    return sequence >= oldest if oldest or not sequence else sequence >= _first_of(record, read_back(record))


def _first_of(record: Record, entry: Started | Forgotten | Emitted) -> int:
    """Say which sequence the first event of a record's commit has."""
    return max(record.follows + 1, entry.at_ms)


def _read_event(record: Record, data: Mapping[str, Any], at_ms: int) -> Emitted:
    """Read an event, and make it again: the id is a digest of what it says, so that any edit of it shows."""
    content = record.content
    sequence, event_id, type_ = _whole(data["sequence"]), _text(content["id"]), _text(content["type"])
    if type_ in SERVICE_EVENTS:
        if any(part not in ("0", None) for part in data.get("effect", {}).values()):
            raise Damaged(f"it moves something, which no {type_} does")
        return Emitted(sequence, at_ms, event_id, type_)
    asset = Asset(**{name: data["asset"][name] for name in Asset._fields})
    before, after, moved = (
        _balance([data[part][field] for field in Balance._fields]) for part in ("before", "after", "effect")
    )
    start, effect = in_atoms(before), in_atoms(moved)
    if start + effect != in_atoms(after):
        raise Damaged("its before and its effect do not make its after")
    origin = Origin(record.account, _text(data["account"]["provider"]), record.follows, at_ms, at_ms)
    amounts = [in_text(vector, after) for vector in (effect, start, start + effect)]  # each is printed anew
    (draft,) = drafts_of([Moved(asset, type_, to_text(max(map(abs, effect))), *amounts)])
    (again,) = events_of([draft], origin, first_sequence=0, now_ms=0)
    if again.id != event_id or origin.account != data["account"]["name"]:
        raise Damaged("its id does not belong to what it says")
    # Only what both know: an older or newer version may have said more.
    said = [(part, field, text) for part in draft.says for field, text in data[part].items()]
    if any(text != draft.says[part].get(field, text) for part, field, text in said):
        raise Damaged("its amounts do not belong together")
    if data["amount"] != draft.amount:
        raise Damaged("its amount is not what it moves")
    return Emitted(sequence, at_ms, event_id, type_, _text(asset.id), before, after)


def _balance(row: list[Any]) -> Balance:
    total, locked, pending_deposit, pending_withdrawal = row
    pendings = (None if text is None else _text(text) for text in (pending_deposit, pending_withdrawal))
    return Balance(_text(total), _text(locked), *pendings)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError("not a whole number")
    return value


class Finding(NamedTuple):
    """One disagreement. `record` is its place in the log, None where the state is what disagrees."""

    text: str
    record: str | None = None
    asset: str | None = None


@dataclass(slots=True)
class Verdict:
    """What a replay found. `since` is the time of the first record kept (ISO 8601); `from_baseline` says
    that it begins with one, so that nothing of the account is taken on trust; `is_first`, that nothing was
    recorded before."""

    records: int = 0
    since: str | None = None
    from_baseline: bool = False
    is_first: bool = False
    findings: list[Finding] = field(default_factory=list)


class Audit:
    """Replays the records of one account as they are read, oldest first; `verdict` is what was found."""

    def __init__(self) -> None:
        self.verdict = Verdict()
        self._end_by_asset: dict[str, Balance] = {}
        self._ids: set[str] = set()
        self._commits = _Commits()

    def take(self, record: Record) -> None:
        self.verdict.records += 1
        try:
            entry = read_back(record)
        except Damaged as damage:
            self._find(str(damage), record)
            return
        if self.verdict.since is None:
            self.verdict.since, self.verdict.is_first = iso(entry.at_ms), record.follows == 0
        if self._commits.begins_anew(record.follows, entry):
            self._end_by_asset.clear()
            self._ids.clear()  # the same balances make the same `account.baseline`
        if isinstance(entry, Emitted) and entry.id in self._ids:
            self._find("the same event is there twice", record, entry.asset)
            return
        for complaint in self._commits.follow(record.follows, entry):
            self._find(complaint, record)
        match entry:
            case Started():
                if entry.whole:
                    self._end_by_asset.clear()
                    self.verdict.from_baseline = True
                self._end_by_asset.update(entry.balance_by_asset)
            case Forgotten():
                for asset in entry.assets:
                    self._end_by_asset.pop(asset, None)
            case Emitted():
                self._ids.add(entry.id)
                self._link(entry, record)

    def compare(self, state: AccountState | None) -> None:
        if not self.verdict.records:
            return
        if state is None:
            self._find("there is no state of it, though the log holds its records")
            return
        for complaint in self._commits.close():
            self._find(complaint)
        if self._commits.at not in (None, state.sequence):
            self._find(f"the state is at sequence {state.sequence}, the log ends at {self._commits.at}")
        published = {asset: entry.published for asset, entry in state.entry_by_asset.items()}
        for asset in sorted(published.keys() | self._end_by_asset.keys()):
            of_state, of_log = published.get(asset), self._end_by_asset.get(asset)
            if of_state is None:
                self._find("the log holds it, the state does not", asset=asset)
            elif of_log is None:
                if self.verdict.from_baseline and not _is_nothing(of_state):
                    self._find("the state holds it, the log does not", asset=asset)
            elif of_log != of_state:
                self._find(f"the state has published {_differs(of_state, of_log)}", asset=asset)

    def _link(self, entry: Emitted, record: Record) -> None:
        """An event begins where the one before it, of the same asset, ended."""
        if entry.asset is None or entry.before is None or entry.after is None:
            return
        end = self._end_by_asset.get(entry.asset)
        self._end_by_asset[entry.asset] = entry.after
        if end is None:
            if self.verdict.from_baseline and not _is_nothing(entry.before):
                self._find("it begins with a balance that no record before it led to", record, entry.asset)
        elif end != entry.before:
            text = f"it begins with {_differs(entry.before, end)} as the record before it ended"
            self._find(text, record, entry.asset)

    def _find(self, text: str, record: Record | None = None, asset: str | None = None) -> None:
        self.verdict.findings.append(Finding(text, record.id if record else None, asset))


class _Commits:
    """Follows the sequence of one account from commit to commit; `at` is what the last one reached.

    All records of a commit have its time, and name the sequence that it follows. Its events are numbered
    from the next one on, or from the time if that is more, without a gap; what stands before them
    (baselines, and what was forgotten) names the last one. Where a whole account starts, the events that
    say so take numbers too, but are in the log only if a subscription got them.
    """

    def __init__(self) -> None:
        self.at: int | None = None
        self._commit: tuple[int, int] | None = None
        self._due: int | None = None
        self._promised: int | None = None
        self._has_events = False

    def begins_anew(self, follows: int, entry: Started | Forgotten | Emitted) -> bool:
        """Say whether this record follows nothing: the account was taken out, or its state was lost."""
        return follows == 0 and not self._is_more(follows, entry)

    def follow(self, follows: int, entry: Started | Forgotten | Emitted) -> Iterable[str]:
        """Take the next record; yields what is wrong with its place."""
        if not self._is_more(follows, entry):
            yield from self.close()
            if follows and self.at not in (None, follows):
                yield f"it follows sequence {follows}, the record before it ended at {self.at}: {_GONE}"
            # The log may have been trimmed in the middle of a commit, and then begins with an event.
            is_cut = self.at is None and isinstance(entry, Emitted)
            self._commit, self._has_events = (follows, entry.at_ms), False
            self._due = None if is_cut else max(follows + 1, entry.at_ms)
        if not isinstance(entry, Emitted):
            self._promised = None if entry.sequence == follows else entry.sequence
            self.at = follows
            if isinstance(entry, Started) and entry.whole:
                self.at, self._due = entry.sequence, None
        elif self._due is not None or self._promised is None:
            if self._due not in (None, entry.sequence):
                yield f"its sequence is {entry.sequence} where {self._due} was due: {_GONE}"
            self._due, self.at = entry.sequence + 1, entry.sequence
        self._has_events = isinstance(entry, Emitted)

    def close(self) -> Iterable[str]:
        """End the commit that is open: it must have come as far as it promised."""
        if self._promised not in (None, self.at):
            yield f"the commit before it went on to {self._promised}, its records end at {self.at}: {_GONE}"
        self._promised = None

    def _is_more(self, follows: int, entry: Started | Forgotten | Emitted) -> bool:
        in_order = isinstance(entry, Emitted) or not self._has_events
        return self._commit == (follows, entry.at_ms) and in_order


_GONE = "a record is missing or out of place"


def _differs(one: Balance, other: Balance) -> str:
    """Say in which fields two balances differ: `total 5 instead of 7`."""
    fields = zip(Balance._fields, one, other, strict=True)
    return ", ".join(
        f"{name} {_shown(here)} instead of {_shown(there)}" for name, here, there in fields if here != there
    )


def _shown(amount: str | None) -> str:
    return amount or "nothing known"


def _is_nothing(balance: Balance) -> bool:
    return all(amount in ("0", None) for amount in balance)
