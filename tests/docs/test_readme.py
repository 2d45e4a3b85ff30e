"""What README.md says is so: its tables are the code's, its blocks load, compile and run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from builders import SECRET

import watcher
from watcher.config import load
from watcher.delivery.signing import Signer
from watcher.providers.loopring import LoopringAccount
from watcher.providers.metakeep import MetaKeepAccount, MetaKeepSettings
from watcher.settings import (
    CHANGE_EVENTS,
    SERVICE_EVENTS,
    EgressSettings,
    LogSettings,
    ProviderSettings,
    RedisSettings,
    Section,
    SubscriptionSettings,
    ThresholdSettings,
    WorkerSettings,
)

ROOT = Path(watcher.__file__).parents[1]
README = (Path(__file__).parents[2] / "README.md").read_text()
FIELDS_BY_TABLE: dict[str, tuple[type[Section], ...]] = {
    "[redis]": (RedisSettings,),
    "[worker]": (WorkerSettings,),
    "[log]": (LogSettings,),
    "[egress]": (EgressSettings,),
    "[providers.NAME]": (ProviderSettings, MetaKeepSettings),
    "[[accounts]]": (LoopringAccount, MetaKeepAccount),
    "[[subscriptions]]": (SubscriptionSettings,),
    "[[subscriptions.thresholds]]": (ThresholdSettings,),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def rows_after(header: str) -> list[list[str]]:
    """The cells of the table whose first header cell is `header`."""
    lines = README.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {header} |"))
    rows = takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def run(command: str, directory: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """A `watcher …` line of the README, as it would run in a shell."""
    arguments = shlex.split(command, comments=True)[1:]
    return subprocess.run(
        [sys.executable, "-m", "watcher", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(("table", "models"), FIELDS_BY_TABLE.items())
def test_every_setting_stands_in_its_table_with_its_description(
    table: str, models: tuple[type[Section], ...]
) -> None:
    told = {cells[0].strip("`"): cells[-1] for cells in rows_after(f"`{table}`")}
    meant = {name: field.description for model in models for name, field in model.model_fields.items()}
    if table == "[providers.NAME]":
        del meant["name"]
        meant["requests_per_second"] = ProviderSettings.model_fields["requests_per_second"].description
    assert told == meant


def test_the_table_of_events_names_every_type_of_change() -> None:
    told = [name for cells in rows_after("type") for name in re.findall(r"`([a-z_.]+)`", cells[0])]
    assert sorted(told) == sorted((*CHANGE_EVENTS, *SERVICE_EVENTS))


@pytest.mark.parametrize("number", range(len(blocks("toml"))))
def test_a_configuration_block_loads(number: int, tmp_path: Path) -> None:
    whole = max(blocks("toml"), key=len)
    block = blocks("toml")[number]
    (tmp_path / "watcher.toml").write_text(block if block == whole else f"{whole}\n{block}")
    loaded = load(tmp_path / "watcher.toml", {"LOOPRING_API_KEY": "key", "OPS_SECRET": SECRET})
    assert list(loaded.settings.account_by_name) == ["treasury"]


def test_the_map_names_rooms_that_exist() -> None:
    rooms = [name for cells in rows_after("room") for name in re.findall(r"`([a-z_/.]+)`", cells[0])]
    assert rooms
    assert [name for name in rooms if not (ROOT / "watcher" / name).exists()] == []


def test_the_three_commands_that_start_a_user_work_as_written(tmp_path: Path) -> None:
    (block,) = [block for block in blocks("sh") if "watcher init" in block]
    init, check, _run = block.splitlines()
    assert run(init, tmp_path).returncode == 0
    checked = run(check, tmp_path, LOOPRING_API_KEY="key", OPS_SECRET=SECRET)
    assert (checked.returncode, checked.stderr) == (0, "")


async def test_the_python_receiver_takes_what_is_genuine_and_nothing_else() -> None:
    (block,) = [block for block in blocks("python") if "web.Application" in block]
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    (example,) = blocks("json")
    body = json.dumps(json.loads(example)).encode()
    now = int(time.time())
    headers = {
        "webhook-id": json.loads(body)["id"],
        "webhook-timestamp": str(now),
        "webhook-signature": Signer([SECRET]).signature(json.loads(body)["id"], now, body),
    }
    async with TestClient(TestServer(names["app"])) as client:  # type: ignore[arg-type]
        statuses = [
            (await client.post("/hooks/balances", data=data, headers=headers)).status
            for data in (body, body, body + b" ")
        ]
    assert statuses == [200, 200, 400]
    assert names["SEEN"] == {headers["webhook-id"]}


def test_the_javascript_receiver_is_javascript(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine to read it")
    (block,) = blocks("javascript")
    (tmp_path / "receiver.mjs").write_text(block)
    checked = subprocess.run([node, "--check", tmp_path / "receiver.mjs"], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_example_event_adds_up() -> None:
    from decimal import Decimal

    (example,) = blocks("json")
    data = json.loads(example)["data"]
    for field, effect in data["effect"].items():
        assert Decimal(data["before"][field]) + Decimal(effect) == Decimal(data["after"][field])
