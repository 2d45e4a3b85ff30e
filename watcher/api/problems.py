"""Bodies, pages and problems under /v1: bounded JSON, cursors, and problem details (RFC 9457).

Refuses to repeat values: a problem names the place in a body, never what stands there.
"""

from collections.abc import Collection, Iterable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import orjson
from aiohttp import web

from watcher.printable import printable
from watcher.store.history import cursor_text, read_cursor

BODY_BYTES = 64 * 1024
BATCH_BYTES = 1024 * 1024
MOST_OF_A_PAGE = 1000
_OF_A_PAGE = 100


class Problem(Exception):
    """A request is answered with this error `status`. `detail` says what is wrong and how to fix it.

    `errors`: the mistakes in a body, each with its `pointer` and `detail`. `more`: further members.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Iterable[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}
        self.more = {**({"errors": found} if (found := [*errors]) else {}), **more}

    def answer(self) -> web.Response:
        title = HTTPStatus(self.status).phrase
        said = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}
        return web.Response(
            body=orjson.dumps({**said, **self.more}),
            status=self.status,
            content_type="application/problem+json",
            headers=self.headers,
        )


def unknown(kind: str, name: str) -> Problem:
    """Make the problem that there is no such account or subscription."""
    return Problem(404, f"there is no {kind} '{printable(name, 80)}'")


def answer(data: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Answer with JSON."""
    body = orjson.dumps(data)
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


async def body_of(
    request: web.Request,
    *,
    limit: int = BODY_BYTES,
    types: Collection[str] = ("application/json",),
    is_optional: bool = False,
) -> bytes:
    """Read a body of one of these content types. Raises Problem: 400, 413 beyond `limit` bytes, 415.

    `is_optional`: a request without a body returns b"".
    """
    if "content-encoding" in request.headers:
        raise Problem(415, "send the body without a Content-Encoding: none is supported")
    if not request.body_exists and is_optional:
        return b""
    if request.content_type not in types:
        raise Problem(415, f"send the body as `Content-Type: {'` or `'.join(types)}`")
    body = bytearray()
    if (request.content_length or 0) <= limit:
        try:
            async for part in request.content.iter_any():
                body += part
                if len(body) > limit:
                    break
            else:
                return bytes(body)
        except (ConnectionError, web.RequestPayloadError):
            raise Problem(400, "the body is incomplete") from None
    raise Problem(413, f"the body is longer than {limit:,} bytes")


class Page(NamedTuple):
    """The part of a list that a client asks for: at most `limit` items after the name `after`; and the other
    parameters."""

    after: str
    limit: int
    filters: Mapping[str, str]


def page_of(request: web.Request, *filters: str) -> Page:
    """Read the query of a list, `after`, `limit` and these filters. Raises Problem: 400."""
    asked = query_of(request, "after", "limit", *filters)
    limit = limit_in(asked)
    return Page(_name_in(asked.pop("after", "")), limit, asked)


def limit_in(asked: dict[str, str]) -> int:
    """Take the `limit` out of a query. Raises Problem: 400."""
    limit = asked.pop("limit", str(_OF_A_PAGE))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 5 and 1 <= int(limit) <= MOST_OF_A_PAGE):
        raise Problem(400, f"limit: must be a whole number from 1 to {MOST_OF_A_PAGE}")
    return int(limit)


def query_of(request: web.Request, *names: str) -> dict[str, str]:
    """Read the query: these names, each at most once, and no others. Raises Problem: 400."""
    for name in request.query:
        if name not in names:
            known = f": use {', '.join(names)}" if names else ": this request takes none"
            raise Problem(400, f"there is no parameter '{printable(name, 80)}'{known}")
        if len(request.query.getall(name)) > 1:
            raise Problem(400, f"{name}: must be given once")
    return dict(request.query)


def page(names: list[str], items: list[Any], limit: int) -> Mapping[str, Any]:
    """Write a page: the `items` of the first `limit` names, and the cursor `next` if more follow."""
    return {"items": items, "next": cursor(names[limit - 1]) if len(names) > limit else None}


def cursor(name: str) -> str:
    return cursor_text(name.encode())


def _name_in(text: str) -> str:
    try:
        name = read_cursor(text).decode()
        if cursor(name) == text:
            return name
    except ValueError:
        pass
    raise Problem(400, "after: is not the `next` of a page of this list")
