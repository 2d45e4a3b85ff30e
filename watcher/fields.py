"""The texts of the configuration that mean something: durations, names, networks, amounts, base URLs.

Refuses to repeat a text in the message about it: it may be a secret that stands in the wrong place.
"""

import re
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, SecretStr

from watcher import amounts
from watcher.durations import parse_duration as parse_duration
from watcher.urls import as_written

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
# A host or an address, a port, a path: no userinfo, query or fragment, which would travel with every
# request and show up in logs.
_BASE_URL = re.compile(
    r"https?://(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?\Z",
    re.IGNORECASE,
)
_HEADER_VALUE = re.compile(r"[!-~]{1,1024}\Z")


def _base_url(text: str) -> str:
    if not _BASE_URL.match(text) or not _has_host(text):
        raise ValueError(
            "not a base URL: http:// or https://, a host, perhaps a port and a path; "
            "no user, password, query or fragment"
        )
    return text.rstrip("/")


def _has_host(text: str) -> bool:
    """Say whether what sends requests can read it: brackets may hold no address, a port may be too high."""
    try:
        return bool(as_written(text).raw_host)
    except ValueError:
        return False


def _name(text: str) -> str:
    if not _NAME.match(text):
        raise ValueError(
            "not a name: 1 to 64 letters, digits, dots, dashes and underscores, a letter or digit first"
        )
    return text


def _api_key(secret: SecretStr) -> SecretStr:
    """Keep out what no header can carry: it would fail at every request, long after the start."""
    if not _HEADER_VALUE.match(secret.get_secret_value()):
        raise ValueError("not an API key: 1 to 1024 visible ASCII characters, no spaces, no line breaks")
    return secret


def _network(value: object) -> object:
    """Say what is wrong with a network once, where a union of types would say it twice."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    if not isinstance(value, str):
        raise ValueError("must be text")  # noqa: TRY004  # pydantic
    try:
        return ip_network(value)
    except ValueError:
        reason = "bits are set beyond the mask" if _is_network(value) else "write it like 10.1.0.0/16"
        raise ValueError(f"not a network: {reason}") from None


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _amount(value: object) -> str:
    """Whole numbers may go without quotes; a float never was the amount that somebody wrote."""
    if isinstance(value, float):
        raise ValueError('not exact: write the amount in quotes, like "0.1"')  # noqa: TRY004  # pydantic
    return amounts.from_decimal(str(value) if type(value) is int else value)


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]
Amount = Annotated[str, BeforeValidator(_amount)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
"""The address of an API, without a slash at its end."""

ApiKey = Annotated[SecretStr, AfterValidator(_api_key)]
Name = Annotated[str, AfterValidator(_name)]
"""What accounts, providers and subscriptions are called: it stands in keys, logs and file names."""
