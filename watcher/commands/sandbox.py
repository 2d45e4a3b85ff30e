"""`watcher sandbox`: serve three providers on this machine, with a script of changes or a worker."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from watcher.commands.demo import Ending, only, play_on
from watcher.environment import Environment

if TYPE_CHECKING:
    from watcher.receiver import Receiver
    from watcher.sandbox.book import Move
    from watcher.sandbox.script import Step
    from watcher.sandbox.server import Sandbox
    from watcher.settings import Settings

# Fixed by default, so that a watcher.toml written for one run fits the next.
LOOPRING_PORT = 8101
METAKEEP_PORT = 8102
BANK_PORT = 8103
_LISTEN_URL = "http://127.0.0.1:8788/"
_LISTEN_SECRET = "${OPS_SECRET}"  # noqa: S105  # the name of a variable
_FILE = "watcher.toml"
_PORT = click.IntRange(0, 65535)


@click.command("sandbox", short_help="Serve three providers, with a script of changes.")
@click.option(
    "--run",
    "is_run",
    is_flag=True,
    help="Watch it, too: with a worker and a receiver that verifies, until Ctrl-C.",
)
@click.option("--loopring-port", type=_PORT, help=f"Default: {LOOPRING_PORT}; with --run any free one.")
@click.option("--metakeep-port", type=_PORT, help=f"Default: {METAKEEP_PORT}; with --run any free one.")
@click.option("--bank-port", type=_PORT, help=f"Default: {BANK_PORT}; with --run any free one.")
@click.option(
    "--script",
    "script_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Changes to make: one JSON object per line. Default: a minute of changes that repeats.",
)
@click.option("--seed", type=int, help="Make endless changes by chance instead; a seed repeats them.")
def command(
    *,
    is_run: bool,
    loopring_port: int | None,
    metakeep_port: int | None,
    bank_port: int | None,
    script_file: Path | None,
    seed: int | None,
) -> None:
    """Serve Loopring's, MetaKeep's and a bank's endpoints on this machine, errors and rate limits included.

    Prints a watcher.toml that watches it and sends to `watcher listen`, then each change as it
    happens. With --run it is watched from here: each change is shown with the verified webhook that it
    becomes, and nothing is left behind. Port 0 is any free port. Ends on Ctrl-C.

    A line of a script is, for example,
    {"at": 1.5, "account": 10110, "asset": "LRC", "do": "deposit.seen", "amount": "12.5"}

    \b
    Examples:
      watcher sandbox --run
      watcher sandbox --seed 7

    Exit codes: 0 it ended on Ctrl-C; 1 it cannot serve there; 2 a usage error.
    """
    if script_file and seed is not None:
        raise click.UsageError("--script and --seed exclude each other: a script leaves nothing to chance")
    from random import Random

    from watcher.sandbox.script import ScriptError, default_script, read_script, wander
    from watcher.sandbox.server import Sandbox
    from watcher.sandbox.world import default_world

    world = default_world()
    steps: Iterable[Step]
    if seed is not None:
        steps = wander(world, Random(seed))
    elif script_file:
        try:
            steps = read_script(script_file.read_text("utf-8"), world, source=str(script_file))
        except (ScriptError, UnicodeDecodeError) as error:
            raise click.BadParameter(f"\n{error}", param_hint="--script") from error
    else:
        steps = default_script()
    ports = (0, 0, 0) if is_run else (LOOPRING_PORT, METAKEEP_PORT, BANK_PORT)
    sandbox = Sandbox(
        world,
        loopring_port=ports[0] if loopring_port is None else loopring_port,
        metakeep_port=ports[1] if metakeep_port is None else metakeep_port,
        bank_port=ports[2] if bank_port is None else bank_port,
        seed=seed or 0,
    )
    try:
        with asyncio.Runner() as runner:
            ending = Ending(runner.get_loop())
            runner.run(ending.unless(run(sandbox, steps) if is_run else _serve(sandbox, steps)))
    except BaseExceptionGroup as errors:
        found = only(errors)
        if not isinstance(found, OSError):
            raise found from None
        raise click.ClickException(f"cannot serve: {found.strerror}") from found


async def run(sandbox: Sandbox, steps: Iterable[Step]) -> None:
    """Play the steps, and show each webhook that comes of them. Never returns."""
    from watcher.api.access import Address
    from watcher.config.loading import load
    from watcher.demo.stage import staged
    from watcher.observe.log import configure
    from watcher.sandbox.script import ScriptError
    from watcher.service.exposure import Exposure, exposed

    def settings(_: Sandbox, receiver: Receiver, folder: Path) -> Settings:
        """Write the configuration where other commands find it, and load it. The environment has no say."""
        (secret,) = receiver.secrets
        text = configuration(sandbox, url=receiver.url, secret=secret)
        (folder / _FILE).write_text(f'[redis]\ndata_dir = "{folder / "state"}"\n\n{text}')
        return load(folder / _FILE, {}).settings

    configure("warning", stream=sys.stderr, color=not Environment().get("NO_COLOR"))
    async with (
        staged(sandbox, settings) as stage,
        exposed(stage.worker, Exposure(Address("127.0.0.1", 0), has_page=True)) as page,
    ):
        await stage.polled(1)
        click.echo(
            "Three simulated providers, a worker that polls them every second, a receiver that verifies.\n"
            f"In a browser:      http://{page}/\n"
            f"In another shell:  watcher status --config {stage.folder / _FILE}\n"
            "A change at a provider, and behind the arrow the webhook that it becomes, until Ctrl-C:\n"
        )
        try:
            await play_on(stage, steps)
        except* ScriptError as errors:
            click.echo(f"{only(errors)}; the script ends here, balances stay as they are", err=True)
            await asyncio.Event().wait()


async def _serve(sandbox: Sandbox, steps: Iterable[Step]) -> None:
    """Make the changes and print each as it happens; serve on when the script has ended."""
    from watcher.sandbox.script import ScriptError, play

    loop = asyncio.get_running_loop()

    async def until(at_s: float) -> None:
        await asyncio.sleep(started_at + at_s - loop.time())

    def print_move(move: Move) -> None:
        fields = zip(move.after._fields, move.effect, move.after, strict=True)
        moved = ", ".join(
            f"{name} {move.asset.text(effect) if effect < 0 else '+' + move.asset.text(effect)}"
            f" = {move.asset.text(after)}"
            for name, effect, after in fields
            if effect
        )
        elapsed_s = loop.time() - started_at
        what = f"{move.account.key}  {move.do}  {move.asset.symbol}"
        click.echo(f"{elapsed_s:8.1f}s  {what}  {moved}", err=True)

    def made(step: Step) -> None:
        if step.do == "fault":
            provider, fault, answers = (step.options.get(key) for key in ("provider", "fault", "answers"))
            elapsed_s = loop.time() - started_at
            click.echo(f"{elapsed_s:8.1f}s  {provider}  fault  {fault}, {answers or 1}x", err=True)

    async with sandbox:
        click.echo(configuration(sandbox))
        started_at = loop.time()
        sandbox.world.on_move = print_move
        try:
            await play(steps, sandbox.world, sandbox.knobs, until=until, made=made)
        except ScriptError as error:
            click.echo(f"{error}; the script ends here, balances stay as they are", err=True)
        await asyncio.Event().wait()


def configuration(sandbox: Sandbox, *, url: str = _LISTEN_URL, secret: str = _LISTEN_SECRET) -> str:
    """Write a watcher.toml that watches the default world, for a receiver on this machine."""
    from watcher.sandbox.bank import section
    from watcher.sandbox.world import ACME, ALICE, METAKEEP_ASSETS, TREASURY

    currencies = ",\n  ".join(f'"{asset.id}"' for asset in METAKEEP_ASSETS)
    return f"""\
[providers.loopring]
base_url = "{sandbox.loopring_url}"
api_key = "sandbox"

[providers.shop]
kind = "metakeep"
base_url = "{sandbox.metakeep_url}"
api_key = "sandbox"

# No module knows this API: the file says what to ask, and where the amounts are in the answers.
{section(sandbox.bank_url)}
[[accounts]]
name = "treasury"
provider = "loopring"
account_id = {TREASURY}
interval = "1s"

[[accounts]]
name = "alice"
provider = "shop"
of = {{ email = "{ALICE}" }}
currencies = [
  {currencies},
]
interval = "1s"

[[accounts]]
name = "acme"
provider = "bank"
of = {{ account = "{ACME}" }}
interval = "1s"

# For `watcher listen --secret-env OPS_SECRET` on this machine.
[egress]
allow = ["127.0.0.0/8"]
allow_http = true

[[subscriptions]]
name = "ops"
url = "{url}"
secrets = ["{secret}"]
"""
