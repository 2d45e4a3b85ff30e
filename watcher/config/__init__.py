"""How watcher.toml becomes Settings: found, read, interpolated, and every mistake reported at once."""

from watcher.config.findings import ConfigRefused, Finding
from watcher.config.loading import Loaded, load

__all__ = ["ConfigRefused", "Finding", "Loaded", "load"]
