"""The demonstration: changes at simulated providers, a real worker, a receiver that verifies, and a verdict.

Refuses to be part of a worker: nothing outside two commands and the tests may import it.
"""

from watcher.demo.judge import Arrival, Made, Verdict, judge
from watcher.demo.stage import PATIENCE_S, STORY, Scene, Stage, a_stage, go_on, play, staged

__all__ = [
    "PATIENCE_S",
    "STORY",
    "Arrival",
    "Made",
    "Scene",
    "Stage",
    "Verdict",
    "a_stage",
    "go_on",
    "judge",
    "play",
    "staged",
]
