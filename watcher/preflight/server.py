"""Tries the server that keeps the state: whether it answers, what it promises, what its user may do.

Refuses to leave anything there, and to start an embedded store that no worker has used.
"""

import time
from collections.abc import AsyncIterator

from watcher.preflight.tried import Tried
from watcher.settings import RedisSettings
from watcher.store.address import safe_url
from watcher.store.embedded import is_made
from watcher.store.engine import find_engine
from watcher.store.exceptions import StoreError
from watcher.store.guarantee import guarantee_of_all, missing_rights
from watcher.store.opening import OpenStore, open_store
from watcher.store.reader import Reader

_ACL = "allow them as deploy/users.acl does"
_SLOW_MS = 100
"""A commit waits for one round trip; at so much, a worker commits a few hundred polls a second at best."""


async def try_server(settings: RedisSettings) -> AsyncIterator[Tried]:
    """Say how the server stands, and, if it answers, what its user may do."""
    url = settings.url.get_secret_value()
    name = safe_url(url)
    try:
        if url == "embedded" and not is_made(settings.data_dir):
            engine = find_engine()
            yield Tried("redis", name, "ok", f"`watcher run` will start {engine.name} in {settings.data_dir}")
            return
        async with open_store(settings) as store:
            yield await _stands(store, name)
            yield await _may(store, name)
    except StoreError as trouble:
        yield Tried(
            "redis", name, "failed", str(trouble), "mend redis.url or the server: until then no worker starts"
        )


async def _stands(store: OpenStore, name: str) -> Tried:
    started = time.monotonic()
    await Reader(store.pipe, store.keys).now_ms()  # TIME is allowed where PING is not
    trip_ms = 1000 * (time.monotonic() - started)
    found = await guarantee_of_all(store.pipe)
    text = f"answers in {trip_ms:.0f} ms; eviction {found.eviction}, persistence {found.persistence}; "
    text += found.sentence
    if found.warnings:
        return Tried("redis", name, "warning", text, "; ".join(found.warnings))
    if found.persistence == "none":
        return Tried("redis", name, "warning", text, "set appendonly yes on the server")
    if trip_ms > _SLOW_MS:
        return Tried("redis", name, "warning", text, "use a server that is nearer")
    return Tried("redis", name, "ok", text)


async def _may(store: OpenStore, name: str) -> Tried:
    try:
        missing = await missing_rights(store.pipe, store.keys)
    except StoreError as trouble:
        todo = f"let its user run scripts on keys {store.keys.namespace}:*; {_ACL}"
        return Tried("rights", name, "failed", str(trouble), todo)
    if missing:
        text = f"its user may not use {', '.join(missing)} on keys {store.keys.namespace}:*"
        return Tried("rights", name, "failed", text, _ACL)
    return Tried("rights", name, "ok", f"its user may do what watcher does, on keys {store.keys.namespace}:*")
