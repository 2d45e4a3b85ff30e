"""Simulators of both providers, as documentation and real clients describe them: the test double everywhere.

Refuses to be part of a worker: nothing outside `demo`, `sandbox` and the tests may import it.
"""

from watcher.sandbox.answers import FAULTS, Answer, Fault
from watcher.sandbox.book import Move
from watcher.sandbox.holdings import Holding, Impossible, ListedAsset
from watcher.sandbox.knobs import Knobs, LoopringKnobs, MetakeepKnobs
from watcher.sandbox.scene import default_script, default_world, empty_world
from watcher.sandbox.script import Script, ScriptError, Step, play
from watcher.sandbox.script_file import read_script
from watcher.sandbox.server import Sandbox
from watcher.sandbox.wander import wander
from watcher.sandbox.world import World

__all__ = [
    "FAULTS",
    "Answer",
    "Fault",
    "Holding",
    "Impossible",
    "Knobs",
    "ListedAsset",
    "LoopringKnobs",
    "MetakeepKnobs",
    "Move",
    "Sandbox",
    "Script",
    "ScriptError",
    "Step",
    "World",
    "default_script",
    "default_world",
    "empty_world",
    "play",
    "read_script",
    "wander",
]
