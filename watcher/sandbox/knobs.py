"""Settings of a simulator that can change while it runs, and the requests that it got: faults, limits."""

from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Literal, TypeVar

from watcher.sandbox.answers import TOO_MANY, TOO_MANY_JSON, Call, Fault
from watcher.sandbox.book import AccountKey, Holding
from watcher.sandbox.world import World

KEPT_TIMES = 100_000
KEPT_CALLS = 1_000
"""A sandbox may run for days: counts are for ever, times and requests are the latest ones."""


class Traffic:
    """Requests per endpoint (a path): counts, arrival times in monotonic seconds, and the statuses sent."""

    def __init__(self) -> None:
        self.calls: deque[Call] = deque(maxlen=KEPT_CALLS)
        self._count_by_path: Counter[str] = Counter()
        self._times_by_path: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT_TIMES))
        self._statuses_by_path: dict[str, Counter[int]] = defaultdict(Counter)

    def arrived(self, call: Call, at: float) -> None:
        """Note a request."""
        self.calls.append(call)
        self._count_by_path[call.path] += 1
        self._times_by_path[call.path].append(at)

    def answered(self, path: str, status: int) -> None:
        """Note an answer, as it is about to be sent."""
        self._statuses_by_path[path][status] += 1

    def count(self, path: str | None = None) -> int:
        """Count requests, of one endpoint or of all."""
        return self._count_by_path.total() if path is None else self._count_by_path[path]

    def times(self, path: str) -> list[float]:
        """List the times of requests, earliest first."""
        return list(self._times_by_path[path])

    def statuses(self, path: str) -> Counter[int]:
        """Count the answers of one endpoint by status."""
        return Counter(self._statuses_by_path[path])

    def most_within(self, path: str, seconds: float = 1) -> int:
        """Return the most requests that came within any such span, as a rate limit counts them."""
        times, start, most = self.times(path), 0, 0
        for end, at in enumerate(times):
            while at - times[start] >= seconds:
                start += 1
            most = max(most, end - start + 1)
        return most

    def gaps(self, path: str) -> list[float]:
        """List the seconds between each request and the next."""
        return [after - before for before, after in pairwise(self.times(path))]


class RateLimit:
    """A sliding window of one second. Only accepted requests count."""

    def __init__(self) -> None:
        self._admitted_by_scope: dict[Hashable, deque[float]] = defaultdict(deque)

    def admits(self, scope: Hashable, at: float, limit: int | None) -> bool:
        """Say whether one more request may come now."""
        admitted = self._admitted_by_scope[scope]
        while admitted and at - admitted[0] >= 1:
            admitted.popleft()
        if limit is not None and len(admitted) >= limit:
            return False
        admitted.append(at)
        return True


_Row = TypeVar("_Row")
RowOrder = Literal["ascending", "descending", "shuffled"]
RateScope = Literal["endpoint", "provider", "key", "account"]


@dataclass(kw_only=True)
class Knobs:
    """What all simulators share. Faults go in this order: outage, rate limit, next_answers, every_answer."""

    api_keys: set[str] = field(default_factory=lambda: {"sandbox"})
    """A2, B1: keys that are let in. A key can turn invalid at any time: discard it."""

    next_answers: deque[Fault] = field(default_factory=deque)
    """Faults for the next requests for balances, one each: an Answer is sent as it is, a function spoils
    the honest one."""

    every_answer: Fault | None = None
    """Fault for every request for balances, while it is set."""

    outage: Fault | None = None
    """0, A11: fault for every request to any endpoint, while it is set: the provider is gone."""

    requests_per_second: int | None = None
    """A5, B4: requests let in within any one second; None: no limit."""

    rate_scope: RateScope = "endpoint"
    """A5 [UNKNOWN]: what one limit is counted over."""

    rate_limited: Fault = TOO_MANY
    """A4, B4 [UNKNOWN]: the answer over the limit; see TOO_MANY_JSON, TOO_MANY_HTML, too_many("7")."""

    latency_s: float = 0
    """A11, B5: how long every answer takes."""

    row_order: RowOrder = "ascending"
    """A3, B3 [UNKNOWN]: the order of rows (for MetaKeep, ascending is as asked)."""

    stale_polls: int = 0
    """B3, C2, C3: each change is kept back for so many polls of its account; at most 63."""

    flapping: bool = False
    """C2: every other poll is answered by a replica that is `stale_polls` (at least one poll) behind."""

    def fault(self) -> Fault | None:
        """Take the fault for the next request for balances, if there is one."""
        return self.next_answers.popleft() if self.next_answers else self.every_answer

    def arrange(self, rows: list[_Row], random: Random) -> list[_Row]:
        """Put rows, given in ascending order, into the order of `row_order`."""
        if self.row_order == "shuffled":
            return random.sample(rows, len(rows))
        return rows[::-1] if self.row_order == "descending" else rows


@dataclass(kw_only=True)
class LoopringKnobs(Knobs):
    """Settings of Loopring's simulator."""

    requests_per_second: int | None = 5
    """A5: "5 every second" on every page."""

    next_token_answers: deque[Fault] = field(default_factory=deque)
    """A6: as next_answers, for GET /api/v3/exchange/tokens."""

    every_token_answer: Fault | None = None
    """A6: as every_answer, for GET /api/v3/exchange/tokens."""

    account_by_key: dict[str, int] = field(default_factory=dict)
    """A2: keys that read one account only, as all keys did until 2021; 104002 for any other."""

    unknown_key_code: int = 104002
    """A4, C8: the answer to an unknown key; 101002 and 100001 were seen too."""

    unknown_account_code: int = 104003
    """A4, A11: the answer to an unknown account id; 102003 and 101002 are documented too."""

    unknown_address_code: int = 101002
    """A7, A11: the answer to an unknown address; 101001 is documented too."""

    unknown_token_code: int | None = 102002
    """A4: the answer to a filter with an unknown token; None leaves the token out."""

    error_status: int = 400
    """A4: status of application errors; 200 makes it a 200 with resultInfo."""

    error_shape: Literal["message", "msg", "top-level"] = "message"
    """A4: resultInfo.message, resultInfo.msg, or {code, msg} without resultInfo: all exist in the wild."""

    error_messages: dict[int, str] = field(default_factory=dict)
    """A4 [UNKNOWN]: message texts by code, in the place of our own."""

    zero_rows: Literal["kept", "omitted"] = "kept"
    """A3 (contradictory): whether a token that was touched once stays as a row of zeros."""

    account_id_in_rows: bool = True
    """A3: rows carry accountId; in the capture of 2021 they do not."""

    token_id_as_text: bool = False
    """A3: tokenId as a numeric string."""

    defi_rows: bool = False
    """A9: the other provider on the same path: rows of {address, value}."""

    unlisted_tokens: set[str] = field(default_factory=set)
    """A6: token ids that hold balances but are not in the token list (delisted, LP, new)."""

    inactive_accounts: set[int] = field(default_factory=set)
    """A7: accounts that were never activated: publicKey and keySeed are empty."""

    def token_fault(self) -> Fault | None:
        """Take the fault for the next request for the token list, if there is one."""
        return self.next_token_answers.popleft() if self.next_token_answers else self.every_token_answer


@dataclass(kw_only=True)
class MetakeepKnobs(Knobs):
    """Settings of MetaKeep's simulator."""

    requests_per_second: int | None = 100
    """B4: the default limit of an app."""

    rate_limited: Fault = TOO_MANY_JSON
    """B4 [UNKNOWN]: an API gateway's 429 or, see FORBIDDEN_RATE, its 403."""

    forbidden_keys: set[str] = field(default_factory=set)
    """B4: keys that are valid and may not read balances: 403 FORBIDDEN."""

    signatures: Literal["ignored", "checked", "required"] = "ignored"
    """B1 [UNKNOWN]: X-Api-Signature by the key that x-api-key names: unread, read if there, or demanded."""

    idempotency_replays: bool = True
    """B1: one Idempotency-Key gets the first answer again, forever."""

    unsupported: bool = False
    """B4: the app's chain has no such API: 400 UNSUPPORTED_OPERATION."""

    status: str = "SUCCESS"
    """B4: the status inside an answer with HTTP 200; anything else is undocumented."""

    casing: Literal["echo", "lower", "upper"] = "echo"
    """B3 [UNKNOWN]: currencies as they were asked for, in lower case, or with upper-case digits."""

    zero: Literal["0", "0.0", "omitted"] = "0"
    """B3 [UNKNOWN]: how a balance of zero is written."""

    zero_locked: Literal["absent", "0"] = "absent"
    """B3 [UNKNOWN]: `locked` of a MetaKeep coin with nothing locked (all others have no such field)."""

    zeros: Literal["none", "one", "full", "alternating"] = "none"
    """B5: needless zeros: "1.1", "1.10", all decimals, or "1.1" and "1.10" in turn."""

    unknown_currency: Literal["zero", "omitted", "INVALID_REQUEST", "INVALID_CURRENCY"] = "omitted"
    """B3, B4 [UNKNOWN]: the answer to a currency that the app does not know."""

    unknown_account: Literal["USER_NOT_FOUND", "INVALID_EMAIL", "INVALID_REQUEST", "zero"] = "USER_NOT_FOUND"
    """B4 [UNKNOWN for this endpoint]: the answer to an unknown user; "zero" holds nothing of all."""

    max_currencies: int | None = None
    """B2 [UNKNOWN]: more currencies than this are INVALID_REQUEST."""

    duplicates: Literal["none", "same", "different"] = "none"
    """B3 [UNKNOWN]: each row once, twice, or twice with another balance."""

    blank_names: bool = False
    """B3: name and symbol are empty."""

    extra_keys: bool = False
    """B3: rows carry undocumented keys."""

    legacy_body: bool = True
    """B2: the old singular body is answered, flat; otherwise INVALID_REQUEST."""


@dataclass(kw_only=True)
class BankKnobs(Knobs):
    """Settings of the bank's simulator."""

    requests_per_second: int | None = 20

    longest_page: int = 100
    """Currencies on a page, whatever `limit` asks for."""

    amounts: Literal["text", "numbers"] = "text"
    """Decimal text, or JSON numbers with all their digits."""

    zero_rows: Literal["kept", "omitted"] = "kept"
    """Whether a currency that was touched once stays as a row of zeros."""

    errors_with_200: bool = False
    """Errors come with the status 200, as if all were well."""


LONGEST_LAG = 63
"""Polls that are remembered, at most: enough for a lag of a minute at a poll a second."""


class Replicas:
    """The holdings that each poll of an account found, latest last."""

    def __init__(self, world: World, knobs: Knobs) -> None:
        self._world = world
        self._knobs = knobs
        self._past_by_account: dict[AccountKey, deque[Mapping[str, Holding]]] = defaultdict(
            lambda: deque(maxlen=LONGEST_LAG)
        )
        self._polls_by_account: dict[AccountKey, int] = defaultdict(int)

    def view(self, account: AccountKey) -> Mapping[str, Holding]:
        """Return the holdings at the replica that answers the next poll."""
        states = [*self._past_by_account[account], self._world.holdings(account)]
        stale_polls = self._knobs.stale_polls
        if self._knobs.flapping:
            stale_polls = max(1, stale_polls) if self.polls(account) % 2 else 0
        return states[max(0, len(states) - 1 - stale_polls)]

    def polls(self, account: AccountKey) -> int:
        """Say how many polls of this account were answered."""
        return self._polls_by_account[account]

    def polled(self, account: AccountKey) -> None:
        """Record that a poll was answered, and let the world go on."""
        past, state = self._past_by_account[account], self._world.holdings(account)
        # Equal states share one copy: a sandbox of many quiet accounts stays small.
        past.append(past[-1] if past and past[-1] == state else state)
        self._polls_by_account[account] += 1
        self._world.polled(account)
