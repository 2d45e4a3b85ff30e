"""Which provider module reads which `kind`: imported when a configuration names it, not before.

Refuses to find modules that are not listed here: a configuration file never decides what is imported.
"""

from functools import cache
from importlib import import_module
from typing import cast

from watcher.providers.contract import Provider

PLACE_BY_KIND = {
    "loopring": "watcher.providers.loopring:Loopring",
    "metakeep": "watcher.providers.metakeep:MetaKeep",
}


@cache
def provider_class(kind: str) -> type[Provider]:
    """Import the class that reads a listed kind. Raises KeyError for any other."""
    module, _, name = PLACE_BY_KIND[kind].partition(":")
    return cast(type[Provider], getattr(import_module(module), name))
