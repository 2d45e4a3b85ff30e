"""`watcher` lists its commands, helps with typing errors, and ends with the right exit code."""

import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

import click
import pytest

import watcher as package
from tests.support.program import environment, script, watcher
from watcher import cli, signals
from watcher.cli import COMMANDS, COMMANDS_BY_PURPOSE, LazyGroup, group, main

Run = Callable[..., object]


def exit_code(run: Run, *args: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """Run a command `tail` that does what `run` does, and return what the process would end with."""
    module = ModuleType("watcher.commands.tail")
    vars(module)["command"] = click.Command("tail", callback=run)
    monkeypatch.setitem(sys.modules, "watcher.commands.tail", module)
    with pytest.raises(SystemExit) as ended:
        main(["tail", *args])
    return ended.value.code


def raising(error: BaseException) -> Run:
    def run() -> None:
        raise error

    return run


def test_help_lists_every_command_by_its_purpose() -> None:
    done = watcher("--help")
    assert done.returncode == 0
    for purpose, help_by_name in COMMANDS_BY_PURPOSE.items():
        assert f"\n{purpose}:\n" in done.stdout
        for name, text in help_by_name.items():
            assert f"\n  {name.ljust(max(map(len, COMMANDS)))}  {text}\n" in done.stdout


def test_help_imports_click_and_nothing_else_heavy() -> None:
    done = script(
        "import sys\nfrom watcher.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(*sorted(sys.modules), sep='\\n', file=sys.stderr)"
    )
    ours = [name for name in done.stderr.splitlines() if name.split(".")[0] == "watcher"]
    assert ours == [
        "watcher",
        "watcher.cli",
        "watcher.environment",
        "watcher.signals",
        "watcher.streams",
    ]
    assert not {"structlog", "orjson", "pydantic", "redis", "aiohttp", "asyncio", "json"} & set(
        done.stderr.splitlines()
    )


def test_without_a_command_the_help_is_shown_as_a_usage_error() -> None:
    done = watcher()
    assert done.returncode == 2
    assert "Start here:" in done.stderr


def test_the_version_is_printed() -> None:
    assert watcher("--version").stdout == f"watcher {package.__version__}\n"


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("tial",), "No such command 'tial'. Did you mean 'tail'?"),
        (("--verison",), "No such option '--verison'. Did you mean '--version'?"),
        (
            ("tail", "--subscripton", "ops"),
            "No such option '--subscripton'. Did you mean '--subscription'?",
        ),
        (("tail", "--level", "loud"), "'loud' is not one of"),
    ],
)
def test_a_mistyped_command_or_option_is_a_usage_error_with_a_hint(
    args: tuple[str, ...], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in COMMANDS if find_spec(f"watcher.commands.{name}")])
def test_every_command_of_the_table_can_be_called(name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert isinstance(command, click.Command)
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0


def test_a_command_is_imported_by_nothing_but_its_own_name() -> None:
    assert group.get_command(click.Context(group), "os") is None
    assert group.get_command(click.Context(group), "__init__") is None


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1), (78, 78), ("text", 0)])
def test_what_a_command_returns_is_the_exit_code(
    returned: object, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exit_code(lambda: returned, monkeypatch=monkeypatch) == code


def test_a_command_may_end_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_code(lambda: click.get_current_context().exit(1), monkeypatch=monkeypatch) == 1
    assert exit_code(raising(SystemExit(69)), monkeypatch=monkeypatch) == 69


class Unreachable(Exception):
    exit_code = 69


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (Unreachable("Redis at db:6379 does not answer"), 69, "watcher: Redis at db:6379 does not answer\n"),
        (click.UsageError("which account?"), 2, "Error: which account?\n"),
        (click.ClickException("no"), 1, "Error: no\n"),
        (click.Abort(), 1, "Aborted!\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_expected_errors_are_shown_without_a_traceback(
    error: BaseException,
    code: int,
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code(raising(error), monkeypatch=monkeypatch) == code
    assert capsys.readouterr().err.endswith(shown)


@pytest.mark.parametrize(
    "error",
    [KeyError("treasury"), BrokenPipeError("a socket"), ExceptionGroup("two", [OSError(), OSError()])],
)
def test_any_other_error_is_a_bug_with_a_traceback_but_no_locals(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        api_key = "sk-" + "live"
        assert api_key
        raise error

    assert exit_code(run, monkeypatch=monkeypatch) == 70
    out, err = capfd.readouterr()
    first, *rest = err.splitlines()
    assert first.startswith(f"watcher: bug: {type(error).__name__} at test_command_line.py:")
    assert first.endswith("; please report, with the traceback below")
    assert "Traceback (most recent call last):" in rest[0]
    assert "sk-live" not in err
    assert out == ""


def test_an_error_after_a_signal_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signals, "_came", [signal.SIGTERM])  # and a library made an error of its own of it
    assert exit_code(raising(RuntimeError("wrapped")), monkeypatch=monkeypatch) == 143
    assert exit_code(raising(signals.Ended(143)), monkeypatch=monkeypatch) == 143
    assert capsys.readouterr().err == ""


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, color in (("1", False), ("", None)):
        monkeypatch.setenv("NO_COLOR", value)
        assert exit_code(lambda: click.get_current_context().color is False, monkeypatch=monkeypatch) == (
            color is False
        )


def test_a_shell_completes_commands_without_importing_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "import_module", pytest.fail)
    found = LazyGroup.shell_complete(group, click.Context(group), "t")
    assert [item.value for item in found] == ["tail"]
    done = watcher(_WATCHER_COMPLETE="bash_complete", COMP_WORDS="watcher se", COMP_CWORD="1")
    assert done.stdout == "plain,secret\n"


def test_a_closed_pipe_ends_the_help_quietly() -> None:
    code = "import sys; sys.stdin.read(); import watcher.__main__ as program; program.main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "--help"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate()
        assert process.returncode == 141
        assert err == b""


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("init", "--provider", "strip"), "no kind of provider is called 'strip'; did you mean 'stripe'?"),
        (("init", "--provider", "xyz"), "no kind of provider is called 'xyz'; `watcher recipes` lists all"),
        (("init", "--to", "slak"), "no destination is called 'slak'; did you mean 'slack'?"),
        (("init", "--to", "xyz"), "no destination is called 'xyz'; there is "),
        (("recipes", "xyz"), "no recipe is called 'xyz'; `watcher recipes` lists all"),
        (("accounts", "lits"), "No such command 'lits'. Did you mean 'list'?"),
        (("accounts", "treasury"), "do you mean `watcher accounts show treasury`?"),
        (("schema", "event"), "'event' is not one of"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_or_where_to_list_all(
    args: tuple[str, ...], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    assert hint in capsys.readouterr().err
