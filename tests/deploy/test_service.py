"""The systemd unit: well-formed, confined, and a worker can run under its confinement."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.confined import LIBRARY, values
from tests.docs.blocks import texts_in
from tests.support.builders import SECRET
from watcher.config.loading import load
from watcher.delivery.egress import REFUSED_NETWORKS

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "watcher.service"
TEXT = UNIT.read_text()
README = texts_in("deploy/")
CONFINED = Path(__file__).with_name("confined.py")
(EGRESS,) = re.findall(r"```ini\n(\[Service\]\nIPAddressDeny=.*?)```", README, re.DOTALL)

RESOLVING = """
import asyncio, aiodns
from watcher.service.serve import loop_factory

async def main():
    resolver = aiodns.DNSResolver(nameservers=["127.0.0.1"], udp_port=9, tcp_port=9, timeout=1, tries=1)
    try:
        await resolver.getaddrinfo("example.com", family=2)
    except aiodns.error.DNSError:
        print("answered")

with asyncio.Runner(loop_factory=loop_factory()) as runner:
    runner.run(main())
"""
FORBIDDEN = """
import mmap, socket
for forbidden in (lambda: mmap.mmap(-1, 4096, prot=7), lambda: socket.socket(socket.AF_NETLINK)):
    try:
        forbidden()
    except PermissionError:
        print("refused")
"""


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd on this machine")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=30)


def under_the_unit(program: str) -> str:
    """What a Python program prints that may do only what the unit allows."""
    analyze("--version")  # the groups of calls are explained by it
    try:
        __import__("ctypes").CDLL(LIBRARY)
    except OSError:
        pytest.skip(f"no {LIBRARY} on this machine")
    done = subprocess.run(
        [sys.executable, CONFINED, UNIT, sys.executable, *program.split("\0")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=40,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def one(key: str) -> str:
    (value,) = values(TEXT, key)
    return value


def test_the_unit_has_its_three_sections_and_no_duplicate_settings() -> None:
    lines = [line for line in TEXT.splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if line.startswith("[")] == ["[Unit]", "[Service]", "[Install]"]
    keys = [line.partition("=")[0] for line in lines if not line.startswith("[")]
    assert all(re.fullmatch(r"[A-Z][A-Za-z]+", key) for key in keys)
    assert {key for key in keys if keys.count(key) > 1} == {
        "LoadCredential",
        "Environment",
        "SystemCallFilter",
    }


def test_systemd_verifies_the_unit_without_a_warning(tmp_path: Path) -> None:
    worker = "/opt/watcher/bin/watcher"
    assert f"{worker} run" == one("ExecStart")
    copy = tmp_path / UNIT.name  # with a program that is there
    copy.write_text(TEXT.replace(worker, "/bin/true"))
    checked = analyze("verify", "--man=no", str(copy))
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@pytest.mark.parametrize("addition", ["", EGRESS], ids=["as it is", "with the second wall"])
def test_systemd_rates_its_exposure_as_low(tmp_path: Path, addition: str) -> None:
    (tmp_path / UNIT.name).write_text(TEXT.replace("[Install]", f"{addition}\n[Install]"))
    checked = analyze("security", "--offline=true", "--threshold=20", str(tmp_path / UNIT.name))
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", checked.stdout)
    assert checked.returncode == 0
    assert float(exposure) <= 2.0


def test_only_a_configuration_mistake_prevents_a_restart() -> None:
    assert one("RestartPreventExitStatus") == "78"
    assert one("Restart") == "always", "a signal is a clean exit to systemd"
    assert one("StartLimitIntervalSec") == "0"


def test_the_unit_waits_until_the_worker_reports_ready() -> None:
    assert one("Type") == "notify"
    assert "AF_UNIX" in one("RestrictAddressFamilies"), "which is how the worker says so"


def test_the_unit_sets_the_basic_confinement() -> None:
    for key in ("MemoryDenyWriteExecute", "NoNewPrivileges", "PrivateDevices", "RestrictNamespaces"):
        assert one(key) == "yes"
    assert one("CapabilityBoundingSet") == ""
    assert one("ProtectSystem") == "strict"
    assert one("User") not in ("", "root")


def test_every_secret_of_the_example_is_a_credential(tmp_path: Path) -> None:
    environ = dict(value.split("=", 1) for value in values(TEXT, "Environment"))
    credentials = dict(value.split(":", 1) for value in values(TEXT, "LoadCredential"))
    assert all(path == f"/etc/watcher/credentials/{name}" for name, path in credentials.items())
    for name in credentials:
        (tmp_path / name).write_text(SECRET)
    found = {name: value.replace("%d", str(tmp_path)) for name, value in environ.items()}
    load(ROOT / "deploy" / "watcher.example.toml", found)
    del environ["WATCHER_HEARTBEAT_FILE"]
    assert {f"%d/{name}" for name in credentials} == set(environ.values())


def test_the_forbidden_calls_fail() -> None:
    assert under_the_unit(f"-c\0{FORBIDDEN}").split() == ["refused", "refused"]


def test_worker_event_loop_and_embedded_server_run_when_confined() -> None:
    assert "watcher run" in under_the_unit("-m\0watcher\0demo\0--fast")


def test_names_are_looked_up_when_confined() -> None:
    assert under_the_unit(f"-c\0{RESOLVING}").split() == ["answered"]


def test_the_units_address_filter_denies_what_egress_denies() -> None:
    denied = set(values(EGRESS, "IPAddressDeny")[0].split())
    assert denied == {str(network) for network in REFUSED_NETWORKS}
