"""Reads what a Redis server guarantees about the state it keeps, and says it in one sentence.

Refuses a server that cannot be trusted with state; refuses to change any of its settings. A running worker
asks again and again: the settings may change, and after a restart or a failover it may be another server.
"""

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from watcher.store.errors import of_reply, translated, where
from watcher.store.exceptions import ConfigurationRefused, ServerRefused, StoreRefuses
from watcher.store.keys import SHARDS, Keys
from watcher.store.pipe import Pipe, Verdict, load_script

OLDEST = (6, 2)

Persistence = Literal["always", "everysec", "no", "aof", "snapshots", "none", "hidden"]
"""How state survives the end of the server's process: by an append-only file with that fsync policy (`aof`:
the policy is hidden), by snapshots alone, not at all (`none`), or unknown (`hidden`)."""

_PROMISES: Mapping[Persistence, str] = {
    "always": "a crash or a power loss of Redis loses nothing that was committed",
    # While an fsync takes long, the server answers before it has written: a SIGKILL is enough then.
    "everysec": "a power loss, or a crash of Redis while its disk is slow, takes back at most its last 2 s "
    "as a whole, and the next polls emit those changes again",
    "no": "a crash of Redis loses nothing; a power loss takes back what its system had not yet written, and "
    "the next polls emit those changes again",
    "aof": "it has an append-only file, but does not say how much a crash or a power loss takes back",
    "snapshots": "a crash of Redis takes everything back to its last snapshot as a whole, and the next polls "
    "emit the changes since then again",
    "none": "a restart of Redis loses all state: pending deliveries are gone and every account starts with a "
    "new baseline; for more, set appendonly yes",
    "hidden": "it does not say what survives a restart; without an append-only file all state is lost",
}
_POLICIES = frozenset({"noeviction"}) | {
    f"{keys}-{order}" for keys in ("allkeys", "volatile") for order in ("lru", "lfu", "random", "ttl", "lrm")
}


_KINDS = ("hash", "list", "sorted-set", "stream", "string")

_TRY_RIGHTS = load_script("try_rights")


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What one server guaranteed when it was asked. `warnings` are for a person to act on."""

    engine: str
    version: str
    persistence: Persistence
    eviction: str
    replicas: int
    warnings: tuple[str, ...]
    memory: int = 0
    """Bytes that it may use; 0 if it does not say or has no limit."""

    @property
    def sentence(self) -> str:
        failover = "; a failover may take back its last seconds in the same way" if self.replicas else ""
        return f"{self.server}: {_PROMISES[self.persistence]}{failover}"

    @property
    def server(self) -> str:
        return f"{self.engine} {self.version}"

    @property
    def weakness(self) -> int:
        """How much a restart or a crash may take back: the greater, the more."""
        return [*_PROMISES].index(self.persistence)

    def is_weaker_than(self, before: "Guarantee") -> bool:
        """Say whether a restart or a crash may take back more than before."""
        return self.weakness > before.weakness


async def guarantee_of_all(pipe: Pipe) -> Guarantee:
    """Ask all servers that hold state; together they guarantee what the weakest does. Raises as `guarantee`
    does: ServerRefused even if other servers do not answer."""
    asking = (guarantee(client, is_node=pipe.is_cluster) for client in await pipe.servers())
    answers = await asyncio.gather(*asking, return_exceptions=True)
    found = [answer for answer in answers if isinstance(answer, Guarantee)]
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    for error in sorted(errors, key=lambda error: not isinstance(error, ServerRefused)):
        raise error
    weakest = max(found, key=lambda one: one.weakness)
    warnings = dict.fromkeys(warning for one in found for warning in one.warnings)
    return replace(
        weakest,
        replicas=max(one.replicas for one in found),
        warnings=tuple(warnings),
        memory=len(found) * min(one.memory for one in found),
    )


async def guarantee(client: Redis, *, is_node: bool = False) -> Guarantee:
    """Ask the server and judge its answers; what a managed server hides counts as hidden.

    `is_node` says that the address is that of a Cluster. Raises ServerRefused for a server that is too old,
    evicts keys, or is a node of a Cluster when it should not be, and StoreUnreachable for one that does not
    answer or is a replica.
    """
    pool = client.connection_pool.connection_kwargs
    info: dict[str, Any] = {}
    config: dict[str, str | None] = {}
    with translated(client):
        with suppress(ResponseError):
            info = await client.info()
        for name in ("appendfsync", "save", "maxmemory-policy"):
            with suppress(ResponseError):
                answer = await client.config_get(name)
                text_by_name = {_text(key): _text(value) for key, value in answer.items()}
                config[name] = text_by_name.get(name)
    is_verified = pool.get("ssl_cert_reqs") != "none"
    return judge(info, config, at=where(client), is_node=is_node, is_verified=is_verified)


def judge_connection(verdict: Verdict, answer: object, *, at: str) -> None:
    """Judge a server's answer to INFO on a new connection, before anything is written there. A replica is not
    judged: it takes no writes, and a Cluster's replica says which nodes there are."""
    lines = answer.decode(errors="replace").splitlines() if isinstance(answer, bytes) else []
    pairs = (line.partition(":") for line in lines)
    info = {name: int(value) if re.fullmatch("[0-9]{1,20}", value) else value for name, _, value in pairs}
    try:
        judge(info, {}, at=at, is_node=True)
    except ServerRefused as refused:
        verdict.refusal = refused
    except StoreRefuses:
        return
    verdict.has_connected.set()


def judge(
    info: Mapping[str, Any],
    config: Mapping[str, str | None],
    *,
    at: str,
    is_node: bool = False,
    is_verified: bool = True,
) -> Guarantee:
    """Judge INFO (parsed, may be empty) and the settings appendfsync, save and maxmemory-policy."""
    version = _version_text(info.get("redis_version"))
    if version != "unknown" and tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise ServerRefused(f"Redis {version} at {at} is too old; watcher needs 6.2 or newer")
    if "sentinel" in (info.get("redis_mode"), info.get("server_mode")):
        raise ServerRefused(
            f"{at} is a Sentinel: name it by redis+sentinel://, with the primary that it watches"
        )
    if info.get("cluster_enabled") and not is_node:
        raise ServerRefused(f"Redis at {at} is part of a Cluster: name it by redis+cluster://")
    if info.get("role") == "slave":
        refusal = of_reply("READONLY", at)  # as the first write would be: one cause, so one line of log
        assert isinstance(refusal, StoreRefuses)
        raise refusal
    policy = config.get("maxmemory-policy") or info.get("maxmemory_policy")
    eviction = policy if isinstance(policy, str) and policy in _POLICIES else "unknown"
    if eviction.startswith("allkeys-"):  # also without a maxmemory, which can be set at any time
        raise ServerRefused(
            f"Redis at {at} evicts keys when its memory is full (maxmemory-policy {eviction}), which would "
            "lose state and deliveries silently; set maxmemory-policy noeviction"
        )
    name = "valkey_version" if "valkey_version" in info else "redis_version"
    return Guarantee(
        engine=name.removesuffix("_version"),
        version=_version_text(info.get(name)),
        persistence=_persistence(info, config),
        eviction=eviction,
        replicas=_count(info, "connected_slaves"),
        warnings=tuple(_warnings(info, eviction, is_verified)),
        memory=_count(info, "maxmemory"),
    )


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _version_text(value: Any) -> str:
    version = re.match(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}", str(value), re.ASCII)
    return version[0] if version else "unknown"


def _count(info: Mapping[str, Any], name: str) -> int:
    value = info.get(name)
    return value if isinstance(value, int) else 0


def _persistence(info: Mapping[str, Any], config: Mapping[str, str | None]) -> Persistence:
    match info.get("aof_enabled"), config.get("appendfsync"):
        case 1, ("always" | "everysec" | "no") as fsync:
            return fsync
        case 1, _:
            return "aof"
    save = config.get("save")
    if save is None or "aof_enabled" not in info:
        return "hidden"
    return "snapshots" if save else "none"


def _warnings(info: Mapping[str, Any], eviction: str, is_verified: bool) -> list[str]:
    warnings = {
        "Redis may evict keys that expire (maxmemory-policy {eviction}); set maxmemory-policy noeviction": (
            eviction.startswith("volatile-")
        ),
        "Redis is still loading its data; work begins after that": bool(info.get("loading")),
        "Redis refuses writes: its memory is full; raise its maxmemory": (
            0
            < _count(info, "maxmemory")
            < _count(info, "used_memory") - _count(info, "mem_not_counted_for_evict")
        ),
        "Redis refuses writes: it cannot write to its disk; look at its disk space and its log": (
            info.get("aof_last_write_status") == "err"
        ),
        "the certificate of Redis is not verified (ssl_cert_reqs=none)": not is_verified,
    }
    return [text.format(eviction=eviction) for text, applies in warnings.items() if applies]


async def missing_rights(pipe: Pipe, keys: Keys) -> list[str]:
    """Return the commands that are not allowed on keys of this namespace. Raises StoreError.

    Raises ConfigurationRefused if scripts, or all keys of the namespace, are not allowed.
    """
    shards = range(SHARDS if pipe.is_cluster else 1)  # each node has users of its own
    asked = (pipe.script(_TRY_RIGHTS, [keys.trial(shard, kind) for kind in _KINDS]) for shard in shards)
    return sorted({name.decode() for names in await asyncio.gather(*asked) for name in names})


async def check_rights(pipe: Pipe, keys: Keys) -> None:
    """Raise ConfigurationRefused if the server's user lacks a right that watcher needs, and StoreError. A
    script that is refused a command has already done what precedes it: therefore this comes first."""
    if missing := await missing_rights(pipe, keys):
        raise ConfigurationRefused(
            f"the user of Redis' URL may not use {', '.join(missing)} on keys {keys.namespace}:*; allow them "
            "as deploy/users.acl does"
        )
