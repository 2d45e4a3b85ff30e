"""Names what a configuration leads to, so that workers can compare without telling each other a secret.

Refuses to name what may differ between workers of one deployment: keys, secrets, limits, filters.
"""

from hashlib import blake2b

from watcher.providers.client import source_of
from watcher.providers.registry import provider_class
from watcher.settings import Settings
from watcher.store.members import Fingerprint

SOURCE_DIGITS = 16
"""As much of an account's source as is compared."""


def fingerprint(settings: Settings) -> Fingerprint:
    """Take the fingerprint of a configuration. Salted by namespace and name: equal URLs do not look equal."""
    providers = settings.provider_by_name
    asked = {name: provider_class(one.kind)(one) for name, one in providers.items()}
    return Fingerprint(
        {name: _digest(one.kind, one.base_url.rstrip("/")) for name, one in providers.items()},
        {
            name: _digest(settings.redis.namespace, name, one.url.get_secret_value())
            for name, one in settings.subscription_by_name.items()
        },
        {
            name: source_of(providers[one.provider], asked[one.provider], one)[:SOURCE_DIGITS]
            for name, one in settings.account_by_name.items()
        },
    )


def _digest(*parts: str) -> str:
    return blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
