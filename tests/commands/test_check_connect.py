"""`watcher check --connect` against real servers: healthy parts, and each way to fail."""

import asyncio
import json
import os
import pty
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import sha256
from ipaddress import ip_network
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner
from pydantic import SecretStr
from redis.asyncio import Redis
from yarl import URL

from tests.support.builders import SECRET
from tests.support.directory import Programs, with_key
from tests.support.program import COMMAND, environment, watcher
from tests.support.provider_staging import (
    declared_account,
    declared_settings,
    loopring_account,
    loopring_settings,
)
from tests.support.raw_subscribers import FakeDns, not_speaking_tls, subscribing
from tests.support.servers import ENGINES, RealServer, a_free_port, real_server
from tests.support.stores import a_store
from tests.support.tls_front import a_certificate_file, a_tls_front
from tests.support.tls_subscribers import a_certificate
from watcher.commands.check import command
from watcher.delivery.egress import Policy
from watcher.encryption import new_key
from watcher.preflight import Trial, Tried, clock, try_all, try_provider, try_server, try_subscriber
from watcher.sandbox.server import Sandbox
from watcher.settings import RedisSettings, Settings, SubscriptionSettings
from watcher.store.client import connect
from watcher.store.directory import Directory
from watcher.store.guarantee import missing_rights
from watcher.store.keys import Keys
from watcher.store.pipe import Pipe

ACL = Path(__file__).parents[2] / "deploy" / "users.acl"
PASSWORD = "swordfish"
TOKEN = "s3cret-path"
HOST = "hooks.example"
LOOPBACK = Policy((ip_network("127.0.0.0/8"),), allow_http=True)

CONFIGURATION = """\
[redis]
url = "{redis}"
namespace = "{namespace}"

[egress]
allow = ["127.0.0.0/8"]
allow_http = true

[providers.loopring]
base_url = "{provider}"
api_key = "{key}"
timeout = "2s"

[[accounts]]
name = "treasury"
provider = "loopring"
account_id = 10110

[[subscriptions]]
name = "ops"
url = "{subscriber}"
secrets = ["{secret}"]
"""


@asynccontextmanager
async def a_subscriber(context: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, bytearray]]:
    """A server that takes connections; says its port, and what came in."""
    heard = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heard.extend(await reader.read(1000))
        except OSError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], heard


async def check(path: Path, **values: str) -> tuple[int, list[dict[str, str]], str]:
    """Run it on a file; says the exit code, the lines of what was tried, and all that was printed.

    It runs in a thread of its own, with a loop of its own: a process costs more than all that is tried.
    """
    file = path / "watcher.toml"
    file.write_text(CONFIGURATION.format(**{"key": "sandbox", "secret": SECRET, **values}))
    arguments = ["--connect", "--json", "--config", str(file)]
    done = await asyncio.to_thread(CliRunner().invoke, command, arguments, standalone_mode=False)
    tried = [line for line in map(json.loads, done.stdout.splitlines()) if "verdict" in line]
    return done.return_value, tried, done.output


def verdicts(tried: list[dict[str, str]]) -> dict[str, str]:
    return {line["kind"]: line["verdict"] for line in tried}


async def test_healthy_parts_are_ok_and_the_check_leaves_no_trace(
    tmp_path: Path, redis_server_url: str, namespace: str
) -> None:
    async with Sandbox() as sandbox, a_subscriber() as (port, heard):
        code, tried, _ = await check(
            tmp_path,
            redis=redis_server_url,
            namespace=namespace,
            provider=sandbox.loopring_url,
            subscriber=f"http://127.0.0.1:{port}/{TOKEN}",
        )
    # The shared server of the tests keeps nothing: that is worth a warning.
    assert verdicts(tried) == {
        "redis": "warning",
        "rights": "ok",
        "provider": "ok",
        "clock": "ok",
        "subscription": "ok",
    }
    assert code == 0
    assert heard == b""
    async with connect(redis_server_url) as client:
        assert [key async for key in client.scan_iter(f"{namespace}:*")] == []


def a_file(redis_url: str, namespace: str, accounts: Sequence[str]) -> Settings:
    return Settings(
        redis=RedisSettings(url=SecretStr(redis_url), namespace=namespace),
        provider_by_name={"loopring": loopring_settings()},
        account_by_name={name: loopring_account().model_copy(update={"name": name}) for name in accounts},
        subscription_by_name={},
    )


async def test_accounts_that_are_polled_but_not_in_the_file_are_a_warning(
    redis_server_url: str, redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    names = ["treasury", *(f"shop-{number}" for number in range(10))]
    await store.roster.enroll({"loopring": names}, now_ms=0)
    settings = a_file(redis_server_url, namespace, ["treasury"])
    (reported,) = [line async for line in try_server(settings) if line.kind == "accounts"]
    assert reported.verdict == "warning"
    assert reported.text.startswith("polled now, but not in this file: 10 accounts (shop-0, shop-1, ")
    assert reported.text.endswith("shop-7, …)")
    whole = a_file(redis_server_url, namespace, names)
    assert [line.kind async for line in try_server(whole)] == ["redis", "rights"]


async def test_entries_of_the_api_need_not_be_in_the_file_but_must_decrypt(
    redis_server_url: str, redis_client: Redis, namespace: str
) -> None:
    store = a_store(redis_client, namespace)
    await store.roster.enroll({"loopring": ["alice"]}, now_ms=0)
    await Programs(Directory(store.pipe, store.keys), namespace).put_account("alice", "loopring")
    file = a_file(redis_server_url, namespace, [])
    for settings, verdict, text in (
        (with_key(file), "ok", "the key decrypts 1 record of the API"),
        (
            with_key(file, new_key()),
            "warning",
            "1 of 1 record of the API cannot be decrypted: it was encrypted",
        ),
        (file, "warning", "1 of 1 record of the API cannot be decrypted: this file has no [api]"),
    ):
        reported = [line async for line in try_server(settings)]
        assert [line.kind for line in reported] == ["redis", "rights", "directory"]
        assert (reported[-1].verdict, reported[-1].text[: len(text)]) == (verdict, text)
    (untried,) = [line async for line in try_provider(loopring_settings(), None, has_api=True)]
    assert untried.verdict == "ok"


async def test_every_failure_is_shown_in_one_run_with_its_fix_and_no_secret(tmp_path: Path) -> None:
    async with Sandbox() as sandbox:
        code, tried, printed = await check(
            tmp_path,
            redis=f"redis://:{PASSWORD}@127.0.0.1:{a_free_port()}",
            namespace="w",
            provider=sandbox.loopring_url,
            key="wr0ng-key",
            subscriber=f"https://127.0.0.1:{a_free_port()}/{TOKEN}?token={TOKEN}",
        )
    assert code == 1
    assert verdicts(tried) == {
        "redis": "failed",
        "provider": "failed",
        "clock": "ok",
        "subscription": "failed",
    }
    said = {line["kind"]: f"{line['text']} | {line['todo']}" for line in tried}
    assert "cannot be reached; is it running?" in said["redis"]
    assert "fix the key in [providers.loopring]" in said["provider"]
    assert "cannot connect: connection refused | check whether it listens" in said["subscription"]
    for secret in (PASSWORD, TOKEN, SECRET, "wr0ng-key"):
        assert secret not in printed


async def test_paths_of_a_declared_provider_are_checked_too() -> None:
    async def hello(_: web.Request) -> web.Response:
        return web.json_response({"hello": []})

    app = web.Application()
    app.router.add_get("/{path:.*}", hello)
    async with TestServer(app) as server:
        url = str(server.make_url("/")).rstrip("/")
        reads = {"rows": "rows", "id": "A", "total": "a"}
        settings = declared_settings(url, ask=[{"path": "/"}], read=[reads])
        described, _ = [tried async for tried in try_provider(settings, declared_account())]
        coded, _ = [tried async for tried in try_provider(loopring_settings(url), loopring_account())]
    assert "finds nothing" in described.text
    for tried, is_described in ((described, True), (coded, False)):
        todo = tried.todo or ""
        assert todo.startswith("check whether base_url in [providers.")
        assert ("--recipe" in todo) is is_described


def test_without_a_terminal_there_is_a_line_for_each_and_no_progress(tmp_path: Path) -> None:
    file = tmp_path / "watcher.toml"
    values = {"redis": "embedded", "namespace": "w", "key": "k", "secret": SECRET}
    port = a_free_port()
    values |= {"provider": f"http://127.0.0.1:{port}", "subscriber": f"http://127.0.0.1:{port}/"}
    text = CONFIGURATION.format(**values)
    file.write_text(text.replace("[redis]", f'[redis]\ndata_dir = "{os.path.relpath(tmp_path / "state")}"'))
    done = watcher("check", "--connect", "--config", str(file))
    assert done.returncode == 1
    assert done.stderr == ""
    assert re.search(r"^redis +ok +embedded: `watcher run` will start \w+ in /", done.stdout, re.M)
    assert not (tmp_path / "state").exists()
    assert done.stdout.count("what to do: ") == 2


def test_on_a_terminal_progress_is_shown_beside_the_answer(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{a_free_port()}"
    values = {"redis": "redis://127.0.0.1:1", "namespace": "w", "key": "k", "secret": SECRET}
    (tmp_path / "watcher.toml").write_text(CONFIGURATION.format(**values, provider=url, subscriber=f"{url}/"))
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        done = subprocess.run(
            [*COMMAND, "check", "--connect", "--config", str(tmp_path / "watcher.toml")],
            env=environment(TERM="xterm"),
            stdout=subprocess.PIPE,
            stderr=theirs,
            check=False,
            timeout=30,
        )
        os.close(theirs)
        shown = terminal.read(4096)
    assert re.search(rb"trying .*100%", shown, re.DOTALL)
    assert (done.returncode, b"trying" in done.stdout) == (1, False)


async def reported(path: Path, **values: str) -> dict[str, tuple[str, str]]:
    """What fails, and what to do about it, by kind; the exit code is 1, and each is shown once."""
    port = a_free_port()
    nobody = {"provider": f"http://127.0.0.1:{port}", "subscriber": f"http://127.0.0.1:{port}/"}
    code, tried, _ = await check(path, **{**nobody, "namespace": "watcher", **values})
    failed = [line for line in tried if line["verdict"] == "failed"]
    found = {line["kind"]: (line["text"], line["todo"]) for line in failed}
    assert (code, len(found)) == (1, len(failed))
    return found


# The server


async def test_a_server_with_a_certificate_of_its_own_names_the_switches(tmp_path: Path) -> None:
    certificate = a_certificate_file(tmp_path)
    with real_server() as server:
        async with a_tls_front(certificate, server.socket) as port:
            url = f"rediss://127.0.0.1:{port}"
            text, _ = (await reported(tmp_path, redis=url))["redis"]
            trusting = await reported(tmp_path, redis=f"{url}?ssl_ca_certs={certificate}")
    assert text.startswith(f"Redis at 127.0.0.1:{port} has a certificate that does not verify; if it is")
    assert "in its URL by ?ssl_ca_certs=/path/ca.pem, or trust any certificate by ?ssl_cert_reqs=none" in text
    assert "redis" not in trusting


async def test_a_wrong_password_is_named_as_such(tmp_path: Path, guarded: RealServer) -> None:
    url = f"{guarded.url}?username=watcher&password=wrong-canary"
    text, todo = (await reported(tmp_path, redis=url))["redis"]
    assert text == f"Redis at {guarded.socket} refuses the credentials in its URL"
    assert todo == "fix redis.url (or REDIS_URL, which wins) or the server: until then no worker starts"


async def test_a_server_that_evicts_keys_fails_with_the_setting(tmp_path: Path) -> None:
    evicting = ("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    with real_server("valkey", *evicting) as server:
        text, _ = (await reported(tmp_path, redis=server.url))["redis"]
    assert text.endswith("set maxmemory-policy noeviction")


# The provider's clock


@asynccontextmanager
async def a_clock_that_is_off(url: str, by: timedelta) -> AsyncIterator[str]:
    """A proxy of a provider that passes its answers on with another `Date`."""

    async def pass_on(request: web.Request) -> web.Response:
        async with session.get(f"{url}{request.rel_url}", headers={"X-API-KEY": "sandbox"}) as answer:
            date = format_datetime(datetime.now(UTC) + by, usegmt=True)
            return web.Response(status=answer.status, body=await answer.read(), headers={"Date": date})

    app = web.Application()
    app.router.add_get("/{path:.*}", pass_on)
    async with ClientSession() as session, TestServer(app) as front:
        yield str(front.make_url("")).rstrip("/")


async def test_a_clock_that_is_ten_minutes_off_fails(tmp_path: Path, redis_server_url: str) -> None:
    async with Sandbox() as sandbox, a_clock_that_is_off(sandbox.loopring_url, timedelta(minutes=10)) as url:
        found = await reported(tmp_path, redis=redis_server_url, provider=url)
    text, todo = found["clock"]
    assert re.fullmatch(r"this machine's clock is (599|60[0-2]) s behind its Date", text)
    assert todo == "set the clock (NTP): receivers refuse what is 5 minutes off"
    assert "provider" not in found


# Rights


@pytest.fixture(scope="module", params=sorted(ENGINES))
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A server with the user of deploy/, and with one that lacks some of its rights."""
    path = tmp_path_factory.mktemp("acl") / "users.acl"
    shipped = ACL.read_text().replace("PASSWORD_SHA256", sha256(PASSWORD.encode()).hexdigest())
    (line,) = (line for line in shipped.splitlines() if line.startswith("user watcher "))
    narrow = line.replace("user watcher", "user narrow") + " -xadd -zadd"
    mute = line.replace("user watcher", "user mute") + " -eval -evalsha"
    path.write_text(f"{shipped}\n{narrow}\n{mute}\n")
    with real_server(request.param, "--aclfile", str(path)) as server:
        yield server


async def rights(server: RealServer, user: str, namespace: str = "watcher") -> list[str]:
    async with connect(f"{server.url}?username={user}&password={PASSWORD}") as client:
        return await missing_rights(Pipe(client), Keys(namespace))


async def test_the_user_of_deploy_passes_and_a_narrower_one_learns_what_it_lacks(
    guarded: RealServer,
) -> None:
    assert await rights(guarded, "watcher") == []
    assert await rights(guarded, "narrow") == ["XADD", "ZADD"]


@pytest.mark.parametrize(("user", "namespace"), [("mute", "watcher"), ("watcher", "other")])
async def test_a_user_without_scripts_or_keys_fails(
    tmp_path: Path, guarded: RealServer, user: str, namespace: str
) -> None:
    port = a_free_port()
    code, tried, _ = await check(
        tmp_path,
        redis=f"{guarded.url}?username={user}&password={PASSWORD}",
        namespace=namespace,
        provider=f"http://127.0.0.1:{port}",
        subscriber=f"http://127.0.0.1:{port}/",
    )
    (reported,) = (line for line in tried if line["kind"] == "rights")
    assert (code, reported["verdict"]) == (1, "failed")
    assert f"{namespace}:*; allow them as deploy/users.acl does" in reported["todo"]


def test_every_command_that_deploy_grants_is_tried() -> None:
    (line,) = (line for line in ACL.read_text().splitlines() if line.startswith("user watcher "))
    granted = {word[1:] for word in line.split() if word.startswith("+")}
    script = (ACL.parents[1] / "watcher/store/scripts/try_rights.lua").read_text()
    elsewhere = {
        "client|setname",
        "cluster|slots",
        "asking",
        "info",
        "eval",
        "evalsha",
    }  # by what runs and surrounds the script
    assert {name for name in granted - elsewhere if f"{{'{name.upper()}', redis.pcall" not in script} == set()


# The way to a subscriber


async def reached(url: str, policy: Policy = LOOPBACK, *addresses: str) -> Tried:
    settings = SubscriptionSettings(name="ops", url=SecretStr(url), secrets=(SecretStr(SECRET),))
    known: dict[str, Sequence[str] | Exception] = {
        HOST: list(addresses or ("127.0.0.1",)),
        "nowhere.example": OSError("no such name"),
    }
    return await try_subscriber(settings, policy, resolver=FakeDns(known))


def trust(monkeypatch: pytest.MonkeyPatch, path: Path, certificate: str) -> None:
    (path / "ca.pem").write_text(certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(path / "ca.pem"))


async def test_tls_is_tried_and_nothing_is_sent_through_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context, certificate = a_certificate(HOST, expires_in=timedelta(days=90))
    trust(monkeypatch, tmp_path, certificate)
    async with a_subscriber(context) as (port, heard):
        tried = await reached(f"https://{HOST}:{port}/{TOKEN}")
    assert (tried.verdict, tried.text) == ("ok", f"https://{HOST}:{port}: TLS is good; nothing was sent")
    assert heard == b""


async def test_a_certificate_that_ends_soon_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    context, certificate = a_certificate(HOST, expires_in=timedelta(days=3))
    trust(monkeypatch, tmp_path, certificate)
    async with a_subscriber(context) as (port, _):
        tried = await reached(f"https://{HOST}:{port}/")
    assert tried.verdict == "warning"
    assert "its certificate ends at " in tried.text


async def test_a_self_signed_certificate_fails() -> None:
    context, _ = a_certificate(HOST)
    async with a_subscriber(context) as (port, _):
        tried = await reached(f"https://{HOST}:{port}/")
    assert tried.verdict == "failed"
    assert "its certificate does not verify: self" in tried.text
    assert "SSL_CERT_FILE=" in str(tried.todo)


async def test_a_port_without_tls_fails() -> None:
    async with subscribing(not_speaking_tls) as subscriber:
        url = URL(subscriber.url).with_scheme("https")
        tried = await reached(str(url))
    assert (tried.verdict, tried.text) == (
        "failed",
        f"{url.origin()}: TLS failed: its port does not speak TLS",
    )


async def test_a_denied_address_is_reported_and_not_dialled() -> None:
    async with asyncio.timeout(2):
        tried = await reached(f"https://{HOST}/", LOOPBACK, "169.254.169.254")
    assert tried.text == f"https://{HOST}: refused: link-local address"
    assert tried.todo == "if this address is yours, add it to [egress] allow; no byte was sent there"


async def test_a_name_that_does_not_resolve_fails() -> None:
    tried = await reached("https://nowhere.example/")
    assert (tried.verdict, tried.text) == ("failed", "https://nowhere.example: its name does not resolve")
    assert tried.todo == "look at the host name in its url, and at the DNS of this machine"


async def test_a_subscriber_that_hangs_does_not_delay_the_others() -> None:
    async def hang() -> AsyncIterator[Tried]:
        yield Tried("rights", "a", "ok", "came before")
        await asyncio.Event().wait()

    async def answer() -> AsyncIterator[Tried]:
        yield Tried("provider", "b", "ok", "well")

    ended: list[None] = []
    found = [Trial("redis", "a", 0.05, hang), Trial("provider", "b", 5, answer)]
    tried = await try_all(found, done=lambda: ended.append(None))
    assert [(line.kind, line.verdict) for line in tried] == [
        ("rights", "ok"),
        ("redis", "failed"),
        ("provider", "ok"),
    ]
    assert len(ended) == 2


@pytest.mark.parametrize(
    ("ahead_s", "verdict"), [(0, "ok"), (-29, "ok"), (31, "warning"), (-299, "warning"), (301, "failed")]
)
def test_a_wrong_clock_is_reported(ahead_s: int, verdict: str) -> None:
    there = datetime(2026, 11, 20, 14, 3, 5, tzinfo=UTC)
    tried = clock("loopring", "Fri, 20 Nov 2026 14:03:05 GMT", there + timedelta(seconds=ahead_s))
    assert tried.verdict == verdict
    apart = f"is {abs(ahead_s)} s {'ahead of' if ahead_s > 0 else 'behind'}" if ahead_s else "agrees with"
    assert f"clock {apart} its Date" in tried.text


def test_an_invalid_date_is_a_warning() -> None:
    assert clock("loopring", "yesterday", datetime.now(UTC)).verdict == "warning"
