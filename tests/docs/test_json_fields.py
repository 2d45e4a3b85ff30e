"""deploy/JSON.md names every field that --json prints. That it names just these, every test asserts that runs
a command with --json (`tests.support.json_fields`)."""

import json

import click
import pytest

from tests.commands.test_help import EVERY
from tests.support.json_fields import COMMANDS, assert_documented

BESIDE = {"subscriptions show"}
"""An action of a command that prints something else."""


def test_every_command_with_json_has_its_fields_documented() -> None:
    with_json = {
        name
        for name, command in EVERY.items()
        if not isinstance(command, click.Group) and any("--json" in option.opts for option in command.params)
    }
    assert with_json == COMMANDS - BESIDE


def test_a_field_too_many_or_too_few_is_found() -> None:
    line = {"account": "treasury", "provider": "loopring", "origin": "file"}
    for arguments in (["accounts", "--json"], ["accounts", "list", "--json"]):
        assert_documented(arguments, json.dumps(line))
    for wrong in ({**line, "kind": "account"}, {**line, "more": 1}, {"account": "treasury"}):
        with pytest.raises(AssertionError):
            assert_documented(["accounts", "--json"], json.dumps(wrong))
