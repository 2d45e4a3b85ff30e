"""While a worker starts, it is live, not ready, and says so."""

from typing import Any

from pydantic import SecretStr

from watcher.observe.metrics import livez, readyz
from watcher.run.worker import Opened, Worker
from watcher.settings import RedisSettings, Settings
from watcher.store.health import StoreHealth


class Turning:
    turned_at_by_name = {"loop": 0.0}  # noqa: RUF012 - of a loop that runs


async def test_a_worker_is_not_ready_until_redis_is_open_and_its_accounts_are_scheduled() -> None:
    settings = Settings(
        redis=RedisSettings(url=SecretStr("redis://127.0.0.1")),
        provider_by_name={},
        account_by_name={},
        subscription_by_name={},
    )
    worker = Worker(settings, name="w")
    assert (await livez(worker)).status == 200
    said = await readyz(worker)
    assert (said.status, said.body) == (503, b"starting: no contact with Redis yet\n")
    worker.opened = Opened(*[None, StoreHealth()])  # type: ignore[arg-type]
    said = await readyz(worker)
    assert (said.status, said.body) == (503, b"starting: the accounts are being scheduled\n")
    started: Any = Turning()
    worker.loop = started
    assert worker.has_begun
    started.turned_at_by_name = {}
    assert worker.has_begun, "a reload is no start"
