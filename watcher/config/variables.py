"""Put the environment into texts: `${NAME}`, `${NAME:-default}`, `$${` for a literal `${`.

Refuses to repeat what a text or a variable holds; names of variables are all it says.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from watcher.config.findings import Key

# One that is never closed goes to the end: else each of a thousand would look there for its brace.
_REFERENCE = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]{0,127})(:-([^}]*))?(\}|\Z))?", re.ASCII)
_FILE_LIMIT = 64 * 1024
"""Characters of a NAME_FILE: a secret is short, and /dev/zero is not."""


DEEPEST = 50
"""Tables within tables: what Python calls itself for must not be without end."""


class NotSet(LookupError):
    """A variable that has no value; the message says what to do about it."""


def value_of(name: str, environ: Mapping[str, str]) -> str | None:
    """Read a variable, or the file that NAME_FILE names when NAME is unset. Raises NotSet."""
    if name in environ:
        return environ[name]
    path = environ.get(f"{name}_FILE")
    return None if path is None else _content(f"{name}_FILE", path)


def _content(name: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise NotSet(f"the file that {name} names cannot be read: {error.strerror}") from None
    except ValueError:
        raise NotSet(f"the file that {name} names is not UTF-8 text") from None
    if len(text) > _FILE_LIMIT:
        raise NotSet(f"the file that {name} names is longer than {_FILE_LIMIT} characters")
    return text.removesuffix("\n")


def interpolate(text: str, environ: Mapping[str, str]) -> str:
    """Replace every reference in `text`. Raises NotSet, which tells of all of them."""
    if "${" not in text:
        return text
    problems: dict[str, None] = {}

    def replace(match: re.Match[str]) -> str:
        try:
            return _replacement(match, environ)
        except NotSet as error:
            problems[str(error)] = None
            return ""

    replaced = _REFERENCE.sub(replace, text)
    if problems:
        raise NotSet("; ".join(problems))
    return replaced


def _replacement(match: re.Match[str], environ: Mapping[str, str]) -> str:
    if match.group() == "$${":
        return "${"
    name, has_default, default, brace = match.groups()
    if not brace:
        raise NotSet("'${' begins no ${NAME} or ${NAME:-default}; write $${ for a literal one")
    value = value_of(name, environ)
    # As in a shell, `:-` also stands in for a variable that is set to nothing.
    if has_default and not value:
        return str(default)
    if value is None:
        raise NotSet(f"the environment has no {name} and no {name}_FILE")
    return value


def interpolate_all(
    value: Any, environ: Mapping[str, str], refuse: Callable[[Key, str], None], key: Key = ()
) -> Any:
    """Replace every reference in every text below `value`; `refuse` hears where one has no value."""
    if len(key) > DEEPEST:
        refuse(key[:1], "nested too deeply")
        return None
    if isinstance(value, str):
        try:
            return interpolate(value, environ)
        except NotSet as error:
            refuse(key, str(error))
            return value
    if isinstance(value, dict):
        return {name: interpolate_all(below, environ, refuse, (*key, name)) for name, below in value.items()}
    if isinstance(value, list):
        return [interpolate_all(below, environ, refuse, (*key, n)) for n, below in enumerate(value)]
    return value
