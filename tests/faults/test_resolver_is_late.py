"""A resolv.conf that is empty when a worker starts, and is filled in place later, or a link that moves."""

import asyncio
import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from tests.support.builders import SECRET
from tests.support.name_server import name_server
from tests.support.processes import killed_in_the_end, lines, until_logged
from watcher.receiver import Receiver
from watcher.sandbox.server import Sandbox

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount another resolv.conf"),
]

NAME_SERVER = "127.0.0.78"
WITHIN_S = 10.0


@pytest.mark.parametrize(
    "is_link",
    [
        pytest.param(False, id="filled in place"),
        pytest.param(True, id="a link that moves", marks=pytest.mark.long),
    ],
)
async def test_events_are_delivered_within_ten_seconds_of_a_change_of_resolv_conf(
    place: Path, sandbox: Sandbox, receiver: Receiver, is_link: bool
) -> None:
    text = (place / "watcher.toml").read_text()
    for url, name in ((sandbox.loopring_url, "api.test"), (receiver.url, "ops.test")):
        text = text.replace(url, url.replace("127.0.0.1", name))
    (place / "watcher.toml").write_text(text)
    etc = shutil.copytree("/etc", place / "etc", symlinks=True) if is_link else place
    resolv_conf = etc / "resolv.conf"
    resolv_conf.unlink(missing_ok=True)
    resolv_conf.touch()
    mounted = (etc, "/etc") if is_link else (resolv_conf, "/etc/resolv.conf")
    run = f"mount --bind {mounted[0]} {mounted[1]} && exec {sys.executable} -m watcher run >> log 2>> errors"
    (place / "log").touch()
    worker = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "sh", "-c", run),
        cwd=place,
        env={**os.environ, "OPS_SECRET": SECRET, "LOG_FORMAT": "json", "LOG_LEVEL": "debug"},
    )
    async with killed_in_the_end(worker), name_server(host=NAME_SERVER, port=53):
        await until_logged(place, "poll.rejected")
        said = f"nameserver {NAME_SERVER}\n"
        if is_link:
            (etc / "resolv.conf.filled").write_text(said)
            (etc / "resolv.conf.link").symlink_to("resolv.conf.filled")
            (etc / "resolv.conf.link").rename(resolv_conf)
        else:
            resolv_conf.write_text(said)
        changed_at = time.monotonic()
        await until_logged(place, "account.baseline", 2)
        sandbox.world.credit(10110, "ETH", "1")
        async with asyncio.timeout(WITHIN_S):
            await receiver.wait_for(1)
        took_s = time.monotonic() - changed_at
        print(f"delivered {took_s:.1f} s after the change")
        assert took_s <= WITHIN_S
        await until_logged(place, "resolver.changed")  # a look later
        worker.terminate()
        assert await asyncio.wait_for(worker.wait(), 20) == 0
    assert len(lines(place, "resolver.changed")) == 1
    assert not lines(place, "bug")
