"""Put the environment into texts: `${NAME}`, `${NAME:-default}`, `${file:/path}`, `$${` for a literal `${`.

Refuses to repeat what a text, a variable or a file holds; names of variables are all it says.
"""

import re
from collections.abc import Callable
from typing import Any

from watcher.config.findings import Key
from watcher.environment import EmptyFile, Environment, NotSet

# One that is never closed goes to the end: else each of a thousand would look there for its brace.
_REFERENCE = re.compile(
    r"\$\$\{|\$\{(?:(?:file:(?!-)([^}]*)|([A-Za-z_][A-Za-z0-9_]{0,127})(:-([^}]*))?)(\}|\Z))?", re.ASCII
)

DEEPEST = 50
"""Tables within tables: what Python calls itself for must not be without end."""


def interpolate(text: str, environment: Environment) -> str:
    """Replace every reference in `text`. Raises NotSet, which tells of all of them."""
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
    """Replace every reference in every text below `value`; `refuse` hears where one has no value."""
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
