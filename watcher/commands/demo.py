"""`watcher demo`: the whole way from a change to a verified webhook, on this machine, with a verdict.

Refuses to touch existing state: its worker keeps its own in a directory that is deleted afterwards.
"""

import asyncio
import sys
import time
from collections.abc import Coroutine, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import click

from watcher import signals
from watcher.environment import Environment

if TYPE_CHECKING:
    from watcher.demo.stage import Stage
    from watcher.sandbox.script import Step

EXIT_NO = 1

# Below the least that a file may say, a second: one to read along, one as fast as possible.
_READABLE = timedelta(milliseconds=300)
_FAST = timedelta(milliseconds=30)

_T = TypeVar("_T")


@click.command("demo", short_help="See it work on this machine.")
@click.option("--fast", "is_fast", is_flag=True, help="Take less than three seconds, for scripts.")
@click.option("--keep", "is_kept", is_flag=True, help="Go on afterwards, with more changes, until Ctrl-C.")
@click.option("--verbose", "is_verbose", is_flag=True, help="Show the worker's log too, on stderr.")
def command(*, is_fast: bool, is_kept: bool, is_verbose: bool) -> int:
    """See it work on this machine, within ten seconds: no Redis, key or network needed.

    Changes are made at simulators of three providers; a worker polls them and sends signed webhooks; a
    receiver verifies each.

    \b
    Examples:
      watcher demo
      watcher demo --fast

    Exit codes: 0 every change was emitted exactly once, in order, and all of them add up; 1 otherwise; the
    last lines say why; 2 a usage error.
    """
    from watcher.observe.log import configure
    from watcher.service.serve import loop_factory

    level = "info" if is_verbose else "warning"
    writer = configure(level, stream=sys.stderr, color=not Environment().get("NO_COLOR"))
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_demo(_FAST if is_fast else _READABLE, is_kept=is_kept))
    except BaseExceptionGroup as errors:
        # The cli needs the error itself, not the exception groups around it.
        raise only(errors) from None
    finally:
        writer.close()


async def _demo(interval: timedelta, *, is_kept: bool) -> int:
    from watcher.api.access import Address
    from watcher.demo.lines import opening_lines, place_lines, scene_lines, verdict_lines
    from watcher.demo.stage import a_stage, play
    from watcher.service.exposure import Exposure, exposed

    started_at = time.monotonic()
    ending = Ending(asyncio.get_running_loop())
    async with a_stage(interval) as stage:
        _echo(opening_lines(interval))
        verdict = await ending.unless(play(stage, show=lambda *scene: _echo(scene_lines(*scene))))
        if verdict is None:
            return signals.EXIT_SIGNAL + ending.number
        _echo(verdict_lines(verdict, time.monotonic() - started_at))
        if is_kept:
            # Beyond the verdict, so that nothing but the worker is judged.
            async with exposed(stage.worker, Exposure(Address("127.0.0.1", 0), has_page=True)) as page:
                _echo(place_lines(stage, f"http://{page}/"))
                await ending.unless(play_on(stage))
    return 0 if verdict.is_good else EXIT_NO


async def play_on(stage: "Stage", script: "Iterable[Step] | None" = None) -> None:
    """Play a script, by default the sandbox's own; print what happens, and the webhooks. Never returns."""
    from watcher.demo.lines import move_line, step_lines, webhook_line
    from watcher.demo.stage import go_on

    await go_on(
        stage,
        script,
        moved=lambda move: _echo([move_line(move)]),
        made=lambda step: _echo(step_lines(step)),
        arrived=lambda receipt: _echo([webhook_line(receipt)]),
    )


class Ending:
    """The first signal that asks to end, by its number (0: none yet). Later ones change nothing.

    Nothing is left behind: running work is cancelled, and everything is taken down in order.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.number = 0
        self._task: asyncio.Task[object] | None = None

        def end(number: int) -> None:
            if not self.number and self._task:
                self._task.cancel()
            self.number = self.number or number

        signals.take_over(loop.call_soon_threadsafe, end)

    async def unless(self, work: Coroutine[object, object, _T]) -> _T | None:
        """Do the work, unless a signal comes: then the answer is None."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work, name="work")
            self._task = task
            if self.number:
                task.cancel()
        return None if task.cancelled() else task.result()


def only(error: BaseException) -> BaseException:
    """Return the one error inside of exception groups, if there is only one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)
