"""Reads the address of a Redis server, and says what is wrong with it: no client is needed for that.

Refuses to connect, to import a client, and to show a credential: messages name a server by `safe_url`.
"""

import re
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit

_SCHEMES = ("redis", "rediss", "unix")
_LATER = re.compile(r"rediss?\+(sentinel|cluster)://")
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


def check_address(url: str) -> None:
    """Find now what redis-py would find at the first connection or never. Raises ConfigurationRefused."""
    _check_options(_parts(url))


def safe_url(url: str) -> str:
    """Return where `url` points, without credentials and options. Never raises."""
    if url == "embedded":
        return url
    try:
        parts = _parts(url)
    except ConfigurationRefused:
        return "(not a Redis URL)"
    if parts.scheme == "unix":
        return f"unix://{parts.path}"
    return f"{parts.scheme}://{host_text(parts.hostname or '', parts.port)}{parts.path.rstrip('/')}"


def host_text(name: str, port: int | None) -> str:
    """Write a host and its port as a URL would."""
    return f"[{name}]:{port or 6379}" if ":" in name else f"{name}:{port or 6379}"


def _parts(url: str) -> SplitResult:
    """Take the URL apart. What a special character in a password pushed out of place is refused unseen."""
    if later := _LATER.match(url):
        raise ConfigurationRefused(
            f"redis.url: {later[0]} is not supported yet; use redis://, rediss:// or unix://"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
        options = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)]
    except ValueError:
        raise _no_url("is not a URL") from None
    if parts.scheme not in _SCHEMES:
        raise ConfigurationRefused(
            "redis.url must be `embedded` or begin with redis://, rediss:// or unix://"
        )
    if parts.scheme == "unix":
        misplaced = port is not None or not parts.path or (parts.netloc and "@" not in parts.netloc)
    else:
        misplaced = not parts.hostname or not re.fullmatch(r"/?[0-9]{0,5}", parts.path, re.ASCII)
    if misplaced or parts.fragment:
        raise _no_url("is not redis://[user:password@]host[:port][/db] nor unix:///path")
    known = _PLAIN_OPTIONS | (_TLS_OPTIONS if parts.scheme == "rediss" else set())
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
