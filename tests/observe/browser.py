"""A headless Chromium, if one is installed: opens a page, returns what it shows and what ran in it."""

import asyncio
import base64
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")

AXE_PACKAGE = "axe-core@4.14.1"
AXE = next(
    (
        path
        for folder in (".tools", "../axe")
        if (path := Path(folder, "node_modules", "axe-core", "axe.min.js").absolute()).exists()
    ),
    None,
)
"""What inspects the accessibility of a page: of npm, where it is installed."""

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--disable-dev-shm-usage", "--remote-debugging-port=0"),
)
_START_S = 20
_ANSWER_S = 10


class Browser:
    """One tab. `complaints` holds what the page logged, was refused or threw."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}

    async def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(_ANSWER_S):
            return await self._answers[number]

    async def open(self, url: str, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        await self.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        await self.call("Page.navigate", url=url)

    async def value(self, expression: str) -> Any:
        said = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait until an expression is true of the page."""
        async with asyncio.timeout(_ANSWER_S):
            while not (value := await self.value(expression)):  # noqa: ASYNC110 - a page sends no signal
                await asyncio.sleep(0.05)
        return value

    async def picture(self, kind: str = "png") -> bytes:
        said = await self.call("Page.captureScreenshot", format=kind, captureBeyondViewport=False)
        return base64.b64decode(said["data"])

    async def listen(self) -> None:
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said.get("result", said.get("error")))
            elif said["method"] in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                self.complaints.append(str(said["params"]))
            elif said["method"] == "Page.javascriptDialogOpening":
                self.complaints.append("a dialog was opened")


@asynccontextmanager
async def a_browser() -> AsyncIterator[Browser]:
    """Start one with a profile of its own; it is gone afterwards."""
    assert PROGRAM
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            *(PROGRAM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(profile) / "DevToolsActivePort")
            async with ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    (tab,) = [one for one in await answer.json() if one["type"] == "page"]
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    browser = Browser(socket)
                    listening = asyncio.create_task(browser.listen())
                    try:
                        yield browser
                    finally:
                        listening.cancel()
        finally:
            process.kill()
            await process.wait()


async def _port(file: Path) -> int:
    async with asyncio.timeout(_START_S):
        while True:
            with suppress(OSError, ValueError, IndexError):
                return int(file.read_text().splitlines()[0])  # noqa: ASYNC240 - one small file
            await asyncio.sleep(0.05)
