"""Reads the address of a Redis server, and says what is wrong with it: no client is needed for that.

Refuses to connect, to import a client, and to show a credential: messages name a server by `safe_url`.
"""

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlsplit, urlunsplit

_SCHEMES = ("redis", "rediss", "unix")
_SEVERAL = re.compile(r"(rediss?)\+(sentinel|cluster)://")
_PORTS = {"sentinel": 26379, "cluster": 6379}
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


class Several(NamedTuple):
    """Servers that an address names together: Sentinels that know the primary `name`, or nodes of a Cluster.

    `url` holds the rest (credentials, db, options) as the URL of one server; its host is the name, or nobody.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...]
    name: str
    url: str

    @property
    def options(self) -> frozenset[str]:
        """What its query may hold besides what that of one server may."""
        return _SENTINEL_OPTIONS if self.kind == "sentinel" else frozenset()


def check_address(url: str) -> None:
    """Find now what redis-py would find at the first connection or never. Raises ConfigurationRefused."""
    found = several(url)
    _check_options(_parts(found.url, found.options) if found else _parts(url))


def several(url: str) -> Several | None:
    """Take apart redis+sentinel://[user:password@]host[:port][,host[:port]…]/name[/db][?options], and
    redis+cluster://[user:password@]host[:port][,host[:port]…][?options].

    None for any other URL. Raises ConfigurationRefused where it is not quite one of these.
    """
    if not (scheme := _SEVERAL.match(url)):
        return None
    _refuse_invisible(url)
    kind = scheme[2]
    try:
        _, place, path, query, fragment = urlsplit(url)
        credentials, at, places = place.rpartition("@")
        hosts = tuple(_host(place, _PORTS[kind]) for place in places.split(","))
    except ValueError:
        raise _no_several(kind) from None
    name, slash, db = path.removeprefix("/").partition("/")
    if not re.fullmatch(r"[\w.-]+" if kind == "sentinel" else "", name, re.ASCII) or (slash and not name):
        raise _no_several(kind)
    one = (scheme[1], f"{credentials}{at}{name or 'nobody'}", f"{slash}{db}", query, fragment)
    return Several(kind, hosts, name, urlunsplit(one))


def _host(place: str, port: int) -> tuple[str, int]:
    host = urlsplit(f"//{place}")
    if not host.hostname or host.path or host.query:
        raise ValueError
    return host.hostname, host.port or port


def _no_several(kind: str) -> ConfigurationRefused:
    end = "/name[/db]" if kind == "sentinel" else ""
    return _no_url(f"is not redis+{kind}://[user:password@]host[:port][,host[:port]…]{end}")


def safe_url(url: str) -> str:
    """Return where `url` points, without credentials and options. Never raises."""
    if url == "embedded":
        return url
    try:
        found = several(url)
        parts = _parts(found.url, found.options) if found else _parts(url)
    except ConfigurationRefused:
        return "(not a Redis URL)"
    if found:
        hosts = ",".join(host_text(*host) for host in found.hosts)
        name = f"/{found.name}{parts.path.rstrip('/')}" if found.name else ""
        return f"{parts.scheme}+{found.kind}://{hosts}{name}"
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    return f"{parts.scheme}://{host_text(parts.hostname or '', parts.port)}{parts.path.rstrip('/')}"


def host_text(name: str, port: int | None) -> str:
    """Write a host and its port as a URL would."""
    return f"[{name}]:{port or 6379}" if ":" in name else f"{name}:{port or 6379}"


def _parts(url: str, more_options: frozenset[str] = frozenset()) -> SplitResult:
    """Take the URL apart. What a special character in a password pushed out of place is refused unseen."""
    _refuse_invisible(url)
    try:
        parts = urlsplit(url)
        port = parts.port
        options = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)]
    except ValueError:
        raise _no_url("is not a URL") from None
    if parts.scheme not in _SCHEMES:
        raise ConfigurationRefused(
            "redis.url must be `embedded` or begin with redis://, rediss://, unix://, redis+sentinel:// or "
            "redis+cluster://"
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


def _refuse_invisible(url: str) -> None:
    if not url.isprintable() or " " in url:
        raise _no_url("holds a space or an invisible character")


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
