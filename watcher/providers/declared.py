"""Any JSON API, described in the file: what to ask, and where the amounts are in the answers.

Refuses to guess: the poll is rejected if a path finds nothing, an amount is not one, a page was not asked
for, or the answer speaks of an error. No amount is ever a float.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import quote, urljoin, urlsplit

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    PlainValidator,
    SecretStr,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from watcher.amounts import (
    MAX_FRACTION_DIGITS,
    NotAnAmount,
    from_decimal,
    from_integer,
    from_number,
    negated,
    sum_of,
)
from watcher.fields import Amount
from watcher.providers.contract import AssetList, ByRow, Catalogue, ErrorClass, Line, Rejected, Request
from watcher.providers.paths import (
    NOTHING,
    Path,
    finder,
    is_said,
    read_path,
    refuse_too_many,
    text_of,
    texts_in,
)
from watcher.providers.strict_json import Number
from watcher.settings import AccountSettings, ProviderSettings, Section
from watcher.snapshot import Asset, Balance, Row, Snapshot, asset_id, spoken

MOST_ROWS = 20_000
"""Rows of one poll. A megabyte holds 350,000 empty objects."""

_SLOT = re.compile(r"\{\{\w+\}\}|\{([a-z][a-z0-9_]{0,63})\}", re.ASCII)
_SLOT_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z", re.ASCII)
_ASK_PATH = re.compile(
    r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2}|\{[a-z][a-z0-9_]{0,63}\})*\Z", re.ASCII
)
_DOTS = re.compile(r"/(?:\.|%2[eE]){1,2}(?:/|\Z)")
_URL = re.compile(r"[!-~]{1,4096}\Z")
_VISIBLE = re.compile(r"[!-~]{1,1024}\Z")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}\Z", re.ASCII)
_HEADER_VALUE = re.compile(r"[!-~]+(?: +[!-~]+)*\Z")
_DIGITS = re.compile(r"[0-9]{1,2}\Z", re.ASCII)
_HEIGHT = re.compile(r"(?:0|[1-9][0-9]{0,18})\Z", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_VALUE = 512
_LONGEST_ID = 128
_LARGEST_ID = 2**63 - 1
_LEFT_TO_US = ("accept-encoding", "content-length", "content-type", "connection", "host", "transfer-encoding")
_OURS = {"accept": "Accept", "user-agent": "User-Agent"}
"""Headers that are always sent, in this spelling."""

_FIELDS = ("total", "locked", "pending_deposit", "pending_withdrawal", "pending")
_PENDINGS = _FIELDS[2:4]
_MEANT_BY_ASK = ("method", "path", "query", "json_", "given")
_MEANT_BY_PART = ("answer", "rows", "asset", "id", "unique", "unit", "default", *_FIELDS)


@dataclass(frozen=True, slots=True)
class Term:
    """One amount of a sum."""

    is_taken_away: bool
    path: Path

    def __str__(self) -> str:
        return f"-{self.path}" if self.is_taken_away else self.path.text


def _terms(value: object) -> tuple[Term, ...]:
    said = [value] if isinstance(value, str) else value
    if not isinstance(said, list | tuple) or not 1 <= len(said) <= 16:
        raise ValueError("must be a path, or a list of up to 16")
    terms: list[Term] = []
    for number, text in enumerate(said, 1):
        minus = isinstance(text, str) and text.startswith("-")
        try:
            terms.append(Term(minus, read_path(text[1:] if minus else text, column=1 + minus)))
        except ValueError as error:
            raise ValueError(f"{error} of path {number}" if len(said) > 1 else str(error)) from None
    return tuple(terms)


def _is_places(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_FRACTION_DIGITS


def _places_by_asset(value: object) -> Mapping[str, int]:
    if isinstance(value, dict) and value and all(map(_is_places, value.values())):
        if len(places_by_asset := {asset_id(name): places for name, places in value.items()}) < len(value):
            raise ValueError("an asset is named twice: 0x… in upper and in lower case")
        return places_by_asset
    raise ValueError(f"must be a table of numbers from 0 to {MAX_FRACTION_DIGITS}, by asset or *")


def _decimals(value: object) -> int | Path | Mapping[str, int]:
    if isinstance(value, str):
        value = int(value) if _DIGITS.match(value) else read_path(value)
    if isinstance(value, dict):
        return _places_by_asset(value)
    if isinstance(value, Path) or (type(value) is int and _is_places(value)):
        return value
    raise ValueError(f"must be a number from 0 to {MAX_FRACTION_DIGITS}, a path, or a table by asset")


Flaw = tuple[tuple[str | int, ...], str]


def _refuse(name: str, flaws: Sequence[Flaw]) -> None:
    """Report each of these mistakes of a section, or a table in it, at its own key."""
    if flaws:
        errors: list[InitErrorDetails] = [
            {"type": PydanticCustomError("value_error", text), "loc": key, "input": None}
            for key, text in flaws
        ]
        raise ValidationError.from_exception_data(name, errors, hide_input=True)


def _slots(said: Mapping[str, Any]) -> Any:
    flaw = "not the name of a slot: lower-case letters, digits and underscores, a letter first"
    _refuse("slots", [((name,), flaw) for name in said if not _SLOT_NAME.match(name)])
    return said


PathIn = Annotated[Path, PlainValidator(read_path)]
Terms = Annotated[tuple[Term, ...], PlainValidator(_terms)]
Decimals = Annotated[int | Path | Mapping[str, int], PlainValidator(_decimals)]
OfText = Annotated[str, Field(min_length=1, max_length=_LONGEST_VALUE)]


class Next(Section):
    """How the pages of one ask follow one another."""

    cursor: PathIn | None = Field(None, description="path to the cursor of the next page")
    page: int | None = Field(None, ge=0, le=1, description="the number of the first page")
    url: PathIn | None = Field(None, description="path to the URL of the next page")
    query: str | None = Field(None, min_length=1, description="the parameter that takes the cursor or number")
    json_: str | None = Field(None, min_length=1, alias="json", description="the same, a name in the body")
    step: int = Field(1, ge=1, le=10_000, description="from one number to the next")
    more: PathIn | None = Field(None, description="path to the value that says that there is another page")
    most: int = Field(20, ge=2, le=100, description="pages, at most; a longer listing is rejected")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        flaws: list[Flaw] = []
        given = [name for name in ("cursor", "page", "url") if getattr(self, name) is not None]
        places = [name for name in (self.query, self.json_) if name is not None]
        if len(given) != 1:
            flaws.append(((), "give one of cursor, page and url"))
        elif given != ["url"] and len(places) != 1:
            flaws.append(((), f"give either query or json: where the {given[0]} is put"))
        elif given == ["url"] and places:
            flaws.append(((), "a url brings its own parameters: leave query and json out"))
        if given == ["page"] and not self.more:
            flaws.append(((), "more: is missing: without it, the last page cannot be recognised"))
        _refuse(type(self).__name__, flaws)
        return self


class Ask(Section):
    """One request of a poll."""

    method: Literal["GET", "POST"] = Field("GET", description="how it is asked")
    path: str = Field(description="behind base_url; {name} is a slot")
    query: dict[str, str] = Field({}, description="parameters; {name} is a slot")
    json_: JsonValue = Field(None, alias="json", description="the body; {name} in a text is a slot")
    given: Annotated[dict[str, PathIn], AfterValidator(_slots)] = Field(
        {}, description="slots whose values are found in the answer to the ask before"
    )
    same: Annotated[dict[str, PathIn], AfterValidator(_slots)] = Field(
        {}, description="slots of the account whose values must stand in each of its answers, and where"
    )
    next: Next | None = Field(None, description="how its pages follow one another")

    @field_validator("path")
    @classmethod
    def _is_a_path(cls, path: str) -> str:
        if not _ASK_PATH.match(path) or _DOTS.search(path):
            raise ValueError(
                "not a path: it begins with '/', has neither '?' and '#' nor '.' and '..' in it, "
                "and braces only as in {name}"
            )
        return path

    @field_validator("json_")
    @classmethod
    def _is_json(cls, value: JsonValue) -> JsonValue:
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            raise ValueError("nan and inf cannot be sent") from None
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        flaws: list[Flaw] = []
        if self.json_ is not None and self.method == "GET":
            flaws.append((("json",), 'needs method = "POST"'))
        if self.next and self.next.json_ is not None and not isinstance(self.json_, dict):
            flaws.append((("next", "json"), "there is no json table to put it in"))
        _refuse(type(self).__name__, flaws)
        return self

    @property
    def slots(self) -> set[str]:
        """The names of its slots."""
        return {
            name
            for text in _texts([self.path, self.query, self.json_])
            for name in _SLOT.findall(text)
            if name
        }


class Part(Section):
    """What one kind of row says. Everything that the parts say of an asset is added up."""

    answer: int = Field(0, ge=0, le=31, description="the number of the ask whose answer it reads")
    rows: PathIn | None = Field(None, description="path to the rows; default: the answer is one row")
    asset: PathIn | None = Field(None, description="path to the id of the asset in a row")
    id: str | None = Field(
        None, min_length=1, max_length=_LONGEST_ID, description="the id, the same in each row"
    )
    symbol: PathIn | None = Field(None, description="path to the symbol of the asset")
    name: PathIn | None = Field(None, description="path to the name of the asset")
    unique: PathIn | None = Field(
        None, description="path to a value that differs between rows of one asset, which are then added up"
    )
    unit: Literal["whole", "smallest"] = Field(
        "whole", description="decimal numbers, or integers with decimals"
    )
    decimals: Decimals | None = Field(None, description="a number, a path, or a table by asset")
    total: Terms | None = Field(None, description="settled funds, including what is locked")
    locked: Terms | None = Field(None, description="the part of it that cannot be spent")
    pending_deposit: Terms | None = Field(None, description="a pending deposit")
    pending_withdrawal: Terms | None = Field(None, description="a pending withdrawal")
    pending: Terms | None = Field(None, description="both in one: above zero in, below zero out")
    default: Amount | None = Field(None, description="the amount where an object lacks the name")
    height: PathIn | None = Field(None, description="path to the height in its answer")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        flaws: list[Flaw] = []
        if self.asset and self.id is not None:
            flaws.append((("id",), "give either asset or id"))
        if not any(getattr(self, name) for name in _FIELDS):
            flaws.append(((), f"reads nothing: give one of {', '.join(_FIELDS)}"))
        _refuse(type(self).__name__, flaws)
        return self


class HttpSettings(ProviderSettings):
    headers: dict[str, SecretStr] = Field({}, description="sent with every request; best as ${NAME}")
    basic: SecretStr | None = Field(None, description="`user:password`, sent with every request")
    secrets: Annotated[dict[str, SecretStr], AfterValidator(_slots)] = Field(
        {}, description="what stands for {name} in the asks and is not shown"
    )
    ask: tuple[Ask, ...] = Field(min_length=1, max_length=32, description="the requests of one poll")
    read: tuple[Part, ...] = Field(min_length=1, max_length=32, description="where the amounts are")
    error: PathIn | None = Field(None, description="path to a value that makes an answer an error")
    error_classes: dict[str, ErrorClass] = Field(
        {}, description="by how the error begins, why the poll is rejected"
    )
    more: PathIn | None = Field(None, description="path to a value that says that an answer is not complete")
    absent_is_zero: bool = Field(False, description="whether an asset that a listing does not name is zero")
    decimals: Annotated[Mapping[str, int], PlainValidator(_places_by_asset)] = Field(
        {}, description="by asset, or `*`, where a part says none"
    )
    height: PathIn | None = Field(None, description="path to the height in the answers to the first ask")

    @field_validator("headers")
    @classmethod
    def _can_be_sent(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        flaws: list[Flaw] = []
        names = [name.lower() for name in headers]
        for name, value in headers.items():
            if names.count(name.lower()) > 1:
                flaws.append(((name,), "is set twice: header names ignore upper and lower case"))
            elif name.lower() in _LEFT_TO_US:
                flaws.append(((name,), "is set by the connection, or by what is sent"))
            elif not _HEADER_NAME.match(name):
                flaws.append(((name,), "not a header name: letters, digits and dashes"))
            elif not _HEADER_VALUE.match(value.get_secret_value()):
                flaws.append(((name,), "must be visible ASCII, with spaces only inside"))
        _refuse("headers", flaws)
        return headers

    @field_validator("secrets")
    @classmethod
    def _are_visible(cls, secrets: dict[str, SecretStr]) -> dict[str, SecretStr]:
        flaw = "must be 1 to 1024 visible ASCII characters, no spaces, no line breaks"
        values = {name: secret.get_secret_value() for name, secret in secrets.items()}
        _refuse("secrets", [((name,), flaw) for name, value in values.items() if not _VISIBLE.match(value)])
        return secrets

    @field_validator("basic")
    @classmethod
    def _has_user(cls, basic: SecretStr) -> SecretStr:
        text = basic.get_secret_value()
        if ":" not in text or not text.isprintable():
            raise ValueError("not `user:password`, in one line")
        return basic

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        flaws: list[Flaw] = []
        if self.error_classes and not self.error:
            flaws.append((("error_classes",), "there is no error: the path to what it is about"))
        if self.basic and any(name.lower() == "authorization" for name in self.headers):
            flaws.append((("basic",), "is an Authorization header, and there is another one"))
        for number, ask in enumerate(self.ask):
            if ask.given and not number:
                flaws.append((("ask", 0, "given"), "there is no ask before the first one"))
            flaws += [
                (("ask", number, "given", name), "is among the secrets, too")
                for name in sorted(ask.given.keys() & self.secrets.keys())
            ]
            flaws += [
                (("ask", number, "same", name), f"this ask takes no {{{name}}} from the account")
                for name in sorted(ask.same.keys() - (ask.slots - ask.given.keys() - self.secrets.keys()))
            ]
        slots = set[str]().union(*(ask.slots for ask in self.ask))
        flaws += [
            (("secrets", name), f"no ask has {{{name}}} in it")
            for name in sorted(self.secrets.keys() - slots)
        ]
        said = {name for part in self.read for name in _FIELDS if getattr(part, name)}
        if "total" not in said:
            flaws.append((("read",), "no part says the total"))
        for number, part in enumerate(self.read):
            if part.answer >= len(self.ask):
                last = len(self.ask) - 1
                flaws.append((("read", number, "answer"), f"no ask has this number: 0 to {last} are there"))
            if part.pending and said & {*_PENDINGS}:
                flaws.append((("read", number, "pending"), "give either pending, or the two others"))
            if part.unit == "smallest" and part.decimals is None and not self.decimals:
                flaws.append((("read", number), "decimals: is missing: the smallest unit needs them"))
        _refuse(type(self).__name__, flaws)
        return self


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


class HttpAccount(AccountSettings):
    of: Annotated[dict[str, OfText | StrictInt], AfterValidator(_slots)] = Field(
        {}, description="what stands for {name} in the asks"
    )

    @property
    def values(self) -> dict[str, str]:
        """What it says, as text."""
        return {name: str(value) for name, value in self.of.items()}


Held = list[Any]
"""What the rows so far say of an asset: the Asset, and the amount of each of _FIELDS, None if no row says
it."""


class Reader:
    """Reads what the rows of one part say."""

    def __init__(self, number: int, part: Part, settings: HttpSettings) -> None:
        self.part = part
        self._label = f"read[{number}]"
        self._rows = finder(part.rows) if part.rows else None
        self._asset = finder(part.asset) if part.asset else None
        self._unique = finder(part.unique) if part.unique else None
        self._symbol = finder(part.symbol) if part.symbol else None
        self._name = finder(part.name) if part.name else None
        self.height = finder(part.height) if part.height else None
        self._is_whole = part.unit == "whole"
        decimals = settings.decimals if part.decimals is None and not self._is_whole else part.decimals
        self._places: Any = decimals
        self._find_places = finder(decimals) if isinstance(decimals, Path) else None
        # If any object could be a row, an error would read as a row of defaults.
        is_any_object = part.rows is None or (part.asset is None and part.id is None)
        self._must_say_one = is_any_object and bool(part.total) and part.default is not None
        sums = {place: getattr(part, name) for place, name in enumerate(_FIELDS, 1) if getattr(part, name)}
        paths = [*dict.fromkeys(term.path for terms in sums.values() for term in terms)]
        self._paths = [(path, finder(path)) for path in paths]
        self._sums: list[tuple[int, int | None, list[tuple[int, bool]]]] = []
        for place, terms in sums.items():
            summands = [(paths.index(term.path), term.is_taken_away) for term in terms]
            alone = summands[0][0] if len(summands) == 1 and not summands[0][1] else None
            self._sums.append((place, alone, summands))

    def add(self, answers: Sequence[Any], held_by_id: dict[str, Held]) -> None:
        """Add what all rows say. Raises Rejected."""
        unique = set[Any]()
        for number, (name, row) in enumerate(self.rows_of(answers)):
            try:
                self.add_row(name, row, held_by_id, unique)
            except Rejected as odd:
                raise Rejected(odd.error_class, f"{self._label} row {number}: {odd.words}") from None
            if number >= MOST_ROWS:
                raise Rejected("malformed", f"{self._label}: more than {MOST_ROWS:,} rows")

    def rows_of(self, answers: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Find the rows of all pages, each with its name in the object that holds it. Raises Rejected."""
        is_named = self._asset is None and self.part.id is None
        for answer in answers:
            found = self._rows(answer) if self._rows else answer if is_named else [answer]
            if is_named and type(found) is dict:
                yield from found.items()
            elif type(found) is list and not is_named:
                yield from ((None, row) for row in found)
            else:
                wanted = "an object whose names are the assets" if is_named else "a list"
                path = self.part.rows
                flaw = _is_not(wanted, found, path) if path else f"the answer is not {wanted}"
                raise Rejected("malformed", f"{self._label}: rows: {flaw}")

    def add_row(self, name: Any, row: Any, held_by_id: dict[str, Held], unique: set[Any]) -> None:
        """Add what one row says; `name` is its name in an object. `unique` holds the values that distinguish
        the rows before it. Raises Rejected."""
        if row is None:
            raise Rejected("malformed", "is null")
        text = self.part.id or (self._asset(row) if self._asset else name)
        if type(text) is int and 0 <= text <= _LARGEST_ID:
            text = str(text)
        if (
            type(text) is not str
            or not 0 < len(text) <= _LONGEST_ID
            or not text.isprintable()
            or text != text.strip()
        ):
            raise Rejected("malformed", f"asset: {_is_not('an id', text, self.part.asset)}")
        id_ = asset_id(text)
        key = self._unique(row) if self._unique else id_
        if type(key) is not str and type(key) is not int:
            raise Rejected("malformed", f"unique: {_is_not('a text or a number', key, self.part.unique)}")
        if key in unique:
            raise Rejected(
                "malformed", f"'{self.part.unique or self.part.asset or 'id'}' is as in a row above"
            )
        unique.add(key)
        places = self._places
        if places is None or type(places) is int:
            pass
        elif type(places) is dict:
            places = places.get(id_, places.get("*"))
        elif self._find_places:
            found = self._find_places(row)
            places = int(found) if type(found) is str and _DIGITS.match(found) else found
            if not _is_places(places):
                raise Rejected("malformed", f"decimals: {_is_not('0 to 78', found, self._places)}")
        held = held_by_id.get(id_)
        if held is None:
            symbol = spoken(self._symbol(row)) if self._symbol else None
            called = spoken(self._name(row)) if self._name else None
            held = held_by_id[id_] = [Asset(id_, symbol, called, places), None, None, None, None, None]
        elif places is not None and places != held[0].decimals:
            if held[0].decimals is not None:
                raise Rejected("malformed", "decimals: another number than above")
            held[0] = held[0]._replace(decimals=places)
        if self._must_say_one and all(find(row) is NOTHING for _, find in self._paths):
            raise Rejected("malformed", "none of its amounts is there, as in an error")
        amounts = [self._amount(find(row), path, places) for path, find in self._paths]
        for place, alone, summands in self._sums:
            before = held[place]
            if alone is not None and before is None:
                held[place] = amounts[alone]
                continue
            texts = [negated(amounts[at]) if is_taken_away else amounts[at] for at, is_taken_away in summands]
            try:
                held[place] = sum_of(texts if before is None else [before, *texts])
            except NotAnAmount:
                raise Rejected("malformed", f"{_FIELDS[place - 1]}: larger than 2^256 - 1") from None

    def _amount(self, found: Any, path: Path, places: int | None) -> str:
        if found is NOTHING and self.part.default is not None:
            return self.part.default
        kind = type(found)
        try:
            if kind is str:
                pass
            elif kind is Number:
                found = from_number(found.text, signed=True)
            elif kind is int:
                found = text_of(found)
            else:
                raise Rejected("malformed", f"{self._of(path)}: {_is_not('an amount', found, path)}")
            if self._is_whole:
                return from_decimal(found, signed=True)
            if places is not None:
                return from_integer(found, places, signed=True)
        except NotAnAmount as error:
            raise Rejected("malformed", f"{self._of(path)}: '{path}' is {error}") from None
        raise Rejected("configuration", "no decimals are given for its asset")

    def _of(self, path: Path) -> str:
        """Name the fields that a path is for."""
        terms_by_name = {name: getattr(self.part, name) or () for name in _FIELDS}
        return ", ".join(
            name for name, terms in terms_by_name.items() if path in [term.path for term in terms]
        )


def _is_not(wanted: str, found: Any, path: Any) -> str:
    """Say what a path found that is not what it should be, without showing any of it."""
    if path is None:
        return f"the name is not {wanted}"
    if found is NOTHING:
        return f"'{path}' finds nothing"
    return f"'{path}' {'finds null, or no way' if found is None else f'is not {wanted}'}"


class Http(ByRow):
    """Asks what the settings declare, and reads the answers by their paths."""

    Settings: ClassVar[type[ProviderSettings]] = HttpSettings
    Account: ClassVar[type[AccountSettings]] = HttpAccount

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings
        self._base_url = settings.base_url
        self._headers = {
            _OURS.get(name.lower(), name): value.get_secret_value()
            for name, value in settings.headers.items()
        }
        if settings.basic:
            token = base64.b64encode(settings.basic.get_secret_value().encode()).decode()
            self._headers["Authorization"] = f"Basic {token}"
        self._secrets = {name: secret.get_secret_value() for name, secret in settings.secrets.items()}
        self._given = [{name: finder(path) for name, path in ask.given.items()} for ask in settings.ask]
        self._same = [[(name, path, finder(path)) for name, path in ask.same.items()] for ask in settings.ask]
        self._readers = [Reader(number, part, settings) for number, part in enumerate(settings.read)]
        self._error = finder(settings.error) if settings.error else None
        self._more = finder(settings.more) if settings.more else None
        self._height = finder(settings.height) if settings.height else None
        self._pages = [_Pages(ask.next, settings.base_url) if ask.next else None for ask in settings.ask]
        self._starts = sorted(settings.error_classes, key=len, reverse=True)
        slots = set[str]().union(*(ask.slots - ask.given.keys() for ask in settings.ask))
        self._slots = slots - self._secrets.keys()
        self._meaning = _meaning(settings)
        self._ids = {asset_id(part.id) for part in settings.read if part.id is not None}
        said = {name for part in settings.read for name in _FIELDS if getattr(part, name)}
        self._is_plain = all(path.steps is not None for path in _paths_in(settings))
        # What is found beside the rows must not depend on them: no place in a list, nothing behind them.
        (part, *more_parts), beside = settings.read, [settings.error, settings.more, settings.read[0].rows]
        beside += settings.ask[0].same.values()
        is_beside = all(path.goes_by_names for path in beside if path)
        is_one = len(settings.ask) == 1 and not more_parts and not settings.ask[0].next
        has_own = part.asset is not None and part.rows is not None and not part.unique
        self.is_by_row = is_one and has_own and is_beside and not settings.height and not part.height
        self._is_signed = "pending" in said
        self._says_locked = "locked" in said
        self.unknown_fields: Set[str] = frozenset() if self._is_signed else frozenset({*_PENDINGS} - said)
        self.most_rounds: int = 1
        if any(ask.next or ask.given for ask in settings.ask):
            self.most_rounds = sum(ask.next.most if ask.next else 1 for ask in settings.ask)

    def source(self, account: HttpAccount) -> str:
        """Return what is asked about: what the account puts into the asks, and what the asks and the parts
        mean. So an edit of those is no change of a balance, and the next poll is a baseline. Raises Rejected
        if the account puts in something else than the asks take."""
        if missing := sorted(self._slots - account.of.keys()):
            example = ", ".join(f'{name} = "…"' for name in missing)
            raise Rejected(
                "configuration", f"lacks {', '.join(missing)}, which an ask takes: of = {{ {example} }}"
            )
        if unknown := sorted(account.of.keys() - self._slots):
            raise Rejected("configuration", f"no ask takes {', '.join(unknown)}")
        for ask in self._settings.ask:
            known = {**dict.fromkeys(ask.given, "-"), **account.values, **self._secrets}
            if _DOTS.search(_filled_path(ask.path, known)):
                raise Rejected("configuration", "'.' and '..' lead elsewhere in a path")
        return f"{json.dumps(account.values, sort_keys=True)} {self._meaning}"

    def may_hold(self, account: HttpAccount, asset: str) -> bool | None:
        parts = self._settings.read
        if any(part.id is None for part in parts):
            return True
        if asset_id(asset) in self._ids:
            return True
        return None if any(part.symbol for part in parts) else False

    def requests(self, account: HttpAccount, answers: Sequence[Any] = ()) -> Sequence[Request]:
        return self._walk(account, answers)[1]

    def unled(self, account: Any, answers: Sequence[Any]) -> Iterator[str]:
        """Return the paths to a further page that find nothing in any answer of a poll, not even null. A
        misspelled path does so as well, and then the poll would pass as complete."""
        pages, asks = self._walk(account, answers)[0], self._settings.ask
        unpaged = [page for ask, its in zip(asks, pages, strict=True) if not ask.next for page in its]
        leading: list[tuple[str, Path | None, list[Any]]] = [("more", self._settings.more, unpaged)]
        leading += (
            (f"ask[{number}].next.{name}", getattr(ask.next, name), pages[number])
            for number, ask in enumerate(asks)
            for name in (("cursor", "url", "more") if ask.next else ())
        )
        for label, path, its in leading:
            if path and its and all(found is NOTHING for found in map(finder(path), its)):
                yield f"{label}: '{path}'"

    def _walk(self, account: HttpAccount, answers: Sequence[Any]) -> tuple[list[list[Any]], list[Request]]:
        """Assign the answers so far to the asks whose pages they are, and return what to ask next."""
        if not self._is_plain:
            refuse_too_many([*answers])
        asks = self._settings.ask
        pages: list[list[Any]] = [[] for _ in asks]
        seen: list[set[Any]] = [set() for _ in asks]
        waiting = [
            (number, self._request(number, account, {})) for number, ask in enumerate(asks) if not ask.given
        ]
        at = 0
        while waiting and at + len(waiting) <= len(answers):
            following: list[tuple[int, Request]] = []
            for (number, request), answer in zip(waiting, answers[at:], strict=False):
                pages[number].append(answer)
                its = self._pages[number]
                is_last = at + len(waiting) == len(answers)  # those before were looked at when they were
                if its and (more := its.following(request, pages[number], seen[number], is_last=is_last)):
                    following.append((number, more))
                elif number + 1 < len(asks) and asks[number + 1].given:
                    given = {
                        name: _value_in(find(pages[number][0]))
                        for name, find in self._given[number + 1].items()
                    }
                    following.append((number + 1, self._request(number + 1, account, given)))
            at += len(waiting)
            waiting = following
        return pages, [request for _, request in waiting]

    def _request(self, number: int, account: HttpAccount, given: Mapping[str, str]) -> Request:
        ask, values = self._settings.ask[number], {**account.values, **self._secrets, **given}
        path = _filled_path(ask.path, values)
        if given and _DOTS.search(path):
            raise Rejected("malformed", "an answer gives a value that leads elsewhere in a path")
        return Request(
            ask.method, path, _filled(ask.query, values), self._headers, _filled(ask.json_, values)
        )

    def refusal(self, status: int, answer: Any) -> Rejected | None:
        try:
            if not self._is_plain:
                refuse_too_many(answer)
            found = self._error(answer) if self._error else None
            texts = [*texts_in(found)]
        except Rejected as odd:
            return odd if status == 200 else None
        if not is_said(found):
            return None
        for text in texts:
            for start in self._starts:
                if text.startswith(start):
                    error_class = self._settings.error_classes[start]
                    return Rejected(error_class, f"the provider's error begins with '{start}'")
        return Rejected("malformed", "an error that error_classes does not name") if status == 200 else None

    def watched(self, account: HttpAccount) -> None:
        return None

    def rows(self, answers: Sequence[Any]) -> Sequence[Any]:
        return [row for _, row in self._readers[0].rows_of(answers)]

    def read_row(
        self, account: HttpAccount, said: Any, catalogue: Catalogue, *, watched: Set[str] | None
    ) -> Line:
        held_by_id: dict[str, Held] = {}
        self._readers[0].add_row(None, said, held_by_id, set())
        (held,) = held_by_id.values()
        return self._row(*held), None

    def read_owned(
        self, account: HttpAccount, answers: Sequence[Any], catalogue: Catalogue
    ) -> tuple[Snapshot, None]:
        return self.read(account, answers, catalogue), None

    def read(self, account: HttpAccount, answers: Sequence[Any], catalogue: Catalogue) -> Snapshot:
        pages, missing = self._walk(account, answers)
        if missing:
            raise Rejected("malformed", "an answer is missing")
        if self._more:
            for its, all_of_it in zip(self._pages, pages, strict=True):
                if not its and any(is_said(self._more(page)) for page in all_of_it):
                    raise Rejected("configuration", "there are more pages than the one that is asked for")
        for all_of_it, same in zip(pages, self._same, strict=True):
            for name, path, find in same:
                for said in map(find, all_of_it):
                    if not _is_called(account.values[name], said):
                        whose = "no" if said is NOTHING or said is None else "another"
                        flaw = _is_not(f"its {name}", said, path)
                        raise Rejected("malformed", f"an answer about {whose} account: {flaw}")
        heights = [_height_in(self._height(page)) for page in pages[0]] if self._height else []
        held_by_id: dict[str, Held] = {}
        for reader in self._readers:
            its_pages = pages[reader.part.answer]
            if reader.height:
                heights += [_height_in(reader.height(page)) for page in its_pages]
            reader.add(its_pages, held_by_id)
        row_by_asset = {id_: self._row(*held) for id_, held in held_by_id.items()}
        absent_is_zero = self._settings.absent_is_zero
        if not absent_is_zero and (silent := self._ids - row_by_asset.keys()):
            raise Rejected("malformed", f"no row says anything of {', '.join(sorted(silent))}")
        return Snapshot(row_by_asset, None, absent_is_zero, height=min(heights, default=None))

    def _row(
        self,
        asset: Asset,
        total: str | None,
        locked: str | None,
        deposit: str | None,
        withdrawal: str | None,
        pending: str | None,
    ) -> Row:
        if total is None:
            if not self._settings.absent_is_zero:
                raise Rejected("malformed", "an asset of which no part says the total")
            total = "0"
        if self._is_signed:
            balance = Balance.of_signed(total, locked or "0", pending or "0")
        else:
            unknown = self.unknown_fields
            deposit = None if "pending_deposit" in unknown else deposit or "0"
            withdrawal = None if "pending_withdrawal" in unknown else withdrawal or "0"
            balance = Balance(total, locked or "0", deposit, withdrawal)
        if "-" in f"{locked}{deposit}{withdrawal}":
            raise Rejected("malformed", "locked, or a pending, is below zero")
        return Row(asset, balance, locked_absent=locked is None and self._says_locked)

    def catalogue_request(self) -> None:
        return None

    def read_catalogue(self, answer: Any) -> AssetList:
        raise Rejected("malformed", "there is no list of assets")


def _meaning(settings: HttpSettings) -> str:
    """Make a digest of what decides which amounts are read: without names, scales (which are compared by
    asset) and keys. Settings that are left out are not part of it, so that a new setting changes nothing."""
    asks = [
        {name: said for name in _MEANT_BY_ASK if (said := getattr(ask, name))} | {"next": bool(ask.next)}
        for ask in settings.ask
    ]
    parts = [
        {name: said for name in _MEANT_BY_PART if (said := getattr(part, name)) is not None}
        for part in settings.read
    ]
    said = json.dumps([asks, parts, settings.absent_is_zero], default=str, sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def _paths_in(value: Any) -> Iterator[Path]:
    """Find all paths of a section."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Term):
        yield value.path
    elif isinstance(value, Section):
        for name in type(value).model_fields:
            yield from _paths_in(getattr(value, name))
    elif isinstance(value, Mapping | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _paths_in(inner)


class _Pages:
    """Goes from a page to the next."""

    def __init__(self, declared: Next, base_url: str) -> None:
        self._declared = declared
        self._base_url = base_url
        found_by = declared.cursor or declared.url
        self._find = finder(found_by) if found_by else None
        self._more = finder(declared.more) if declared.more else None

    def following(
        self, request: Request, pages: Sequence[Any], seen: set[Any], *, is_last: bool
    ) -> Request | None:
        """Return how to ask for the page after the last of `pages`, which `request` asked for; None if there
        is none. `seen` holds what was followed before; `is_last`: no answer came after it. Raises
        Rejected."""
        declared, page = self._declared, pages[-1]
        more = self._more(page) if self._more else True
        if not is_said(more):
            if more is NOTHING and declared.page is not None:
                raise Rejected(
                    "malformed", f"more: '{declared.more}' finds nothing; not_null() can say what then"
                )
            if more in (NOTHING, None) and self._find and is_said(self._find(page)):
                raise Rejected(
                    "malformed", "something leads to another page, and nothing says whether there is"
                )
            return None
        cursor: Any = declared.page
        if cursor is not None:
            if is_last and len(pages) > 1 and _written(page) == _written(pages[-2]):
                raise Rejected("malformed", "the same page twice")
            cursor += declared.step * len(pages)
        elif self._find and not is_said(cursor := self._find(page)):
            if self._more:
                raise Rejected("malformed", "there is another page, and nothing leads to it")
            return None
        if len(pages) >= declared.most:
            raise Rejected("configuration", f"more than {declared.most} pages; raise most")
        value = cursor if declared.url and type(cursor) is str else _value_in(cursor)
        if value in seen:
            raise Rejected("malformed", "the same cursor twice")
        seen.add(value)
        if declared.url:
            return self._at(request, value)
        if declared.query:
            return request._replace(query={**request.query, declared.query: value})
        assert declared.json_
        return request._replace(json={**request.json, declared.json_: cursor})

    def _at(self, request: Request, url: str) -> Request:
        """Ask at a URL of the answer, if it is at the same place: a key must not be sent elsewhere."""
        if _URL.match(url):
            with suppress(ValueError):
                base, there = urlsplit(self._base_url), urlsplit(urljoin(self._base_url + request.path, url))
                is_here = (base.scheme.lower(), base.netloc.lower()) == (
                    there.scheme.lower(),
                    there.netloc.lower(),
                )
                if is_here and there.path.startswith(f"{base.path}/"):
                    query = f"?{there.query}" if there.query else ""
                    return request._replace(path=there.path.removeprefix(base.path) + query, query={})
        raise Rejected("malformed", "the next page is at another place than base_url")


def _written(page: Any) -> str:
    """Write a page, to be compared: numbers as they are, what is nested too deeply like any other such."""
    with suppress(RecursionError):
        return json.dumps(page, default=lambda odd: odd.text if isinstance(odd, Number) else None)
    return ""


def _value_in(found: Any) -> str:
    """Take what an answer gives for what is asked next. Raises Rejected."""
    text = text_of(found) if type(found) is int else found
    if type(text) is not str or not 0 < len(text) <= _LONGEST_VALUE or _SURROGATE.search(text):
        raise Rejected(
            "malformed", f"what is asked next is not a text of 1 to {_LONGEST_VALUE} characters, or a number"
        )
    return text


def _is_called(name: str, found: Any) -> bool:
    text = str(found) if type(found) is int else found
    return type(text) is str and asset_id(text) == asset_id(name)


def _height_in(found: Any) -> int:
    if (type(found) is str and _HEIGHT.match(found)) or (type(found) is int and 0 <= found < 10**19):
        return int(found)
    raise Rejected("malformed", "height: not a whole number")


def _filled_path(path: str, values: Mapping[str, str]) -> str:
    return _SLOT.sub(lambda slot: quote(values[slot[1]], safe=""), path)


def _filled(value: Any, values: Mapping[str, str]) -> Any:
    """Put values into the slots of all texts, once each: braces in a value are no slot."""
    if isinstance(value, str):
        return _SLOT.sub(lambda slot: values[slot[1]] if slot[1] else slot[0][1:-1], value)
    if isinstance(value, dict):
        return {name: _filled(inner, values) for name, inner in value.items()}
    return [_filled(inner, values) for inner in value] if isinstance(value, list) else value
