"""The page behind a reverse proxy: under a prefix, by a public name, with a token."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from tests.observe.browser import PROGRAM, a_browser
from tests.observe.test_page import HTML, TOKEN, a_page, rig, some_books, state_of
from tests.support.rig import Rig

__all__ = ["rig"]

PREFIX = "/ops/watcher"


@asynccontextmanager
async def a_reverse_proxy(port: int) -> AsyncIterator[str]:
    """Passes on what comes below PREFIX, without it, as Caddy, nginx and Traefik do; gives its address."""
    async with ClientSession() as session:

        async def pass_on(request: web.Request) -> web.Response:
            shown = {"Host": "watch.example.com", "Authorization": f"Bearer {TOKEN}"}
            path = request.path.removeprefix(PREFIX) or "/"
            async with session.get(f"http://127.0.0.1:{port}{path}", headers=shown) as answer:
                kept = {name: answer.headers[name] for name in ("content-type", "content-security-policy")}
                return web.Response(status=answer.status, body=await answer.read(), headers=kept)

        app = web.Application()
        app.router.add_get(f"{PREFIX}{{rest:.*}}", pass_on)
        async with TestServer(app) as server:
            yield str(server.make_url(PREFIX))


def test_the_page_uses_no_absolute_path() -> None:
    assert re.findall(r"""(?:href|src|action)=["']?/|fetch\(["'`]/""", HTML) == []


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
@pytest.mark.slow
async def test_a_token_in_the_address_opens_the_page(rig: Rig) -> None:
    async with some_books(rig) as (_, worker), a_page(worker, TOKEN) as port, a_browser() as browser:
        await browser.open(f"http://me:{TOKEN}@127.0.0.1:{port}/")
        assert await state_of(browser, "not read yet") == "1 account not read yet"


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("end", ["/", ""])
async def test_the_page_is_complete_under_a_prefix_and_a_public_name(rig: Rig, end: str) -> None:
    async with (
        some_books(rig) as (_, worker),
        a_page(worker, TOKEN) as port,
        a_reverse_proxy(port) as address,
        a_browser() as browser,
    ):
        await browser.open(address + end)
        assert await state_of(browser, "not read yet") == "1 account not read yet"
        assert browser.complaints == []
