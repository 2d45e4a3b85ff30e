"""Every command's help says what it does, with examples that work, and names its exit codes."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import watcher.commands
from watcher.cli import COMMANDS, group, main

BEGINS = re.compile(
    r"(Write|Show|List|Print|Find|Poll|Say|See|Replay|Make|Remove|Forget|Send|Receive|Check|Serve)s?\b"
)
"""What it does is said first, by a verb."""

CODES = {0, 1, 2, 69, 70, 78, 130, 143}


def commands(
    command: click.Command = group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, (*path, name))


EVERY = {" ".join(path): command for path, command in commands()}


def helped(command: click.Command) -> str:
    assert command.help is not None
    return command.help.replace("\b", "")


def examples(text: str) -> list[str]:
    """Read the lines below `Examples:`."""
    _, _, rest = text.partition("Examples:\n")
    return [line.strip() for line in rest.partition("\n\n")[0].splitlines()]


def called(example: str) -> Iterator[list[str]]:
    """Find the calls of watcher in a line of a shell, each without its redirections."""
    words = shlex.shlex(example, posix=True, punctuation_chars="|>&;")
    words.whitespace_split = True
    call: list[str] = []
    for word in (*words, "|"):
        if word in ("|", "&&", ";"):
            if call[0] == "watcher":
                yield call[1 : call.index(">")] if ">" in call else call[1:]
            call = []
        else:
            call.append(word)


def hints() -> Iterator[str]:
    """Find every command that `next:` names, with a name in the place of a placeholder."""
    for path in Path(watcher.commands.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_hint = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "say_next"
            is_hint = is_hint or (isinstance(node, ast.FunctionDef) and node.name == "next_command")
            for text in ast.walk(node) if is_hint else ():
                if isinstance(text, ast.JoinedStr):
                    said = "".join(
                        str(getattr(part, "value", "")) if isinstance(part, ast.Constant) else "ops"
                        for part in text.values
                    )
                    yield from re.findall(r"watcher [^,]+", said)
                elif isinstance(text, ast.Constant) and re.match(r"watcher \w", str(text.value)):
                    yield from re.findall(r"watcher [^,]+", str(text.value))


HINTS = sorted({hint.strip() for hint in hints() if not hint.endswith(" ")})


def test_every_command_is_checked() -> None:
    assert {*COMMANDS, "accounts show", "store layout", "secret new"} < {*EVERY}


@pytest.mark.parametrize("name", [name for name in EVERY if name])
def test_a_help_begins_with_what_the_command_does(name: str) -> None:
    first = helped(EVERY[name]).partition("\n")[0]
    assert BEGINS.match(first), first


WITHOUT_JSON = {
    *("demo", "init", "run", "health", "sandbox"),  # they act, and say so by the exit code or the log
    *("schema", "secret new", "secret public"),  # what they print is for programs
    *("accounts remove", "accounts reset"),
}


def test_every_command_that_shows_data_takes_json() -> None:
    without = {
        name
        for name, command in EVERY.items()
        if not isinstance(command, click.Group)
        and not any("--json" in option.opts for option in command.params)
    }
    assert without == WITHOUT_JSON


@pytest.mark.parametrize("name", EVERY)
def test_a_help_names_the_exit_codes(name: str) -> None:
    _, is_said, said = helped(EVERY[name]).partition("Exit codes: ")
    assert is_said
    codes = [int(code) for code in re.findall(r"(?:^|; |or |and )(\d+) ", " ".join(said.split()))]
    assert {0, 2} <= {*codes} <= CODES
    assert codes == sorted(codes)


def all_invoked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have commands read their arguments and do nothing; returns the paths of those that are called."""
    invoked: list[str] = []

    def invoke(_: click.Command, context: click.Context) -> None:
        invoked.append(context.command_path.removeprefix("watcher").strip())

    monkeypatch.setattr(click.Command, "invoke", invoke)
    return invoked


@pytest.mark.parametrize("hint", HINTS)
def test_a_command_named_as_the_next_one_is_accepted(
    hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoked = all_invoked(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "accounts.jsonl").touch()
    (call,) = called(hint.replace("/*", "/accounts.jsonl"))
    with pytest.raises(SystemExit) as ended:
        main(call)
    assert ended.value.code == 0
    assert invoked[-1].split()[0] == call[0]


@pytest.mark.parametrize("name", EVERY)
def test_the_examples_of_a_help_are_accepted_by_the_command_itself(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = examples(helped(EVERY[name]))
    assert len(found) >= 2
    assert max(map(len, found)) <= 100
    invoked = all_invoked(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for example in found:
        calls = [*called(example)]
        assert calls, example
        for call in calls:
            for word in call:
                if re.search(r"\.[a-z]+$", word):  # a file that it is to read
                    Path(word).parent.mkdir(exist_ok=True)
                    Path(word).touch()
            with pytest.raises(SystemExit) as ended:
                main(call)
            assert ended.value.code == 0, example
        assert not name or any(path.startswith(name.split()[0]) for path in invoked), example
