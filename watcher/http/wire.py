"""HTTP/1.1 as bytes: a request is written, an answer is read within limits. Knows no socket.

httptools (llhttp, as in Node.js) parses; this module bounds what it is given and what is kept of an answer.
If an answer is odd, nothing is guessed: the status stands, and the connection is not used again.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from yarl import URL

_INTERIM_ANSWERS = 16
"""Before an answer. A server says `100 Continue` and `103 Early Hints`, once or twice."""

_HEADERS = 1000
"""Of an answer that has more, only the status is taken."""

_PIECE = 16 * 1024
_FRAMING = 64 * 1024
"""Bytes in a row that are no body. httptools adds to a header line by line: a megabyte so took seconds."""

_INTERIM = frozenset(range(100, 200)) - {101}  # which is the last answer in HTTP
_LEAST_STATUS = 100
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r\n]")
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_NO_BODY = (204, 304)
_TLS_ALERT = b"\x15\x03"
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NO_QUERY: Mapping[str, str] = MappingProxyType({})
_PLAIN = re.compile(r"[A-Za-z0-9._~-]*")
_UNSENDABLE = re.compile("[\r\n\0]")


class Place(NamedTuple):
    """Where a connection leads: equal for URLs that may share one. `trusted` are the
    certificates, as PEM, that count instead of those that the system trusts.
    """

    host: str
    port: int
    is_tls: bool
    trusted: str | None = None


def place_of(url: URL, trusted: str | None = None) -> Place:
    """Read where a URL leads. Its scheme is http or https."""
    is_tls = url.scheme == "https"
    return Place(url.raw_host or "", url.port or (443 if is_tls else 80), is_tls, trusted)


class NoAnswer(Exception):
    """A request without an answer, not even a status; the class says why."""


class Disconnected(NoAnswer):
    """The connection was closed."""


class Reset(Disconnected):
    """The connection broke; its cause is the error of the system."""


class NotHttp(NoAnswer):
    """The peer's bytes are no HTTP answer. `is_tls`: they are TLS, which was not asked for."""

    def __init__(self, *, is_tls: bool = False) -> None:
        self.is_tls = is_tls
        super().__init__()


class TooLong(NoAnswer):
    """The answer does not end within the limits."""


class TimedOut(NoAnswer):
    """The deadline came first. `is_connected`: the request had been sent."""

    def __init__(self, *, is_connected: bool) -> None:
        self.is_connected = is_connected
        super().__init__()


class Limits(NamedTuple):
    """Of one answer, in bytes: `total` of all that comes, heads and framing included; `kept` of its body."""

    total: int
    kept: int


class Answer(NamedTuple):
    """An answer as far as it came; `cut` says why the rest is missing. The body is as it was sent,
    compressed or not, and no longer than the limit.
    """

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    cut: NoAnswer | None = None

    def header(self, name: str) -> str | None:
        """Return the first header of a name, written in lower case."""
        wanted = name.encode()
        for key, value in self.headers:
            if key.lower() == wanted:
                return value.strip(b" \t").decode("latin-1")
        return None


class Head(NamedTuple):
    """The head of requests that differ in their queries only."""

    method: str
    url: URL
    target: str
    rest: str

    @classmethod
    def of(cls, method: str, url: URL, headers: Collection[tuple[str, str]]) -> "Head":
        """Write a head up to the end of its URL, and what follows that: the host, then the headers in their
        order and case. Raises ValueError.
        """
        if not all(_NAME.fullmatch(name) and not _UNSENDABLE.search(value) for name, value in headers):
            raise ValueError("a header that cannot be sent")
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
        return cls(method, url, _target(url), f" HTTP/1.1\r\nHost: {url.host_port_subcomponent}\r\n{lines}")

    def written(self, query: Mapping[str, str] = _NO_QUERY) -> bytes:
        """Return the head without the empty line at its end. Raises ValueError.

        The URL goes out byte for byte, and behind it what `query` adds.
        """
        target = self.target
        if query and ("?" in target or not _PLAIN.fullmatch("".join([*query, *query.values()]))):
            target = _target(self.url.extend_query(query))
        elif query:
            target = f"{target}?{'&'.join(map('='.join, query.items()))}"
        return f"{self.method} {target}{self.rest}".encode()


def _target(url: URL) -> str:
    target = url.raw_path_qs
    if not target.isascii() or _UNSENDABLE.search(target) or " " in target:
        raise ValueError("a URL that cannot be sent")
    return target


class Reader:
    """Reads one answer after the other from a connection: `begin`, then `feed` until it is whole."""

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self.begin(Limits(0, 0))

    def begin(self, limits: Limits) -> None:
        """Expect another answer."""
        self._limits = limits
        self._left, self._to_keep = limits
        self._came: list[bytes] = []
        self._status: int | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._framing = 0
        self._interim_answers = 0
        self._is_flood = False
        self._is_whole = False
        self._is_chunked: bool | None = None  # as long as nothing depends on it
        self._is_forgiven = False
        self.is_odd = False
        """Whether something that no request asked for came with the end of the answer."""
        self.may_go_on = False
        """Whether the connection may be used again. Only once the answer is whole."""

    def close(self) -> None:
        """Drop the answer and the parser: they refer to each other."""
        self.begin(Limits(0, 0))
        del self._parser

    def feed(self, data: bytes) -> bool:
        """Read some bytes; returns whether the answer is complete. Raises NotHttp and TooLong.

        What goes beyond the limit is left out; a status that was read stays known.
        """
        while len(data) > _PIECE and not self._is_whole:
            self.feed(data[:_PIECE])
            data = data[_PIECE:]
        self._left -= len(data)
        is_too_long = self._left < 0
        if is_too_long:
            data = data[: self._left]
        if self._status is not None and self._is_chunked is None:
            self._is_chunked = any(name.lower() == b"transfer-encoding" for name, _ in self._headers)
        if self._status is None or self._is_chunked:
            self._came.append(data)
        self._framing += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self.may_go_on = False
            self._is_whole = self._status is not None
        except HttpParserError:
            self._forgive()
        if is_too_long:
            self.may_go_on = False
        if not self._is_whole and (is_too_long or self._framing > _FRAMING):
            raise TooLong
        return self._is_whole

    def _forgive(self) -> None:
        """Read everything again as aiohttp does, for old servers: bare line feeds, folded headers, spaces
        behind the size of a chunk. The connection is not used again: other programs may see other ends there.

        What comes after a whole answer is not read again, nor what is odd to aiohttp too.
        """
        self.may_go_on = False
        self.is_odd = self._is_whole
        if self._is_flood:
            raise TooLong from None
        if self._is_whole:
            return
        came = b"".join(self._came)
        if self._is_forgiven:
            raise NotHttp(is_tls=came.startswith(_TLS_ALERT)) from None
        self.begin(self._limits)
        self._is_forgiven = True
        self._parser = HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_keep_alive=True,  # an interim answer that says `Connection: close` is not the last one
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )
        self.feed(came)

    def end(self) -> bool:
        """Return whether the answer is complete if the connection ends now."""
        if self._status is None:
            return False
        for name, value in self._headers:
            match name.strip().lower():  # llhttp forgives a space before the colon
                case b"content-length":
                    return False
                case b"transfer-encoding" if value.rpartition(b",")[2].strip(b" \t").lower() == b"chunked":
                    return False
        return True

    @property
    def has_status(self) -> bool:
        """Whether the head of the answer is complete."""
        return self._status is not None

    def answer(self, cut: NoAnswer | None = None) -> Answer | None:
        """Return the answer as far as it came, or None if there is no status line yet.

        A head that has no end, or cannot be read, does not undo what the server did.
        """
        status = self._first_status() if self._status is None else self._status
        if status is None:
            return None
        headers = () if self._status is None else self._headers
        return Answer(status, headers, b"".join(self._body), cut)

    def _first_status(self) -> int | None:
        """Find the status in a head that could not be read, or did not end."""
        at, start = 0, b"".join(self._came)
        for _ in range(_INTERIM_ANSWERS + 1):
            found, end = _STATUS.match(start, at), _END_OF_HEAD.search(start, at)
            if not found or int(found[1]) not in _INTERIM:
                return int(found[1]) if found else None
            if not end:
                break
            at = end.end()
        return None

    # What httptools calls. An error raised here stops it.

    def on_message_begin(self) -> None:
        if self._is_whole:
            raise NotHttp  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._status is None:  # else it is a trailer
            if b"\0" in value:
                raise NotHttp
            self._headers.append((name, value))
            if len(self._headers) > _HEADERS:
                self._is_flood = True
                raise TooLong

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status in _INTERIM:
            self._headers.clear()
            self._interim_answers += 1
            if self._interim_answers > _INTERIM_ANSWERS:
                self._is_flood = True
                raise TooLong
        else:
            self._status = status

    def on_body(self, data: bytes) -> None:
        self._framing = 0
        if self._to_keep > 0:
            self._body.append(data[: self._to_keep])
            self._to_keep -= len(data)

    def on_message_complete(self) -> None:
        if self._status is not None:  # else an interim answer ends
            self._is_whole = True
            is_plain = not self._is_forgiven and self._status >= _LEAST_STATUS
            self.may_go_on = is_plain and self._parser.should_keep_alive()
