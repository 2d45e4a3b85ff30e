"""What an idle worker costs: commands of Redis a second, and its share of a core.

    python -m tests.benchmarks.idle            # half a minute

An account each at 2 and at 50 providers, polled once and not due again for an hour; on one server, and on a
Cluster of three nodes, of which the busiest counts. The event loop is that of `watcher run`.
"""

import asyncio
import resource
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import NamedTuple

from structlog.testing import capture_logs

from tests.support.clusters import a_cluster
from tests.support.rig import a_rig
from tests.support.servers import real_server
from watcher.providers.loopring import LoopringAccount
from watcher.service.serve import loop_factory
from watcher.settings import Settings
from watcher.store.client import connect

SECONDS = 10.0
_SETTLE_S = 3.0


class Idle(NamedTuple):
    """What was spent, a second. `cpu` is a share of one core."""

    scripts: float
    commands: float
    cpu: float


async def idle(url: str, providers: int, *, nodes: Sequence[str] = (), seconds: float = SECONDS) -> Idle:
    """Measure a worker of so many providers with nothing due; on a Cluster, at the busiest of its `nodes`."""
    async with a_rig(url, f"idle{providers}") as rig, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(node)) for node in nodes or [url]]
        rig.settings = _with_providers(rig.settings, providers)
        with capture_logs():
            async with rig.worker():
                await asyncio.sleep(_SETTLE_S)
                for client in clients:
                    await client.config_resetstat()
                before = _cpu_s()
                await asyncio.sleep(seconds)
                spent = _cpu_s() - before
                stats = [await client.info("commandstats") for client in clients]
    scripts, commands = [], []
    for stat in stats:
        calls = {name.removeprefix("cmdstat_"): found["calls"] for name, found in stat.items()}
        calls.pop("config|resetstat", None)
        scripts.append(calls.get("evalsha", 0) + calls.get("eval", 0))
        commands.append(sum(calls.values()))
    return Idle(max(scripts) / seconds, max(commands) / seconds, spent / seconds)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _with_providers(settings: Settings, count: int) -> Settings:
    hour = timedelta(hours=1)
    first = settings.provider_by_name["loopring"]
    names = [f"p{number}" for number in range(count)]
    accounts = [
        LoopringAccount(name=name, provider=name, account_id=10110, interval=hour, pending_interval=hour)
        for name in names
    ]
    return settings.model_copy(
        update={
            "provider_by_name": {name: first.model_copy(update={"name": name}) for name in names},
            "account_by_name": {account.name: account for account in accounts},
        }
    )


def main() -> None:
    seconds = 2.0 if "--quick" in sys.argv else SECONDS
    print("| server | providers | scripts a second | commands a second | share of a core |")
    print("|---|---|---:|---:|---:|")
    with real_server("valkey") as server, a_cluster() as cluster:
        of_cluster = [node.url for node in cluster.nodes]
        for what, url, nodes in (("one", server.url, []), ("a node of three", cluster.url, of_cluster)):
            for providers in (2, 50):
                with asyncio.Runner(loop_factory=loop_factory()) as runner:
                    found = runner.run(idle(url, providers, nodes=nodes, seconds=seconds))
                row = f"{found.scripts:,.0f} | {found.commands:,.0f} | {found.cpu:.1%}"
                print(f"| {what} | {providers} | {row} |")


if __name__ == "__main__":
    main()
