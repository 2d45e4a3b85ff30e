"""TLS errors: each names its cause and its fix."""

import asyncio
import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.support.builders import SECRET
from tests.support.program import watcher
from tests.support.provider_staging import loopring_account, loopring_settings
from tests.support.raw_subscribers import LOOPBACK, FakeDns, a_delivery, a_sink, a_target
from tests.support.tls_subscribers import NAME, TROUBLES, TlsFault, a_client_trusting, a_faulty_port
from watcher.preflight import try_provider, try_subscriber
from watcher.providers.contract import Rejected
from watcher.providers.http import ProviderClient, provider_pool
from watcher.providers.loopring import Loopring
from watcher.settings import SubscriptionSettings

pytestmark = pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
every_trouble = pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
KNOWN = {NAME: ["127.0.0.1"]}


def trust(certificate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of what the system trusts."""
    monkeypatch.setattr("watcher.http.dial.system_tls", lambda: a_client_trusting(certificate))


@every_trouble
async def test_an_attempt_says_what_is_wrong_and_what_fixes_it(
    trouble: TlsFault, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_faulty_port(trouble) as (url, certificate):
        trust(certificate, monkeypatch)
        async with a_sink(resolver=FakeDns(KNOWN)) as sink:
            target = a_target(f"{url}/in")
            attempt = await sink.send(target, [a_delivery()], 1)
    assert attempt.error == trouble.words
    assert trouble.fix in attempt.fix
    assert attempt.reason == f"{attempt.error}; {attempt.fix}"
    assert len(attempt.reason) <= 200, "a log line has no more characters"


@every_trouble
async def test_a_poll_says_what_is_wrong_and_what_fixes_it(
    trouble: TlsFault, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_faulty_port(trouble) as (url, certificate):
        trust(certificate, monkeypatch)
        settings = loopring_settings(url)
        pool = provider_pool(FakeDns(KNOWN))
        async with ProviderClient(Loopring(settings), settings, pool=pool) as client:
            with pytest.raises(Rejected) as refused:
                await client.ask(loopring_account())
        await pool.close()
    assert refused.value.words == trouble.words
    assert trouble.fix in refused.value.fix
    assert refused.value.reason == f"{trouble.words}; {refused.value.fix}"


@every_trouble
async def test_check_connect_says_what_is_wrong_with_a_subscriber_and_what_fixes_it(
    trouble: TlsFault, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with a_faulty_port(trouble) as (url, certificate):
        (tmp_path / "ca.pem").write_text(certificate)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        settings = SubscriptionSettings(name="ops", url=SecretStr(f"{url}/in"), secrets=(SecretStr(SECRET),))
        tried = await try_subscriber(settings, LOOPBACK, resolver=FakeDns(KNOWN))
    if trouble.scheme == "http":
        assert tried.verdict == "ok", "nothing is sent, so nothing is answered"
    else:
        assert (tried.verdict, tried.text) == ("failed", f"{url}: {trouble.words}")
        assert trouble.fix in str(tried.todo)


async def test_check_connect_says_so_of_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    trouble = TROUBLES["an old TLS"]
    with a_faulty_port(trouble) as (url, certificate):
        trust(certificate, monkeypatch)
        settings = loopring_settings(url.replace(NAME, "127.0.0.1"))
        (tried,) = [tried async for tried in try_provider(settings, loopring_account())]
    assert tried.text == f"gone: {trouble.words}"
    assert tried.todo == "let it speak TLS 1.2 or 1.3"


async def test_ping_says_what_fixes_it(tmp_path: Path) -> None:
    trouble = TROUBLES["a port that speaks HTTP"]
    path = tmp_path / "watcher.toml"
    with a_faulty_port(trouble) as (url, _):
        path.write_text(
            f'[egress]\nallow = ["127.0.0.0/8"]\nallow_http = true\n[[subscriptions]]\nname = "ops"\n'
            f'url = {json.dumps(url.replace(NAME, "127.0.0.1"))}\nsecrets = ["{SECRET}"]\n'
        )
        done = await asyncio.to_thread(watcher, "ping", "ops", "--config", str(path))
    assert done.returncode == 1
    assert done.stdout.startswith(f"ops: {trouble.words}, after ")
    assert "what to do: write http://, or the port where it speaks TLS\n" in done.stdout
