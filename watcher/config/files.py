"""Finds the configuration and reads it, with the environment, and keeps where everything is written."""

import io
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from watcher.config.findings import (
    DEEPEST,
    ConfigRefused,
    Entry,
    Finding,
    Findings,
    Key,
    lines_by_key,
    written,
)
from watcher.environment import EmptyFile, Environment, NotSet, NotText, decoded, utf_16_flaw
from watcher.providers.strict_json import GivenTwice, once_each

# An unclosed one goes to the end: otherwise each of a thousand would search up to there for its brace.
_REFERENCE = re.compile(
    r"\$\$\{|\$\{(?:(?:file:(?!-)([^}]*)|([A-Za-z_][A-Za-z0-9_]{0,127})(:-([^}]*))?)(\}|\Z))?", re.ASCII
)


def interpolate(text: str, environment: Environment) -> str:
    """Replace every reference in `text`. Raises NotSet, whose message names all that fail."""
    if "${" not in text:
        return text
    problems: dict[str, None] = {}

    def replace(match: re.Match[str]) -> str:
        try:
            return _replacement(match, environment)
        except NotSet as error:
            problems[str(error)] = None
            return ""

    replaced = _REFERENCE.sub(replace, text)
    if problems:
        raise NotSet("; ".join(problems))
    return replaced


def _replacement(match: re.Match[str], environment: Environment) -> str:
    if match.group() == "$${":
        return "${"
    path, name, has_default, default, brace = match.groups()
    if not brace:
        raise NotSet("'${' begins no ${NAME}, ${NAME:-default} or ${file:/path}; write $${ for a literal one")
    if path is not None:
        if not path.startswith("/"):
            raise NotSet("${file:...} needs an absolute path, as in ${file:/run/secrets/ops}")
        return environment.content_of(path, "the file that ${file:...} names")
    if not has_default:
        return environment.required(name)
    if "${" in default:
        raise NotSet(f"the default of {name} holds another '${{': a default is plain text")
    try:
        return environment.value_of(name) or default
    except EmptyFile:
        return str(default)


def interpolate_all(
    value: Any, environment: Environment, refuse: Callable[[Key, str], None], key: Key = ()
) -> Any:
    """Replace every reference in every text below `value`; `refuse` is called for each without a value."""
    if len(key) > DEEPEST:
        refuse(key[:1], "nested too deeply")
        return None
    if isinstance(value, str):
        try:
            return interpolate(value, environment)
        except NotSet as error:
            refuse(key, str(error))
            return value
    if isinstance(value, dict):
        return {
            name: interpolate_all(below, environment, refuse, (*key, name)) for name, below in value.items()
        }
    if isinstance(value, list):
        return [interpolate_all(below, environment, refuse, (*key, n)) for n, below in enumerate(value)]
    return value


_BYTE_ORDER_MARK = "\ufeff"
_JSON = json.JSONDecoder(object_pairs_hook=once_each)
_NAME = re.compile(r'"name"\s*:\s*"([^"\\]*)"')
_POSITION = re.compile(r"\(at line (\d+), column (\d+)\)")
_DEEP_KEY = re.compile(rf"^[ \t\[]*(?:[\w-]+[ \t]*\.[ \t]*){{{DEEPEST}}}", re.MULTILINE)
# What `tomllib` says, as far as it helps, and without the piece of the file that some of it repeats.
_SYNTAX = {
    "Unescaped '\\'": "a backslash in a text needs another one, or write the text in single quotes",
    "Expected '='": "'=' is expected after a key",
    "Expected ']": "a closing bracket is missing",
    "Expected newline": "the line should end here; texts need quotes",
    "Invalid value": "not a value: texts need quotes, true and false lower case; or a bracket above is open",
    "Invalid statement": "neither a key nor a [table] begins here",
    "Invalid initial character": "no key begins here",
    "Invalid date": "no such date",
    "Cannot declare": "this table was declared before",
    "Cannot overwrite": "this key was set before",
    "Cannot mutate": "this table was written in full before",
    "Cannot redefine": "this table was written in full before",
    "Duplicate inline": "this key was set before",
    "Unterminated": "a closing quote is missing",
    "Unclosed": "a closing bracket is missing",
    "Illegal character": "a closing quote is missing, or a character has to be escaped",
}


def find(path: Path | None, environment: Environment) -> Path:
    """Choose the file: `path`, or WATCHER_CONFIG, or the first of PLACES. Raises ConfigRefused."""
    if place := environment.place_of(path):
        return place
    looked = " or ".join(map(str, environment.PLACES))
    reason = f"no configuration at {looked}; `watcher init` writes one to begin with"
    raise ConfigRefused([Finding("watcher", None, "", reason)])


def read_toml(path: Path, environment: Environment, findings: Findings) -> Entry:
    """Read a file as one table, with the environment put in. Raises ConfigRefused if it is not TOML."""
    text = read_text(path)
    try:
        tree = _parse(text)
    except RecursionError:
        raise ConfigRefused([Finding(str(path), None, "", "not valid TOML: nested too deeply")]) from None
    except ValueError as error:
        said = str(error)
        reason = next((ours for theirs, ours in _SYNTAX.items() if said.startswith(theirs)), "not understood")
        position = _POSITION.search(said)
        line = int(position[1]) if position else len(text.splitlines())
        place = f" at column {position[2]}" if position else ""
        raise ConfigRefused([Finding(str(path), line, "", f"not valid TOML{place}: {reason}")]) from None
    return interpolated(Entry(tree, str(path), (), _Lines(text).find), environment, findings)


def _parse(text: str) -> dict[str, Any]:
    """Parse TOML. Raises ValueError, and RecursionError where it is nested too deeply; for a key of so many
    parts `tomllib` would take their square."""
    if _DEEP_KEY.search(text):
        raise RecursionError
    return tomllib.loads(text)


def read_lines(
    document: Entry, key: str, environment: Environment, findings: Findings
) -> Iterator[Entry | str | None]:
    """Read the file that `key` names, with one JSON object per line; nothing if there is no such key. A line
    that cannot be read yields its name, or None; so does a file."""
    name = document.table.get(key)
    if name is None:
        return
    if not isinstance(name, str) or not name:
        findings.mistake(document.finding((key,), "must be the path of a file"))
        yield None
        return
    is_empty = True
    try:
        # Bytes that are not UTF-8 come as surrogates, so that their line is known.
        with (
            (Path(document.file).parent / name).open("rb") as file,
            io.TextIOWrapper(file, "utf-8", "surrogateescape") as lines,
        ):
            if flaw := utf_16_flaw(file.peek(4)):
                findings.mistake(Finding(name, 1, "", flaw))
                yield None
                return
            for number, line in enumerate(lines, start=1):
                text = line.removeprefix(_BYTE_ORDER_MARK).rstrip()
                if not text:
                    continue
                is_empty = False
                entry = _line(text, name, number, findings)
                if isinstance(entry, Entry) and "${" in text:
                    entry = interpolated(entry, environment, findings)
                yield entry
    except OSError as error:
        findings.mistake(document.finding((key,), f"the file cannot be read: {error.strerror}"))
        yield None
    except ValueError:  # a path with NUL in it
        findings.mistake(document.finding((key,), "must be the path of a file"))
        yield None
    else:
        if is_empty:
            findings.mistake(Finding(name, None, "", "is empty: is it still being written?"))


class _Lines:
    """Finds positions when the first mistake asks for one: most files have none."""

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def _line_by_key(self) -> dict[Key, int]:
        return lines_by_key(self._text)

    def find(self, key: Key) -> int:
        """Give the line of a key, or of the table that it is missing from."""
        while key and key not in self._line_by_key:
            key = key[:-1]
        return self._line_by_key.get(key, 1)


def read_text(path: Path) -> str:
    """Read a file of text. Raises ConfigRefused."""
    data = b""
    try:
        data = path.read_bytes()
        return decoded(data)
    except OSError as error:
        raise ConfigRefused([Finding(str(path), None, "", f"cannot be read: {error.strerror}")]) from None
    except NotText as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigRefused([Finding(str(path), line, "", f"not valid TOML: {error}")]) from None


class NoObject(ValueError):
    """A text is not one JSON object. `key` leads to the mistake, if that is known."""

    def __init__(self, reason: str, key: Key = ()) -> None:
        super().__init__(reason)
        self.key = key


def json_object(text: str) -> dict[str, Any]:
    """Read one JSON object: each name once, no NaN, UTF-8 throughout. Raises NoObject, which quotes nothing
    but a name."""
    if not text.strip():
        raise NoObject("is empty: must be one JSON object")
    try:
        text.encode()
        orjson.loads(text)  # stricter than what reads it below: no NaN, no lone surrogate, no endless number
        table = _JSON.decode(text)
    except UnicodeEncodeError as error:
        raise NoObject(f"not UTF-8 text at column {error.start + 1}") from None
    except orjson.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise NoObject(f"not valid JSON at {line}column {error.colno}") from None
    except RecursionError:
        raise NoObject("not valid JSON: nested too deeply") from None
    except GivenTwice as error:
        raise NoObject("is given twice", (error.name,)) from None
    if not isinstance(table, dict):
        raise NoObject("must be one JSON object")
    return table


def _line(text: str, name: str, number: int, findings: Findings) -> Entry | str | None:
    try:
        return Entry(json_object(text), name, (), lambda _: number)
    except NoObject as error:
        findings.mistake(Finding(name, number, written(error.key), str(error)))
    found = _NAME.search(text)
    return found and found[1]


def interpolated(entry: Entry, environment: Environment, findings: Findings) -> Entry:
    """Put the environment into every text of a table. A text without a value is a mistake, and stays as it
    is."""

    def refuse(key: Key, reason: str) -> None:
        findings.mistake(entry.finding(key, reason))

    for key in _variables(entry.table):
        if key[0] == "providers" and key[2:3] in (("ask",), ("path",)):
            place = "`secrets`, and {name} here" if key[2] == "ask" else "`api_key`, and {api_key} here"
            reason = f"is shown with the variable in it: a key belongs in {place}"
            findings.warn(entry.finding(key, reason))
    return Entry(interpolate_all(entry.table, environment, refuse), entry.file, entry.key, entry.line_of)


def _variables(value: Any, key: Key = ()) -> Iterator[Key]:
    """Find the texts that name a variable."""
    if isinstance(value, str) and "${" in value.replace("$${", ""):
        yield key
    elif isinstance(value, dict | list) and len(key) <= DEEPEST:
        for name, below in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _variables(below, (*key, name))


# Where a table begins that is not part of the [[accounts]] or [[subscriptions]] above it.
_TABLE = re.compile(
    r"""^(?=[ \t]*\[{1,2}(?![ \t]*(?:accounts|subscriptions)[ \t]*\.)[\w"'.\- \t]+\]{1,2}[ \t]*(?:\#.*)?$)""",
    re.MULTILINE,
)
_REDIS = re.compile(r"[ \t]*\[[ \t]*redis[ \t]*\]")
_ANY_REDIS = re.compile(r"""^[ \t\["']*redis\b""", re.MULTILINE)
_VITAL_LINE = re.compile(r"[ \t]*(?:redis\b|url\b|namespace\b|data_dir\b)")


def read_partly(
    path: Path, environment: Environment, findings: Findings
) -> tuple[Entry | None, Sequence[Finding]]:
    """Read a file, or every table that is TOML by itself, and return why that is not all. The file is None if
    it cannot be read, or if [redis] is there and cannot be read."""
    try:
        return read_toml(path, environment, findings), ()
    except ConfigRefused as refused:
        mistakes, table = refused.mistakes, None
        with suppress(ConfigRefused):
            table = salvaged(read_text(path))
    if table is None:
        return None, mistakes
    return interpolated(Entry(table, str(path), (), lambda _: None), environment, findings), mistakes


def salvaged(text: str) -> dict[str, Any] | None:
    """Read every table that is TOML by itself; of [redis], and above the first table, every line that is.
    None if [redis] is there and cannot be read, or if a broken line says where the state is."""
    found: dict[str, Any] = {}
    top, *tables = _TABLE.split(text)
    for part in (top, *tables):
        is_redis = bool(_REDIS.match(part))
        if _read_into(found, part) or not (part is top or is_redis):
            continue
        lines: dict[str, Any] = {}
        for line in part.splitlines():
            if not _REDIS.match(line) and not _read_into(lines, line) and _VITAL_LINE.match(line):
                return None
        _add(found, {"redis": lines} if is_redis else lines)
    is_lost = "redis" not in found and _ANY_REDIS.search(text)
    return None if is_lost else found


def _read_into(found: dict[str, Any], text: str) -> bool:
    """Add what a text says. Returns whether it is TOML."""
    try:
        table = _parse(text)
    except (ValueError, RecursionError):
        return False
    _add(found, table)
    return True


def _add(found: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        known = found.get(name)
        if isinstance(known, dict) and isinstance(value, dict):
            known.update(value)
        elif isinstance(known, list) and isinstance(value, list):
            known.extend(value)
        else:
            found[name] = value
