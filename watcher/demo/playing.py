"""Plays the story on a stage: each change only after the one before was told, and then the verdict.

Refuses to wait for ever: what is not told in time ends the story, and the verdict says so.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from watcher.demo.judge import Heard, Made, Verdict, judge
from watcher.demo.stage import STORY, Scene, Stage
from watcher.receiver import Receipt
from watcher.sandbox import Move, Step, default_script
from watcher.sandbox import play as play_script

PATIENCE_S = 4.0
"""Far longer than anything takes here, and short enough to end within ten seconds if something is wrong."""

_START_S = 10.0
"""As long as the worker itself waits for its server, before it says what is wrong."""

_T = TypeVar("_T")
Show = Callable[[Scene, Made | None, Heard | None], None]
"""Sees a scene when it is over: the change (None: a fault), and the webhook that came of it."""


async def play(
    stage: Stage, *, show: Show, story: Sequence[Scene] = STORY, patience_s: float = PATIENCE_S
) -> Verdict:
    """Play the story and judge it. No change waits for longer than `patience_s` to be told."""
    made: list[Made] = []
    baseline = stage.balances()
    settle_polls = max(provider.settle_polls for provider in stage.worker.settings.provider_by_name.values())
    try:
        async with asyncio.timeout(_START_S):
            await stage.polled(1)
        for scene in story:
            await _play_scene(stage, scene, made, show=show, patience_s=patience_s)
        async with asyncio.timeout(patience_s):
            # Whatever is still held would be told now, though no change is left to be told.
            await stage.polled(settle_polls + 1)
    except TimeoutError:
        pass  # the verdict finds what is missing
    planned = sum(scene.event is not None for scene in story)
    return judge(made, stage.heard, planned=planned, baseline=baseline, now=stage.balances())


async def _play_scene(stage: Stage, scene: Scene, made: list[Made], *, show: Show, patience_s: float) -> None:
    """Play one scene until it is over. Raises TimeoutError for one that does not end."""
    if scene.event is None:
        async with asyncio.timeout(patience_s):
            await stage.fail(scene.step)
        show(scene, None, None)
        return
    so_far = len(stage.heard)
    made.append(stage.make(scene))
    try:
        async with asyncio.timeout(patience_s):
            heard = await stage.hear(so_far)
    except TimeoutError:
        show(scene, made[-1], None)
        raise
    show(scene, made[-1], heard)


async def go_on(
    stage: Stage,
    script: Iterable[Step] | None = None,
    *,
    moved: Callable[[Move], None],
    made: Callable[[Step], None],
    heard: Callable[[Receipt], None],
) -> None:
    """Play a script, by default the sandbox's own, and say what happens as it does. Never returns.

    Raises, in a group, what `moved`, `made` and `heard` raise: no provider and no receiver fails of that.
    """
    news: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    started_at = loop.time()

    async def until(at_s: float) -> None:
        await asyncio.sleep(started_at + at_s - loop.time())

    def soon(tell: Callable[[_T], None]) -> Callable[[_T], None]:
        return lambda what: news.put_nowait(partial(tell, what))

    stage.sandbox.world.told = soon(moved)
    stage.receiver.notice = soon(heard)
    steps = default_script() if script is None else script
    world, knobs = stage.sandbox.world, stage.sandbox.knobs
    async with asyncio.TaskGroup() as group:
        group.create_task(play_script(steps, world, knobs, until=until, made=soon(made)), name="script")
        while True:
            (await news.get())()
