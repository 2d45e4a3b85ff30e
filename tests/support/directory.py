"""Records of a directory as the API writes them, encrypted with a real key."""

from typing import Any

from pydantic import SecretStr

from tests.support.builders import SECRET
from watcher.encryption import Keyring, new_key
from watcher.settings import ApiSettings, Settings
from watcher.store.directory import Directory, Write, Written

KEY = new_key()

PLAIN = ("accounts", "events", "assets", "thresholds", "format")


def with_key(settings: Settings, key: str = KEY) -> Settings:
    """The settings of a worker that has this key."""
    return settings.model_copy(update={"api": ApiSettings(secret_key=(SecretStr(key),))})


class Programs:
    """What programs add and change while workers run."""

    def __init__(self, directory: Directory, namespace: str, key: str = KEY) -> None:
        self.directory = directory
        self._keyring = Keyring([key], namespace)

    async def put_account(self, name: str, provider: str, **settings: Any) -> Written:
        return await self.directory.put(self.account(name, provider, **settings))

    async def put_subscription(self, name: str, url: str, **settings: Any) -> Written:
        return await self.directory.put(self.subscription(name, url, **settings))

    def account(self, name: str, provider: str, **settings: Any) -> Write:
        plain = {"provider": provider}
        return Write(
            "account", name, plain, self._keyring.encrypt("account", name, plain, {"settings": settings})
        )

    def subscription(
        self,
        name: str,
        url: str,
        *,
        is_verified: bool = True,
        secrets: dict[str, int | None] | None = None,
        tokens: dict[str, int | None] | None = None,
        **settings: Any,
    ) -> Write:
        """`secrets` and `tokens` (their hashes) with when they end."""
        plain = {key: settings.pop(key) for key in PLAIN if key in settings}
        content = {
            "settings": {"url": url, **settings},
            "secrets": [
                {"secret": secret, "until_ms": until_ms}
                for secret, until_ms in (secrets or {SECRET: None}).items()
            ],
            "tokens": [{"hash": digest, "until_ms": until_ms} for digest, until_ms in (tokens or {}).items()],
            "verified": "https://example.com:443" if is_verified else None,
            "unverified_since_ms": None if is_verified else 1,
        }
        encrypted = self._keyring.encrypt("subscription", name, plain, content)
        return Write("subscription", name, plain, encrypted)
