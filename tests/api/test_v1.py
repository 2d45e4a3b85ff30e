"""The frame of /v1: which callers are let in, to what, how often; and every error is a problem."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any, NamedTuple

import pytest
from aiohttp import ClientSession, web
from structlog.testing import capture_logs

from tests.support.scraped import said
from watcher.api import server
from watcher.api.access import CALLER, COST, PER_SECOND, Access, Address, Caller, Rates
from watcher.api.problems import Problem, answer, body_of, cursor, page_of
from watcher.api.server import Listener
from watcher.store.exceptions import StoreUnreachable

OPERATORS = "the-token-of-the-operator"
OPS = "the-token-of-ops"
TOKENS = {sha256(OPS.encode()).hexdigest(): "ops"}
CANARY = "canary-of-an-exception"


async def who(request: web.Request) -> web.Response:
    return answer({"caller": request[CALLER].name, "name": request.match_info.get("name")})


async def take(request: web.Request) -> web.Response:
    return answer({"bytes": len(await body_of(request))})


async def paged(request: web.Request) -> web.Response:
    return answer(page_of(request, "provider")._asdict())


async def broken(_: web.Request) -> web.Response:
    raise KeyError(CANARY)


async def without_store(_: web.Request) -> web.Response:
    raise StoreUnreachable("no server answers at 127.0.0.1:6379")


async def never(_: web.Request) -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


async def refusing(_: web.Request) -> web.Response:
    raise Problem(
        409, "it is of the file", errors=[{"pointer": "/name", "detail": "is taken"}], file="a.toml"
    )


ROUTES = [
    web.get("/v1/accounts", paged),
    web.get("/v1/accounts/{name}", who),
    web.put("/v1/accounts/{name}", take),
    web.get("/v1/subscriptions", who),
    web.get("/v1/subscriptions/{name}", who),
    web.get("/v1/subscriptions/{name}/events", who),
    web.get("/v1/subscriptions/{name}/balances", who),
    web.get("/v1/subscriptions/{name}/deliveries", who),
    web.post("/v1/subscriptions/{name}/secret", who),
    web.get("/v1/events", who),
    web.get("/v1/broken", broken),
    web.get("/v1/without-store", without_store),
    web.get("/v1/never", never),
    web.get("/v1/refusing", refusing),
]


class Said(NamedTuple):
    status: int
    headers: Mapping[str, str]
    data: Any


class Api:
    """A client of the listener; `request` sends the operator's token by default."""

    def __init__(self, listener: Listener, session: ClientSession, counted: Counter[str]) -> None:
        self.listener = listener
        self.port = listener.address.port
        self.counted = counted
        self._session = session

    async def request(self, method: str, path: str, token: str | None = OPERATORS, **more: Any) -> Said:
        headers = {**({"authorization": f"Bearer {token}"} if token else {}), **more.pop("headers", {})}
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self._session.request(method, url, headers=headers, **more) as seen:
            body = await seen.read()
            return Said(seen.status, seen.headers, json.loads(body) if body else None)


@asynccontextmanager
async def an_api() -> AsyncIterator[Api]:
    counted = Counter[str]()
    listener = Listener(
        Address("127.0.0.1", 0),
        {"/livez": who},
        token=OPERATORS,
        api=ROUTES,
        access=Access(OPERATORS, TOKENS.get),
        counted=counted,
    )
    async with listener, ClientSession() as session:
        yield Api(listener, session, counted)


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with an_api() as one:
        yield one


def is_problem(seen: Said) -> bool:
    return (
        seen.headers["content-type"] == "application/problem+json"
        and seen.headers["cache-control"] == "no-store"
        and seen.data["type"] == "about:blank"
        and seen.data["status"] == seen.status
        and bool(seen.data["title"] and seen.data["detail"])
    )


STRANGERS = {
    "none": {},
    "another": {"authorization": f"Bearer {OPERATORS}x"},
    "a part": {"authorization": f"Bearer {OPERATORS[:-1]}"},
    "its hash": {"authorization": f"Bearer {sha256(OPS.encode()).hexdigest()}"},
    "as a password": {"authorization": "Basic OnRoZS10b2tlbi1vZi10aGUtb3BlcmF0b3I="},
    "no scheme": {"authorization": OPERATORS},
    "in the query": {},
    "no text": {"authorization": "Bearer \udcff"},
}


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/", "/v1/accounts/a", "/v1/nothing", "/v1/events?token=" + OPERATORS]
)
@pytest.mark.parametrize("shown", STRANGERS.values(), ids=STRANGERS)
async def test_without_a_token_the_api_says_only_that_it_needs_one(
    api: Api, path: str, shown: Mapping[str, str]
) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in shown.items())
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode("utf-8", "surrogateescape")
    found, _, body = (await said(api.port, head)).partition(b"\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nwww-authenticate: Bearer\r\n" in found
    assert json.loads(body)["detail"] == "send a token of this API: `Authorization: Bearer ...`"


async def test_a_request_with_two_tokens_is_refused(api: Api) -> None:
    shown = f"Authorization: Bearer {OPS}\r\nAuthorization: Bearer {OPERATORS}\r\n"
    found = await said(api.port, f"GET /v1/events HTTP/1.1\r\nHost: a\r\n{shown}\r\n".encode())
    assert found.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in found


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
async def test_the_operators_token_opens_endpoints_of_any_subscription(api: Api, scheme: str) -> None:
    seen = await api.request(
        "GET", "/v1/subscriptions/ops", None, headers={"authorization": f"{scheme} {OPERATORS}"}
    )
    assert (seen.status, seen.data) == (200, {"caller": "operator", "name": "ops"})


OWN = ["/v1/subscriptions/ops/events", "/v1/subscriptions/ops/balances", "/v1/subscriptions/o%70s/events"]


@pytest.mark.parametrize("path", OWN)
async def test_a_subscription_reads_its_own_events_and_balances(api: Api, path: str) -> None:
    seen = await api.request("GET", path, OPS)
    assert (seen.status, seen.data["caller"]) == (200, "subscription ops")


FOREIGN = [
    *(
        "/v1",
        "/v1/",
        "/v1/accounts",
        "/v1/accounts/treasury",
        "/v1/events",
        "/v1/subscriptions",
        "/v1/nothing",
    ),
    *("/v1/subscriptions/ops", "/v1/subscriptions/ops/deliveries", "/v1/subscriptions/other/events"),
    *("/v1/subscriptions/none/events", "/v1/subscriptions/OPS/events", "/v1/subscriptions/ops%20/events"),
    *(
        "/v1/subscriptions/ops/events/",
        "/v1/subscriptions/ops%2Fevents",
        "/v1/subscriptions/ops/../other/events",
    ),
    *(
        "/v1/subscriptions/other/events?name=ops",
        "/v1/subscriptions/%6fther/events",
        "/v1/subscriptions//events",
    ),
    *("/v1/subscriptions/ops%00/events", "/v1/broken"),
]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"])
async def test_a_subscriptions_token_gets_the_same_refusal_for_all_else_whether_it_exists_or_not(
    api: Api, method: str
) -> None:
    seen = [
        await api.request(method, path, OPS) for path in [*FOREIGN, *(OWN if method in "PUT POST" else [])]
    ]
    assert {one.status for one in seen} == {403}
    details = {one.data["detail"] for one in seen if method != "HEAD"}
    assert details == (set() if method == "HEAD" else {"this token does not allow this request"})
    assert {one.headers["content-length"] for one in seen} == {seen[0].headers["content-length"]}


async def test_a_refusal_is_one_problem_with_all_its_findings(api: Api) -> None:
    seen = await api.request("GET", "/v1/refusing")
    assert is_problem(seen)
    assert seen.data == {
        "type": "about:blank",
        "title": "Conflict",
        "status": 409,
        "detail": "it is of the file",
        "errors": [{"pointer": "/name", "detail": "is taken"}],
        "file": "a.toml",
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "why"),
    [
        ("GET", "/v1/nothing", 404, "GET /v1/ lists"),
        ("GET", "/v1/accounts/", 404, "GET /v1/ lists"),
        ("GET", "/v1/accounts/a/b/c", 404, "GET /v1/ lists"),
        ("DELETE", "/v1/accounts/treasury", 405, "takes GET, HEAD, PUT"),
        ("OPTIONS", "/v1/accounts", 405, "takes GET, HEAD"),
        ("GET", "/v1/without-store", 503, "Redis cannot be used now: no server answers"),
        ("GET", "/v1/broken", 500, "a bug"),
    ],
)
async def test_an_error_outside_of_a_handler_is_a_problem_too(
    api: Api, method: str, path: str, status: int, why: str
) -> None:
    with capture_logs() as lines:
        seen = await api.request(method, path)
    assert seen.status == status
    assert is_problem(seen)
    assert why in seen.data["detail"]
    assert CANARY not in str(seen)
    assert ("retry-after" in seen.headers, "allow" in seen.headers) == (status == 503, status == 405)
    assert [line["event"] for line in lines] == (["bug"] if status == 500 else [])
    assert api.counted == {"failed" if status >= 500 else "refused": 1}


async def test_a_request_that_takes_too_long_is_ended_with_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 0.2)
    monkeypatch.setattr(server.Connection, "begin", lambda *_: None)
    async with an_api() as api:
        seen = await api.request("GET", "/v1/never")
    assert (seen.status, is_problem(seen), seen.headers["retry-after"]) == (503, True, "2")


async def test_the_index_lists_what_there_is(api: Api) -> None:
    seen = await api.request("GET", "/v1/")
    assert seen.data["/v1/accounts/{name}"] == ["GET", "PUT"]
    assert seen.data.keys() == {route.path for route in ROUTES}


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (JSON, b"x" * 65_536, 200),
        ({"content-type": "application/json; charset=utf-8"}, b"{}", 200),
        (JSON, b"", 200),
        (JSON, b"x" * 65_537, 413),
        ({"content-type": "text/plain"}, b"{}", 415),
        ({"content-type": "application/x-www-form-urlencoded"}, b"{}", 415),
        ({**JSON, "content-encoding": "gzip"}, b"{}", 415),
        ({**JSON, "transfer-encoding": "chunked"}, b"x" * 70_000, 413),
    ],
)
async def test_a_body_is_json_and_bounded(
    api: Api, headers: Mapping[str, str], body: bytes, status: int
) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    data = parts() if "transfer-encoding" in headers else body
    headers = {name: value for name, value in headers.items() if name != "transfer-encoding"}
    seen = await api.request("PUT", "/v1/accounts/a", headers=headers, data=data)
    assert seen.status == status
    assert seen.data == {"bytes": len(body)} if status == 200 else is_problem(seen)


@pytest.mark.parametrize(
    ("segment", "name"),
    [
        ("treasury", "treasury"),
        ("a%2Eb", "a.b"),
        ("..%2F..%2Fetc", "../../etc"),
        ("a%2Fb", "a/b"),
        ("%00", "\0"),
        ("%C3%A4", "ä"),
        ("%FF", "%FF"),
        ("a%0D%0Ax:%20y", "a\r\nx: y"),
        ("x" * 4000, "x" * 4000),
    ],
)
async def test_a_name_in_a_path_is_decoded_once_and_is_no_path(api: Api, segment: str, name: str) -> None:
    shown = f"Host: a\r\nConnection: close\r\nAuthorization: Bearer {OPERATORS}\r\n"
    found = await said(api.port, f"GET /v1/accounts/{segment} HTTP/1.1\r\n{shown}\r\n".encode())
    body = found.partition(b"\r\n\r\n")[2]
    assert json.loads(body)["name"] == name


@pytest.mark.parametrize("segment", ["..", ".", "a/..", "..;", "%2e%2e/%2e%2e"])
async def test_dots_in_a_path_lead_nowhere(api: Api, segment: str) -> None:
    shown = f"Host: a\r\nConnection: close\r\nAuthorization: Bearer {OPERATORS}\r\n"
    found = await said(api.port, f"GET /v1/accounts/{segment}/../../livez HTTP/1.1\r\n{shown}\r\n".encode())
    assert found.startswith(b"HTTP/1.1 404 ")


async def test_one_connection_carries_many_requests(api: Api) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    shown = f"Host: a\r\nAuthorization: Bearer {OPERATORS}\r\n"
    for name in ("a", "b", "c"):
        writer.write(f"GET /v1/accounts/{name} HTTP/1.1\r\n{shown}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b'"name":"' + name.encode() in await reader.readuntil(b"}")
    writer.close()


async def test_a_connection_with_a_token_may_be_idle_but_not_slow_within_a_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "REQUEST_S", 0.2)
    async with an_api() as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        request = f"GET /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {OPERATORS}\r\n\r\n".encode()
        for _ in range(2):
            writer.write(request)
            assert b'"operator"' in await reader.readuntil(b"}")
            await asyncio.sleep(0.4)  # twice as long as a request may take
        writer.write(request[:40])
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()


async def test_a_client_that_disconnects_within_a_body_is_no_bug(api: Api) -> None:
    head = f"PUT /v1/accounts/a HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {OPERATORS}\r\n"
    with capture_logs() as lines:
        _, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{{".encode())
        async with asyncio.timeout(5):
            while not await asyncio.sleep(0.01, api.listener.in_hand):
                pass
            writer.close()
            while await asyncio.sleep(0.01, api.listener.in_hand):
                pass
    assert lines == []
    assert api.counted == {"refused": 1}


async def test_connections_without_a_token_give_way_to_those_with_one(api: Api) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    request = f"GET /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {OPERATORS}\r\n\r\n".encode()
    writer.write(request)
    await reader.readuntil(b"}")
    held = [await asyncio.open_connection("127.0.0.1", api.port) for _ in range(server.API_CONNECTIONS + 20)]
    writer.write(request)
    assert b'"operator"' in await reader.readuntil(b"}")
    for one in [writer, *(writer for _, writer in held)]:
        one.close()


async def test_a_caller_over_its_rate_gets_retry_after_and_others_are_not_slowed(api: Api) -> None:
    seen = [await api.request("GET", OWN[0], OPS) for _ in range(2 * PER_SECOND)]
    refused = [one for one in seen if one.status == 429]
    assert len(seen) - len(refused) >= PER_SECOND
    assert (await api.request("GET", "/v1/events")).status == 200
    for one in refused:
        assert is_problem(one)
        assert one.headers["retry-after"] == "1"


def test_a_bucket_lets_a_hundred_in_at_once_and_a_hundred_a_second_after_that() -> None:
    rates, ops = Rates(), Caller("ops")
    assert [rates.wait_s(ops, 5.0) for _ in range(PER_SECOND)] == [0] * PER_SECOND
    assert rates.wait_s(ops, 5.0) == pytest.approx(1 / PER_SECOND)
    assert [rates.wait_s(Caller(), 5.0), rates.wait_s(Caller("operator"), 5.0)] == [0, 0]
    let_in = sum(rates.wait_s(ops, 5 + at / 1000) == 0 for at in range(1, 1001))
    assert let_in == pytest.approx(PER_SECOND, abs=1)


def test_an_answer_that_is_long_or_kept_redis_busy_counts_as_many_requests() -> None:
    rates, ops = Rates(), Caller("ops")
    rates.wait_s(ops, 5.0)
    rates.charge(ops, web.Response(body=bytes(60_000)))
    rates.charge(ops, web.Response(body=bytes(4 * 2**20)))
    searched = web.Response()
    searched[COST] = 30
    rates.charge(ops, searched)
    left = PER_SECOND - 1 - 64 - 30
    assert [rates.wait_s(ops, 5.0) for _ in range(left)] == [0] * left
    assert rates.wait_s(ops, 5.0) > 0


def test_idle_callers_are_forgotten_and_busy_ones_are_not() -> None:
    rates, busy = Rates(), Caller("busy")
    for number in range(10_000):
        rates.wait_s(Caller(f"{number}"), 0.0)
    for _ in range(PER_SECOND):
        rates.wait_s(busy, 5.0)
    assert rates.wait_s(busy, 5.0) > 0
    assert len(rates._left) == 1


async def test_concurrent_requests_beyond_the_limit_are_refused_and_the_rest_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_AT_ONCE", 2)
    monkeypatch.setattr(server, "_MOST_IN_HAND", 3)
    async with an_api() as api:
        held = [asyncio.create_task(api.request("GET", "/v1/never")) for _ in range(3)]
        async with asyncio.timeout(5):
            while (seen := await api.request("GET", "/v1/nothing")).status != 503:
                pass
        assert (is_problem(seen), seen.headers["retry-after"]) == (True, "1")
        for task in held:
            task.cancel()


async def test_a_refusal_is_logged_once_by_the_name_of_its_token_and_never_by_the_token(api: Api) -> None:
    with capture_logs() as lines:
        for _ in range(3):
            await api.request("GET", "/v1/events", OPS)
            await api.request("GET", "/v1/events", "a-token-that-is-unknown")
            await api.request("GET", "/v1/events?after=a-cursor-of-mine", None)
    assert [(line["event"], line["status"], line["token"]) for line in lines] == [
        ("api.refused", 403, "subscription ops"),
        ("api.refused", 401, None),
    ]
    assert not [part for part in (OPS, OPERATORS, "unknown", "a-cursor") if part in str(lines)]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", {"after": "", "limit": 100, "filters": {}}),
        ("?limit=1000&provider=shop", {"after": "", "limit": 1000, "filters": {"provider": "shop"}}),
        (f"?after={cursor('a-name')}", {"after": "a-name", "limit": 100, "filters": {}}),
        ("?after=", {"after": "", "limit": 100, "filters": {}}),
    ],
)
async def test_a_page_is_asked_for_by_a_cursor_and_a_limit(api: Api, query: str, expected: Any) -> None:
    assert (await api.request("GET", f"/v1/accounts{query}")).data == expected


@pytest.mark.parametrize(
    "query",
    [
        *("limit=0", "limit=1001", "limit=-1", "limit=1e2", "limit=", "limit=٣", "limit=1&limit=2"),
        *(
            "after=a",
            "after=====",
            "after=%00",
            "after=YQ==",
            "after=_w",
            "after=ä",
            "limt=3",
            "after=&after=",
        ),
    ],
)
async def test_an_invalid_query_for_a_page_is_refused(api: Api, query: str) -> None:
    seen = await api.request("GET", f"/v1/accounts?{query}")
    assert (seen.status, is_problem(seen)) == (400, True)
