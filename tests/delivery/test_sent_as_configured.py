"""What is sent is what was configured: URLs byte for byte, headers in their order and case."""

import asyncio
from pathlib import Path

import pytest

from tests.support.builders import SECRET
from tests.support.program import watcher
from tests.support.provider_staging import Stage, answer, loopring_account, loopring_client
from tests.support.raw_subscribers import (
    OK,
    FakeDns,
    Request,
    a_delivery,
    a_sink,
    a_target,
    answering,
    subscribing,
)
from watcher.delivery.egress import Policy, RefusedUrl, check_url

TARGETS = [
    "/h?sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig=a-b_c",
    "/h?token=abc%3D%3D&k=x",
    "/h?s=qZ0%2BPP2g%3D",
    "/h?a=b+c",
    "/h?a=%20b%2bc",
    "/h/a%40b",
    "/h/a%2Fb",
    "/h/%7Euser/%61",
    "/h/%e2%82%ac",
    "/h?bad=%zz",
    "/h?bad=%",
    "/h/%",
    "/h//x",
    "//h",
    "/h/../x",
    "/h/./x/..",
    "/..",
    "/h/%2e%2e/x",
    "/h?",
    "/?",
    "/h??",
    "/h?a=?",
    "/h?&&a",
    "/h?a=b;c=d&e",
    "/h;v=1/x,y:z@w",
    "/h?q={}<>|^`\"'[]!$*()~",
    "/h/",
    "/",
]
"""Request targets that yarl, left to itself, sends in another spelling, and their neighbours."""

ENCODED = [
    ("/ünterwegs?u=ü", "/%C3%BCnterwegs?u=%C3%BC"),
    ("/h?u=ü&v=%FC&w=%2F", "/h?u=%C3%BC&v=%FC&w=%2F"),
    ("/h/€/😀", "/h/%E2%82%AC/%F0%9F%98%80"),
    ("", "/"),
    ("?a=%2F", "/?a=%2F"),
    ("?", "/?"),
]
"""What no request line can hold, and what stands for it."""


async def sent_to(
    path: str, host: str = "127.0.0.1", *, port: int | None = None, **fields: object
) -> Request:
    """Deliver to a subscriber whose URL ends in `path`; returns what came."""
    dns = FakeDns(
        {name: ["127.0.0.1"] for name in ("hooks.example", "hooks.example.", "xn--bcher-kva.example")}
    )
    async with subscribing(answering(OK)) as subscriber, a_sink(resolver=dns) as sink:
        url = f"http://{host}:{subscriber.port if port is None else port}{path}"
        attempt = await sink.send(a_target(url, **fields), [a_delivery()], 1)
    assert attempt.status == 200, attempt
    return subscriber.requests[0]


def target_of(request: Request) -> str:
    return request.head.decode("ascii").split(" ")[1]


@pytest.mark.parametrize("target", TARGETS)
async def test_path_and_query_are_sent_as_they_were_configured(target: str) -> None:
    assert target_of(await sent_to(target)) == target


@pytest.mark.parametrize(("configured", "sent"), ENCODED)
async def test_characters_outside_a_request_line_are_sent_percent_encoded(configured: str, sent: str) -> None:
    assert target_of(await sent_to(configured)) == sent


@pytest.mark.parametrize(
    "target", ["/a b", "/a\tb", "/a\x7fb", "/a\N{NO-BREAK SPACE}b", "/a\\b", "/a#b", "/a#"]
)
def test_a_url_that_would_be_sent_in_another_spelling_is_refused(target: str) -> None:
    with pytest.raises(RefusedUrl):
        check_url(f"https://hooks.example{target}", Policy())


@pytest.mark.parametrize(
    ("host", "sent"),
    [
        ("hooks.example", "hooks.example"),
        ("HOOKS.Example", "hooks.example"),
        ("hooks.example.", "hooks.example"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
async def test_a_host_is_sent_in_the_form_in_which_it_is_looked_up(host: str, sent: str) -> None:
    name, _, port = (await sent_to("/h", host)).headers["host"].rpartition(":")
    assert name == sent
    assert port.isdigit()


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://hooks.example:443/h", "hooks.example"),
        ("https://hooks.example:8443/h", "hooks.example:8443"),
        ("http://hooks.example:80/h", "hooks.example"),
        ("http://hooks.example:443/h", "hooks.example:443"),
        ("https://[2606:4700:4700::1111]:443/h", "[2606:4700:4700::1111]"),
    ],
)
def test_a_port_is_sent_unless_it_is_the_default_of_the_scheme(url: str, host: str) -> None:
    assert check_url(url, Policy(allow_http=True)).host_port_subcomponent == host


async def test_headers_are_sent_in_the_order_the_case_and_the_spelling_of_the_configuration() -> None:
    configured = {
        "X-zeta": "a  b",
        "x-Alpha": "Basic dTpw==",
        "AUTHORIZATION": "bearer 1",
        "x_low": '"q", \\',
    }
    head = (await sent_to("/h", headers=configured)).head.decode("ascii")
    lines = [line.partition(": ")[::2] for line in head.split("\r\n")[1:-2]]
    assert [(name, value) for name, value in lines if name in configured] == [*configured.items()]
    assert lines[1 : 1 + len(configured)] == [*configured.items()], "right behind Host"


@pytest.mark.parametrize("prefix", ["", "/api", "/a//b", "/a/../b", "/~user/x.y"])
async def test_a_providers_base_url_is_sent_as_it_was_configured(prefix: str) -> None:
    async with Stage() as stage, loopring_client(stage.url + prefix) as client:
        stage.reply = answer([])
        await client.ask(loopring_account(tokens=(0, 1)))
    assert stage.seen[0].target == f"{prefix}/api/v3/user/balances?accountId=10110&tokens=0,1"


async def test_a_ping_goes_to_the_url_as_it_was_configured(tmp_path: Path) -> None:
    target = "/a%40b/../%7E//?sig=%2F%zz&u=ü"
    path = tmp_path / "watcher.toml"
    async with subscribing(answering(OK)) as subscriber:
        path.write_text(
            f'[egress]\nallow = ["127.0.0.0/8"]\nallow_http = true\n'
            f'[[subscriptions]]\nname = "ops"\nurl = "http://127.0.0.1:{subscriber.port}{target}"\n'
            f'secrets = ["{SECRET}"]\nheaders = {{ "X-b" = "2", "x-A" = "1" }}\n'
        )
        done = await asyncio.to_thread(watcher, "ping", "ops", "--config", str(path))
    assert done.returncode == 0, done.stderr
    [request] = subscriber.requests
    assert target_of(request) == target.replace("ü", "%C3%BC")
    assert b"\r\nX-b: 2\r\nx-A: 1\r\n" in request.head
