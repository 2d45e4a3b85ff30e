"""Simulators of both providers, as documentation and real clients describe them: the test double everywhere.

Refuses to be part of a worker: nothing outside `demo`, `sandbox` and the tests may import it.
"""

from watcher.sandbox.answers import FAULTS, Answer, Fault
from watcher.sandbox.book import Holding, Impossible, ListedAsset, Move
from watcher.sandbox.knobs import Knobs, LoopringKnobs, MetakeepKnobs
from watcher.sandbox.script import Script, ScriptError, Step, default_script, play, read_script, wander
from watcher.sandbox.server import Sandbox
from watcher.sandbox.world import World, default_world, empty_world

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
