"""Takes a configuration apart into tables, turns each table into settings, and checks single values."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from watcher.config.findings import UNKNOWN, Entry, Finding, Findings, Key, did_you_mean
from watcher.delivery.signing import BadSecret, Signer
from watcher.encryption import BadKey, NoCipher, check_key
from watcher.environment import EmptyFile, Environment, NotSet
from watcher.settings import CHANGE_EVENTS, SERVICE_EVENTS, Section
from watcher.store.address import check_address
from watcher.store.exceptions import ConfigurationRefused

MASK = "***"
"""What `watcher check --show` prints for a secret; it is refused as a value of a configuration."""

EVENTS = CHANGE_EVENTS + SERVICE_EVENTS

MAX_HEADERS = 32
MAX_HEADER_BYTES = 4096
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]+(?:[ ]+[\x21-\x7e]+)*\Z")
# Sent from a file they would contradict what is really sent (two lengths are request smuggling), forge the
# signature, or speak to the connection instead of the receiver.
_RESERVED_HEADERS = (
    *("host", "content-length", "content-type", "content-encoding", "transfer-encoding", "user-agent"),
    *("connection", "keep-alive", "te", "trailer", "upgrade", "expect"),
)
_RESERVED_PREFIXES = ("webhook-", "watcher-", "proxy-")

_GLOB_LIMIT = 128

_QUOTED = re.compile(r"""(["'`]).*\1\Z""", re.DOTALL)
# At the beginning of a secret, of a header's word, of a part of a URL. `?$filter=` is what it is: OData.
_UNBRACED = re.compile(r"\A\$(?!\{)|[\s/?&=:@]\$[A-Z_][A-Z0-9_]*(?![A-Za-z0-9])")


def mask_flaw(text: str) -> str | None:
    """Refuse the stars that `check --show` prints for a secret."""
    if MASK in text and not text.replace(MASK, "").strip("*"):
        return "is the mask that is shown instead of a secret, not the secret"
    return None


def leftover_flaw(text: str) -> str | None:
    """Warn of a value that still has what a shell or an editor of variables should have removed."""
    if _QUOTED.match(text):
        return "is in quotes, which are part of the value: take them off where it is set"
    if _UNBRACED.search(text):
        return "holds a '$' without braces, which stays as it is: write ${NAME}"
    return None


def _flaw_of_any_secret(text: str) -> str | None:
    if not text:
        return "must not be empty"
    if text != text.strip():
        return "has white space around it"
    return mask_flaw(text)


def signing_secret_flaw(text: str) -> str | None:
    """Refuse a secret that cannot sign."""
    if flaw := _flaw_of_any_secret(text):
        return flaw
    try:
        Signer([text])
    except BadSecret as error:
        return leftover_flaw(text) or f"{error}; `watcher secret new` makes one"
    return None


def secret_key_flaw(text: str) -> str | None:
    """Refuse a key that cannot encrypt."""
    if flaw := _flaw_of_any_secret(text):
        return flaw
    try:
        check_key(text)
    except NoCipher as error:
        return str(error)
    except BadKey as error:
        return leftover_flaw(text) or f"{error}; `watcher secret new --key` makes one"
    return None


def header_flaws(headers: Mapping[str, object]) -> Iterator[tuple[Key, str]]:
    """Say what is wrong with extra headers, each by its name."""
    if len(headers) > MAX_HEADERS:
        yield (), f"must have at most {MAX_HEADERS} headers"
    if sum(len(name) + len(str(value)) for name, value in headers.items()) > MAX_HEADER_BYTES:
        yield (), f"must be at most {MAX_HEADER_BYTES} bytes together"
    seen: set[str] = set()
    for name, value in headers.items():
        lower, flaw = name.lower(), None
        if not _HEADER_NAME.match(name):
            flaw = "not a header name: letters, digits and dashes"
        elif lower in _RESERVED_HEADERS or lower.startswith(_RESERVED_PREFIXES):
            flaw = "is reserved: watcher or the connection sets it"
        elif lower in seen:
            flaw = "is set twice: header names ignore upper and lower case"
        elif isinstance(value, str) and not _HEADER_VALUE.match(value):
            flaw = "must be visible ASCII, with spaces only inside"
        elif isinstance(value, str):
            flaw = mask_flaw(value)
        if flaw:
            yield (name,), flaw
        seen.add(lower)


def redis_url_flaw(url: str) -> str | None:
    """Refuse a URL that no Redis client understands."""
    if url == "embedded":
        return None
    if MASK in url:
        return "holds the mask that is shown instead of a password"
    try:
        check_address(url)
    except ConfigurationRefused as error:
        return leftover_flaw(url) or str(error).removeprefix("redis.url").lstrip(" :") + did_you_mean(
            url, ["embedded"]
        )
    return None


def glob_flaw(glob: str) -> str | None:
    """Refuse a glob that cannot have been meant."""
    if not glob:
        return "must not be empty"
    if len(glob) > _GLOB_LIMIT:
        return f"must have at most {_GLOB_LIMIT} characters"
    if not glob.isprintable() or glob != glob.strip():
        return "has white space or control characters in it"
    if re.search(r"\[(?!!?.[^\]]*\])", glob):
        return "not a glob: '[' has no ']'"
    return None


def event_flaw(glob: str) -> str | None:
    """Refuse a bad glob, and a type that no event has."""
    if is_glob(glob) or glob in EVENTS:
        return glob_flaw(glob)
    return glob_flaw(glob) or "unknown event type" + did_you_mean(glob, EVENTS)


def is_glob(text: str) -> bool:
    """Say whether a name is a pattern."""
    return any(character in text for character in "*?[")


def matches(glob: str, names: Iterable[str]) -> bool:
    """Say whether a glob finds anything."""
    return any(fnmatchcase(name, glob) for name in names)


def check_list(entry: Entry, name: str, flaw_of: Callable[[str], str | None], findings: Findings) -> None:
    """Say what is wrong with the texts of a list, and which of them comes twice."""
    values = entry.table.get(name)
    if not isinstance(values, list):
        return
    first_by_value: dict[str, int] = {}
    for index, value in enumerate(values):
        if not isinstance(value, str):
            continue
        flaw = flaw_of(value)
        if (first := first_by_value.setdefault(value, index)) < index and not flaw:
            flaw = f"is the same as {name}[{first}]"
        if flaw:
            findings.mistake(entry.finding((name, index), flaw))


SectionT = TypeVar("SectionT", bound=Section)

_WORDS = {
    "missing": "is missing",
    "string_type": "must be text",
    "path_type": "must be text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "dataclass_type": "must be the path of a file",
}
_SUBJECT = re.compile(r"^\w+ should ")


def section(document: Entry, name: str, findings: Findings) -> Entry:
    """Give one [name] of the file; empty where it is absent."""
    table = document.table.get(name, {})
    if not isinstance(table, dict):
        findings.mistake(document.finding((name,), f"must be a table: write [{name}]"))
        table = {}
    return document.below(name, table=table)


def named_tables(document: Entry, name: str, findings: Findings) -> Iterator[tuple[str, Entry]]:
    """Give every [name.x] as x and its table."""
    entry = section(document, name, findings)
    for key, table in entry.table.items():
        if isinstance(table, dict):
            yield key, entry.below(key, table=table)
        else:
            findings.mistake(entry.finding((key,), f"must be a table: write [{name}.NAME] above its keys"))


def listed_tables(document: Entry, name: str, findings: Findings) -> Iterator[Entry]:
    """Give every [[name]]."""
    tables = document.table.get(name, [])
    if not isinstance(tables, list):
        findings.mistake(document.finding((name,), f"must be a list of tables: write [[{name}]]"))
        return
    for index, table in enumerate(tables):
        if isinstance(table, dict):
            yield document.below(name, index, table=table)
        else:
            findings.mistake(document.finding((name, index), f"must be a table: write [[{name}]]"))


def overridden(
    entry: Entry, variable_by_key: Mapping[str, str], environment: Environment, findings: Findings
) -> Entry:
    """Let environment variables win over the file; an empty one counts as unset. So does an empty file, with
    a warning; except for where the state is, which must not be another place than the one that was meant."""
    value_by_key: dict[str, str] = {}
    for key, variable in variable_by_key.items():
        try:
            value = environment.value_of(variable)
        except NotSet as error:
            found = Finding("environment", None, variable, str(error))
            if isinstance(error, EmptyFile) and key != "url":
                findings.warn(found)
            else:
                findings.mistake(found)
            continue
        if value:
            value_by_key[key] = value
    variables = {key: variable_by_key[key] for key in value_by_key}
    return Entry({**entry.table, **value_by_key}, entry.file, entry.key, entry.line_of, variables)


class Names:
    """Remembers where each name of one kind of table was given first."""

    def __init__(self, kind: str, findings: Findings) -> None:
        self._kind = kind
        self._findings = findings
        self._place_by_name: dict[str, str] = {}

    def is_new(self, entry: Entry) -> bool:
        """Say whether no table before had the same name; record the mistake otherwise."""
        name = entry.table.get("name")
        if not isinstance(name, str):
            return True
        if name in self._place_by_name:
            reason = f"is the name of another {self._kind}, at {self._place_by_name[name]}"
            self._findings.mistake(entry.finding(("name",), reason))
            return False
        self._place_by_name[name] = entry.place()
        return True


def settings_of(
    model: type[SectionT],
    entry: Entry,
    findings: Findings,
    *,
    given: Mapping[str, Any] | None = None,
    may_hold: Collection[str] = (),
    stand_ins: Mapping[str, Any] | None = None,
) -> SectionT | None:
    """Turn a table into settings, or record what is wrong with it and return None.

    `given` are the fields that the file says elsewhere, and not in the table. `may_hold` is for a table whose
    kind is unknown: keys that `model` does not know, and one of the kinds does. With `stand_ins`, for keys
    that are missing or wrong, the right part of the table is returned in spite of its mistakes: enough to
    find what else is wrong, in the same run.
    """
    given = given or {}
    for name in given.keys() & entry.table.keys():
        findings.mistake(entry.finding((name,), UNKNOWN))
    try:
        return model.model_validate({**entry.table, **given})
    except ValidationError as error:
        details = error.errors(include_input=False, include_context=False, include_url=False)
    wrong: set[str | int] = set()
    for detail in details:
        if detail["type"] == "too_short" and _holds(detail["loc"], details):
            continue  # what is left of a list, without its wrong members: they are said
        key, text = _flaw(detail, entry.table, model, given)
        wrong.update(key[:1])
        if not (detail["type"] == "extra_forbidden" and key[-1] in may_hold):
            findings.mistake(entry.finding(key, text))
    if stand_ins is None:
        return None
    right = {name: value for name, value in entry.table.items() if name not in wrong}
    with suppress(ValidationError):
        return model.model_validate({**stand_ins, **right, **given})
    return None


def _holds(location: Key, details: Iterable[ErrorDetails]) -> bool:
    """Say whether something inside of `location` is wrong."""
    depth = len(location)
    return any(len(one["loc"]) > depth and one["loc"][:depth] == location for one in details)


def _flaw(
    detail: ErrorDetails, table: Mapping[str, Any], model: type[BaseModel], given: Mapping[str, Any]
) -> tuple[Key, str]:
    """Say where pydantic found a flaw, and what it is, in our words."""
    kind, location = detail["type"], detail["loc"]
    key: Key = ()
    value: Any = table
    for part in location:  # as far as the file has it: pydantic also names members of unions
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            key = (*key, part) if kind == "missing" else key
            break
        key = (*key, part)
    message = detail["msg"].removeprefix("Value error, ").replace(" after validation", "")
    message = _WORDS.get(kind) or _SUBJECT.sub("must ", message)
    if kind == "extra_forbidden" and key[-1] == "accounts_file":
        return key, UNKNOWN + " here: it has to stand at the top, above the first [section]"
    if kind == "extra_forbidden":
        return key, UNKNOWN + did_you_mean(key[-1], _fields(model, key[:-1]) - given.keys())
    if kind in ("too_short", "string_too_short") and "at least 1 " in message:
        return key, "must not be empty"
    field, colon, rest = message.partition(": ")
    is_whole = kind == "value_error" and len(key) == len(location)
    return ((*key, field), rest) if colon and is_whole and field in _fields(model, key) else (key, message)


def _fields(model: type[BaseModel], key: Key) -> set[str]:
    """Name the fields of `model`, or of the model that `key` leads to inside it."""
    for part in key:
        if isinstance(part, str) and part in model.model_fields:
            arguments = getattr(model.model_fields[part].annotation, "__args__", ())
            model = next((inner for inner in arguments if hasattr(inner, "model_fields")), model)
    return set(model.model_fields)
