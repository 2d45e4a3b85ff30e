"""`ca` of a provider: its certificates vouch for the host, and no others."""

import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.provider_staging import Stage, answer
from tests.support.tls_front import a_certificate_file
from watcher.config.findings import ConfigRefused
from watcher.config.loading import Loaded, load, shown
from watcher.providers.contract import Rejected, provider_class
from watcher.providers.http import ProviderClient, provider_pool

CONFIGURATION = """
[providers.node]
kind = "http"
base_url = "{url}"
{ca}

[[providers.node.ask]]
path = "/balance"

[[providers.node.read]]
id = "BTC"
total = "n"

[[accounts]]
name = "shop"
provider = "node"
"""


def loaded(folder: Path, url: str, ca: str = 'ca = "node.pem"') -> Loaded:
    file = folder / "watcher.toml"
    file.write_text(CONFIGURATION.format(url=url, ca=ca))
    return load(file, {})


@asynccontextmanager
async def a_node(certificate: Path) -> AsyncIterator[Stage]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with Stage(tls=context) as stage:
        stage.reply = answer({"n": 1})
        yield stage


async def test_the_certificates_of_ca_are_trusted_and_new_ones_after_a_reload(tmp_path: Path) -> None:
    ours, other = tmp_path / "node.pem", tmp_path / "other"
    other.mkdir()
    shutil.copy(a_certificate_file(tmp_path), ours)
    async with a_node(ours) as stage:
        pool = provider_pool()

        async def polled(found: Loaded) -> int:
            settings, account = (
                found.settings.provider_by_name["node"],
                found.settings.account_by_name["shop"],
            )
            async with ProviderClient(provider_class("http")(settings), settings, pool=pool) as client:
                return len(await client.ask(account))

        try:
            first = loaded(tmp_path, stage.url)
            assert (await polled(first), await polled(first), stage.connections) == (1, 1, 1)
            assert ours in first.files
            shutil.copy(a_certificate_file(other), ours)
            second = loaded(tmp_path, stage.url)
            assert second.settings.provider_by_name != first.settings.provider_by_name
            with pytest.raises(Rejected, match=r'does not verify.* ca = "/path/ca.pem" in its section'):
                await polled(second)
            with pytest.raises(Rejected, match="does not verify"):
                await polled(loaded(tmp_path, stage.url, ca=""))
        finally:
            await pool.close()


@pytest.mark.parametrize(
    ("ca", "reason"),
    [
        ('ca = "missing.pem"', "the file cannot be read: No such file or directory"),
        ('ca = "."', "the file cannot be read: Is a directory"),
        ('ca = "a\\u0000b"', "the file cannot be read: no such path"),
        ('ca = "watcher.toml"', "the file holds no certificates as PEM"),
        ('ca = "empty.pem"', "the file is empty"),
        ('ca = "half.pem"', "the file holds no certificates as PEM"),
        ("ca = 7", "must be the path of a file"),
    ],
)
def test_a_ca_file_without_certificates_is_reported_with_all_other_mistakes(
    tmp_path: Path, ca: str, reason: str
) -> None:
    (tmp_path / "empty.pem").touch()
    (tmp_path / "half.pem").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigRefused) as refused:
        loaded(tmp_path, "https://node.example.com", ca=f"{ca}\nsettle_poll = 1")
    first, second = refused.value.mistakes
    assert (first.line, first.key, first.text) == (5, "providers.node.ca", reason)
    assert second.key == "providers.node.settle_poll"


def test_the_path_of_the_file_is_shown_and_not_its_content(tmp_path: Path) -> None:
    shutil.copy(a_certificate_file(tmp_path), tmp_path / "node.pem")
    found = loaded(tmp_path, "http://node.example.com")
    assert shown(found.settings)["providers"]["node"]["ca"] == "node.pem"
    assert "providers.node.ca" in [warning.key for warning in found.warnings]
    assert "BEGIN" not in repr(found.settings)
