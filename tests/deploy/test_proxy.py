"""The reverse proxies of deploy/proxy, as they are: TLS before the API, and only the API."""

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import BaseTestServer, TestServer
from yarl import URL

from tests.support.servers import a_free_port
from tests.support.tls_front import a_certificate_file

FOLDER = Path(__file__).parents[2] / "deploy" / "proxy"
WORKER, TOKEN = "127.0.0.1:8787", "Bearer a-token-of-sixteen"

NGINX = """\
daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
{server}}}
"""


def changed(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def nginx(folder: Path, worker: str, port: int, certificate: Path) -> list[str]:
    """Its command, with its file in `folder`: only places are others."""
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("no nginx on this machine")
    live = "/etc/letsencrypt/live/watch.example.com"
    places = {
        WORKER: worker,
        "listen 443 ": f"listen 127.0.0.1:{port} ",
        "listen [::]:443 ssl http2;": "",
        f"{live}/fullchain.pem": str(certificate),
        f"{live}/privkey.pem": str(certificate),
    }
    server = changed((FOLDER / "nginx.conf").read_text(), places)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, server=server))
    return [program, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, worker: str, port: int, certificate: Path) -> list[str]:
    program = shutil.which("caddy")
    if program is None:
        pytest.skip("no caddy on this machine")
    places = {
        WORKER: worker,
        "watch.example.com {": f"https://127.0.0.1:{port} {{\n\ttls {certificate} {certificate}",
        "\tauto_https": "\tadmin off\n\tauto_https",
    }
    (folder / "Caddyfile").write_text(changed((FOLDER / "Caddyfile").read_text(), places))
    return [program, "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


COMMANDS = {"nginx": nginx, "caddy": caddy}


Ask = Callable[..., Awaitable[tuple[int, str]]]


@asynccontextmanager
async def a_proxy(name: str, folder: Path, worker: BaseTestServer) -> AsyncIterator[Ask]:
    """Start one before a worker; gives what asks it, over TLS, for a status and a body."""
    certificate, port = a_certificate_file(folder), a_free_port()
    command = COMMANDS[name](folder, f"{worker.host}:{worker.port}", port, certificate)
    places = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"), str(folder))
    running = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env=places)
    trusting = ssl.create_default_context(cafile=certificate)

    async def ask(method: str, path: str, **given: Any) -> tuple[int, str]:
        url = URL(f"https://127.0.0.1:{port}{path}", encoded=True)
        async with session.request(method, url, ssl=trusting, **given) as answer:
            return answer.status, await answer.text()

    try:
        async with ClientSession() as session, asyncio.timeout(10):
            while True:
                try:
                    (await asyncio.open_connection("127.0.0.1", port))[1].close()
                    break
                except OSError:
                    assert running.returncode is None, (await running.communicate())[1]
                    await asyncio.sleep(0.02)
            yield ask
    finally:
        running.terminate()
        await running.communicate()


@asynccontextmanager
async def a_worker() -> AsyncIterator[tuple[BaseTestServer, list[str]]]:
    """What stands for one: answers all that comes, and says what that was."""
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        seen.append(f"{request.method} {request.raw_path} {request.headers.get('authorization')} {len(body)}")
        return web.Response(status=202, text="by the worker")

    app = web.Application(client_max_size=4 << 20)
    app.router.add_route("*", "/{rest:.*}", answer)
    async with TestServer(app) as server:
        yield server, seen


@pytest.mark.parametrize("name", COMMANDS)
async def test_the_api_is_reached_with_its_token_and_encoded_names_unchanged(
    name: str, tmp_path: Path
) -> None:
    async with a_worker() as (worker, seen), a_proxy(name, tmp_path, worker) as ask:
        path = "/v1/accounts/shop%2Feu%20?limit=1&after=a%2Bb"
        assert await ask("GET", path, headers={"Authorization": TOKEN}) == (202, "by the worker")
        assert seen == [f"GET {path} {TOKEN} 0"]


@pytest.mark.parametrize("name", COMMANDS)
async def test_nothing_else_is_reached(name: str, tmp_path: Path) -> None:
    outside = (
        "/",
        "/metrics",
        "/livez",
        "/readyz",
        "/v1/../metrics",
        "/v1/%2e%2e/metrics",
        "/v1%2f..%2fmetrics",
    )
    async with a_worker() as (worker, seen), a_proxy(name, tmp_path, worker) as ask:
        for path in outside:
            assert (await ask("GET", path, headers={"Authorization": TOKEN}))[0] == 404, path
        assert seen == []


@pytest.mark.parametrize("name", COMMANDS)
async def test_a_batch_passes_and_a_larger_body_does_not(name: str, tmp_path: Path) -> None:
    async with a_worker() as (worker, seen), a_proxy(name, tmp_path, worker) as ask:
        assert (await ask("POST", "/v1/accounts:batch", data=BytesIO(b"x" * (1 << 20))))[0] == 202
        status, _ = await ask("POST", "/v1/accounts:batch", data=BytesIO(b"x" * ((1 << 20) + 1)))
        assert status in (413, 502), "Caddy before 2.7 says 502"
        assert len(seen) == 1
