"""What looking needs of a configuration: where Redis is, and of the rest whatever can be read."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watcher import places
from watcher.config.files import find, interpolated, read_text, read_toml
from watcher.config.findings import UNKNOWN, ConfigRefused, Entry, Finding, Findings
from watcher.config.loading import read_settings
from watcher.environment import Environment, NotSet
from watcher.printable import hide
from watcher.settings import Settings, secrets_of

# Where a table begins that is not part of the [[account]] or [[subscription]] above it.
_TABLE = re.compile(
    r"""^(?=[ \t]*\[{1,2}(?![ \t]*(?:accounts|subscriptions)[ \t]*\.)[\w"'.\- \t]+\]{1,2}[ \t]*(?:\#.*)?$)""",
    re.MULTILINE,
)
_REDIS = re.compile(r"[ \t]*\[[ \t]*redis[ \t]*\]")
_ANY_REDIS = re.compile(r"""^[ \t\["']*redis\b""", re.MULTILINE)
_VITAL_LINE = re.compile(r"[ \t]*(?:redis\b|url\b|namespace\b|data_dir\b)")


def salvaged(text: str) -> dict[str, Any] | None:
    """Read every table that is TOML by itself; None where [redis] is there and cannot be read."""
    found: dict[str, Any] = {}
    top, *tables = _TABLE.split(text)
    for part in (top, *tables):
        try:
            _add(found, tomllib.loads(part))
        except (ValueError, RecursionError):
            is_redis = bool(_REDIS.match(part))
            if part is not top and not is_redis:
                continue
            lines = _lines(part)
            if lines is None:
                return None
            _add(found, {"redis": lines} if is_redis else lines)
    is_lost = "redis" not in found and _ANY_REDIS.search(text)
    return None if is_lost else found


def _lines(part: str) -> dict[str, Any] | None:
    """Read the lines of a part one by one; None where one that says where the state lies is broken."""
    found: dict[str, Any] = {}
    for line in part.splitlines():
        if _REDIS.match(line):
            continue
        try:
            _add(found, tomllib.loads(line))
        except (ValueError, RecursionError):
            if _VITAL_LINE.match(line):
                return None
    return found


def _add(found: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        known = found.get(name)
        if isinstance(known, dict) and isinstance(value, dict):
            known.update(value)
        elif isinstance(known, list) and isinstance(value, list):
            known.extend(value)
        else:
            found[name] = value


_VITAL = ("url", "namespace", "data_dir")


@dataclass(frozen=True, slots=True)
class Look:
    """A configuration to look with. Unless it `is_whole`, names that it lacks may be in the store.

    `trouble` says in one line what is wrong with it.
    """

    settings: Settings
    is_whole: bool = True
    trouble: str | None = None


def read_to_look(path: Path | None, variables: Mapping[str, str], given: Mapping[str, str]) -> Look:
    """Read what can be read. `given` are values of [redis] that win over those of the file.

    With a `url` among them no file is looked for, unless `path` names one. Raises ConfigRefused where nobody
    can say where the state lies.
    """
    if "url" in given:
        variables = {name: value for name, value in variables.items() if not name.startswith("REDIS_URL")}
    environment, findings = Environment(variables), Findings()
    is_located = "url" in given or _is_set("REDIS_URL", environment)
    is_alone = "url" in given and path is None
    file = None if is_alone else places.place_of(path, environment)
    if file is None and not is_located:
        find(None, environment)
    document, broken = _document(file, environment, findings, is_located=is_located)
    redis = document.table.get("redis", {})
    overlaid = {**redis, **given} if isinstance(redis, dict) else redis
    document = Entry({**document.table, "redis": overlaid}, document.file, document.key, document.line_of)
    settings = read_settings(document, environment, findings)
    if any(_is_fatal(found, given, overlaid, environment) for found in findings.mistakes):
        raise ConfigRefused([*broken, *findings.mistakes])
    hide(secrets_of(settings))
    if file is None:
        return Look(settings, is_whole=False, trouble=None if is_alone else "there is no configuration")
    mistakes = broken or findings.mistakes
    if not mistakes:
        return Look(settings)
    others = f" (and {len(mistakes) - 1:,} more: `watcher check`)" if len(mistakes) > 1 else ""
    return Look(settings, is_whole=False, trouble=f"{mistakes[0]}{others}")


def _document(
    file: Path | None, environment: Environment, findings: Findings, *, is_located: bool
) -> tuple[Entry, Sequence[Finding]]:
    """Read the file, or what can be read of it, and say why that is not all."""
    if file is None:
        return Entry({}, "watcher", (), lambda _: None), ()
    try:
        return read_toml(file, environment, findings), ()
    except ConfigRefused as refused:
        try:
            table = salvaged(read_text(file))
        except ConfigRefused:
            table = None
        if table is None and not is_located:
            raise
        found = Entry(table or {}, str(file), (), lambda _: None)
        return interpolated(found, environment, findings), refused.mistakes


def _is_fatal(found: Finding, given: Mapping[str, str], redis: object, environment: Environment) -> bool:
    """Say whether a mistake leaves it open where the state lies."""
    section, _, key = found.key.partition(".")
    if found.key in ("REDIS_URL", "redis"):
        return True
    is_overridden = _is_set("REDIS_URL", environment)
    if section == "redis" and key in _VITAL:
        return not (key in given or (key == "url" and is_overridden))
    # A name that nobody knows may be [redis] or its url, misspelled.
    is_named = is_overridden or (isinstance(redis, dict) and "url" in redis)
    return not is_named and found.text.startswith(UNKNOWN) and (section == "redis" or not key)


def _is_set(name: str, environment: Environment) -> bool:
    try:
        return bool(environment.value_of(name))
    except NotSet:
        return True  # somebody has set it, and hears what is wrong with it
