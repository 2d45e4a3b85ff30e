"""What the files in deploy/ name exists, and what they say is true. No container engine is needed."""

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel

from tests.docs.blocks import texts_in
from tests.support.builders import SECRET
from tests.support.servers import RealServer, real_server
from tests.support.tls_front import a_certificate_file
from watcher.cli import group
from watcher.config.loading import Loaded, load
from watcher.encryption import new_key
from watcher.environment import Environment
from watcher.observe.catalogue import EVENTS
from watcher.store.client import connect
from watcher.store.guarantee import guarantee
from watcher.store.keys import Keys
from watcher.store.members import Roster
from watcher.store.pipe import Pipe

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
EXAMPLE = (DEPLOY / "watcher.example.toml").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
README = texts_in("deploy/")
UNIT = (DEPLOY / "watcher.service").read_text()
PROJECT: Mapping[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def is_command(words: list[str]) -> bool:
    """Whether `watcher …` would find its command and take its options."""
    program, *arguments = words
    assert program in PROJECT["project"]["scripts"]
    return CliRunner().invoke(group, [*arguments, "--help"]).exit_code == 0


# The example configuration


def uncommented() -> str:
    """The example with everything in it switched on."""
    return re.sub(r"(?m)^# (?=\[|[a-z0-9_]+ = )", "", EXAMPLE)


def loaded(text: str, folder: Path) -> Loaded:
    path = folder / "watcher.toml"
    path.write_text(text)
    (folder / "accounts.jsonl").write_text('{"name": "bob", "provider": "loopring", "account_id": 1}\n')
    a_certificate_file(folder).rename(folder / "ca.pem")
    environ = dict.fromkeys(re.findall(r"\$\{([A-Z_]+)\}", EXAMPLE), "k")
    environ |= {"OPS_SECRET": SECRET, "WATCHER_SECRET_KEY": new_key(), "PAGERDUTY_KEY": 32 * "0"}
    del environ["NAME"]  # it only says how variables are written
    return load(path, environ)


@pytest.mark.parametrize("text", [EXAMPLE, uncommented()], ids=["as it is", "with everything switched on"])
def test_the_example_loads_without_mistakes_or_warnings(tmp_path: Path, text: str) -> None:
    assert loaded(text, tmp_path).warnings == ()


def test_the_example_shows_every_setting(tmp_path: Path) -> None:
    tree = tomllib.loads(uncommented())
    shown = {name: {*tree[name]} for name in ("redis", "worker", "log", "egress")}
    shown |= {name: {*table} for name, table in tree["providers"].items()}
    for account in tree["accounts"]:
        shown.setdefault(f"at {account['provider']}", set()).update(account)
    (threshold,) = tree["subscriptions"][0]["thresholds"]
    shown |= {
        "subscription": {*chain(*tree["subscriptions"])},
        "threshold": {*threshold},
        "api": {*tree["api"]},
    }
    fields = {name: {*type(one).model_fields} for name, one in sections(loaded(uncommented(), tmp_path))}
    fields["threshold"].remove("above")  # `below` excludes it
    for name in ("loopring", "shop"):
        fields[name].remove("name")  # the heading says it
    fields["at shop"] -= {"interval", "pending_interval"}  # said at the first account
    assert shown == fields


def test_the_commented_values_of_the_example_are_the_defaults(tmp_path: Path) -> None:
    own = {("redis", "data_dir"), ("threshold", "field")}
    for name, one in sections(loaded(uncommented(), tmp_path)):
        for key, field in type(one).model_fields.items():
            if not field.is_required() and field.default and (name, key) not in own:
                assert getattr(one, key) == field.default, f"{name}.{key}"


def sections(found: Loaded) -> Iterator[tuple[str, BaseModel]]:
    """The sections of the example, each under a name."""
    settings = found.settings
    for name in ("redis", "worker", "log", "egress"):
        yield name, getattr(settings, name)
    yield from settings.provider_by_name.items()
    yield "at loopring", settings.account_by_name["treasury"]
    yield "at shop", settings.account_by_name["alice"]
    subscription = settings.subscription_by_name["ops"]
    yield from (("subscription", subscription), ("threshold", subscription.thresholds[0]))
    if settings.api:
        yield "api", settings.api


# The Procfile


def test_the_processes_of_the_procfile_are_commands_that_exist() -> None:
    processes = dict(line.split(": ") for line in (ROOT / "Procfile").read_text().splitlines())
    assert processes == {"release": "watcher check", "worker": "watcher run"}
    assert all(is_command(shlex.split(command)) for command in processes.values())


# The image


def instructions(name: str) -> list[str]:
    """What stands behind each instruction of the Dockerfile of this name."""
    text = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{name} (.*)$", text, re.MULTILINE)


def copied() -> set[str]:
    """What the image's build takes from the checkout."""
    return {
        word for copy in instructions("COPY") if not copy.startswith("--from") for word in copy.split()[:-1]
    }


def test_the_image_gets_exactly_the_files_that_its_build_needs() -> None:
    project = PROJECT["project"]
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    lists = {f"deploy/requirements{which}.txt" for which in ("", "-build")}
    needed = {"pyproject.toml", project["readme"], *project["license-files"], *packages, *lists}
    assert copied() == needed
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == needed


def test_the_image_runs_a_command_that_exists() -> None:
    (entrypoint,), (command,) = instructions("ENTRYPOINT"), instructions("CMD")
    assert is_command([*json.loads(entrypoint), *json.loads(command)])


def test_the_image_runs_as_an_unprivileged_user_without_pip() -> None:
    (user,) = instructions("USER")
    uid, gid = map(int, user.split(":"))
    assert min(uid, gid) >= 10_000
    final = DOCKERFILE.split("\nFROM ")[-1]
    assert f"--uid {uid} " in final
    assert "pip uninstall" in final
    assert "pip install" not in final
    assert "--without-pip" in DOCKERFILE


def test_both_stages_are_of_one_python_that_the_project_supports() -> None:
    (base,) = {image.split()[0] for image in instructions("FROM")}
    version = re.fullmatch(r"python:(3\.\d+)-slim", base)
    assert version
    assert f"Programming Language :: Python :: {version[1]}" in PROJECT["project"]["classifiers"]


def test_the_image_and_the_service_let_the_example_keep_its_state(tmp_path: Path) -> None:
    data_dir = loaded(EXAMPLE, tmp_path).settings.redis.data_dir
    (folder,) = instructions("WORKDIR")[1:]
    assert data_dir.parent == Path(folder)
    assert f"--mode 700 {folder}" in DOCKERFILE
    assert f":{folder} " in README
    assert f"StateDirectory={data_dir.parent.name}\n" in UNIT


# The composition


def test_the_worker_finds_every_secret_of_the_example_in_a_file(tmp_path: Path) -> None:
    worker = COMPOSE["services"]["watcher"]
    assert worker["secrets"] == [*COMPOSE["secrets"]]
    content = dict.fromkeys(worker["secrets"], "k") | {"ops_secret": SECRET, "redis_url": "redis://valkey"}
    environ = {}
    for name, path in worker["environment"].items():
        file = tmp_path / path.removeprefix("/run/secrets/")
        file.write_text(content.pop(file.name))
        environ[name] = str(file)
    assert not content
    (tmp_path / "watcher.toml").write_text(EXAMPLE)
    settings = load(tmp_path / "watcher.toml", environ).settings
    assert settings.redis.url.get_secret_value() == "redis://valkey"


def test_the_worker_finds_its_configuration_where_it_looks_for_one() -> None:
    (config,) = COMPOSE["services"]["watcher"]["configs"]
    assert Path(config["target"]) in Environment.PLACES
    assert COMPOSE["configs"][config["source"]]["file"] == "./watcher.toml"


def test_the_paths_of_the_composition_exist_or_are_made_by_the_readme() -> None:
    build = COMPOSE["services"]["watcher"]["build"]
    context = DEPLOY / build["context"]
    assert context.resolve() == ROOT
    assert (context / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    ignored = (DEPLOY / ".gitignore").read_text().splitlines()
    for table in (COMPOSE["configs"], COMPOSE["secrets"]):
        for path in (named["file"].removeprefix("./") for named in table.values()):
            assert path in ignored or f"{path.partition('/')[0]}/" in ignored
            assert f"`{path}`" in README or f"> {path}\n" in README


def test_the_worker_is_given_more_time_than_its_drain_takes(tmp_path: Path) -> None:
    drain = loaded(EXAMPLE, tmp_path).settings.worker.drain.total_seconds()
    granted = [COMPOSE["services"]["watcher"]["stop_grace_period"].removesuffix("s")]
    granted += re.findall(r"(?:--stop-timeout |TimeoutStopSec=)(\d+)", README + UNIT)
    assert len(granted) == 3
    assert min(map(int, granted)) > drain


def test_every_service_is_confined_and_the_worker_has_an_init() -> None:
    confined = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
    assert [*COMPOSE["services"]] == ["watcher", "valkey"]
    for service in COMPOSE["services"].values():
        assert confined.items() <= service.items()
    assert COMPOSE["services"]["watcher"]["init"] is True
    assert COMPOSE["networks"]["state"] == {"internal": True}
    assert COMPOSE["services"]["valkey"]["networks"] == ["state"]


def made_by_the_readme(folder: Path) -> Path:
    """A copy of deploy/ in which the commands of its README were run."""
    copy = folder / "deploy"
    shutil.copytree(DEPLOY, copy, ignore=shutil.ignore_patterns("secrets", "watcher.toml"))
    (block,) = (text for text in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "users.acl" in text)
    subprocess.run(["sh", "-eu", "-c", block], cwd=copy, check=True, timeout=20)
    return copy


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[tuple[RealServer, str]]:
    """The composition's server, with the users that the README's commands make; the worker's credentials."""
    secrets = made_by_the_readme(tmp_path) / "secrets"
    service = COMPOSE["services"]["valkey"]
    (config,) = service["configs"]
    program, *flags = service["command"]
    assert program == "valkey-server"
    assert (secrets.parent / COMPOSE["configs"][config["source"]]["file"]).samefile(secrets / "users.acl")
    flags[flags.index(config["target"])] = str(secrets / "users.acl")
    url = re.fullmatch(r"redis://(\w+):([0-9a-f]{64})@valkey:6379", (secrets / "redis_url").read_text())
    assert url
    with real_server("valkey", *flags) as server:
        yield server, f"username={url[1]}&password={url[2]}"


async def test_the_composition_and_the_commands_of_the_readme_make_a_safe_server(
    composed: tuple[RealServer, str],
) -> None:
    server, credentials = composed
    async with connect(f"{server.url}?{credentials}") as client:
        await Roster(Pipe(client), Keys("watcher")).check_layout()
        said = await guarantee(client)
    assert (said.persistence, said.eviction, said.warnings) == ("aof", "noeviction", ())


async def test_the_health_check_of_the_server_has_the_rights_it_needs(
    composed: tuple[RealServer, str],
) -> None:
    server, _ = composed
    test = COMPOSE["services"]["valkey"]["healthcheck"]["test"]
    assert test[:2] == ["CMD", "valkey-cli"]
    user, password = (test[test.index(option) + 1] for option in ("--user", "--pass"))
    async with connect(f"{server.url}?username={user}&password={password}") as client:
        assert await client.execute_command(test[-1])  # type: ignore[no-untyped-call]


# The text


def test_the_log_lines_that_the_readme_says_to_watch_exist() -> None:
    named = set(re.findall(r"`((?:store|worker|delivery)\.[a-z_]+)`", README)) - {"worker.drain"}
    assert {"store.guarantee", "worker.heartbeat"} <= named
    assert named <= EVENTS.keys()
