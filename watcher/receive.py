"""Verify the webhooks that watcher sends, and follow their order: for the program that receives them.

    from watcher.receive import InvalidWebhook, verify

    async def take(request: web.Request) -> web.Response:
        try:
            event = verify(request.headers, await request.read(), SECRETS, seen=database.has_event)
        except InvalidWebhook as error:
            return web.Response(status=error.status)
        database.record(event["id"], event)
        return web.Response()

Five things a receiver should know:

- Give `verify` the bytes of the body as they came. A body that was parsed and written again differs.
- Amounts are decimal text. `Decimal(event["data"]["amount"])` is exact, but sums round to 28 digits
  unless the context is wider, and a balance may have 78 digits before its point and 78 behind it:

      with decimal.localcontext(prec=160):
          balance += Decimal(event["data"]["effect"]["total"])

- An event may come twice, with the same id. Record the id in the transaction that records what the event
  did, and keep ids as long as anything may come again: the default retries take nearly three days, and
  `watcher resend` repeats an id at any age. Five minutes, the tolerance for clocks, is not enough.
- Where the sender's Redis was set back, an id that you know may come with a higher sequence, and what you
  took may come again as part of another event. `follow` tells that from a gap if it sees repeats too
  (`InvalidWebhook.event`). Keep balances by the `after` of the event with the highest sequence: sums of
  effects count again what comes again.
- While a secret is being changed, give both: `verify(headers, body, [new, old])`.
- What never arrived can be pulled from the sender's API, with the subscription's token. A `Journal` says what
  to ask for, puts what was pulled and what was sent in one order, and keeps the balances:

      journal = Journal(database.kept(), seen=database.has_event)
      journal.catch_up()

      def pull() -> None:  # at the start, and whenever `journal.ask()` is not None
          while path := journal.ask():
              status, body = get("/v1/subscriptions/ops" + path)
              database.record(journal.answer(status, body), journal.changes())

This file needs Python's standard library alone and nothing else of watcher, so that it can be copied into
another program; `whpk_` keys (ed25519) need `cryptography` too. It refuses to read a request, to remember
an id and to answer: those are the receiver's.
"""

import base64
import hmac
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from enum import StrEnum
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

Body = bytes | bytearray | memoryview
Headers = Mapping[Any, Any] | Iterable[tuple[Any, Any]]
"""In any shape that frameworks use: a mapping of any kind, a WSGI environ, pairs of text or (ASGI) bytes."""

Event = dict[str, Any]
"""The parsed body. Numbers with a point would be Decimals: floats are not exact."""

Order = Literal["gap", "late", "restart", "rewound"]
"""What is odd about a sequence, within one subscription and account: gap: events queued before this one have
not arrived here (yet); late: a later one arrived before; restart: the sender says that nothing was queued
before this one; rewound: the sender's Redis was set back, and it has forgotten what it queued last. Only a
gap means that something is missing."""

TOLERANCE_S = 300
"""How far the sender's clock and the receiver's may be apart, either way."""

_SHARED, _PUBLIC, _PRIVATE = "whsec_", "whpk_", "whsk_"
_ID = re.compile(r"[!-\-/-~]{1,256}\Z")  # visible ASCII but '.', which separates what is signed
_TIMESTAMP = re.compile(r"[0-9]{1,12}\Z")
_SIGNATURE = re.compile(r"(?:(v1),([A-Za-z0-9+/]{43}=)|(v1a),([A-Za-z0-9+/]{86}==))\Z")
_MAX_SIGNATURES = 32  # watcher sends ten at most; ed25519 costs 100 µs each, and any client may send a header

_MAX_SIGNATURE_HEADER = 8192
"""Characters that are read; watcher sends no longer header."""
_HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")
_NAMES = {name_sent: name for name in _HEADERS for name_sent in (name, f"http_{name.replace('-', '_')}")}

_Signature = tuple[str, str]  # version and base64 text
_Key = tuple[str, Callable[[bytes, str], bool]]  # version, and whether content and base64 text match


class Step(StrEnum):
    """The checks of `verify`, in this order, named by how they fail."""

    MISSING_HEADER = "missing header"
    MALFORMED_ID = "malformed id"
    MALFORMED_TIMESTAMP = "malformed timestamp"
    TOO_OLD = "too old"
    TOO_NEW = "too new"
    MALFORMED_SIGNATURE = "malformed signature"
    NO_MATCH = "no signature matches"
    NOT_JSON = "body not JSON"
    DUPLICATE = "duplicate"


class InvalidWebhook(Exception):
    """A request that you must not act upon. `step` says why; the message adds detail and quotes nothing from
    outside. `event` is that of a DUPLICATE, which is genuine: give it to `follow`."""

    def __init__(self, step: Step, detail: str, event: Event | None = None) -> None:
        super().__init__(f"{step}: {detail}")
        self.step = step
        self.detail = detail
        self.event = event

    @property
    def status(self) -> int:
        """The status to answer with: 400, but 200 to a duplicate, which would otherwise be sent again for
        days."""
        return 200 if self.step is Step.DUPLICATE else 400


class UnusableSecret(ValueError):
    """The receiver's own secret is wrong: no request can be verified. The message never shows it."""


def verify(
    headers: Headers,
    body: Body,
    secrets: str | bytes | Sequence[str | bytes],
    *,
    now: float | None = None,
    tolerance_s: float = TOLERANCE_S,
    seen: Callable[[str], bool] | None = None,
) -> Event:
    """Return the event that `body` holds if one of `secrets` signed it, recently, and it is not `seen`.

    `headers` may write their names in any case, and come as a WSGI environ or as pairs. `secrets` are
    `whsec_…`, or `whpk_…` for ed25519; one match is enough. `now` is in Unix seconds, the clock by default.
    `seen(id)` says whether this id was handled before; it is called last, so that every id it is given is
    genuine.

    Raises InvalidWebhook, and nothing else whatever headers and body hold. Mistakes of the receiver itself
    are UnusableSecret, and TypeError for a body that is not bytes or headers that are neither of these.
    """
    if not isinstance(body, Body):
        raise TypeError("body must be the bytes of the request as they came, before any decoding or parsing")
    keys, body = _keys(secrets), bytes(body)
    event_id, timestamp, signatures = _read_headers(headers)
    age_s = (time.time() if now is None else now) - int(timestamp)
    if age_s > tolerance_s:
        raise InvalidWebhook(Step.TOO_OLD, f"sent {age_s:.0f} s ago, at most {tolerance_s:g} s are allowed")
    if -age_s > tolerance_s:
        raise InvalidWebhook(
            Step.TOO_NEW, f"sent {-age_s:.0f} s in the future, at most {tolerance_s:g} s are allowed"
        )
    content = f"{event_id}.{timestamp}.".encode() + body
    if not any(
        matches(content, text)
        for version, matches in keys
        for signed, text in signatures
        if signed == version
    ):
        sent, known = (" and ".join(sorted({one[0] for one in some})) for some in (signatures, keys))
        counts = f"{len(signatures)} in all; verified as {known} with {len(keys)} of our secrets"
        raise InvalidWebhook(Step.NO_MATCH, f"signed as {sent}, {counts}")
    event = read_body(body)
    if seen is not None and seen(event_id):
        raise InvalidWebhook(Step.DUPLICATE, "an event with this id was handled before", event)
    return event


def queue_of(event: Event) -> tuple[str, str] | None:
    """Return the subscription and the account whose sequence `event` has; None if it is about no account."""
    subscription, account = _at(event, "subscription", "name"), _at(event, "data", "account", "name")
    if not isinstance(account, str) or not account:
        return None
    return subscription if isinstance(subscription, str) else "", account


def follow(event: Event, last: int | None, *, is_repeat: bool = False) -> tuple[int | None, Order | None]:
    """Return the sequence to remember for the event's queue (`queue_of`), and what is odd about the event.

    `last` is what was remembered there before, None at first. Call this with every event that you take, and
    with those whose id you knew (`is_repeat`): they may have a new sequence, and the next event refers to it.
    An event about no account, such as a ping, changes nothing.
    """
    sequence = _number(event, "data", "sequence")
    previous = _number(event, "subscription", "previous_sequence")
    if sequence is None or queue_of(event) is None:
        return last, None
    if last is None:
        return sequence, None
    if sequence <= last:
        return last, None if is_repeat else "late"
    if previous is None:
        return sequence, "restart"
    if previous == last:
        return sequence, None
    return sequence, "gap" if previous > last else "rewound"


Balance = dict[str, str | None]
"""Decimal text by field: total, locked, available, pending_deposit, pending_withdrawal."""


@dataclass(slots=True)
class Account:
    """A receiver's knowledge of one account.

    `sequence`: up to there nothing is missing; None: nothing is known yet. `balances` by the asset's id;
    `is_whole` says that they are all of its assets. `waiting`, by sequence: events that came before one that
    is missing; they may be forgotten, because they can be pulled.
    """

    sequence: int | None = None
    is_whole: bool = False
    balances: dict[str, Balance] = field(default_factory=dict)
    waiting: dict[int, Event] = field(default_factory=dict)


class Taken(NamedTuple):
    """An event to act upon, once; or, if `event` is None, a balance that was moved by events that are gone.

    `moved`: by field, how much the balance of `asset` has changed here. Credit this: it is the event's
    effect, unless the sender's Redis was set back, or a filter left out other events. `fits` says whether the
    event's `before` was the balance here.
    """

    event: Event | None
    account: str
    asset: str | None
    moved: dict[str, Decimal]
    fits: bool


class PullRefused(Exception):
    """The API answered neither with a page nor that something is gone: ask again later, or fix the token."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the API answered {status}")
        self.status = status


class Journal:
    """All events of one subscription, in order, however they came; and the balances that they led to.

    `kept` is what `changes` returned so far; without it, the journal begins with the sender's balances.
    `seen(id)` says whether an event was acted upon before. Only one thread at a time may call it.
    """

    def __init__(
        self, kept: Mapping[str, Any] | None = None, *, seen: Callable[[str], bool] = lambda _id: False
    ) -> None:
        said = {**(kept or {})}
        self.cursor: str | None = said.pop("", None)
        self.accounts = {name: Account(**one) for name, one in said.items()}
        self._seen = seen
        self._changed: set[str] = set()
        self._path: str | None = None
        self._account: str | None = None
        self._begins_at: str | None = None
        self._asked: dict[str, int] | None = None

    def take(self, event: Event) -> list[Taken]:
        """Take an event that arrived. Returns the events to act upon now, in order: none if an earlier
        event is missing, or if it was taken before."""
        queue, sequence = queue_of(event), _number(event, "data", "sequence")
        if queue is None or sequence is None:
            return [Taken(event, "", None, {}, True)]
        account = self.accounts.setdefault(queue[1], Account())
        if account.sequence is not None and sequence <= account.sequence:
            return []
        if sequence in account.waiting or len(account.waiting) < _MOST_WAITING:
            account.waiting[sequence] = event
        return self._advance(queue[1])

    def changes(self) -> dict[str, Any]:
        """Return what to keep, as JSON by account, of what has changed since the last call. Write it in the
        transaction that records what the events did. The key "" holds how far all accounts were read."""
        changed, self._changed = self._changed, set()
        return {
            name: {
                "sequence": self.accounts[name].sequence,
                "is_whole": self.accounts[name].is_whole,
                "balances": self.accounts[name].balances,
            }
            if name
            else self.cursor
            for name in changed
        }

    @property
    def missing(self) -> dict[str, int]:
        """By account, the sequence after which something is missing."""
        return {name: account.sequence or 0 for name, account in self.accounts.items() if account.waiting}

    def catch_up(self) -> None:
        """Ask for everything that came since the last answer to this, also of unknown accounts: at the start,
        and every few minutes, because no gap shows that the last event of an account is missing."""
        self._path = "/balances" if self.cursor is None else f"/events?limit=1000&after={self.cursor}"
        self._account = self._begins_at = self._asked = None

    def ask(self) -> str | None:
        """Return what to GET next, below `/v1/subscriptions/NAME`; None if nothing is missing."""
        if self._path is None and (missing := self.missing):
            self._account = next(iter(missing))
            account = quote(self._account, safe="")
            self._path = f"/events?limit=1000&account={account}&after={missing[self._account]}"
        if self._path and self._asked is None:
            self._asked = {name: max(self.accounts[name].waiting) for name in self.missing}
        return self._path

    def answer(self, status: int, body: Body) -> list[Taken]:
        """Take the answer to what `ask` returned, and its status. Returns what `take` returns. Raises
        PullRefused, and InvalidWebhook for a body that is not JSON."""
        asked, self._asked = self._asked or {}, None
        if status == 410:  # the events are gone: what they did is in the balances
            self._path, self._account, self._begins_at = "/balances", None, None
            return []
        if status != 200 or self._path is None:
            raise PullRefused(status)
        page, taken = read_body(body), list[Taken]()
        if self._path.startswith("/balances"):
            self._begins_at = self._begins_at or page["events"]
            for item in page["items"]:
                taken += self._begin(item)
            self._path = f"/events?limit=1000&after={self._begins_at}"
            if page["next"] is not None:
                self._path = f"/balances?after={page['next']}"
            return taken
        for event in page["items"]:
            taken += self.take(event)
        self._path = f"{self._path.partition('&after=')[0]}&after={page['next']}"
        if not page["more"]:
            # What is still missing is nowhere: the sender's log may be damaged.
            for name, sequence in asked.items():
                if self._account in (None, name):
                    taken += self._advance(name, up_to=sequence)
            if self._account is None:
                self.cursor = page["next"]
                self._changed.add("")
            self._path = self._account = None
        return taken

    def _begin(self, item: Event) -> list[Taken]:
        """Go on from an account's balances, if they are newer than those here."""
        name, sequence = _at(item, "account", "name"), _number(item, "sequence")
        assert isinstance(name, str), "an item of balances names its account"
        account = self.accounts.setdefault(name, Account())
        if sequence is None or (account.sequence is not None and sequence <= account.sequence):
            return []
        taken = list[Taken]()
        for row in item["balances"]:
            asset, balance = row["asset"]["id"], {name: row[name] for name in _FIELDS}
            is_known = account.is_whole or asset in account.balances
            moved = _moved(account.balances.get(asset), balance) if is_known else {}
            account.balances[asset] = balance
            if any(moved.values()):
                taken.append(Taken(None, name, asset, moved, False))
        account.sequence, account.is_whole = sequence, True
        self._changed.add(name)
        return taken + self._advance(name)

    def _advance(self, name: str, *, up_to: int = 0) -> list[Taken]:
        """Take the waiting events of an account that are in order; and, `up_to` a sequence, also those after
        a gap."""
        account, taken = self.accounts[name], list[Taken]()
        for sequence in sorted(account.waiting):
            event = account.waiting[sequence]
            previous = _number(event, "subscription", "previous_sequence")
            if account.sequence is None or sequence > account.sequence:
                if not (sequence <= up_to or previous is None or previous <= (account.sequence or 0)):
                    break
                account.sequence = sequence
                self._changed.add(name)
                if not self._seen(str(event.get("id"))):
                    taken.append(_take(account, name, event))
            del account.waiting[sequence]
        return taken


_FIELDS = ("total", "locked", "available", "pending_deposit", "pending_withdrawal")
_MOST_WAITING = 1000
"""Of one account: further events are pulled together with what is missing before them."""


def _take(account: Account, name: str, event: Event) -> Taken:
    """Move the balances of an account on by an event."""
    if event.get("type") == "account.baseline":
        if _number(event, "data", "part") == 1:
            account.balances.clear()
            account.is_whole = True
        for row in event["data"]["balances"]:
            account.balances[row["asset"]["id"]] = {name: row[name] for name in _FIELDS}
        return Taken(event, name, None, {}, True)
    asset, before, after = (_at(event, "data", *path) for path in (("asset", "id"), ("before",), ("after",)))
    if not (isinstance(asset, str) and isinstance(before, dict) and isinstance(after, dict)):
        return Taken(event, name, None, {}, True)
    held = account.balances.get(asset, before)
    account.balances[asset] = {name: after[name] for name in _FIELDS}
    fits = all(held[name] == before[name] for name in _FIELDS)
    return Taken(event, name, asset, _moved(held, after), fits)


def _moved(held: Balance | None, now: Balance) -> dict[str, Decimal]:
    """Subtract exactly; what is unknown counts as nothing."""
    with localcontext(prec=200):
        return {name: Decimal(now[name] or 0) - Decimal((held or {}).get(name) or 0) for name in _FIELDS}


def check_secrets(secrets: str | bytes | Sequence[str | bytes]) -> None:
    """Check at the start what `verify` will be given. Raises UnusableSecret."""
    _keys(secrets)


def read_body(body: Body) -> Event:
    """Parse the body of an event, exactly. Raises InvalidWebhook."""
    try:
        event = json.loads(bytes(body).decode(), parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, ArithmeticError, RecursionError):
        raise InvalidWebhook(Step.NOT_JSON, "the body is not JSON in UTF-8") from None
    if not isinstance(event, dict):
        raise InvalidWebhook(Step.NOT_JSON, "the body is JSON, but not an object")
    return event


def _keys(secrets: str | bytes | Sequence[str | bytes]) -> list[_Key]:
    if not secrets:
        raise UnusableSecret("no secret to verify with")
    keys = []
    if not isinstance(secrets, Iterable):
        raise UnusableSecret(f"a secret must be text, this one is {type(secrets).__name__}")
    for given in [secrets] if isinstance(secrets, str | Body) else secrets:
        secret = _text(given)  # what is no ASCII is no base64 either
        if not isinstance(secret, str):
            raise UnusableSecret(f"a secret must be text, this one is {type(secret).__name__}")
        prefix = next((each for each in (_SHARED, _PUBLIC, _PRIVATE) if secret.startswith(each)), None)
        if prefix is None:
            raise UnusableSecret(f"not a secret: it begins with neither {_SHARED} nor {_PUBLIC}")
        if prefix == _PRIVATE:
            raise UnusableSecret(f"{_PRIVATE}… is the sender's private key: verify with its {_PUBLIC}…")
        try:
            key = base64.b64decode(secret.removeprefix(prefix), validate=True)
        except ValueError:
            raise UnusableSecret(f"what follows {prefix} is not base64") from None
        keys.append(_shared_key(key) if prefix == _SHARED else _public_key(key))
    return keys


def _shared_key(key: bytes) -> _Key:
    if not 24 <= len(key) <= 64:
        raise UnusableSecret(f"{_SHARED} holds {len(key)} byte{'s' * (len(key) != 1)}, it must be 24 to 64")

    def matches(content: bytes, signature: str) -> bool:
        expected = base64.b64encode(hmac.digest(key, content, "sha256"))
        return hmac.compare_digest(expected, signature.encode())

    return "v1", matches


def _public_key(key: bytes) -> _Key:
    if len(key) != 32:
        raise UnusableSecret(f"{_PUBLIC} holds {len(key)} byte{'s' * (len(key) != 1)}, it must be 32")
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise UnusableSecret(f"{_PUBLIC} keys need cryptography: pip install cryptography") from error
    public = Ed25519PublicKey.from_public_bytes(key)

    def matches(content: bytes, signature: str) -> bool:
        try:
            public.verify(base64.b64decode(signature), content)
        except InvalidSignature:
            return False
        return True

    return "v1a", matches


def _read_headers(headers: Headers) -> tuple[str, str, list[_Signature]]:
    """Read our headers, in any shape that a framework gives them. Of the signatures, those are kept that are
    well-formed and of a known version: the sender may add later versions."""
    pairs = headers.items() if isinstance(headers, Mapping) or hasattr(headers, "items") else headers
    values_by_name: dict[str, list[object]] = {name: [] for name in _HEADERS}
    try:
        for name_sent, value in pairs:
            if name := _NAMES.get(str(_text(name_sent)).lower()):
                values_by_name[name] += value if isinstance(value, list | tuple) else [value]
    except (TypeError, ValueError):
        raise TypeError("headers must be a mapping, or pairs of names and values") from None
    found = []
    for name, values in values_by_name.items():
        texts = [*dict.fromkeys(text for value in values if isinstance(text := _text(value), str) and text)]
        if not texts:
            odd = "".join({f"; it is {type(value).__name__}, not text" for value in values[:1] if value})
            raise InvalidWebhook(Step.MISSING_HEADER, f"there is no {name}{odd}")
        found.append(texts)
    event_ids, timestamps, signatures = found
    if len(event_ids) > 1 or not _ID.match(event_ids[0]):
        raise InvalidWebhook(Step.MALFORMED_ID, "webhook-id must be one, of visible ASCII without a '.'")
    if len(timestamps) > 1 or not _TIMESTAMP.match(timestamps[0]):
        raise InvalidWebhook(
            Step.MALFORMED_TIMESTAMP, "webhook-timestamp must be one, of Unix seconds, digits only"
        )
    written = " ".join(signatures)[:_MAX_SIGNATURE_HEADER].split(" ")
    matches = [match for match in map(_SIGNATURE.match, written) if match]
    if not matches:
        raise InvalidWebhook(Step.MALFORMED_SIGNATURE, "webhook-signature holds nothing like v1,… or v1a,…")
    known = [(match[1] or match[3], match[2] or match[4]) for match in matches[:_MAX_SIGNATURES]]
    return event_ids[0], timestamps[0], known


def _text(value: object) -> object:
    return bytes(value).decode("latin-1") if isinstance(value, Body) else value


def _number(event: Event, *path: str) -> int | None:
    value = _at(event, *path)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _at(value: object, *path: str) -> object:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _no_constant(_text: str) -> None:
    raise ValueError("NaN and Infinity are not JSON")
