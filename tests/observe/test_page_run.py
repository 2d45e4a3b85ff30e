"""`watcher run --http … --page` as a process: it serves the page, which shows this worker."""

import json
import signal
from asyncio import wait_for
from pathlib import Path

import pytest

from tests.api.test_run_exposed import place, ran, until
from tests.observe.browser import PROGRAM, a_browser
from tests.support.processes import a_process, lines
from tests.support.scraped import get

__all__ = ["place"]

HTTP = ("--http", "127.0.0.1:0")


async def address_of(place: Path) -> tuple[str, int]:
    await until(lambda: lines(place, "worker.started") and lines(place, "listener.started"))
    address = str(lines(place, "listener.started")[-1]["address"])
    return address, int(address.rpartition(":")[2])


async def test_the_page_is_served_and_shows_this_worker(place: Path) -> None:
    async with a_process(place, "run", *HTTP, "--page") as process:
        address, port = await address_of(place)
        page = await get(port, "/")
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        await until(lambda: lines(place, "poll.rejected"))
        found = json.loads((await get(port, "/page.json")).body)
        assert found["worker"] == lines(place, "worker.started")[0]["worker"]
        assert [one["account"] for one in found["seen"]["accounts"]["shown"]] == ["account-1"]
        if PROGRAM:
            async with a_browser() as browser:
                await browser.open(f"http://{address}/")
                await browser.until("document.getElementById('state')?.textContent === '1 account failing'")
                assert browser.complaints == []
        process.send_signal(signal.SIGTERM)
        assert await wait_for(process.wait(), 10) == 0
    assert (place / "errors").read_text() == ""


@pytest.mark.parametrize("path", ["/", "/page.json"])
async def test_without_the_option_no_page_is_served(place: Path, path: str) -> None:
    async with a_process(place, "run", *HTTP):
        _, port = await address_of(place)
        assert (await get(port, path)).status == 404


def test_a_page_without_a_listener_is_a_usage_error(place: Path) -> None:
    done = ran(place, "--page")
    assert getattr(done.exception, "exit_code", None) == 2
    assert "--http" in str(done.exception)
