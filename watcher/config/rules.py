"""What a single value must be beyond its shape: secrets, headers, Redis URLs, globs.

Each rule gives the reason to refuse a value, or None. Refuses to repeat the value in it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

from watcher.config.findings import Key, did_you_mean
from watcher.delivery.signing import BadSecret, Signer
from watcher.settings import CHANGE_EVENTS, SERVICE_EVENTS
from watcher.store.address import check_address
from watcher.store.exceptions import ConfigurationRefused

MASK = "***"
"""What `watcher check --show` prints for a secret; whoever copies that must hear it before it is used."""

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
    """Refuse the stars that stand for a secret where one is shown."""
    if MASK in text and not text.replace(MASK, "").strip("*"):
        return "is the mask that is shown instead of a secret, not the secret"
    return None


def leftover_flaw(text: str) -> str | None:
    """Doubt a value that still has what a shell or an editor of variables should have taken off."""
    if _QUOTED.match(text):
        return "is in quotes, which are part of the value: take them off where it is set"
    if _UNBRACED.search(text):
        return "holds a '$' without braces, which stays as it is: write ${NAME}"
    return None


def signing_secret_flaw(text: str) -> str | None:
    """Refuse what cannot sign."""
    if not text:
        return "must not be empty"
    if text != text.strip():
        return "has white space around it"
    if flaw := mask_flaw(text):
        return flaw
    try:
        Signer([text])
    except BadSecret as error:
        return leftover_flaw(text) or f"{error}; `watcher secret new` makes one"
    return None


def header_flaws(headers: Mapping[str, object]) -> Iterator[tuple[Key, str]]:
    """Tell what is wrong with extra headers, each by its name."""
    if len(headers) > MAX_HEADERS:
        yield (), f"must have at most {MAX_HEADERS} headers"
    if sum(len(name) + len(str(value)) for name, value in headers.items()) > MAX_HEADER_BYTES:
        yield (), f"must be at most {MAX_HEADER_BYTES} bytes together"
    seen: set[str] = set()
    for name, value in headers.items():
        flaw = _header_flaw(name, value, seen)
        if flaw:
            yield (name,), flaw
        seen.add(name.lower())


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


def _header_flaw(name: str, value: object, seen: set[str]) -> str | None:
    lower = name.lower()
    if not _HEADER_NAME.match(name):
        return "not a header name: letters, digits and dashes"
    if lower in _RESERVED_HEADERS or lower.startswith(_RESERVED_PREFIXES):
        return "is reserved: watcher or the connection sets it"
    if lower in seen:
        return "is set twice: header names do not tell upper from lower case"
    if not isinstance(value, str):
        return None
    if not _HEADER_VALUE.match(value):
        return "must be visible ASCII, with spaces only inside"
    return mask_flaw(value)
