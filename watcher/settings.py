"""The shapes of the configuration: frozen models that are validated once and passed down as plain values.

Refuses to read a file or the environment: `watcher.config` does. A provider's module adds the shape of
its own section by subclassing ProviderSettings and AccountSettings.
"""

import re
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

_DURATION = re.compile(r"(0|[1-9][0-9]{0,8})(ms|s|m|h|d)\Z", re.ASCII)
_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

DEFAULT_RETRIES = ("0s", "5s", "5m", "30m", "2h", "5h", "10h", "14h", "20h", "24h")
"""When each attempt follows the one before it (SPEC, section 5); then the delivery becomes a dead letter."""


def parse_duration(value: object) -> timedelta:
    """Read `"30s"`, `"5m"`, `"1h"`, `"250ms"`, `"2d"`. Raises ValueError without the text in it."""
    if isinstance(value, timedelta):
        return value
    match = _DURATION.match(value) if isinstance(value, str) else None
    if not match:
        raise ValueError('not a duration: write a whole number and a unit, such as "30s", "5m" or "2h"')
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
"""What accounts, providers and subscriptions are called: it stands in keys, logs and file names."""


class Section(BaseModel):
    """A part of the file. Frozen; an unknown key is a mistake; its input never shows in a message."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class RedisSettings(Section):
    url: SecretStr = Field(
        SecretStr("embedded"),
        description="where state lives: `embedded`, or a redis://, rediss://, unix:// URL",
    )
    namespace: Name = Field("watcher", description="prefix of every key")
    data_dir: Path = Field(Path(".watcher"), description="embedded only: where its state survives a restart")


class WorkerSettings(Section):
    drain: Duration = Field(timedelta(seconds=25), description="SIGTERM to exit, at most")


class EgressSettings(Section):
    allow: tuple[IPv4Network | IPv6Network, ...] = Field(
        (), description="networks that subscriber URLs may reach besides the public internet"
    )
    allow_http: bool = Field(False, description="allow subscriber URLs without TLS")
    nat64: bool = Field(False, description="this host is on an IPv6-only network with NAT64 (64:ff9b::/96)")


class ProviderSettings(Section):
    """What every provider's section holds; a provider's module adds its own fields and defaults."""

    name: Name = Field(description="the section's own name")
    kind: str = Field(description="which provider module reads it; defaults to the name")
    base_url: str = Field(description="scheme and host of the API")
    api_key: SecretStr = Field(description="sent with every request; best as ${NAME}")
    requests_per_second: float = Field(4, gt=0, le=10_000, description="over all workers together")
    timeout: Duration = Field(timedelta(seconds=10), description="one whole request, at most")
    withdrawals: Literal["outside", "inside"] = Field(
        "outside", description="whether a pending withdrawal has already left `total`"
    )
    settle_polls: int = Field(
        2, ge=0, le=100, description="good polls that half of a movement waits for its other half"
    )


class AccountSettings(Section):
    """What every account holds; a provider's module adds how the account is addressed there."""

    name: Name = Field(description="the account's own name")
    provider: Name = Field(description="the provider section that it is polled at")
    interval: Duration = Field(timedelta(seconds=30), description="from one poll to the next, at least 1s")
    pending_interval: Duration = Field(
        timedelta(seconds=10), description="the same while something is pending or held"
    )


class SubscriptionSettings(Section):
    name: Name = Field(description="the subscription's own name")
    url: SecretStr = Field(description="where events are POSTed; treated as a secret, many carry tokens")
    secrets: tuple[SecretStr, ...] = Field(
        min_length=1, max_length=10, description="signing secrets, whsec_…; all of them sign"
    )
    accounts: tuple[str, ...] = Field(("*",), description="account names or globs")
    events: tuple[str, ...] = Field((), description="event types or globs; empty: every change event")
    assets: tuple[str, ...] = Field(("*",), description="asset symbols, ids or globs")
    retries: tuple[Duration, ...] = Field(
        tuple(map(parse_duration, DEFAULT_RETRIES)),
        min_length=1,
        max_length=50,
        description="wait before each attempt; after the last one a dead letter",
    )
    headers: dict[str, str] = Field({}, description="extra request headers")
    max_in_flight: int = Field(32, ge=1, le=1000, description="attempts at the same time")
    requests_per_second: float | None = Field(None, gt=0, description="attempts a second, per worker")


class Settings(Section):
    """A whole configuration, validated. Providers, accounts and subscriptions are keyed by name."""

    redis: RedisSettings = RedisSettings()
    worker: WorkerSettings = WorkerSettings()
    egress: EgressSettings = EgressSettings()
    provider_by_name: dict[str, ProviderSettings]
    account_by_name: dict[str, AccountSettings]
    subscription_by_name: dict[str, SubscriptionSettings]
