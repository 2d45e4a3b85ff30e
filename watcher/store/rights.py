"""Tries whether the server's user may do all that watcher does, without leaving anything behind.

Refuses to read access lists: a user that is as narrow as it should be may not read its own.
"""

from watcher.store.keys import Keys
from watcher.store.pipe import Pipe
from watcher.store.scripting import load_script

_TRY_RIGHTS = load_script("try_rights")

_KINDS = ("hash", "list", "sorted-set", "stream", "string")


async def missing_rights(pipe: Pipe, keys: Keys) -> list[str]:
    """Name the commands that are not allowed on keys of this namespace. Raises StoreError.

    Where scripts, or its keys at all, are not allowed, that is ConfigurationRefused.
    """
    names = await pipe.script(_TRY_RIGHTS, [keys.trial(kind) for kind in _KINDS])
    return sorted(name.decode() for name in names)
