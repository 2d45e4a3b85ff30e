"""The command `watcher`: finds the command that was asked for and says how it ended by the exit code.

Refuses to import a command before it is called, so that `watcher --help` is instant. A command lives in
`watcher.commands.<name>` as `command`; what it returns is the exit code (None is 0). An exception with an
`exit_code` was planned: its message is shown. Every other exception is a bug.
"""

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from watcher import __version__, signals
from watcher.environment import Environment
from watcher.streams import CannotWrite, ReaderLeft, silence_stdout

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

EXIT_NO = 1
EXIT_BUG = 70

COMMANDS_BY_PURPOSE: Mapping[str, Mapping[str, str]] = {
    "Start here": {
        "demo": "See it work on this machine: no Redis, key or network needed.",
        "init": "Write a watcher.toml to begin with.",
        "check": "Find every mistake in the configuration, before it runs.",
        "recipes": "List the built-in recipes of APIs; print one to edit it.",
    },
    "The worker": {
        "run": "Poll, compare and deliver, until it is asked to stop.",
        "health": "Say whether a worker lives, by the exit code.",
    },
    "Inspect": {
        "status": "The state of everything, on one screen.",
        "balances": "The last balances, and what is pending confirmation.",
        "history": "A balance over time, from the event log.",
        "events": "What was emitted, from the event log.",
        "deliveries": "What waits, dead letters, and failed attempts.",
        "subscriptions": "The state of subscriptions; pause, resume, remove them.",
        "accounts": "List accounts; show, remove or reset one.",
        "tail": "Structured log lines, for people, with filters.",
    },
    "Back up": {
        "export": "Write accounts and subscriptions of the API into files.",
        "import": "Write exported accounts and subscriptions into Redis.",
    },
    "Act and verify": {
        "poll": "Poll accounts now, as a hook or a webhook asks.",
        "ping": "Send one signed sample to a subscriber.",
        "resend": "Send again: dead letters, or events from the log.",
        "audit": "Prove that baselines, events and balances add up.",
        "explain": "What events two answers of a provider would make.",
        "store": "Show the layout of Redis, or move it to another version's.",
    },
    "The receiver's side": {
        "listen": "Receive webhooks here, verify and show them.",
        "verify": "Verify the signature of one webhook.",
    },
    "Tools": {
        "schema": "The catalogue of events, or the API, as OpenAPI.",
        "sandbox": "Serve the providers' endpoints, with a script of changes.",
        "secret": "Make a signing secret.",
    },
}
"""Every command, in the order of the help. `watcher.commands.<name>` must exist: `import_` for import."""

_COMPLETE = "_WATCHER_COMPLETE"
COMMANDS = [name for commands in COMMANDS_BY_PURPOSE.values() for name in commands]


class LazyGroup(click.Group):
    """Knows its commands from the table above and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return COMMANDS

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = f"{cmd_name}_" if iskeyword(cmd_name) else cmd_name
        command: click.Command = import_module(f"watcher.commands.{module}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not ctx.resilient_parsing:  # as while a shell completes
            raise click.NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        from click.shell_completion import CompletionItem  # only a shell asks for it

        names = [
            CompletionItem(name, help=text)
            for commands in COMMANDS_BY_PURPOSE.values()
            for name, text in commands.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, COMMANDS))
        for purpose, help_by_name in COMMANDS_BY_PURPOSE.items():
            with formatter.section(purpose):
                formatter.write_dl([(name.ljust(width), text) for name, text in help_by_name.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="watcher", message="%(prog)s %(version)s")
@click.pass_context
def group(context: click.Context) -> None:
    """Polls balance APIs and POSTs signed change events that reconcile.

    \b
    Examples:
      watcher demo
      watcher init --provider ethereum --to slack
      watcher status

    Exit codes: 0 done, or yes; 1 the answer is no; 2 a usage error; 69 Redis cannot be reached; 70 a bug;
    78 the configuration is not valid; 130 and 143 a second signal ended it.
    """
    context.color = False if Environment().get("NO_COLOR") else None


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run one command and end the process, which `watcher.__main__` has prepared, with its exit code."""
    try:
        try:
            code = _run(sys.argv[1:] if args is None else args)
        except Exception as error:
            code = signals.exit_code() if signals.has_ended() else _exit_code(error)
        try:
            sys.stdout.flush()  # what is left, also of a command that failed
        except CannotWrite as error:
            code = code or _exit_code(error)
            silence_stdout()  # the interpreter would try once more
    except (KeyboardInterrupt, signals.Ended):
        code = signals.exit_code()
    signals.ignore()
    sys.exit(code)


def _run(args: Sequence[str]) -> int:
    # Not group.main: it takes every broken pipe, a socket's included, for the end of its reader.
    if instruction := os.environ.get(_COMPLETE):
        from click.shell_completion import shell_complete  # only a shell asks for it

        return shell_complete(group, {}, "watcher", _COMPLETE, instruction)
    try:
        with group.make_context("watcher", list(args)) as context:
            code = group.invoke(context)
            return code if isinstance(code, int) else 0
    except click.exceptions.Exit as ended:
        return ended.exit_code


def _exit_code(error: Exception) -> int:
    """Print what the user has to know of how it ended, and return the exit code that says so too."""
    if isinstance(error, ReaderLeft):
        return error.exit_code
    if isinstance(error, click.Abort):
        click.echo("Aborted!", err=True)
        return EXIT_NO
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(code := getattr(error, "exit_code", None), int):
        click.echo(f"watcher: {error}", err=True)
        return code
    from watcher.printable import traceback_text  # what is rare must not cost every start

    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "nowhere"
    click.echo(
        f"watcher: bug: {type(error).__name__} at {where}; please report, with the traceback below\n"
        f"{traceback_text(error)}",
        err=True,
    )
    return EXIT_BUG
