"""The texts of the configuration that mean something: durations, names, networks, amounts, URLs.

Refuses to repeat a text in the message about it: it may be a secret that stands in the wrong place.
"""

import re
import string
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, TypeVar
from urllib.parse import quote

from pydantic import AfterValidator, BeforeValidator, SecretStr, WithJsonSchema
from yarl import URL

from watcher import amounts
from watcher.durations import parse_duration as parse_duration

TextT = TypeVar("TextT", str, SecretStr)

_LEAST_MB = 16
"""An empty server takes two, and its scripts one."""

_NO_BASE_URL = (
    "not a base URL: http:// or https://, a host, perhaps a port and a path; "
    "no user, password, query or fragment"
)


@lru_cache(maxsize=1024)  # for every request of a provider it is the same few
def as_written(text: str) -> URL:
    """Read `text`, and keep its path and query byte for byte. Raises ValueError, for some texts IndexError.

    yarl, left to itself, rewrites them: a signed URL breaks where `%2F` becomes `/`, and a receiver's path
    where `/a/../b` becomes `/b`.

    Two things are not as written. A request line is ASCII, so other characters are percent-encoded as UTF-8,
    which is what they stand for in a URL (RFC 3987). The host is in the form in which it is looked up: lower
    case, IDNA.
    """
    read, written = URL(text), URL(text, encoded=True)
    path, query = written.raw_path, written.raw_query_string
    if not query and text.endswith("?"):
        path += "?"  # yarl has no place for an empty query, and sends as they are the bytes of a path
    return URL.build(
        scheme=read.scheme,
        authority=read.raw_authority,
        path=in_ascii(path),
        query_string=in_ascii(query),
        encoded=True,
    )


def in_ascii(text: str) -> str:
    """Percent-encode what is not ASCII, as UTF-8, and nothing else."""
    return quote(text, safe=string.printable)


def _matching(pattern: str, words: str) -> Callable[[TextT], TextT]:
    """Make the check of a text against a pattern; `words` say what it should have been."""

    def check(value: TextT) -> TextT:
        if not re.match(pattern, value.get_secret_value() if isinstance(value, SecretStr) else value):
            raise ValueError(words)
        return value

    return check


def _base_url(text: str) -> str:
    """Refuse a host that cannot be dialled: brackets may hold no address, a port may be too high."""
    with suppress(ValueError):
        if as_written(text).raw_host:
            return text.rstrip("/")
    raise ValueError(_NO_BASE_URL)


def _network(value: object) -> object:
    """Say what is wrong with a network once, where a union of types would say it twice."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if not isinstance(value, str):
        raise ValueError("must be text")  # noqa: TRY004  # pydantic
    reason = "write it like 10.1.0.0/16"
    with suppress(ValueError):
        reason = f"bits are set beyond the mask: {ip_network(value, strict=False)} is the network around it"
        return ip_network(value)
    raise ValueError(f"not a network: {reason}")


def _amount(value: object) -> str:
    """Whole numbers may go without quotes; a float is not exactly the amount that was written. Some may be
    negative."""
    if isinstance(value, float):
        raise ValueError('not exact: write the amount in quotes, like "0.1"')  # noqa: TRY004  # pydantic
    return amounts.from_decimal(str(value) if type(value) is int else value, signed=True)


def _size(text: str) -> str:
    """Take a size as the server reads it, in either case: 1 MB are 2 ** 20 bytes."""
    match = re.fullmatch(r"(?ia)([1-9][0-9]{0,5})([MG])B", text)
    if not match or (match[2] in "mM" and int(match[1]) < _LEAST_MB):
        raise ValueError(
            f'not a size of {_LEAST_MB}MB or more: write a whole number and a unit, such as "512MB" or "2GB"'
        )
    return text


@dataclass(frozen=True, slots=True)
class Certificates:
    """A file of certificates, and what it holds, as PEM. Shown as its name."""

    file: str
    pem: str = field(repr=False)

    def __str__(self) -> str:
        return self.file


_WRITTEN_DURATION = {
    "type": "string",
    "pattern": "^(0|[1-9][0-9]{0,8})(ms|s|m|h|d)$",
    "description": "a whole number and a unit, a year at most",
}
_WRITTEN_AMOUNT = {
    "anyOf": [{"type": "string", "pattern": "^-?[0-9]+([.][0-9]+)?$"}, {"type": "integer"}],
    "description": "exact decimal text; a whole number may go without quotes",
}

Duration = Annotated[timedelta, BeforeValidator(parse_duration), WithJsonSchema(_WRITTEN_DURATION)]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]
Amount = Annotated[str, BeforeValidator(_amount), WithJsonSchema(_WRITTEN_AMOUNT)]

Size = Annotated[str, AfterValidator(_size)]

# A host or an address, a port, a path: no userinfo, query or fragment, which would travel with every
# request and show up in logs.
_BASE_URL = (
    r"(?i)https?://(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?\Z"
)
BaseUrl = Annotated[str, AfterValidator(_matching(_BASE_URL, _NO_BASE_URL)), AfterValidator(_base_url)]
"""The address of an API, without a slash at its end."""

# What no header can carry would fail at every request, long after the start.
_NO_API_KEY = "not an API key: 1 to 1024 visible ASCII characters, no spaces, no line breaks"
ApiKey = Annotated[SecretStr, AfterValidator(_matching(r"[!-~]{1,1024}\Z", _NO_API_KEY))]

# Telegram numbers chats, groups below zero, and gives public channels a name.
_NO_CHAT = "not a chat: its number, or @ and the name of a channel"
Chat = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
    AfterValidator(_matching(r"(?:@[A-Za-z][A-Za-z0-9_]{3,31}|-?[1-9][0-9]{0,18})\Z", _NO_CHAT)),
]

_NO_ROUTING_KEY = "not a routing key: 32 letters and digits"
RoutingKey = Annotated[SecretStr, AfterValidator(_matching(r"[A-Za-z0-9]{32}\Z", _NO_ROUTING_KEY))]

_NO_NAME = "not a name: 1 to 64 letters, digits, dots, dashes and underscores, a letter or digit first"
Name = Annotated[
    str,
    AfterValidator(_matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z", _NO_NAME)),
    WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"}),
]
"""What accounts, providers and subscriptions are called: it stands in keys, logs and file names."""
