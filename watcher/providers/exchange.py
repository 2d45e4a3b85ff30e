"""Any exchange that ccxt knows: ccxt says what to ask next and signs it, `http` sends.

ccxt's `fetch_balance` runs from its start with the answers so far, until it asks for no more. Where the
balances stand in the answers of some exchanges is in `REVIEWED`, and those are read here; others are read as
ccxt reads them, if `unreviewed` allows it. Refuses to let ccxt connect, wait or print, and to take its word
for a listing: to ccxt, an answer without a list is a list without balances.

Of ccxt it uses what is public: `exchanges`, the classes and their errors, the options of the constructor,
`set_markets`, `number`, `session`, `urls`, `hostname`, `options`, `requiredCredentials`, `fetch_balance`,
`handle_errors` and `safe_currency_code`; it overrides `fetch`, `load_markets`, `throttle`, `sleep` and `log`.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from copy import copy, deepcopy
from difflib import get_close_matches
from functools import cache, cached_property, lru_cache
from importlib import import_module
from itertools import chain
from typing import Any, ClassVar, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from watcher.amounts import NotAnAmount, from_number, to_atoms, to_text
from watcher.fields import BaseUrl
from watcher.providers.contract import AssetList, Catalogue, ErrorClass, Rejected, Request
from watcher.providers.strict_json import Ambiguous, Number
from watcher.settings import AccountSettings, KeyedSettings, ProviderSettings
from watcher.snapshot import Asset, Balance, Row, Snapshot, asset_id, spoken

Way = tuple[str | int, ...]
"""Leads into JSON: the name of a member, or the index in a list, at each step."""


class Listing(NamedTuple):
    """What one way to ask an exchange lists, as its documentation says.

    `rows` leads from an answer to a list of rows; without `asset`, to an object with a row by asset. From a
    row, the other ways lead to two of `total`, `free` and `locked`; the third follows from them.
    """

    name: str
    types: tuple[str | None, ...]
    """The values that `type` in an account's `params` may have; None: it is not given."""
    rows: Way
    asset: Way | None
    total: Way | None = None
    free: Way | None = None
    locked: Way | None = None
    params: Mapping[str, object] = {}
    """The other `params`, except for a `recvWindow`."""
    wallet: tuple[Way, frozenset[str], re.Pattern[str]] | None = None
    """Where a row says of which wallet it is, which ones count, and what all of them are called."""
    more: Way | None = None
    """Where an answer says whether another page follows."""
    parts: Way | None = None
    """If several rows are about one asset: what distinguishes them."""
    is_full: bool = True
    """The documentation says that it lists everything: what is absent is zero."""
    may_be_empty: bool = True
    """Assets, or wallets, without a balance are left out."""


class Venue(NamedTuple):
    """An exchange that was reviewed: where it is, how it lists balances, and options for ccxt."""

    base_url: str
    listings: tuple[Listing, ...]
    options: Mapping[str, object] = {}
    errors: Mapping[str, tuple[ErrorClass, str]] = {}
    """What some error answers say, and ccxt does not know."""


_BINANCE = Listing("spot", (None, "spot"), ("balances",), ("asset",), free=("free",), locked=("locked",))

REVIEWED: Mapping[str, Venue] = {
    "binance": Venue(
        "https://api.binance.com",
        (
            _BINANCE._replace(may_be_empty=False),
            _BINANCE._replace(params={"omitZeroBalances": True}),
        ),
    ),
    "bitfinex": Venue(
        "https://api.bitfinex.com",
        (
            Listing(
                "exchange",
                (None, "exchange"),
                rows=(),
                asset=(1,),
                total=(2,),
                free=(4,),
                wallet=((0,), frozenset({"exchange"}), re.compile(r"(exchange|margin|funding)\Z")),
            ),
        ),
    ),
    "bitstamp": Venue(
        "https://www.bitstamp.net",
        (
            Listing(
                "spot",
                (None,),
                rows=(),
                asset=("currency",),
                total=("total",),
                locked=("reserved",),
                is_full=False,  # it names all currencies, but does not say that it does
                may_be_empty=False,
            ),
        ),
        errors={"400.002": ("rate", "over the rate limit")},
    ),
    "bybit": Venue(
        "https://api.bybit.com",
        (
            # `locked` is what spot orders hold; margins, which ccxt adds to it, move with prices.
            Listing(
                "unified",
                (None, "spot"),
                rows=("result", "list", 0, "coin"),
                asset=("coin",),
                total=("walletBalance",),
                locked=("locked",),
            ),
            Listing(
                "funding",
                ("funding",),
                rows=("result", "balance"),
                asset=("coin",),
                total=("walletBalance",),
                free=("transferBalance",),
            ),
        ),
        # All accounts are unified ones: else ccxt asks at each poll, with two requests, whether this one is.
        {"enableUnifiedMargin": False, "enableUnifiedAccount": True},
        {"10016": ("transient", "an error at the exchange")},
    ),
    "coinbase": Venue(
        "https://api.coinbase.com",
        (
            Listing(
                "accounts",
                (None, "spot"),
                rows=("accounts",),
                asset=("currency",),
                free=("available_balance", "value"),
                locked=("hold", "value"),
                wallet=(
                    ("type",),
                    frozenset({"ACCOUNT_TYPE_CRYPTO", "ACCOUNT_TYPE_FIAT"}),
                    re.compile(r"ACCOUNT_TYPE_[A-Z_]+\Z"),
                ),
                more=("has_next",),
                parts=("uuid",),
                may_be_empty=False,
            ),
        ),
        {"fetchBalance": "v3PrivateGetBrokerageAccounts"},
    ),
    "gemini": Venue(
        "https://api.gemini.com",
        (
            Listing(
                "exchange",
                (None,),
                rows=(),
                asset=("currency",),
                total=("amount",),
                free=("available",),
            ),
        ),
    ),
    "kraken": Venue(
        "https://api.kraken.com",
        (Listing("spot", (None,), rows=("result",), asset=None, total=("balance",), locked=("hold_trade",)),),
        errors={"EAPI:Invalid signature": ("auth", "the exchange refuses the key, or its secret")},
    ),
    "okx": Venue(
        "https://www.okx.com",
        (
            # Without this type it is the trading account, whose total ccxt takes from `eq`: equity.
            Listing(
                "funding",
                ("funding",),
                rows=("data",),
                asset=("ccy",),
                total=("bal",),
                locked=("frozenBal",),
            ),
        ),
    ),
}
"""What was compared with the exchanges' documentation. tests/data/exchanges/ holds an answer of each."""

_PAGES = 8
"""Answers that one poll takes where there may be several: 2,000 accounts at Coinbase."""

_WHY = "ccxt's total may be equity, which moves with prices; the provider's `unreviewed = true` allows it"


class ExchangeSettings(KeyedSettings):
    exchange: str = Field(min_length=1, max_length=64, description="which one, as ccxt calls it: `kraken`")
    base_url: BaseUrl = Field(
        "https://unknown.invalid",
        description="scheme and host of the API, as of a regional one; default: the exchange's own",
    )
    secret: SecretStr = Field(description="signs each request; a PEM may have its line breaks as `\\n`")
    password: SecretStr | None = Field(None, description="the passphrase of the key, where it has one")
    uid: SecretStr | None = Field(None, description="the number of the user, where the exchange asks for it")
    unreviewed: bool = Field(
        False, description="take what was not reviewed as ccxt reads it, be it equity or a balance"
    )
    requests_per_second: float = Field(1.0, ge=0.001, le=10_000, description="over all workers together")

    @model_validator(mode="before")
    @classmethod
    def _at_its_own_address(cls, given: Any) -> Any:
        name = given.get("exchange") if isinstance(given, dict) else None
        if isinstance(name, str) and "base_url" not in given and (own := _own_url(name)):
            return {**given, "base_url": own}
        return given

    @field_validator("exchange")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            known = _ccxt().exchanges
        except ImportError:
            raise ValueError("needs ccxt: pip install 'balance-watcher[exchange]'") from None
        if name not in known:
            close = get_close_matches(name.lower(), known, n=1)
            meant = f" -- did you mean '{close[0]}'?" if close else ""
            raise ValueError(f"ccxt knows no exchange of this name{meant}")
        return name

    @field_validator("secret")
    @classmethod
    def _has_its_line_breaks(cls, secret: SecretStr) -> SecretStr:
        return SecretStr(secret.get_secret_value().replace("\\n", "\n"))

    @field_validator("password", "uid")
    @classmethod
    def _fits_a_header(cls, text: SecretStr | None) -> SecretStr | None:
        if text is not None and not re.fullmatch(r"[ -~]{1,1024}", text.get_secret_value()):
            raise ValueError("must be one line of ASCII")
        return text

    @model_validator(mode="after")
    def _can_sign(self) -> Self:
        """Sign once, offline: what is wrong with a key is to be found before anything runs."""
        venue = REVIEWED.get(self.exchange)
        if not venue and not self.unreviewed:
            raise ValueError(f"exchange: {self.exchange} was not reviewed: {_WHY}")
        blank = _offline(self.exchange)()
        for name, is_needed in blank.requiredCredentials.items():
            if is_needed and name not in self.credentials:
                if name in type(self).model_fields:
                    raise ValueError(f"{name}: is missing: the exchange needs it")
                raise ValueError(f"exchange: needs a {name}, for which there is no setting")
        if venue:
            kind = venue.listings[0].types[0]
            try:
                Signer(self).run({"type": kind} if kind else {})
            except Rejected:
                raise ValueError("secret: this exchange's keys and secrets look otherwise") from None
        return self

    @property
    def credentials(self) -> dict[str, str]:
        """What requests are signed with, as ccxt calls it."""
        given = {"apiKey": self.api_key, "secret": self.secret, "password": self.password, "uid": self.uid}
        return {name: text.get_secret_value() for name, text in given.items() if text}


class ExchangeAccount(AccountSettings):
    params: dict[str, bool | int | str] = Field(
        {}, description='of an account: what ccxt\'s `fetch_balance` is given, such as `{ type = "funding" }`'
    )


_LATE = Rejected(
    "transient",
    "the exchange saw requests with this key out of order, or late",
    fix="use the key nowhere else, and set the clock (NTP)",
)
_SAYS_LATE = re.compile("nonce|timestamp", re.IGNORECASE)
"""Said by what ccxt takes for a wrong key, too. A second worker, or a slow request, is enough for it."""

_ERRORS: tuple[tuple[str, ErrorClass, str, str], ...] = (
    ("InvalidNonce", _LATE.error_class, _LATE.words, _LATE.fix),
    ("AuthenticationError", "auth", "the exchange refuses the key, or what it asks for", ""),
    ("RateLimitExceeded", "rate", "over the rate limit", ""),
    ("DDoSProtection", "rate", "over the rate limit", ""),
    ("OperationFailed", "transient", "an error at the exchange", ""),
    ("RestrictedLocation", "configuration", "the exchange does not serve this place", ""),
    ("BadRequest", "configuration", "a request that the exchange does not take", "look at `params`"),
    ("ArgumentsRequired", "configuration", "a request that lacks something", "look at `params`"),
    ("NotSupported", "configuration", "a request that ccxt does not know", "look at `params`"),
    ("BaseError", "malformed", "an error that ccxt does not know", ""),
)
"""ccxt's errors, a class before the ones that it is derived from, and what they mean to a poll."""


def _ccxt() -> Any:
    """Import ccxt, for which there is half a second and 50 MB to pay. Raises ImportError."""
    return import_module("ccxt")


@contextmanager
def _rejecting() -> Iterator[None]:
    """Let ccxt run: whatever it raises about answers from outside becomes Rejected, without its text."""
    try:
        yield
    except (_Asked, Rejected):
        raise
    except Exception as error:  # ccxt reads what it finds as if it were right
        for name, error_class, words, fix in _ERRORS:
            if isinstance(error, getattr(_ccxt(), name)):
                raise Rejected(error_class, words, fix=fix) from None
        raise Rejected("malformed", "not an answer that ccxt can read") from None


class _Asked(Exception):
    """Raised when ccxt wants an answer that is not there yet."""

    def __init__(self, url: str, method: str, headers: Mapping[str, Any] | None, body: object) -> None:
        super().__init__()
        self.url, self.method, self.headers, self.body = url, method, headers or {}, body


@cache
def _offline(name: str) -> Any:
    """Make ccxt's class of an exchange one that cannot reach anything."""

    def fetch(
        self: Any,
        url: str,
        method: str = "GET",
        headers: Mapping[str, Any] | None = None,
        body: object = None,
    ) -> Any:
        for answer in self.answers:
            return answer
        self.asked = _Asked(url, method, headers, body)
        raise self.asked

    def nothing(*_: Any, **__: Any) -> dict[str, Any]:
        return {}

    others = dict.fromkeys(("load_markets", "throttle", "sleep", "log"), nothing)
    base = getattr(_ccxt(), name)
    return type(name, (base,), {"fetch": fetch, "answers": iter(()), "asked": None, **others})


@cache
def _own_url(name: str) -> str | None:
    """Return where an exchange is, as scheme and host; None if that is unknown."""
    if venue := REVIEWED.get(name):
        return venue.base_url
    with suppress(ImportError, Rejected):
        if name in _ccxt().exchanges:
            keys = dict.fromkeys(("apiKey", "secret", "password", "uid"), "c2VjcmV0")
            asked = _run(_made(name, keys), {}, ())
            if isinstance(asked, _Asked):
                return "{0.scheme}://{0.netloc}".format(urlsplit(asked.url))
    return None


def _made(name: str, keys: Mapping[str, str]) -> Any:
    """Make one of ccxt's exchanges. Raises Rejected."""
    venue = REVIEWED.get(name)
    with _rejecting():
        made = _offline(name)(
            {**keys, "enableRateLimit": False, "options": dict(venue.options if venue else {})}
        )
        made.number = str
        made.session = None
        made.set_markets([])
    return made


def _run(made: Any, params: Mapping[str, Any], answers: Sequence[Any]) -> Any:
    """Give the balances in ccxt's form, or what it asks after these answers, as _Asked. Raises Rejected.

    Everything that ccxt notes meanwhile is forgotten, its last nonce too: the next one is the clock's again.
    """
    run = copy(made)
    run.options = deepcopy(made.options)
    balances = None
    try:
        with _rejecting():
            run.answers = iter([*map(_plain, answers)])
            balances = run.fetch_balance(dict(params))
    except (_Asked, Rejected):
        if run.asked is None:
            raise
    return run.asked or balances


class Signer:
    """Asks and reads as ccxt does for one exchange, with one key, at one address. Raises only Rejected."""

    def __init__(self, settings: ExchangeSettings) -> None:
        self._home = _own_url(settings.exchange) or settings.base_url
        # Some exchanges sign the host: without its scheme, or with https.
        self._here = "https://" + settings.base_url.partition("://")[2]
        self._made = made = _made(settings.exchange, settings.credentials)
        if self._here != self._home:
            made.urls = {**made.urls, "api": self._moved(made.urls["api"])}
        self.symbol = lru_cache(4096)(lambda asset: spoken(made.safe_currency_code(asset)))
        venue = REVIEWED.get(settings.exchange)
        self._errors = venue.errors if venue else {}

    def _moved(self, urls: Any) -> Any:
        if isinstance(urls, dict):
            return {name: self._moved(url) for name, url in urls.items()}
        url = str(urls).replace("{hostname}", str(self._made.hostname))
        return self._here + url[len(self._home) :] if f"{url}/".startswith(f"{self._home}/") else url

    def run(self, params: Mapping[str, Any], answers: Sequence[Any] = ()) -> Any:
        """Give the next request after these answers, or else the balances, in ccxt's form."""
        asked = _run(self._made, params, answers)
        if not isinstance(asked, _Asked):
            return asked
        path, method, body = asked.url.removeprefix(self._here), asked.method, asked.body or ""
        if not path.startswith("/") or not isinstance(body, str):
            raise Rejected("configuration", "ccxt asks another host than that of base_url, or with a form")
        headers = {name: str(value) for name, value in asked.headers.items()}
        if method == "GET":
            return Request("GET", path, secret_headers=headers, body=body.encode() or None)
        if method == "POST":
            return Request("POST", path, secret_headers=headers, body=body.encode())
        raise Rejected("configuration", "ccxt does not ask for balances with GET or POST")

    def refusal(self, status: int, answer: Any) -> Rejected | None:
        """Say why an answer is a refusal, as far as ccxt and the review know."""
        run, refused, said = copy(self._made), None, None
        run.options = deepcopy(run.options)
        try:
            with _rejecting():
                said = _plain(answer)
                body = "" if said is None else json.dumps(said)
                run.handle_errors(status, "", f"{self._home}/", "GET", {}, body, said, {}, "")
        except Rejected as rejected:
            refused = rejected
        if refused is None and status == 200:
            return None
        if refused and refused.error_class in ("rate", "transient"):
            return refused
        words = [*_words(said)]
        if any(map(_SAYS_LATE.search, words)):
            return Rejected(_LATE.error_class, _LATE.words, fix=_LATE.fix)
        for word in self._errors.keys() & words:
            return Rejected(*self._errors[word])
        # The status says more than an error that is not known.
        return refused if refused and (status == 200 or refused.error_class != "malformed") else None


_LONG_EXPONENT = re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]{4,}\Z", re.ASCII)


def _plain(said: Any) -> Any:
    """Make JSON what ccxt reads exactly: numbers as text. Raises Rejected for one that it would hang on."""
    if isinstance(said, dict):
        return {name: _plain(value) for name, value in said.items()}
    if isinstance(said, list):
        return [*map(_plain, said)]
    if isinstance(said, Ambiguous) or (isinstance(said, str) and _LONG_EXPONENT.match(said)):
        raise Rejected("malformed", "an object that gives a name twice, or a number that is far too large")
    return _amount(said, signed=True) if isinstance(said, Number) else said


def _words(said: Any) -> Iterator[str]:
    """Return what an answer says, without the names in it."""
    left = [said]
    while left:
        said = left.pop()
        if isinstance(said, dict | list):
            left.extend(said.values() if isinstance(said, dict) else said)
        else:
            yield str(said)


def _at(said: Any, way: Way) -> Any:
    """Follow a way; None where it leads nowhere."""
    for step in way:
        if isinstance(step, str):
            said = said.get(step) if isinstance(said, dict) else None
        else:
            said = said[step] if isinstance(said, list) and step < len(said) else None
    return said


_canonical = lru_cache(8192)(from_number)
"""Cached, because most amounts of a listing are the same as in the previous poll, and most are zero."""


def _amount(said: Any, *, signed: bool = False) -> str:
    """Read an amount: decimal text, or a number of JSON. Raises Rejected."""
    text = said.text if isinstance(said, Number) else str(said) if type(said) is int else said
    try:
        return _canonical(text if isinstance(text, str) else "", signed=signed)
    except NotAnAmount as error:
        raise Rejected("malformed", f"an amount is {error}") from None


def _sum(one: str, other: str, *, sign: int = 1) -> str:
    if other == "0":  # few of the assets are locked
        return one
    return _amount(to_text(to_atoms(one) + sign * to_atoms(other)), signed=True)


class Exchange:
    """Asks one exchange, through ccxt, for the balances that one key may see, and reads the answers."""

    Settings: ClassVar[type[ProviderSettings]] = ExchangeSettings
    Account: ClassVar[type[AccountSettings]] = ExchangeAccount
    unknown_fields: Set[str] = frozenset(("pending_deposit", "pending_withdrawal"))

    def __init__(self, settings: ExchangeSettings) -> None:
        self._settings = settings
        venue = REVIEWED.get(settings.exchange)
        self._listings = venue.listings if venue else ()
        has_pages = settings.unreviewed or any(listing.more for listing in self._listings)
        self.most_rounds = _PAGES if has_pages else 1

    @cached_property
    def _signer(self) -> Signer:
        return Signer(self._settings)

    def _listing(self, account: ExchangeAccount) -> Listing | None:
        """Find the reviewed listing of an account; None: there is none."""
        params = {name: value for name, value in account.params.items() if name not in ("type", "recvWindow")}
        kind = account.params.get("type")
        return next((one for one in self._listings if kind in one.types and params == one.params), None)

    def source(self, account: ExchangeAccount) -> str:
        name = self._settings.exchange
        if listing := self._listing(account):
            return f"{name} {listing.name}"
        if not self._settings.unreviewed:
            types = {kind for one in self._listings for kind in one.types if kind}
            known = " or ".join(f'{{ type = "{kind}" }}' for kind in sorted(types)) or "{}"
            raise Rejected("configuration", f"were not reviewed, {known} was: {_WHY}")
        try:
            self._signer.run(account.params)
        except Rejected:
            raise Rejected("configuration", "ccxt makes no request of them with this key") from None
        return f"{name} {json.dumps(account.params, sort_keys=True)}"

    def may_hold(self, account: ExchangeAccount, asset: str) -> bool:
        return True

    def requests(self, account: ExchangeAccount, answers: Sequence[Any] = ()) -> Sequence[Request]:
        if listing := self._listing(account):
            for answer in answers:
                _rows(listing, answer)
        asked = self._signer.run(account.params, answers)
        return [asked] if isinstance(asked, Request) else []

    def read(self, account: ExchangeAccount, answers: Sequence[Any], catalogue: Catalogue) -> Snapshot:
        if listing := self._listing(account):
            with _rejecting():
                rows = read_listing(listing, answers, self._signer.symbol)
            return Snapshot(rows, None, absent_is_zero=listing.is_full)
        found = self._signer.run(account.params, answers)
        if isinstance(found, Request):
            raise Rejected("malformed", "an answer without the balances")
        rows = {}
        with _rejecting():
            for code, total in found["total"].items():
                used = found["used"].get(code)
                balance = Balance(_amount(total, signed=True), _amount(used or "0"), None, None)
                if not code or spoken(code) != code:
                    raise Rejected("malformed", "not an asset")
                rows[code] = Row(Asset(code, code), balance, locked_absent=not used)
        return Snapshot(rows, None, absent_is_zero=False)

    def refusal(self, status: int, answer: Any) -> Rejected | None:
        return self._signer.refusal(status, answer)

    def catalogue_request(self) -> None:
        return None

    def read_catalogue(self, answer: Any) -> AssetList:
        raise Rejected("malformed", "ccxt is asked for no list of assets")


def _rows(listing: Listing, answer: Any) -> Iterable[tuple[Any, Any]]:
    """Find the rows of an answer, each with its asset. Raises Rejected where there is no such list."""
    rows = _at(answer, listing.rows)
    if listing.asset is None:
        if isinstance(rows, dict):
            return rows.items()
    elif isinstance(rows, list) and (rows or listing.may_be_empty):
        return ((_at(row, listing.asset), row) for row in rows)
    raise Rejected("malformed", "no list of balances")


def read_listing(
    listing: Listing, answers: Sequence[Any], symbol_of: Callable[[str], str | None]
) -> dict[str, Row]:
    """Read all rows of all pages: by asset, as the exchange names it. Raises Rejected."""
    last = len(answers) - 1
    for page, answer in enumerate(answers):
        if (_at(answer, listing.more) if listing.more else False) is not (page < last):
            raise Rejected("malformed", "the pages do not end where they should")
    row_by_asset, parts = dict[str, Row](), set[str]()
    rows = chain.from_iterable(_rows(listing, answer) for answer in answers)
    for position, (asset, said) in enumerate(rows):
        try:
            row = _row(listing, asset, said, symbol_of)
        except Rejected as odd:
            raise Rejected(odd.error_class, f"row {position}: {odd.words}") from None
        if row is None:
            continue
        if listing.parts:
            part = _at(said, listing.parts)
            if not isinstance(part, str) or part in parts:
                raise Rejected("malformed", f"row {position}: another row says that it is the same")
            parts.add(part)
        before = row_by_asset.setdefault(row.asset.id, row)
        if before is row:
            continue
        if listing.parts:
            total, locked = map(_sum, before.balance[:2], row.balance[:2])
            row_by_asset[row.asset.id] = before._replace(balance=Balance(total, locked, None, None))
        elif before.balance != row.balance:
            raise Rejected("malformed", f"row {position}: another balance of an asset listed above")
    return row_by_asset


def _row(listing: Listing, asset: object, said: Any, symbol_of: Callable[[str], str | None]) -> Row | None:
    """Read one row; None where it is of another wallet. Raises Rejected."""
    if listing.wallet:
        way, ours, any_of_them = listing.wallet
        if not isinstance(wallet := _at(said, way), str) or not any_of_them.match(wallet):
            raise Rejected("malformed", "does not say of which wallet it is")
        if wallet not in ours:
            return None
    if not isinstance(asset, str) or not asset or spoken(asset) != asset:
        raise Rejected("malformed", "not an asset")
    locked = _amount(_at(said, listing.locked)) if listing.locked else ""
    free = _amount(_at(said, listing.free), signed=True) if listing.free else ""
    total = _amount(_at(said, listing.total), signed=True) if listing.total else _sum(free, locked)
    locked = locked or _amount(_sum(total, free, sign=-1))
    return Row(Asset(asset_id(asset), symbol_of(asset)), Balance(total, locked, None, None))
