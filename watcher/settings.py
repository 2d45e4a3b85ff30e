"""The shapes of the configuration: frozen models that are validated once and passed down as plain values.

Refuses to read a file or the environment: `watcher.config` does. A provider's module adds the shape of its
own section by subclassing ProviderSettings and AccountSettings.
"""

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from urllib.parse import parse_qsl, quote, unquote

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from watcher import amounts
from watcher.fields import (
    Amount,
    ApiKey,
    BaseUrl,
    Certificates,
    Chat,
    Duration,
    Name,
    Network,
    RoutingKey,
    Size,
    in_ascii,
    parse_duration,
)

CHANGE_EVENTS = (
    "deposit.pending",
    "deposit.cleared",
    "deposit.dropped",
    "withdrawal.pending",
    "withdrawal.cleared",
    "withdrawal.returned",
    "locked.increased",
    "locked.decreased",
    "total.increased",
    "total.decreased",
)
"""The changes of a balance, as in the table of RECEIVING.md: sent to every subscription that names no
others."""

SERVICE_EVENTS = (
    "account.baseline",
    "account.stale",
    "account.recovered",
    "threshold.crossed",
    "subscription.paused",
    "subscription.ping",
)
"""Events without a change, for subscriptions that name their type."""

Format = Literal["standard", "slack", "discord", "teams", "telegram", "ntfy", "pagerduty"]

PER_SECOND_BY_FORMAT: Mapping[Format, float | None] = {
    "standard": None,
    "slack": 1,  # of one webhook
    "discord": 2,  # of one webhook: five in two seconds
    "teams": 4,
    "telegram": 1,  # to one chat
    "ntfy": 0.2,  # of one sender at ntfy.sh; a server of one's own takes more
    "pagerduty": 2,  # of one integration: 120 a minute
}
"""How many messages a second a service takes, by its documentation: the default of `requests_per_second`."""

FORMATS = tuple(PER_SECOND_BY_FORMAT)

DEFAULT_RETRIES = (
    *("0s", "250ms", "500ms", "1s", "2s", "5s", "10s", "30s"),
    *("2m", "5m", "30m", "2h", "5h", "10h", "24h", "24h"),
)
"""The wait before each attempt; after the last one, the delivery becomes a dead letter."""

MAX_BACKLOG = 100_000
"""Deliveries that may wait for a subscription, unless it says another number."""


class Section(BaseModel):
    """A part of the file. Frozen; an unknown key is a mistake; its input never shows in a message.

    A validator of a whole section may begin its message with `field: `, to say which one it means.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
        regex_engine="python-re",  # the other one knows no \Z, and $ lets a newline through
    )

    one_of: ClassVar[tuple[str, str] | None] = None
    """Keys of which exactly one must be given."""

    @model_validator(mode="wrap")
    @classmethod
    def _has_one_of(cls, given: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Check what was given, right or wrong: this is reported beside all other mistakes, in the same
        run."""
        if not (cls.one_of and isinstance(given, dict)):
            return validate(given)
        is_flawed = sum(given.get(key) is not None for key in cls.one_of) != 1
        flaws = list[InitErrorDetails]()
        try:
            made = validate(given)
        except ValidationError as error:
            if not is_flawed:
                raise
            for one in error.errors(include_url=False, include_input=False):
                flaws.append(
                    {"type": one["type"], "loc": one["loc"], "input": None, "ctx": one.get("ctx", {})}
                )
        if is_flawed:
            text = "give either {} or {}".format(*cls.one_of)
            flaws.append({"type": PydanticCustomError("value_error", text), "loc": (), "input": None})
            raise ValidationError.from_exception_data(cls.__name__, flaws, hide_input=True)
        return made

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Keep `true` from being read as 1; text stays welcome, because `${NAME}` is always text."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("must not be true or false")
        return value


class RedisSettings(Section):
    url: SecretStr = Field(
        SecretStr("embedded"),
        description="where state lives: `embedded`, or the URL of a Redis",
    )
    namespace: Name = Field("watcher", description="prefix of every key")
    data_dir: Path = Field(
        Path(".watcher"),
        description="embedded only: where its state survives a restart; relative to the folder in which a "
        "command starts",
    )
    max_memory: Size = Field(
        "1GB", description="embedded only: how much memory its server may use; see REDIS.md"
    )

    @field_validator("data_dir", mode="before")
    @classmethod
    def _is_named(cls, value: Any) -> Any:
        """An empty path would be the working directory, wherever that is."""
        if value == "":
            raise ValueError("must not be empty")
        return value


class WorkerSettings(Section):
    drain: Duration = Field(timedelta(seconds=25), description="SIGTERM to exit, at most")


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the lowest level that is logged"
    )
    format: Literal["auto", "json", "pretty"] = Field(
        "auto", description="JSON lines, or text for people; auto: text on a terminal"
    )

    prefix: str = Field(
        "",
        description="put before the name of every field but `timestamp` and `level`, in JSON lines",
    )

    @field_validator("level", "format", mode="before")
    @classmethod
    def _in_lower_case(cls, value: Any) -> Any:
        """Accept upper case, as in LOG_LEVEL=INFO."""
        return value.lower() if isinstance(value, str) else value

    @field_validator("prefix")
    @classmethod
    def _is_part_of_a_name(cls, prefix: str) -> str:
        if not re.fullmatch(r"([A-Za-z][A-Za-z0-9_.-]{0,31})?", prefix):
            raise ValueError("must be up to 32 letters, digits, '_', '-' or '.', the first one a letter")
        return prefix


class EgressSettings(Section):
    allow: tuple[Network, ...] = Field(
        (), description="networks that subscriber URLs may reach besides the public internet"
    )
    allow_http: bool = Field(False, description="allow subscriber URLs without TLS")
    nat64: bool = Field(False, description="this host is on an IPv6-only network with NAT64 (64:ff9b::/96)")


class ProviderSettings(Section):
    """What every provider's section holds; a provider's module adds its own fields and defaults."""

    can_be_overdrawn: ClassVar[bool] = True
    """Whether a total may be below zero there."""

    name: Name = Field(description="the section's own name")
    kind: str = Field(description="a kind that is code, or a recipe; defaults to the name")
    base_url: BaseUrl = Field(description="scheme and host of the API")
    ca: Certificates | None = Field(
        None,
        description="a PEM file: the certificate authorities to trust for this host, instead of the system's",
    )
    requests_per_second: float = Field(4, ge=0.001, le=10_000, description="over all workers together")
    timeout: Duration = Field(
        timedelta(seconds=10), gt=timedelta(0), description="one whole request, at most"
    )
    withdrawals: Literal["outside", "inside"] = Field(
        "outside", description="whether a pending withdrawal has already left `total`"
    )
    settle_polls: int = Field(
        2, ge=0, le=100, description="successful polls that half of a movement waits for its other half"
    )


class KeyedSettings(ProviderSettings):
    """The section of a provider that takes one key."""

    api_key: ApiKey = Field(description="sent with every request; best as ${NAME}")


class AccountSettings(Section):
    """What every account holds; a provider's module adds how the account is addressed there."""

    name: Name = Field(description="the account's own name")
    provider: Name = Field(description="the provider section that it is polled at")
    interval: Duration = Field(timedelta(seconds=30), description="from one poll to the next, at least 1s")
    pending_interval: Duration = Field(
        timedelta(seconds=10),
        description="the same while a deposit, a withdrawal or a confirmation is pending",
    )


class ThresholdSettings(Section):
    """When to emit that a balance is too low or too high. `clear` keeps a balance that hovers from crossing
    often."""

    one_of = ("below", "above")

    asset: str = Field(min_length=1, max_length=128, description="symbol or id of the asset")
    field: Literal["total", "locked", "available", "pending_deposit", "pending_withdrawal"] = Field(
        "total", description="which part of the balance"
    )
    below: Amount | None = Field(None, description="emit an event when the balance falls below it")
    above: Amount | None = Field(None, description="emit an event when the balance rises above it")
    clear: Amount | None = Field(
        None, description="it may be crossed again once the balance is back here; default: the bound itself"
    )

    @model_validator(mode="after")
    def _clears_on_the_good_side(self) -> Self:
        if self.clear is None:
            return self
        clear = amounts.to_atoms(self.clear)
        if self.below is not None and clear < amounts.to_atoms(self.below):
            raise ValueError("clear: must not be less than below")
        if self.above is not None and clear > amounts.to_atoms(self.above):
            raise ValueError("clear: must not be more than above")
        return self

    @model_validator(mode="after")
    def _may_be_negative(self) -> Self:
        for key in ("below", "above", "clear"):
            if self.field not in ("total", "available") and str(getattr(self, key)).startswith("-"):
                raise ValueError(f"{key}: must not be negative: only total and available can be")
        return self


class SubscriptionSettings(Section):
    name: Name = Field(description="the subscription's own name")
    url: SecretStr = Field(description="where events are POSTed; treated as a secret, many carry tokens")
    format: Format = Field(
        "standard", description="what is POSTed: signed events, or a message for people at this service"
    )
    template: str | None = Field(
        None, max_length=500, description="the sentence of a message, with slots such as `{account}`"
    )
    chat: Chat | None = Field(None, description="`telegram` only: the chat, by its number or `@channel`")
    routing_key: RoutingKey | None = Field(
        None, description="`pagerduty` only: the key of an Events API v2 integration"
    )
    secrets: tuple[SecretStr, ...] = Field(
        (),
        max_length=10,
        description="signing secrets, whsec_…, each one or several lines; all of them sign",
    )
    accounts: tuple[str, ...] = Field(("*",), min_length=1, description="account names or globs")
    events: tuple[str, ...] = Field((), description="event types or globs; empty: every change event")
    assets: tuple[str, ...] = Field(("*",), min_length=1, description="asset symbols, ids or globs")
    retries: tuple[Duration, ...] = Field(
        tuple(map(parse_duration, DEFAULT_RETRIES)),
        min_length=1,
        max_length=50,
        description="wait before each attempt; after the last one a dead letter",
    )
    headers: dict[str, str] = Field({}, repr=False, description="extra request headers")
    max_in_flight: int = Field(
        32, ge=1, le=1000, description="attempts at the same time, per worker; each delivery earns one more"
    )
    max_backlog: int = Field(
        MAX_BACKLOG, ge=1, description="deliveries that may wait, over all accounts; beyond it the oldest go"
    )
    requests_per_second: float | None = Field(
        None, ge=0.1, le=10_000, description="attempts a second, over all workers together"
    )
    alerts_to: Name | None = Field(None, description="another subscription, notified when this one is paused")
    thresholds: tuple[ThresholdSettings, ...] = Field(
        (), max_length=100, description="bounds that emit `threshold.crossed`"
    )

    @property
    def leads_to(self) -> str:
        """Where events go, as a secret: the URL, and the fields of a format that are part of the address."""
        key = self.routing_key.get_secret_value() if self.routing_key else None
        beside = () if self.format == "standard" else (self.format, self.chat, key)
        return " ".join(filter(None, (self.url.get_secret_value(), *beside)))


class ApiSettings(Section):
    secret_key: tuple[SecretStr, ...] = Field(
        min_length=1,
        max_length=10,
        description="the key, wkey_…, that encrypts what comes through the API; of a list, the first one "
        "encrypts and all of them decrypt",
    )

    @field_validator("secret_key", mode="before")
    @classmethod
    def _is_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class Settings(Section):
    """A whole configuration, validated. Providers, accounts and subscriptions are keyed by name."""

    redis: RedisSettings = RedisSettings()
    worker: WorkerSettings = WorkerSettings()
    log: LogSettings = LogSettings()
    egress: EgressSettings = EgressSettings()
    api: ApiSettings | None = None
    provider_by_name: dict[str, ProviderSettings]
    account_by_name: dict[str, AccountSettings]
    subscription_by_name: dict[str, SubscriptionSettings]


def secrets_in(value: Any, *path: str | int) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Find every SecretStr of a section, and the keys that lead to it."""
    if isinstance(value, SecretStr):
        yield path, value.get_secret_value()
        return
    inner: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, BaseModel):
        inner = ((name, getattr(value, name)) for name in type(value).model_fields)
    elif isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, tuple):
        inner = enumerate(value)
    for key, part in inner:
        yield from secrets_in(part, *path, key)


def secrets_of(settings: Settings) -> Iterator[str]:
    """Every text of a configuration that must not be shown: keys, signing secrets, URLs. Also a key in the
    form in which it is sent, and parts of what is sent: a path may be repeated without its host, a token
    without the word before it, a password without its user."""
    redis = settings.redis.url.get_secret_value()
    if "://" in redis:  # "embedded" is a word as any other
        # By hand: which addresses of IPv6 urlsplit takes depends on the Python.
        place, _, query = redis.partition("://")[2].partition("#")[0].partition("?")
        password = place.partition("/")[0].rpartition("@")[0].partition(":")[2]
        passwords = (value for name, value in parse_qsl(query) if name.endswith("password"))
        yield from (redis, password, unquote(password), *passwords)
    for _, key in secrets_in(settings.api):
        yield from (key, key.partition("_")[2])
    for provider in settings.provider_by_name.values():
        for _, text in secrets_in(provider):
            yield from (text, *text.split(), text.partition(":")[2])
            yield from (quote(text, safe=""), b64encode(text.encode()).decode())
    for subscription in settings.subscription_by_name.values():
        yield from secrets_of_subscription(subscription)


def secrets_of_subscription(subscription: SubscriptionSettings) -> Iterator[str]:
    """Every text of a subscription that must not be shown, as in `secrets_of`."""
    url = subscription.url.get_secret_value()
    sent = re.split("[/?&=]", url)[3:]  # all behind the host
    yield from (url, *sent, *map(unquote, sent), *map(in_ascii, sent))
    for part in sent:  # a token of Telegram stands behind `bot`, and is secret behind its colon
        yield from (part.removeprefix("bot"), part.partition(":")[2])
    yield from (secret.get_secret_value() for secret in subscription.secrets)
    yield subscription.routing_key.get_secret_value() if subscription.routing_key else ""
    for value in subscription.headers.values():
        yield from (value, *value.split())
