"""Reads the address of a Redis server, and says what is wrong with it: no client is needed for that.

Refuses to connect, to import a client, and to show a credential: messages name a server by `safe_url`.
"""

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlsplit, urlunsplit

_SCHEMES = ("redis", "rediss", "unix")
_LATER = re.compile(r"rediss?\+cluster://")
_WATCHED = re.compile(r"(rediss?)\+sentinel://")
_SENTINEL_PORT = 26379
_SENTINEL_OPTIONS = frozenset({"sentinel_username", "sentinel_password"})
_PLAIN_OPTIONS = frozenset({"db", "username", "password"})
_FILE_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
_TLS_OPTIONS = frozenset({"ssl_cert_reqs", "ssl_check_hostname"}) | _FILE_OPTIONS


class StoreError(Exception):
    """Redis cannot be used now. A worker that already runs says so once, waits and tries again."""


class StoreUnreachable(StoreError):
    """Nobody answers, or the server answers and refuses writes: time or its operator heals it."""

    exit_code = 69


class ConfigurationRefused(StoreError):
    """The address, the credentials or the server's settings are wrong: waiting heals nothing."""

    exit_code = 78


class Watched(NamedTuple):
    """A primary that Sentinels watch: whom to ask for it, and under which name.

    `url` holds the rest (credentials, db, options) as the URL of one server whose host is the name.
    """

    sentinels: tuple[tuple[str, int], ...]
    name: str
    url: str


def check_address(url: str) -> None:
    """Find now what redis-py would find at the first connection or never. Raises ConfigurationRefused."""
    found = watched(url)
    _check_options(_parts(found.url, _SENTINEL_OPTIONS) if found else _parts(url))


def watched(url: str) -> Watched | None:
    """Take apart redis+sentinel://[user:password@]host[:port][,host[:port]…]/name[/db][?options].

    None for any other URL. Raises ConfigurationRefused where it is not quite one.
    """
    if not (scheme := _WATCHED.match(url)):
        return None
    try:
        _, place, path, query, fragment = urlsplit(url)
        credentials, at, hosts = place.rpartition("@")
        sentinels = tuple(map(_sentinel, hosts.split(",")))
        name, slash, db = path.removeprefix("/").partition("/")
    except ValueError:
        sentinels, name = (), ""
    if not sentinels or not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise _no_url(
            "is not redis+sentinel://[user:password@]host[:port][,host[:port]…]/name[/db]"
        ) from None
    plain = (scheme[1], f"{credentials}{at}{name}", f"{slash}{db}", query, fragment)
    return Watched(sentinels, name, urlunsplit(plain))


def _sentinel(place: str) -> tuple[str, int]:
    host = urlsplit(f"//{place}")
    if not host.hostname or host.path or host.query:
        raise ValueError
    return host.hostname, host.port or _SENTINEL_PORT


def safe_url(url: str) -> str:
    """Return where `url` points, without credentials and options. Never raises."""
    if url == "embedded":
        return url
    try:
        found = watched(url)
        parts = _parts(found.url, _SENTINEL_OPTIONS) if found else _parts(url)
    except ConfigurationRefused:
        return "(not a Redis URL)"
    if found:
        hosts = ",".join(host_text(*sentinel) for sentinel in found.sentinels)
        return f"{parts.scheme}+sentinel://{hosts}/{found.name}{parts.path.rstrip('/')}"
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    return f"{parts.scheme}://{host_text(parts.hostname or '', parts.port)}{parts.path.rstrip('/')}"


def host_text(name: str, port: int | None) -> str:
    """Write a host and its port as a URL would."""
    return f"[{name}]:{port or 6379}" if ":" in name else f"{name}:{port or 6379}"


def _parts(url: str, more_options: frozenset[str] = frozenset()) -> SplitResult:
    """Take the URL apart. What a special character in a password pushed out of place is refused unseen."""
    if later := _LATER.match(url):
        raise ConfigurationRefused(
            f"redis.url: {later[0]} is not supported yet; use redis://, rediss://, unix:// or redis+sentinel://"
        )
    if not url.isprintable() or " " in url:
        raise _no_url("holds a space or an invisible character")
    try:
        parts = urlsplit(url)
        port = parts.port
        options = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)]
    except ValueError:
        raise _no_url("is not a URL") from None
    if parts.scheme not in _SCHEMES:
        raise ConfigurationRefused(
            "redis.url must be `embedded` or begin with redis://, rediss://, unix:// or redis+sentinel://"
        )
    if parts.scheme == "unix":
        misplaced = port is not None or not parts.path or (parts.netloc and "@" not in parts.netloc)
    else:
        misplaced = not parts.hostname or not re.fullmatch(r"/?[0-9]{0,5}", parts.path, re.ASCII)
    if misplaced or parts.fragment:
        raise _no_url("is not redis://[user:password@]host[:port][/db] nor unix:///path")
    known = more_options | _PLAIN_OPTIONS | (_TLS_OPTIONS if parts.scheme == "rediss" else set())
    if not known.issuperset(options):
        raise _no_url(f"has an option other than {', '.join(sorted(known))}")
    return parts


def _no_url(reason: str) -> ConfigurationRefused:
    return ConfigurationRefused(f"redis.url {reason}; percent-encode special characters in a password")


def _check_options(parts: SplitResult) -> None:
    for name, value in parse_qsl(parts.query):
        if name in _FILE_OPTIONS and not Path(value).is_file():
            raise ConfigurationRefused(f"redis.url: the file that {name} names cannot be found")
        if name == "ssl_cert_reqs" and value not in ("none", "required"):
            raise ConfigurationRefused("redis.url: ssl_cert_reqs is either none or required")
        if name == "ssl_check_hostname" and value not in ("yes", "no"):
            raise ConfigurationRefused("redis.url: ssl_check_hostname is either yes or no")
        if name == "db" and not re.fullmatch(r"[0-9]{1,5}", value, re.ASCII):
            raise ConfigurationRefused("redis.url: db is a number")
