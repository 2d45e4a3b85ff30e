"""The image's health check is a command that exists, and reads the file that the worker writes."""

import json
import re
import shlex
from pathlib import Path

import yaml
from click.testing import CliRunner

from tests.docs.blocks import texts_in
from watcher.cli import group
from watcher.commands.health import command as health
from watcher.commands.run import command as run
from watcher.observe.liveness import EVERY_S

DEPLOY = Path(__file__).parents[2] / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
README = texts_in("deploy/")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())

(CHECK,) = re.findall(r"^HEALTHCHECK (.*) CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
(HEARTBEAT,) = re.findall(r"^ENV WATCHER_HEARTBEAT_FILE=(\S+)$", DOCKERFILE, re.MULTILINE)


def seconds(option: str) -> int:
    (found,) = re.findall(rf"--{option}=(\d+)s", CHECK[0])
    return int(found)


def test_the_image_is_checked_by_a_command_that_exists() -> None:
    program, *arguments = json.loads(CHECK[1])
    assert program == "watcher"
    assert CliRunner().invoke(group, [*arguments, "--help"]).exit_code == 0


def test_the_worker_and_its_check_read_the_same_variable() -> None:
    for command, name in ((run, "heartbeat_file"), (health, "path")):
        (option,) = (option for option in command.params if option.name == name)
        assert option.envvar == "WATCHER_HEARTBEAT_FILE"


def test_a_few_heartbeats_may_be_missed_before_the_check_fails() -> None:
    (max_age,) = (option.default for option in health.params if option.name == "max_age")
    assert max_age == "30s"
    assert 3 * EVERY_S <= 30
    assert seconds("timeout") < seconds("interval") <= 30
    assert seconds("start-period") >= 10


def test_the_heartbeat_is_writable_in_a_read_only_container() -> None:
    folder = str(Path(HEARTBEAT).parent)
    assert folder in COMPOSE["services"]["watcher"]["tmpfs"]
    (call,) = re.findall(r"^docker run (.*?) watcher$", README.replace("\\\n", " "), re.MULTILINE)
    words = shlex.split(call)
    assert "--read-only" in words
    assert words[words.index("--tmpfs") + 1] == folder
