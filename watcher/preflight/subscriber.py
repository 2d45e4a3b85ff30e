"""Tries the way to one subscriber: DNS, the egress guard, the connection and its TLS.

Refuses to POST, and to show more of a URL than scheme, host and port.
"""

from datetime import UTC, datetime, timedelta

from aiohttp.abc import AbstractResolver
from yarl import URL

from watcher.delivery.egress import Policy, check_url
from watcher.delivery.reach import Reached, reach
from watcher.preflight.tried import Tried
from watcher.printable import printable
from watcher.settings import SubscriptionSettings

_SOON = timedelta(days=14)

_TODO = (("resolve", "look at the host name in its url, and at the DNS of this machine"),)


async def try_subscriber(
    settings: SubscriptionSettings, policy: Policy, *, resolver: AbstractResolver | None = None
) -> Tried:
    url = check_url(settings.url.get_secret_value(), policy)
    return _judge(settings.name, url, await reach(url, policy, resolver=resolver), datetime.now(UTC))


def _judge(name: str, url: URL, reached: Reached, now: datetime) -> Tried:
    origin = printable(str(url.origin()))
    if reached.is_refused_by_us:
        todo = "if this address is yours, add it to [egress] allow; no byte was sent there"
        return Tried("subscription", name, "failed", f"{origin}: {reached.error}", todo)
    if reached.error:
        found = (advice for words, advice in _TODO if words in reached.error)
        todo = reached.fix or next(
            found, "look whether it listens at that port, and at the firewalls between"
        )
        return Tried("subscription", name, "failed", f"{origin}: {reached.error}", todo)
    if reached.ends_at and reached.ends_at - now < _SOON:
        text = f"{origin}: its certificate ends at {reached.ends_at:%Y-%m-%d %H:%M} UTC"
        return Tried("subscription", name, "warning", text, "have it renewed")
    way = "TLS is good" if url.scheme == "https" else "it can be reached, without TLS"
    return Tried("subscription", name, "ok", f"{origin}: {way}; nothing was sent")
