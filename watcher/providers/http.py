"""Asks one provider over HTTP, within bounds, and reads what came back."""

import asyncio
import hashlib
import json
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Any, Self

from aiohttp.abc import AbstractResolver

from watcher import __version__
from watcher.durations import retry_after_s
from watcher.fields import as_written
from watcher.http.dial import Dialer, NoConnection, NoHostName, Unresolved
from watcher.http.pool import Pool
from watcher.http.wire import Answer, Head, Limits, NoAnswer, NotHttp, Place, TimedOut, TooLong, place_of
from watcher.providers.contract import AssetList, ByRow, Catalogue, ErrorClass, Provider, Rejected, Request
from watcher.providers.kept import KeptCatalogue, Memo, is_sound
from watcher.providers.strict_json import NotJson, parse
from watcher.settings import ProviderSettings
from watcher.snapshot import Asset, Balance, Row, Snapshot, asset_id, is_called, spoken
from watcher.tls_flaws import CANNOT_CONNECT, cannot_connect, tls_flaw

LIMIT = 1024 * 1024
"""Bytes of a body, compressed and not. A list of 3,000 balances has half of that."""

LIMIT_OF_ALL = 4 * LIMIT
"""Bytes of all bodies of a poll. A hostile body takes 25 times as much once it is parsed."""

_GZIP = 16 + zlib.MAX_WBITS


def body_of(answer: Answer) -> bytes:
    """Decompress the body of a whole answer. Raises Rejected."""
    packed = answer.body
    if len(packed) > LIMIT:
        raise _too_large()
    encoding = (answer.header("content-encoding") or "identity").lower()
    if encoding == "identity":
        return packed
    if encoding not in ("gzip", "x-gzip"):
        raise Rejected("malformed", "the answer is compressed in a way that was not asked for")
    stream = zlib.decompressobj(_GZIP)
    try:
        body = stream.decompress(packed, LIMIT + 1)
    except zlib.error:
        raise Rejected("malformed", "the answer is not gzip, although it says so") from None
    if len(body) > LIMIT:
        raise _too_large()
    if not stream.eof or stream.unused_data:
        raise Rejected("malformed", "the answer is not one whole gzip stream")
    return body


_TOO_LARGE = "the answer is larger than 1 MiB"


def _too_large() -> Rejected:
    return Rejected("malformed", _TOO_LARGE)


def _refuse_too_much(bodies: Sequence[bytes]) -> None:
    if sum(map(len, bodies)) > LIMIT_OF_ALL:
        raise Rejected("malformed", "the answers of a poll are larger than 4 MiB in all")


LONGEST_RETRY_AFTER_S = 900.0
"""A provider may ask for a pause, but not stop the polls of an account."""
CONNECTIONS = 128
"""Twice what the fastest default rate keeps busy at a second an answer, and far fewer than file descriptors.
Each provider has its own: one that hangs makes only its own polls wait."""

_LIMITS = Limits(total=LIMIT + 256 * 1024, kept=LIMIT + 1)
"""Besides the body there may be cookies of any size, set by a provider's proxy, and the framing of chunks."""

_KEEP_ALIVE_S = 15.0
_SLACK = 1.05
"""Requests are a little further apart than the limit asks: they arrive less evenly than they are sent."""

_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "gzip",
    "User-Agent": f"watcher/{__version__}",
}
HIGHEST = 10**20
"""Above every height of a chain, also one that counts nanoseconds."""

_NOTHING: Catalogue = MappingProxyType({})


def provider_pool(resolver: AbstractResolver | None = None, connections: int = CONNECTIONS) -> Pool:
    """Make the pool of connections to all providers, so many to each. The caller closes it, and a `resolver`
    that it gives."""
    return Pool(Dialer(resolver), keep_alive_s=_KEEP_ALIVE_S, limit=connections)


class ProviderClient:
    """The connections to one section of the file. Use as `async with`.

    `wait_turn` is awaited before a request without a reserved turn (the list of assets, what a poll asks
    after an answer), so that it keeps to the rate limit too; a poll takes `cost(account)` of that limit.
    `requests` counts all requests that are sent. The caller closes a `pool` that it gives, which others may
    share.
    """

    def __init__(
        self,
        provider: Provider,
        settings: ProviderSettings,
        *,
        wait_turn: Callable[[], Awaitable[None]] | None = None,
        requests: Counter[str] | None = None,
        pool: Pool | None = None,
        utc_now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
        notes_date: bool = False,
    ) -> None:
        self._provider = provider
        self._settings = settings
        self._base_url = settings.base_url.rstrip("/")
        self.spacing_s = _SLACK / settings.requests_per_second
        self._trusted = settings.ca.pem if settings.ca else None
        self._timeout_s = settings.timeout.total_seconds()
        self._wait_turn = wait_turn
        self._requests = Counter[str]() if requests is None else requests
        self._pool = pool
        self._is_own = pool is None
        self._utc_now = utc_now
        self._clock = clock
        self._notes_date = notes_date
        self.dated: tuple[str, datetime] | None = None
        """The `Date` of the last answer that had one, and our time when it came; only where it is noted."""
        self._by_row = provider if isinstance(provider, ByRow) and provider.is_by_row else None
        self.lists_assets = provider.catalogue_request() is not None
        """Whether the provider has a list of assets, from which decimals may become known later."""

    async def __aenter__(self) -> Self:
        if self._is_own:
            self._pool = provider_pool()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._is_own and self._pool:
            await self._pool.close()

    @cached_property
    def _catalogue(self) -> KeptCatalogue:
        return KeptCatalogue(self._fetch_catalogue, clock=self._clock)

    @property
    def most_rounds(self) -> int:
        """How often a poll asks at most, each time after the previous answers."""
        return self._provider.most_rounds

    def cost(self, account: Any) -> int:
        """Return how many requests one poll of this account begins with."""
        return len(self._provider.requests(account))

    def source(self, account: Any) -> str:
        """Return what is polled for this account, for comparison only: another source is another account."""
        return source_of(self._settings, self._provider, account)

    async def ask(self, account: Any) -> tuple[bytes, ...]:
        """Send the requests of one poll, one round after the other. Raises Rejected.

        The same bytes as at the last successful poll mean the same snapshot, and need not be read.
        """
        requests = self._provider.requests(account)
        if len(requests) > 1:
            bodies = await self._ask_at_turns(requests)
            _refuse_too_much(bodies)
        else:
            bodies = (await self._fetch(requests[0]),)
        if self._provider.most_rounds == 1:
            return bodies
        answers = [*map(self._parse, bodies)]
        for _ in range(1, self.most_rounds):
            if not (more := self._provider.requests(account, answers)):
                return bodies
            asked = []
            for index in range(len(more)):
                await self._turn()
                # Made again at its turn: a signed request contains the time.
                asked.append(await self._fetch(self._provider.requests(account, answers)[index]))
            bodies += tuple(asked)
            _refuse_too_much(bodies)
            answers += map(self._parse, asked)
        if self._provider.requests(account, answers):
            raise Rejected("malformed", f"there is more to ask for after {self.most_rounds} rounds")
        return bodies

    async def _ask_at_turns(self, requests: Sequence[Request]) -> tuple[bytes, ...]:
        """Send the first requests of a poll, each at its reserved turn, without waiting for the answer to the
        one before.
        """
        try:
            async with asyncio.TaskGroup() as group:
                parts = [
                    group.create_task(self._fetch(request, wait_s=number * self.spacing_s))
                    for number, request in enumerate(requests)
                ]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return tuple(part.result() for part in parts)

    async def read(
        self,
        account: Any,
        bodies: Sequence[bytes],
        *,
        known: Callable[[], Catalogue] = dict,
        memo: Memo | None = None,
    ) -> Snapshot:
        """Read the bodies of one poll. Raises Rejected, and nothing else whatever the bytes are.

        Awaits only to fetch the list of assets, when it lacks one of them. `known()` is what the last
        state says of its assets: it stands in for a list that no longer, or not yet, holds them.
        `memo` is the account's: where little differs from the last answer, only that is read.
        """
        provider = self._provider
        listed = self._catalogue.asset_by_id if self.lists_assets else _NOTHING
        by_row = self._by_row if memo else None
        if memo and by_row and (again := memo.read(by_row, account, bodies, listed)):
            return again
        answers = [self._parse(body) for body in bodies]
        owner = None
        if by_row:
            snapshot, owner = by_row.read_owned(account, answers, listed)
        else:
            snapshot = provider.read(account, answers, listed)
        assets = snapshot.row_by_asset.keys()
        if not self.lists_assets or assets <= listed.keys():
            refuse_flaw(snapshot)
            if memo and by_row:
                memo.learn(by_row, account, bodies, listed, snapshot, owner)
            return snapshot
        catalogue = self._catalogue
        await catalogue.look_up(assets)
        asset_by_id = {**known(), **catalogue.asset_by_id}
        if unknown := assets - asset_by_id.keys() - catalogue.unlisted:
            raise catalogue.refusal(unknown)
        snapshot = provider.read(account, answers, asset_by_id)
        refuse_flaw(snapshot)
        return snapshot

    async def add_zeros(self, snapshot: Snapshot, assets: Iterable[str]) -> Snapshot:
        """Add a row for each of these assets, named by id or symbol, that a full listing does not name.

        An asset in no list is not the provider's. Raises nothing: without a list the snapshot stays open.
        """
        rows = snapshot.row_by_asset.values()
        unnamed = [text for text in assets if not any(is_called(row.asset, text) for row in rows)]
        if not unnamed or not snapshot.absent_is_zero:
            return snapshot
        if not self.lists_assets:
            return snapshot._replace(zeros=tuple(self._zero(Asset(asset_id(text))) for text in unnamed))
        unknown = {text for text in unnamed if not self._catalogue.find(text)}
        await self._catalogue.look_up(unknown)
        found = [asset for text in unnamed if (asset := self._catalogue.find(text))]
        is_open = any(not self._catalogue.find(text) for text in unknown - self._catalogue.unlisted)
        return snapshot._replace(zeros=tuple(map(self._zero, found)), is_open=is_open)

    def _zero(self, asset: Asset) -> Row:
        pendings = ("pending_deposit", "pending_withdrawal")
        known = (None if name in self._provider.unknown_fields else "0" for name in pendings)
        return Row(asset, Balance("0", "0", *known))

    async def _fetch_catalogue(self) -> AssetList:
        request = self._provider.catalogue_request()
        assert request is not None
        await self._turn()
        body = await self._fetch(request)
        return self._provider.read_catalogue(self._parse(body))

    async def _turn(self) -> None:
        """Wait for a turn that no poll has reserved."""
        if self._wait_turn:
            await self._wait_turn()

    def _parse(self, body: bytes) -> Any:
        """Parse the body of an answer with status 200, which may still hold an error."""
        try:
            answer = parse(body)
        except NotJson as error:
            raise Rejected("malformed", f"the answer is {error}", status=200) from None
        if refused := self._provider.refusal(200, answer):
            raise Rejected(refused.error_class, refused.reason, status=200)
        return answer

    async def _fetch(self, request: Request, *, wait_s: float = 0.0) -> bytes:
        """Send a request, and once more if the other side had just closed the connection: asking for a
        balance twice does no harm."""
        if wait_s:
            await asyncio.sleep(wait_s)
        self._requests[self._settings.name] += 1
        assert self._pool, "it is entered first"
        deadline = self._pool.time() + self._timeout_s
        headers, body = tuple(request.secret_headers.items()), request.body
        if request.json is not None:
            body = json.dumps(request.json).encode()
            headers += (("Content-Type", "application/json"),)
        if body is not None or request.method == "POST":  # which has a body, if an empty one
            headers += (("Content-Length", str(len(body or b""))),)
        try:
            place, head = _way(request.method, self._base_url + request.path, headers, self._trusted)
            written = b"%b\r\n%b" % (head.written(request.query), body or b"")
            answer = await self._pool.send(place, written, _LIMITS, deadline=deadline)
        except NoAnswer as error:
            raise by_error(error, host=head.url.host) from error
        except ValueError as error:
            raise Rejected("configuration", "base_url is not an address") from error
        if self._notes_date and (date := answer.header("date")):
            self.dated = date, self._utc_now()
        if answer.status != 200:
            raise self._refusal(answer)
        if answer.cut:
            raise by_error(answer.cut, answer.status) from answer.cut
        return body_of(answer)

    def _refusal(self, answer: Answer) -> Rejected:
        """Say why an answer is a refusal: by what the provider says, or by the status alone."""
        status = answer.status
        try:
            says = None if answer.cut else parse(body_of(answer))
        except (Rejected, NotJson):
            says = None  # it has no JSON body, for whatever reason
        refused = self._provider.refusal(status, says)
        if refused is None or status == 429:
            refused = by_status(status)
        wish_s = retry_after_s(answer.header("retry-after"), self._utc_now(), most_s=LONGEST_RETRY_AFTER_S)
        return Rejected(refused.error_class, refused.reason, status=status, retry_after_s=wish_s)


@lru_cache(maxsize=256)  # all requests of a provider differ in their queries only
def _way(
    method: str, url: str, headers: tuple[tuple[str, str], ...], trusted: str | None
) -> tuple[Place, Head]:
    """Read where a request leads, and write its head. Raises ValueError."""
    read = as_written(url)
    return place_of(read, trusted), Head.of(method, read, {**_HEADERS, **dict(headers)}.items())


def refuse_flaw(snapshot: Snapshot) -> None:
    """Refuse what no provider can mean: only a total may be negative, and a height has bounds. Raises
    Rejected."""
    if snapshot.height is not None and not 0 <= snapshot.height < HIGHEST:
        raise Rejected("malformed", "a height that no chain can have")
    for asset, row in snapshot.row_by_asset.items():
        if not is_sound(row.balance):
            raise Rejected("malformed", f"asset {spoken(asset)}: only a total may be negative")


def source_of(settings: ProviderSettings, provider: Provider, account: Any) -> str:
    """Name what is polled for an account, as `ProviderClient.source` does."""
    parts = (settings.name, settings.base_url.rstrip("/"), provider.source(account))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


# Why a poll is rejected, as far as HTTP itself shows it. What a foreign exception says is never repeated:
# those texts hold URLs.

_REDIRECTS = (301, 302, 303, 307, 308)
_ERROR_CLASS_BY_STATUS: Mapping[int, tuple[ErrorClass, str]] = {
    401: ("auth", "the API key is refused"),
    403: ("auth", "forbidden: the key has no access, or this address is blocked"),
    408: ("transient", "a time-out at the provider"),
    425: ("transient", "too early"),
    429: ("rate", "over the rate limit"),
    **dict.fromkeys(_REDIRECTS, ("configuration", "a redirect, which is not followed: see base_url")),
}
_ERROR_CLASS_BY_HUNDRED: Mapping[int, tuple[ErrorClass, str]] = {
    4: ("configuration", "a request that the provider does not accept"),
    5: ("transient", "an error at the provider"),
}

_IF_SLOW = "if it is only slow, raise timeout in its section"
_UNREACHED: tuple[tuple[type[NoAnswer], ErrorClass, str, str], ...] = (
    (NoHostName, "configuration", "base_url is not a host name", ""),
    (Unresolved, "gone", "the name does not resolve", "look at base_url, and at the DNS of this machine"),
    (NoConnection, "gone", CANNOT_CONNECT, "look at base_url, and at the firewalls in between"),
    (NotHttp, "malformed", "the answer is not HTTP", ""),
    (TooLong, "malformed", "the answer is not HTTP", ""),
    (TimedOut, "gone", "no answer in time", f"look at base_url; {_IF_SLOW}"),
    (
        NoAnswer,
        "gone",
        "the connection broke before an answer",
        "look at base_url, or a proxy in between",
    ),
)
_BROKEN_OFF: tuple[tuple[type[NoAnswer], ErrorClass, str, str], ...] = (
    (TooLong, "malformed", _TOO_LARGE, ""),
    (NotHttp, "malformed", "the answer is not HTTP", ""),
    (TimedOut, "transient", "no whole answer in time", _IF_SLOW),
    (NoAnswer, "transient", "the answer is incomplete", ""),
)


def by_status(status: int) -> Rejected:
    """Say what an HTTP status other than 200 means if the provider's own words say nothing."""
    other: tuple[ErrorClass, str] = ("malformed", "an answer without balances")
    error_class, reason = _ERROR_CLASS_BY_STATUS.get(status) or _ERROR_CLASS_BY_HUNDRED.get(
        status // 100, other
    )
    return Rejected(error_class, f"{reason} ({status})", status=status)


def by_error(error: NoAnswer, status: int | None = None, *, host: str | None = None) -> Rejected:
    """Say how a request to a host failed: before an answer (`status` is None), or in the middle of one. The
    host is for the log alone: subscribers get the reason."""
    if status is None and (flaw := tls_flaw(error, is_handshake=isinstance(error, NoConnection))):
        in_its_section = ', or ca = "/path/ca.pem" in its section' if "SSL_CERT_FILE" in flaw.fix else ""
        return Rejected("gone", flaw.words, fix=flaw.fix + in_its_section)
    table = _UNREACHED if status is None else _BROKEN_OFF
    error_class, words, fix = next(row[1:] for row in table if isinstance(error, row[0]))
    words = cannot_connect(error) if words == CANNOT_CONNECT else words
    return Rejected(error_class, words, fix=fix, detail=host or "", status=status)
