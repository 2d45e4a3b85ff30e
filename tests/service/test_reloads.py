"""A worker with a bad new configuration keeps the last valid one, and logs each refusal in a line."""

import asyncio
import json
import os
import re
import signal
import tomllib
from pathlib import Path
from shutil import copyfile

import pytest
from structlog.testing import capture_logs

from tests.support.builders import SECRET
from tests.support.processes import (
    a_process,
    assert_reconciled,
    killed_in_the_end,
    lines,
    start,
    until_logged,
)
from tests.support.scraped import scrape
from watcher import signals
from watcher.config.loading import load
from watcher.delivery.signing import new_secret
from watcher.receiver import Receiver
from watcher.run.worker import Worker
from watcher.sandbox.server import Sandbox
from watcher.service import serve
from watcher.service.exposure import FileWatch

BAD = Path(__file__).parents[1] / "config" / "bad"
LOOPRING = "/api/v3/user/balances"


async def test_more_than_twenty_bad_files_interrupt_nothing(
    place: Path, sandbox: Sandbox, receiver: Receiver
) -> None:
    good = (place / "watcher.toml").read_text()
    bad = sorted(BAD.glob("*.toml"))
    assert len(bad) >= 20
    for path in set(BAD.iterdir()) - set(bad):
        copyfile(path, place / path.name)
    async with a_process(place, "run", "--http", "127.0.0.1:0") as worker:
        await until_logged(place, "account.baseline", 2)
        port = int(str(lines(place, "listener.started")[0]["address"]).rpartition(":")[2])
        assert (await scrape(port)).value("watcher_configuration_last_reload_ok") == 1
        for number, path in enumerate(bad, 1):
            sandbox.world.credit(10110, "ETH", "1")
            copyfile(path, place / "watcher.toml")
            worker.send_signal(signal.SIGHUP)
            await until_logged(place, "configuration.refused", number)
            assert (await scrape(port)).value("watcher_configuration_last_reload_ok") == 0
        sandbox.world.credit(10110, "LRC", "1")
        async with asyncio.timeout(10):
            while not (receiver.events and receiver.events[-1]["data"]["asset"]["symbol"] == "LRC"):
                await receiver.wait_for(len(receiver.events) + 1)
        (place / "watcher.toml").write_text(good)
        worker.send_signal(signal.SIGHUP)
        await until_logged(place, "configuration.loaded", 2)
        assert (await scrape(port)).value("watcher_configuration_last_reload_ok") == 1
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 10) == 0
    assert max(sandbox.traffic.gaps(LOOPRING)) < 2.5  # its interval is 1 s
    shown = sum(
        int(event["data"]["amount"]) for event in receiver.events if event["data"]["asset"]["symbol"] == "ETH"
    )
    assert shown == len(bad)
    assert all(receipt.is_verified and receipt.order is None for receipt in receiver.receipts)
    refused = lines(place, "configuration.refused")
    assert len(refused) == len(bad)
    for path, line in zip(bad, refused, strict=True):
        reasons = line["reasons"]
        assert isinstance(reasons, list)
        assert len(reasons) == min(5, int(str(line["mistakes"]))), path.name
        assert re.match(r"(\S+\.(toml|jsonl)(:\d+)?|environment): ", reasons[0]), path.name
        assert "probe_account" not in json.dumps(line)
    assert not lines(place, "bug")
    assert not lines(place, "configuration.changed")
    await assert_reconciled(place)


async def test_a_half_written_file_forgets_no_account(
    place: Path, sandbox: Sandbox, receiver: Receiver
) -> None:
    file = place / "watcher.toml"
    good = file.read_text()
    async with a_process(place, "run") as worker:
        await until_logged(place, "account.baseline", 2)
        for number, begun in enumerate(("", good[: good.index("[[accounts]]")]), 1):
            file.write_text(begun)
            worker.send_signal(signal.SIGHUP)
            await until_logged(place, "configuration.refused", number)
        sandbox.world.credit(10110, "ETH", "1")
        async with asyncio.timeout(10):
            await receiver.wait_for(1)
    assert len(lines(place, "account.baseline")) == 2


@pytest.mark.slow
async def test_an_accounts_file_cut_at_a_line_end_loses_no_state_and_no_event(
    place: Path, sandbox: Sandbox, receiver: Receiver
) -> None:
    text = (place / "watcher.toml").read_text()
    begin, end = text.index("[[accounts]]"), text.index("[[subscriptions]]")
    (place / "watcher.toml").write_text(f'accounts_file = "accounts.jsonl"\n{text[:begin]}{text[end:]}')
    accounts = [json.dumps(each) + "\n" for each in tomllib.loads(text[begin:end])["accounts"]]
    whole, half = "".join(accounts), accounts[1]
    (place / "accounts.jsonl").write_text(whole)
    async with a_process(place, "run") as worker:
        await until_logged(place, "account.baseline", 2)
        (place / "accounts.jsonl").write_text(half)
        worker.send_signal(signal.SIGHUP)
        await until_logged(place, "accounts.removed")
        sandbox.world.credit(10110, "ETH", "1")
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 10) == 0
    async with a_process(place, "run") as worker:  # a restart by half a file forgets nothing either
        await until_logged(place, "worker.started", 2)
        (place / "accounts.jsonl").write_text(whole)
        worker.send_signal(signal.SIGHUP)
        async with asyncio.timeout(10):
            (event,) = await receiver.wait_for(1)
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 10) == 0
    assert (event["type"], event["data"]["account"]["name"]) == ("total.increased", "treasury")
    assert len(lines(place, "account.baseline")) == 2
    assert not lines(place, "accounts.forgotten")
    await assert_reconciled(place)


async def test_a_reload_logs_what_it_changed_and_what_needs_a_restart(place: Path, sandbox: Sandbox) -> None:
    good = (place / "watcher.toml").read_text()
    async with a_process(place, "run", "--watch") as worker:
        await until_logged(place, "account.baseline", 2)
        edited = good.replace('name = "alice"', 'name = "bob"').replace('timeout = "1s"', 'timeout = "2s"')
        (place / "watcher.toml").write_text(edited.replace("[redis]", '[redis]\nnamespace = "other"'))
        await until_logged(place, "configuration.loaded", 2)
        await until_logged(place, "account.baseline", 3)
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 10) == 0
    shown = {line["section"]: line for line in lines(place, "configuration.changed")}
    assert shown["accounts"]["names"] == ["+bob", "-alice"]
    assert [shown["accounts"][name] for name in ("added", "removed", "changed")] == [1, 1, 0]
    assert shown["providers"]["names"] == ["loopring: timeout"]
    assert shown["settings"]["names"] == ["redis: namespace"]
    (doubt,) = lines(place, "configuration.doubtful")
    assert doubt["reason"] == "takes effect at the next start: redis: namespace"
    assert [line["account"] for line in lines(place, "account.baseline")][2:] == ["bob"]  # the others stay


@pytest.mark.parametrize("is_watching", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_a_secret_of_a_running_worker_is_rotated_by_its_file_alone(
    place: Path, sandbox: Sandbox, receiver: Receiver, is_watching: bool
) -> None:
    old, new = SECRET, new_secret()
    file = place / "ops_secret"
    settings = {"OPS_SECRET": "", "OPS_SECRET_FILE": str(file), "LOG_FORMAT": "json"}
    number = 0

    async def shown() -> None:
        nonlocal number
        number += 1
        sandbox.world.credit(10110, "ETH", "1")
        async with asyncio.timeout(20):
            await receiver.wait_for(number)

    file.write_text(old)
    with (place / "log").open("ab") as log:
        worker = await start(place, settings, "run", *(["--watch"] if is_watching else []), out=log)
        async with killed_in_the_end(worker):
            await until_logged(place, "account.baseline", 2)
            for reloads, lines_of_file, known in ((2, [new, old], [[old], [new]]), (3, [new], [[new]])):
                file.write_text("\n".join([*lines_of_file, ""]))
                if not is_watching:
                    worker.send_signal(signal.SIGHUP)
                await until_logged(place, "configuration.changed", reloads - 1)
                for receiver.secrets in known:
                    await shown()
            worker.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(worker.wait(), 20) == 0
    assert all(receipt.is_verified and receipt.is_taken for receipt in receiver.receipts)
    assert len(receiver.receipts) == number  # nothing was refused meanwhile, or sent twice
    assert [line["names"] for line in lines(place, "configuration.changed")] == [["ops: secrets"]] * 2
    assert new not in (place / "log").read_text()


async def test_a_reload_says_that_a_running_process_sees_no_new_variable(place: Path) -> None:
    text = (place / "watcher.toml").read_text()
    async with a_process(place, "run", "--watch") as worker:
        await until_logged(place, "account.baseline", 2)
        (place / "watcher.toml").write_text(text.replace('"${OPS_SECRET}"', '"${NEW}", "${OPS_SECRET}"'))
        await until_logged(place, "configuration.refused")
        file = place / "new_secret"
        named = text.replace('"${OPS_SECRET}"', f'"${{file:{file}}}", "${{OPS_SECRET}}"')
        (place / "watcher.toml").write_text(named)
        await until_logged(place, "configuration.refused", 2)
        file.write_text(new_secret())  # what was missing has come: no further sign is needed
        await until_logged(place, "configuration.loaded", 2)
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 20) == 0
    first, second = (str(line["reasons"]) for line in lines(place, "configuration.refused"))
    assert "no NEW and no NEW_FILE; a running process does not see what is set later" in first
    assert "cannot be read: No such file" in second


async def test_a_bug_in_one_reload_does_not_prevent_later_ones(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("nobody thought of this")

    monkeypatch.setenv("OPS_SECRET", SECRET)
    path = place / "watcher.toml"
    worker = Worker(load(path, os.environ).settings, name="w")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    heard = serve._Signals(worker, path, FileWatch([path]))
    reloading = asyncio.create_task(heard.reload())
    try:
        with capture_logs() as said:
            for load_, event, is_refused in (
                (broken, "bug", True),
                (load, "configuration.loaded", False),
            ):
                monkeypatch.setattr(serve, "load", load_)
                signal.raise_signal(signal.SIGHUP)
                async with asyncio.timeout(10):
                    while said[-1:] == [] or said[-1]["event"] != event:  # noqa: ASYNC110 - a list sends no signal
                        await asyncio.sleep(0.01)
                assert worker.liveness.is_reload_refused is is_refused
    finally:
        reloading.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        monkeypatch.setattr(signals, "_pass_on", None)
