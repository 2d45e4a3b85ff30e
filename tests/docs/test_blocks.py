"""Every fenced block of the texts for people is run or loaded here; an unknown one fails.

A block is known by its language and by words that stand in it and in no other. Shell blocks run in a folder
of their own, where `watcher` is this checkout's; what is not run says why, and is read as far as that goes.
"""

import asyncio
import inspect
import json
import re
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import yaml
from aiohttp.test_utils import TestClient, TestServer

from tests.deploy.test_ci_script import setting_up
from tests.docs.blocks import BLOCKS, FILES, ROOT, Block, blocks_of, commands, inline_code
from tests.docs.platforms import assert_a_platform_takes_it
from tests.docs.reader import Reader, wait_for
from tests.support.builders import SECRET
from tests.support.chat import ChatService
from tests.support.events_schema import assert_valid
from tests.support.nodes import ethereum
from tests.support.servers import a_free_port, real_server
from watcher.cli import group
from watcher.config.loading import load
from watcher.delivery.signing import Signer
from watcher.delivery.sink import Attempt
from watcher.encryption import new_key
from watcher.engine.breaker import Answer
from watcher.journal.events import Delivery
from watcher.journal.notices import sample
from watcher.providers.contract import Provider
from watcher.recipes import HERE, recipe
from watcher.settings import CHANGE_EVENTS, SERVICE_EVENTS

pytestmark = pytest.mark.slow

ENVIRON = {
    "LOOPRING_API_KEY": "key",
    "OPS_SECRET": SECRET,
    "KRAKEN_KEY": "key",
    "KRAKEN_SECRET": "c2VjcmV0",
    "SLACK_URL": "https://hooks.slack.com/services/T0/B0/x",
    "WATCHER_SECRET_KEY": new_key(),
}
HERE_TOO = '\n[egress]\nallow = ["127.0.0.0/8"]\nallow_http = true\n'
NOWHERE = 'base_url = "http://127.0.0.1:1"'
EXAMPLE = next(block.text for block in BLOCKS if block.file == "README.md" and block.language == "toml")


def is_what_ci_runs(block: Block, _: Path) -> None:
    """It needs a package index and minutes: `.ci/run` runs it first of all."""
    assert [line for line in block.text.splitlines() if line] == [setting_up()["pytest" in block.text]]


# Configuration


def loads(block: Block, folder: Path) -> None:
    if 'kind = "exchange"' in block.text:
        pytest.importorskip("ccxt", reason="needs ccxt: pip install 'balance-watcher[exchange]'")
    (folder / "watcher.toml").write_text(EXAMPLE if block.text in EXAMPLE else f"{EXAMPLE}\n{block.text}")
    assert "treasury" in load(folder / "watcher.toml", ENVIRON).settings.account_by_name


def scrapes(block: Block, folder: Path) -> None:
    (job,) = yaml.safe_load(block.text)["scrape_configs"]
    assert job["job_name"] == "watcher"
    if program := shutil.which("promtool"):
        (folder / "prometheus.yml").write_text(block.text)
        shutil.copy(block.folder / "prometheus-alerts.yaml", folder)
        checked = [program, "check", "config", "--syntax-only", str(folder / "prometheus.yml")]
        done = subprocess.run(checked, capture_output=True, check=False, timeout=30)
        assert done.returncode == 0, done.stderr


def leads_to_the_listener(block: Block, _: Path) -> None:
    """None of these proxies is started here; tests/observe/test_page_behind_a_proxy.py does as they do."""
    assert "/watcher" in block.text
    assert "http" in block.text or "reverse_proxy" in block.text
    assert "127.0.0.1:8787" in block.text
    assert block.text.count("{") == block.text.count("}")


def is_a_drop_in(block: Block, folder: Path) -> None:
    """What systemd says of it with the unit around it: tests/deploy/test_service.py."""
    sections = [line for line in block.text.splitlines() if line.startswith("[")]
    assert sections == ["[Service]"]


# First steps


def is_a_picture(block: Block, _: Path) -> None:
    """For the eye: nothing in it can be run."""
    assert "─▶" in block.text


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Hold what a newcomer does to the time that it may take."""
    began = time.monotonic()
    yield
    took_s = time.monotonic() - began
    print(f"{took_s:.1f} s, of {seconds}")
    assert took_s <= seconds


def watches_something_real(block: Block, folder: Path) -> None:
    """Of the file above it, by a node of our own in the place of the public one."""
    reader, port = Reader(folder), a_free_port()
    with ethereum("--chain-id=1") as chain:
        node = f'[providers.ethereum]\nbase_url = "{chain.node.url}"'
        configuration = EXAMPLE.replace("[providers.ethereum]", node).replace("8788", str(port))
        (folder / "watcher.toml").write_text(configuration)
        listening = "watcher listen --secret-env OPS_SECRET"
        receiving = block.text.replace(listening, f"{listening} --port {port}")
        with within(180), reader.running(receiving, until="verified") as said:
            (line,) = (line for line in said.read_text().splitlines() if line.endswith("verified"))
            assert line.split()[1:3] == ["account.baseline", "treasury"]
            assert reader.run("watcher balances").returncode == 0


async def starts_a_user(block: Block, folder: Path) -> None:
    """Up to the first sentence in the channel of a Slack that judges."""
    async with ChatService("slack") as slack:
        await asyncio.to_thread(writes_to_a_channel, block, folder, slack.url)
    _, sentence = slack.lines
    assert (sentence, slack.flaws) == ("treasury: deposit pending, 1 ETH (total 0)", [])


def writes_to_a_channel(block: Block, folder: Path, url: str) -> None:
    init, check, ping, run = block.text.splitlines()
    reader = Reader(folder, **ENVIRON | {"SLACK_URL": url})
    with ethereum("--chain-id=1") as chain, within(300 - 60):  # `poll` is for the minute that the file waits
        assert reader.run(init).stdout.splitlines()[1:] == [check, ping, run], "as the text says"
        configuration = (folder / "watcher.toml").read_text()
        ours = re.sub(r"(?m)^tokens = .*\n", "", configuration)  # there is no USDC on our chain
        ours = re.sub(r"(?m)^base_url = .*$", f'base_url = "{chain.node.url}"', ours)
        (folder / "watcher.toml").write_text(ours + HERE_TOO)
        for line in (check, ping):
            done = reader.run(line)
            assert (done.returncode, done.stderr) == (0, ""), done
        with reader.running(run, until='"poll.finished"') as log:
            chain.send(re.findall(r'(?m)^address = "(0x\w+)"', ours)[0], 10**18)
            chain.mine()
            assert reader.run("watcher poll treasury").returncode == 0
            wait_for(log, '"delivery.delivered"')


def tries_a_recipe(block: Block, folder: Path) -> None:
    name = "esplora"
    (folder / "mine.toml").write_text(recipe(name).text)
    for kind in ("answer", "later"):
        shutil.copy(HERE / "samples" / name / f"{kind}-1.json", folder / f"{kind}.json")
    reader = Reader(folder)
    asks, reads, moves = (reader.run(line).stdout for line in block.text.splitlines())
    assert asks.startswith("GET /address/")
    assert "20999999.99700001" in reads
    assert "withdrawal.cleared" in moves


def shown(line: str) -> str:
    return line.partition("#")[0].strip()


def serves_and_receives(block: Block, folder: Path) -> None:
    reader = Reader(folder)
    before = {*folder.iterdir()}
    with reader.running(block.text, until="  ->  deposit.pending  12.5 LRC") as said:
        (look,) = re.findall(r"In another shell:  (.*)", said.read_text())
        looked = reader.run(look)
    assert looked.returncode == 0
    assert "3 of 3 healthy" in looked.stdout
    assert {*folder.iterdir()} == {*before, said}


# A worker, and what is done to it


def configure(reader: Reader, name: str, *, port: int = 1024, base_url: str = "http://127.0.0.1:1") -> None:
    """One account, at a provider that is away unless it is given, and `ops`, which gives up at once."""
    (reader.folder / "watcher.toml").write_text(f"""
[egress]
allow = ["127.0.0.0/8"]
allow_http = true

[providers.loopring]
base_url = "{base_url}"
api_key = "sandbox"

[[accounts]]
name = "{name}"
provider = "loopring"
account_id = 10110
interval = "1s"

[[subscriptions]]
name = "ops"
url = "http://127.0.0.1:{port}/"
secrets = ["{SECRET}"]
retries = ["0s"]
""")


def writes_to_people(block: Block, folder: Path) -> None:
    reader = Reader(folder)
    configure(reader, "shop-1")
    with reader.running(block.text, until=" account=shop-1") as said:
        assert all(" warning " in line for line in said.read_text().splitlines())


def lives(block: Block, folder: Path) -> None:
    by_http, by_file, health = (shown(line) for line in block.text.splitlines())
    reader = Reader(folder)
    configure(reader, "shop-1")
    with reader.running(by_http.replace("8787", "0"), until='"listener.started"') as said:
        (address,) = re.findall(r'"address":"([^"]+)"', said.read_text())
        assert reader.run(f"{health} --url http://{address}").stdout == "ok\n"
    beat = folder / "beat"
    with reader.running(by_file.replace("/run/watcher.heartbeat", str(beat)), until='"worker.started"'):
        assert reader.run(f"{health} --file {beat}").stdout == "ok\n"
    assert reader.run(f"{health} --file {beat}").returncode == 1


def acts(block: Block, folder: Path) -> None:
    """On an event that was given up because the receiver was away, which it is not any more."""
    reader, port = Reader(folder, SECRET=SECRET), a_free_port()
    serve = "watcher sandbox --loopring-port 0 --metakeep-port 0 --bank-port 0 --seed 1"
    receive = f"watcher listen --port {port} --secret-env SECRET --json"
    with reader.running(serve, until="currencies") as sandbox:
        base_url = re.findall('base_url = "(.*)"', sandbox.read_text())[0]
        configure(reader, "treasury", port=port, base_url=base_url)
        with reader.running("watcher run", until='"delivery.dead"') as log:
            dead = re.findall(r'"delivery.dead".*"event_id":"(\w+)"', log.read_text())[0]
            with reader.running(receive, until="listening") as heard:
                (give_up,) = (line for line in block.text.splitlines() if "give-up ID" in line)
                refused = reader.run(give_up.replace("ID", dead, 1))
                assert (refused.returncode, dead in refused.stderr) == (1, True), "it is in no queue any more"
                stated = reader.run(block.text.replace(give_up, ""))
                assert stated.returncode == 0, stated.stderr
                for words in ("ops: answered 200", f"http://127.0.0.1:{port}", dead, "queued again"):
                    assert words in stated.stdout
                wait_for(heard, dead)


def adds_by_the_api(block: Block, folder: Path) -> None:
    token, port = "a-token-of-some-length", a_free_port()
    reader = Reader(folder, **ENVIRON, WATCHER_HTTP_TOKEN=token)
    own = 'secret_key = "${WATCHER_SECRET_KEY}"'
    (folder / "watcher.toml").write_text(
        EXAMPLE.replace("[providers.ethereum]", f"[providers.ethereum]\n{NOWHERE}") + f"\n[api]\n{own}\n"
    )
    with reader.running(f"watcher run --http 127.0.0.1:{port} --api", until='"worker.started"') as said:
        wait_for(said, '"poll.rejected"')
        done = reader.run(block.text.replace("8787", str(port)))
    assert (done.returncode, done.stderr) == (0, "")
    account, subscription, balances = map(json.loads, re.findall(r"{.*?}(?={|\Z)", done.stdout.strip()))
    assert (account["change"], subscription["change"]) == ("created", "created")
    assert subscription["secrets"][0].startswith("whsec_")
    assert subscription["token"].startswith("wst_")
    assert (balances["account"], balances["balances"]) == ("alice", [])


def completes(block: Block, folder: Path) -> None:
    """In each of these shells that is here; of the others, what they would be given is looked at."""
    reader = Reader(folder)
    configure(reader, "shop-1")
    for line, sign in zip(
        block.text.splitlines(),
        ("_watcher_completion()", "#compdef watcher", "--command watcher"),
        strict=True,
    ):
        (ask,) = re.findall(r"_WATCHER_COMPLETE=\w+ watcher", line)
        assert sign in reader.run(ask).stdout
        shell = re.findall(r"=(\w+)_source", ask)[0]
        assert f"/.{shell}rc" in line or f"/{shell}/" in line
    offered = "COMP_WORDS=(watcher ping o); COMP_CWORD=2; _watcher_completion watcher; echo $COMPREPLY"
    assert reader.run(f"{block.text.splitlines()[0]}\n{offered}", shell="bash").stdout == "ops\n"


# For receivers, and for people who add a provider


def is_an_event(block: Block, _: Path) -> None:
    assert_valid(block.text.encode())
    data = json.loads(block.text)["data"]
    for field, effect in data["effect"].items():
        assert Decimal(data["before"][field]) + Decimal(effect) == Decimal(data["after"][field])


async def takes_what_is_genuine(block: Block, _: Path) -> None:
    """The example, an event of each type, and all of them a second time; and nothing else."""
    names: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec"), names)
    (secret,) = re.findall(r'"(whsec_.*?)"', block.text)
    (example,) = (one.text for one in BLOCKS if one.language == "json")
    now, types = int(time.time()), [*CHANGE_EVENTS, *SERVICE_EVENTS]
    of_each = [sample(type_, "ops", nonce="n", now_ms=1000 * now).to("ops").body for type_ in types]
    bodies = [json.dumps(json.loads(example)).encode(), *of_each]
    ids = [json.loads(body)["id"] for body in bodies]
    async with TestClient(TestServer(names["app"])) as client:

        async def answered(event_id: str, body: bytes, more: bytes = b"") -> int:
            headers = {"webhook-id": event_id, "webhook-timestamp": str(now)}
            headers["webhook-signature"] = Signer([secret]).signature(event_id, now, body)
            return (await client.post("/hooks/balances", data=body + more, headers=headers)).status

        for again in (False, True):
            said = {one: await answered(*one) for one in zip(ids, bodies, strict=True)}
            assert [body for (_id, body), status in said.items() if status != 200] == [], again
        assert await answered(ids[0], bodies[0], b" ") == 400
    assert names.get("SEEN", {*ids}) == {*ids}


def pulls(block: Block, _: Path) -> None:
    """Read here; tests/api/test_events.py runs it beside a worker."""
    compile(block.text, str(block), "exec")


def is_javascript(block: Block, folder: Path) -> None:
    """Read and not run: what it imports comes from another registry."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine to read it")
    (folder / "receiver.mjs").write_text(block.text)
    checked = subprocess.run([node, "--check", folder / "receiver.mjs"], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


def is_the_contract(block: Block, _: Path) -> None:
    names = {"AcmeSettings": object, "AcmeAccount": object}
    exec(compile(block.text, str(block), "exec"), names)
    for name, asked in vars(Provider).items():
        if callable(asked) and (name == "__init__" or not name.startswith("_")):
            stated = getattr(names["Acme"], name)
            assert [*inspect.signature(stated).parameters] == [*inspect.signature(asked).parameters], name


def makes_the_secrets(block: Block, folder: Path) -> None:
    """What the composition does with them: tests/deploy/test_deploy_files.py."""
    shutil.copytree(
        block.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("secrets", "watcher.toml")
    )
    done = Reader(folder).run(block.text)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "secrets").stat().st_mode & 0o777 == 0o700


def runs_by_hand(block: Block, folder: Path) -> None:
    """And so does a command on call, without `sudo -u watcher`."""
    reader = Reader(folder)
    etc = folder / "etc"
    (etc / "credentials").mkdir(parents=True)
    for name, content in (("loopring_api_key", "k"), ("metakeep_api_key", "k"), ("ops_secret", SECRET)):
        (etc / "credentials" / name).write_text(content)
    pointing = (block.folder / "credentials.env").read_text().replace("/etc/watcher", str(etc))
    (etc / "credentials.env").write_text(pointing)
    example = (block.folder / "watcher.example.toml").read_text()
    own = {
        "[providers.loopring]": f"[providers.loopring]\n{NOWHERE}",
        "[providers.shop]": f"[providers.shop]\n{NOWHERE}",
    }
    own["/var/lib/watcher"] = str(folder)
    for theirs, ours in own.items():
        example = example.replace(theirs, ours)
    (folder / "watcher.toml").write_text(example)

    def here(text: str) -> str:
        return text.replace("/etc/watcher", str(etc)).replace("/opt/watcher/bin/", "")

    (night,) = (one.text for one in BLOCKS if "sudo -u watcher" in one.text)
    with reader.running(here(block.text), until='"poll.rejected"') as said:
        assert "watcher.toml is good" in said.read_text()
        looked = reader.run(here(night.splitlines()[0]).removeprefix("sudo -u watcher "))
        assert (looked.returncode, "2 accounts" in looked.stdout or "of 2 as" in looked.stdout) == (
            0,
            True,
        ), looked


def asked(port: int, *words: str) -> str:
    """What a server on this machine answers to redis-cli."""
    program = shutil.which("redis-cli")
    assert program
    done = subprocess.run(
        [program, "-p", str(port), *words], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def backs_redis_up(block: Block, folder: Path) -> None:
    """And restores it: a server that logs commands ignores the file, unless it is done as the text says."""
    if not shutil.which("redis-cli"):
        pytest.skip("no redis-cli on this machine")
    (restore,) = (one.text for one in BLOCKS if "config set appendonly yes" in one.text)
    port = a_free_port()
    reader = Reader(folder, REDIS_URL=f"redis://127.0.0.1:{port}")
    flags = ("--port", str(port), "--save", "", "--dbfilename", "watcher.rdb", "--appendonly")

    def begin(appendonly: str, *, logged: bool) -> None:
        server.stop()
        server.flags = (*flags, appendonly)
        if not logged:
            shutil.rmtree(server.directory / "appendonlydir")
        server.start()

    with real_server("valkey", *flags, "yes") as server:
        asked(port, "set", "watcher:x", "1")
        assert reader.run(block.text).returncode == 0
        shutil.copy(folder / "watcher.rdb", server.directory)
        begin("yes", logged=False)
        assert asked(port, "get", "watcher:x") == ""
        begin("no", logged=False)
        assert reader.run(restore).stdout == "OK\n"
        while "aof_rewrite_in_progress:0" not in asked(port, "info", "persistence"):
            time.sleep(0.02)
        begin("yes", logged=True)
        assert asked(port, "get", "watcher:x") == "1"


def restores_redis(block: Block, _: Path) -> None:
    """Together with the backup that is restored."""
    assert TREATMENTS["sh", "--rdb"] is backs_redis_up
    assert '"$REDIS_URL"' in block.text


def backs_the_private_server_up(block: Block, folder: Path) -> None:
    """And restores it when the provider has moved on: all adds up again, and numbers go on rising."""
    reader = Reader(folder)
    with reader.running(
        "watcher sandbox --loopring-port 0 --metakeep-port 0 --bank-port 0 --seed 1", until="currencies"
    ) as sandbox:
        configure(reader, "treasury", base_url=re.findall('base_url = "(.*)"', sandbox.read_text())[0])
        file = folder / "watcher.toml"
        file.write_text(f'[redis]\ndata_dir = "{folder}/state"\n{file.read_text()}')

        def sequences() -> list[int]:
            """Work until something more has moved, and end; says the numbers of all events in the log."""
            with reader.running("watcher run", until='"asset":"'):
                pass
            return [
                json.loads(line)["data"]["sequence"]
                for line in reader.run("watcher events --json").stdout.splitlines()
            ]

        before = sequences()
        assert reader.run(block.text.replace("/var/lib/watcher", str(folder))).returncode == 0
        lost = sequences()
        shutil.rmtree(folder / "state")
        (folder / "backup").rename(folder / "state")
        after = sequences()
    assert after[: len(before)] == before
    assert min(after[len(before) :]) > max(lost) > max(before)
    audited = reader.run("watcher audit")
    assert audited.returncode == 0, audited.stdout


def is_for_a_platform(block: Block, _: Path) -> None:
    assert_a_platform_takes_it(block.text)


async def is_a_sink(block: Block, _: Path) -> None:
    """It reads its service's answers, as the recipe says."""

    taken = Delivery("evt_1", "total.increased", 1, b'{"id":"evt_1"', "chat")

    def sentence(delivery: Delivery) -> str:
        return delivery.event_id

    async def post_message(_: object, text: str) -> tuple[bool, str | None, float | None]:
        return (True, None, None) if text == taken.event_id else (False, "ratelimited", 3.0)

    names: dict[str, Any] = {"Answer": Answer, "Attempt": Attempt, "post_message": post_message}
    names["sentence"] = sentence
    names["duration_ms"] = 7
    exec(block.text, names)
    target, sink = names["ChatTarget"](SimpleNamespace(name="chat")), names["ChatSink"]()
    good = await sink.send(target, [taken], 1)
    slow = await sink.send(target, [taken._replace(sequence=2, event_id="evt_2")], 1)
    assert (good.answer, slow.answer, slow.retry_after_s) == (Answer.DELIVERED, Answer.SLOW_DOWN, 3.0)


TREATMENTS: Mapping[tuple[str, str], Callable[[Block, Path], Awaitable[None] | None]] = {
    ("sh", ".venv/bin/pip install -q"): is_what_ci_runs,
    ("", "─▶"): is_a_picture,
    ("sh", "watcher listen"): watches_something_real,
    ("sh", "watcher init"): starts_a_user,
    ("toml", ""): loads,
    ("sh", "watcher sandbox"): serves_and_receives,
    ("python", 'SECRET = "whsec_'): takes_what_is_genuine,
    ("python", "SEEN"): takes_what_is_genuine,
    ("python", "Journal("): pulls,
    ("javascript", "standardwebhooks"): is_javascript,
    ("json", "evt_"): is_an_event,
    ("sh", "watcher run | watcher tail"): writes_to_people,
    ("sh", "watcher health"): lives,
    ("sh", "watcher deliveries give-up"): acts,
    ("sh", "/v1"): adds_by_the_api,
    ("sh", "_WATCHER_COMPLETE"): completes,
    ("python", "class Acme"): is_the_contract,
    ("sh", "watcher check --recipe"): tries_a_recipe,
    ("sh", "> secrets/users.acl"): makes_the_secrets,
    ("sh", "/opt/watcher/bin/watcher run"): runs_by_hand,
    ("sh", "--rdb"): backs_redis_up,
    ("sh", "config set appendonly yes"): restores_redis,
    ("sh", "cp -a"): backs_the_private_server_up,
    ("console", ""): is_for_a_platform,
    ("python", "class ChatSink"): is_a_sink,
    ("ini", "IPAddressDeny"): is_a_drop_in,
    ("yaml", "scrape_configs"): scrapes,
    ("caddy", ""): leads_to_the_listener,
    ("nginx", ""): leads_to_the_listener,
    ("yaml", "stripPrefix"): leads_to_the_listener,
}
"""By language and by words that stand in the block: what is done with it."""


def treatments_of(block: Block) -> list[Callable[[Block, Path], Awaitable[None] | None]]:
    return [
        treat
        for (language, words), treat in TREATMENTS.items()
        if language == block.language and words in block.text
    ]


@pytest.mark.timeout(180)  # some start a dozen processes, one after the other
@pytest.mark.parametrize("block", BLOCKS, ids=str)
async def test_every_block_works_as_written(block: Block, tmp_path: Path) -> None:
    found = treatments_of(block)
    assert found, f"this block is neither run nor loaded:\n{block.text}"
    (treat,) = found
    if waiting := treat(block, tmp_path):
        await waiting


def test_an_unknown_block_is_noticed() -> None:
    (stranger,) = blocks_of("NEW.md", "text\n\n```sh\nwatcher-ctl frobnicate\n```\n")
    assert stranger.line == 3
    assert treatments_of(stranger) == []


def test_every_fence_is_part_of_a_block_and_every_treatment_is_used() -> None:
    fences = [line for file in FILES for line in (ROOT / file).read_text().splitlines() if "```" in line]
    assert len(fences) == 2 * len(BLOCKS)
    used = {treat for block in BLOCKS for treat in treatments_of(block)}
    assert used == {*TREATMENTS.values()}


@pytest.mark.parametrize(
    "text", ["frobnicate --now", "docker run --frobnicate watcher", "systemctl start /etc/else.toml"]
)
def test_an_unknown_platform_command_is_noticed(text: str) -> None:
    with pytest.raises(AssertionError):
        assert_a_platform_takes_it(text)


def ours() -> list[str]:
    """Every command line of watcher's in the texts, in a block or in a sentence, without `watcher`."""
    shells = [block.text for block in BLOCKS if block.language in ("sh", "console")]
    inline = [code for file in FILES for code in inline_code(file) if "watcher " in code]
    found = [commands(text) for text in (*shells, *inline)]
    return sorted({" ".join(words[1:]) for lines in found for words in lines if is_ours(words)})


def is_ours(words: list[str]) -> bool:
    return words[0] in ("watcher", "/opt/watcher/bin/watcher") and len(words) > 1


@pytest.mark.parametrize("line", ours())
def test_a_command_in_the_text_exists_with_its_options(line: str) -> None:
    command: click.Command = group
    rest = line.split()
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        with click.Context(command) as context:
            found = command.get_command(context, rest.pop(0))
        assert found, line
        command = found
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert {word.partition("=")[0] for word in rest if word.startswith("-")} <= known | {"--help"}
