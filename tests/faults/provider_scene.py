"""Settings of workers whose providers fail, and the names that these have there."""

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from ipaddress import ip_network

from pydantic import SecretStr
from redis.asyncio import Redis

from tests.faults.failing_provider import FailingProvider
from tests.support.builders import SECRET
from tests.support.rig import quick
from watcher.providers.loopring import LoopringAccount, LoopringSettings
from watcher.settings import EgressSettings, RedisSettings, Settings, SubscriptionSettings

INTERVAL = timedelta(seconds=1)
ACCOUNTS = 3


async def until_read(redis: Redis, keys: list[str]) -> None:
    """Wait until every account has a state."""
    async with asyncio.timeout(20):
        while await redis.exists(*keys) < len(keys):  # noqa: ASYNC110 - workers write
            await asyncio.sleep(0.05)


def some_settings(
    url: str,
    namespace: str,
    providers: Iterable[FailingProvider],
    receiver_url: str,
    *,
    accounts_each: int = ACCOUNTS,
) -> Settings:
    """Providers are named by the kind of their failure, accounts by that and a number."""
    names = {provider.kind: provider for provider in providers}
    accounts = [
        LoopringAccount(
            name=f"{kind}-{number}",
            provider=kind,
            account_id=number + 1,
            interval=INTERVAL,
            pending_interval=INTERVAL,
        )
        for kind in names
        for number in range(accounts_each)
    ]
    ops = SubscriptionSettings(
        name="ops", url=SecretStr(receiver_url), secrets=(SecretStr(SECRET),), retries=quick(5)
    )
    return Settings(
        redis=RedisSettings(url=SecretStr(url), namespace=namespace),
        egress=EgressSettings(allow=(ip_network("127.0.0.0/8"),), allow_http=True),
        provider_by_name={
            kind: LoopringSettings(
                name=kind,
                kind="loopring",
                base_url=provider.url,
                api_key=SecretStr("key"),
                requests_per_second=100,
                timeout=timedelta(seconds=0.5),
            )
            for kind, provider in names.items()
        },
        account_by_name={account.name: account for account in accounts},
        subscription_by_name={"ops": ops},
    )
