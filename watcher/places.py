"""Where a configuration is looked for. Refuses to read it, so that this costs nothing to import."""

import os
from pathlib import Path

from watcher.environment import Environment

PLACES = (Path("watcher.toml"), Path("/etc/watcher/watcher.toml"))
"""Where the file is looked for when nobody says where it is."""


def place_of(path: Path | None, environment: Environment) -> Path | None:
    """Choose the file: `path`, or WATCHER_CONFIG, or the first of PLACES; None where there is none."""
    if named := path or environment.get("WATCHER_CONFIG"):
        return Path(named)
    # Not Path.is_file: `sudo -u watcher` in a home that is closed to that user may not even look.
    return next((place for place in PLACES if os.path.isfile(place)), None)
