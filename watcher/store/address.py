"""Reads the address of a Redis server, and says what is wrong with it, without a client.

Refuses to connect, to import a client, and to show a credential: messages name a server by `safe_url`.
"""

import os
import re
from ipaddress import IPv6Address
from typing import NamedTuple
from urllib.parse import parse_qsl

from watcher.store.exceptions import ConfigurationRefused

_SCHEMES = ("redis", "rediss", "unix")
_SEVERAL = re.compile(r"(rediss?)\+(sentinel|cluster)://")
_URL = re.compile(r"([^:/?#]+)://([^/?#]*@)?([^/?#@]*)([^?#]*)((?:\?[^#]*)?(?:#.*)?)")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%[\w.~-]+)?)\]|([^][:]+))(?::([0-9]{0,5}))?", re.ASCII)
_LAST_PORT = 65_535
_PORTS = {"sentinel": 26379, "cluster": 6379}
_SENTINEL_OPTIONS = frozenset({"sentinel_username", "sentinel_password"})
_PLAIN_OPTIONS = frozenset({"db", "username", "password"})
_FILE_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
_TLS_OPTIONS = frozenset({"ssl_cert_reqs", "ssl_check_hostname"}) | _FILE_OPTIONS


class Several(NamedTuple):
    """Several servers of one address: Sentinels that know the primary `name`, or nodes of a Cluster.

    `url` holds the rest (credentials, db, options): the URL of one server at that name, or at `unknown`.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...]
    name: str
    url: str

    @property
    def options(self) -> frozenset[str]:
        """The options that its query may hold, besides those of TLS. A Cluster has one database."""
        return _PLAIN_OPTIONS | _SENTINEL_OPTIONS if self.kind == "sentinel" else _PLAIN_OPTIONS - {"db"}


def check_address(url: str) -> None:
    """Find what redis-py would find at the first connection or never. Raises ConfigurationRefused."""
    found = several(url)
    parts = _parts(found.url, found.options) if found else _parts(url)
    options = dict(parse_qsl(parts.query))
    for name, value in options.items():
        if name in _FILE_OPTIONS and not os.path.isfile(value):
            raise ConfigurationRefused(f"redis.url: the file that {name} names cannot be found")
        if name == "ssl_cert_reqs" and value not in ("none", "required"):
            raise ConfigurationRefused("redis.url: ssl_cert_reqs is either none or required")
        if name == "ssl_check_hostname" and value not in ("yes", "no"):
            raise ConfigurationRefused("redis.url: ssl_check_hostname is either yes or no")
        if name == "db" and not re.fullmatch(r"[0-9]{1,5}", value, re.ASCII):
            raise ConfigurationRefused("redis.url: db is a number")
    if _FILE_OPTIONS.intersection(options):
        _check_files(**{name: options.get(name) for name in _FILE_OPTIONS})


def several(url: str) -> Several | None:
    """Split redis+sentinel://[user:password@]host[:port][,host[:port]…]/name[/db][?options] and
    redis+cluster://[user:password@]host[:port][,host[:port]…][?options]. None for any other URL. Raises
    ConfigurationRefused if it is nearly one of these."""
    if not (scheme := _SEVERAL.match(url)):
        return None
    _refuse_invisible(url)
    kind = scheme[2]
    try:
        split = _split(url)
        found = [_host(place) for place in split.place.split(",")]
    except ValueError:
        raise _no_several(kind) from None
    name, slash, db = split.path.removeprefix("/").partition("/")
    if not re.fullmatch(r"[\w.-]+" if kind == "sentinel" else "", name, re.ASCII) or (slash and not name):
        raise _no_several(kind)
    hosts = tuple((host, port or _PORTS[kind]) for host, port in found)
    rest = f"{name or 'unknown'}{slash}{db}{split.tail}"
    return Several(kind, hosts, name, f"{scheme[1]}://{split.credentials}{rest}")


def places(url: str) -> tuple[tuple[str, int], ...]:
    """Return the servers of a valid address, as host and port; none for a socket."""
    if found := several(url):
        return found.hosts
    place = _split(url).place
    if not place:
        return ()
    host, port = _host(place)
    return ((host, port or _PORTS["cluster"]),)


class _Split(NamedTuple):
    """A URL in pieces; joined, they are the URL again. `credentials` end with their `@`."""

    scheme: str
    credentials: str
    place: str
    path: str
    tail: str

    @property
    def query(self) -> str:
        return self.tail.partition("#")[0].removeprefix("?")


def _split(url: str) -> _Split:
    """Split a URL as RFC 3986 does, on every Python: newer ones accept no second host in brackets. Raises
    ValueError."""
    found = _URL.fullmatch(url)
    if not found or re.search(r"[][]", found[2] or ""):
        raise ValueError
    return _Split(*(piece or "" for piece in found.groups()))


def _host(place: str) -> tuple[str, int | None]:
    """Read `host`, `host:port` or `[::1]:port`. Raises ValueError; for the host, ConfigurationRefused."""
    found = _HOST.fullmatch(place)
    if not found or int(found[3] or 0) > _LAST_PORT:
        raise ValueError
    if found[1]:
        IPv6Address(found[1])
    else:
        try:
            found[2].encode("idna")
        except UnicodeError:  # it would fail at its look-up, as `redis..svc` does, where a variable was empty
            raise ConfigurationRefused(
                "the host of Redis is not a name: each part between dots has 1 to 63 characters"
            ) from None
    return (found[1] or found[2]).lower(), int(found[3] or 0) or None


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
    path = parts.path.rstrip("/")
    if found:
        hosts = ",".join(host_text(*host) for host in found.hosts)
        return f"{parts.scheme}+{found.kind}://{hosts}{f'/{found.name}{path}' if found.name else ''}"
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    return f"{parts.scheme}://{host_text(*_host(parts.place))}{path}"


def host_text(name: str, port: int | None) -> str:
    """Write a host and its port as a URL would."""
    return f"[{name}]:{port or 6379}" if ":" in name else f"{name}:{port or 6379}"


def _parts(url: str, known: frozenset[str] = _PLAIN_OPTIONS) -> _Split:
    """Split the URL. If a special character in a password has moved the parts, refuse it without showing
    any."""
    _refuse_invisible(url)
    if url.partition("://")[0] not in _SCHEMES:
        raise ConfigurationRefused(
            "redis.url must be `embedded` or begin with redis://, rediss://, unix://, redis+sentinel:// or "
            "redis+cluster://"
        )
    try:
        parts = _split(url)
        host = _host(parts.place) if parts.place else None
        options = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)]
    except ValueError:
        raise _no_url("is not a URL") from None
    if parts.scheme == "unix":
        misplaced = host or not parts.path
    else:
        misplaced = not host or not re.fullmatch(r"/?[0-9]{0,5}", parts.path, re.ASCII)
    if misplaced or "#" in parts.tail:
        raise _no_url("is not redis://[user:password@]host[:port][/db] nor unix:///path")
    if len({*options}) < len(options):
        raise _no_url("has an option twice")
    known |= _TLS_OPTIONS if parts.scheme == "rediss" else frozenset()
    if not known.issuperset(options):
        raise _no_url(f"has an option other than {', '.join(sorted(known))}")
    return parts


def _refuse_invisible(url: str) -> None:
    if not url.isprintable() or " " in url:
        raise _no_url("holds a space or an invisible character")


def _no_url(reason: str) -> ConfigurationRefused:
    return ConfigurationRefused(f"redis.url {reason}; percent-encode special characters in a password")


def _check_files(ssl_ca_certs: str | None, ssl_certfile: str | None, ssl_keyfile: str | None) -> None:
    import ssl  # only TLS uses it

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ssl_keyfile and not ssl_certfile:
        raise ConfigurationRefused("redis.url: ssl_keyfile needs ssl_certfile")
    try:
        if ssl_ca_certs:
            context.load_verify_locations(ssl_ca_certs)
    except OSError:
        raise ConfigurationRefused(
            "redis.url: the file that ssl_ca_certs names holds no certificate (PEM), or may not be read"
        ) from None
    try:
        if ssl_certfile:
            context.load_cert_chain(ssl_certfile, ssl_keyfile, _no_password)
    except OSError:
        raise ConfigurationRefused(
            "redis.url: ssl_certfile and ssl_keyfile are not a certificate and its key (PEM, without a "
            "password), or may not be read"
        ) from None


def _no_password() -> str:
    """Return no password: otherwise OpenSSL would ask for one on the terminal."""
    raise OSError
