"""The shape of every event that is POSTed, as pydantic models: the contract, which the sender does not use.

Open for additions: a receiver must accept what it does not know. Refuses any other form of an amount, a time
or an id than the one that is sent.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from watcher import __version__

_DIGITS = r"(0\.[0-9]{0,77}[1-9]|[1-9][0-9]{0,79}(\.[0-9]{0,77}[1-9])?)"

Amount = Annotated[
    str, Field(pattern=rf"^(0|-?{_DIGITS})$", description="exact decimal text; one spelling for each number")
]
Time = Annotated[
    str,
    Field(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$",
        json_schema_extra={"format": "date-time"},
        description="UTC, with milliseconds",
    ),
]
Pending = Annotated[Amount | None, Field(description="null if the provider does not say, which is not 0")]


class Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class Account(Part):
    name: str = Field(description="as configured")
    provider: str = Field(description="the section of the configuration that it is polled at")


class Asset(Part):
    id: str = Field(description="identifies the asset; 0x… in lower case")
    symbol: str | None = Field(description="from the provider: show it, never compare it")
    name: str | None = Field(description="from the provider: show it, never compare it")
    decimals: int | None = Field(description="null: amounts are in the provider's own unit")


class Effect(Part):
    """What the event moves: `before` + `effect` = `after`, exactly, in each field."""

    total: Amount
    locked: Amount
    pending_deposit: Pending
    pending_withdrawal: Pending


class Balance(Part):
    """The balances after the events so far. A field may be below zero while only half of a movement is
    emitted."""

    total: Amount = Field(
        description="settled funds, `locked` included, pendings excluded; below zero where the account is "
        "overdrawn, and so is `available`"
    )
    locked: Amount
    available: Amount = Field(description="total - locked")
    pending_deposit: Pending
    pending_withdrawal: Pending


class Observed(Part):
    """The two successful polls between which it happened."""

    from_: Time = Field(alias="from")
    to: Time


class Subscription(Part):
    name: str = Field(description="the subscription that this delivery is for")
    previous_sequence: int | None = Field(
        description="the sequence queued for this subscription and account before this one; null: none. "
        "Higher than the last one that you took, repeats included: an event is missing. That one: what lies "
        "between was filtered out. Lower: the sender's Redis was set back"
    )


class Said(Part):
    sequence: int = Field(
        description="rises strictly per account, not densely; about the Unix ms of the event"
    )
    amount: Amount
    effect: Effect
    observed: Observed


class AboutAccount(Said):
    account: Account
    asset: Asset | None = Field(description="null if the event is about the whole account")


class AboutSubscription(Said):
    account: None
    asset: None


class Change(AboutAccount):
    asset: Asset
    amount: Amount = Field(description="how much moved, above 0")
    before: Balance = Field(description="the `after` of the previous event of this asset")
    after: Balance


class AssetBalance(Balance):
    asset: Asset


class Baseline(AboutAccount):
    balances: list[AssetBalance]
    part: int = Field(description="from 1; an account with many assets takes several events")
    parts: int


class Stale(AboutAccount):
    since: Time = Field(
        description="the last successful poll; if there was none, the first rejected one, or when the "
        "account was added; or when the workers or Redis came back"
    )
    trouble: str = Field(
        description="auth, configuration, rate, transient, malformed or gone where polls are rejected; late "
        "where they come too late"
    )
    reason: str


class Recovered(AboutAccount):
    since: Time = Field(description="the same as in the account.stale before it")


class Threshold(Part):
    field: str = Field(description="which part of the balance is watched")
    below: Amount | None
    above: Amount | None
    clear: Amount | None = Field(
        description="the threshold may be crossed again once the balance is back here; null: at its bound"
    )
    value: Amount = Field(description="what the provider says now")


class Crossing(AboutAccount):
    asset: Asset
    before: Balance
    after: Balance
    threshold: Threshold


class Paused(AboutSubscription):
    paused: str = Field(description="the subscription that gets nothing more until it is resumed")
    since: Time = Field(description="since when it failed")
    reason: str


class Ping(Part):
    """A sample: nothing happened."""


class Event(Part):
    id: str = Field(
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="the same on every attempt and in every replay; equals the header webhook-id",
    )
    type: str
    timestamp: Time = Field(description="when the event was committed")
    data: Any
    subscription: Subscription


_CATALOGUE: tuple[tuple[str, type[Part], str], ...] = (
    ("deposit.pending", Change, "A deposit was seen: pending_deposit +x."),
    ("deposit.cleared", Change, "A pending deposit was credited: total +x, pending_deposit -x."),
    ("deposit.dropped", Change, "A pending deposit went, and no credit came: pending_deposit -x."),
    (
        "withdrawal.pending",
        Change,
        "A withdrawal began: pending_withdrawal +x, and its debit or lock as seen.",
    ),
    ("withdrawal.cleared", Change, "A pending withdrawal is done, the money is gone: pending_withdrawal -x."),
    (
        "withdrawal.returned",
        Change,
        "A pending withdrawal came back: pending_withdrawal -x, total +x or locked -x.",
    ),
    ("locked.increased", Change, "More is locked: locked +x."),
    ("locked.decreased", Change, "Less is locked: locked -x."),
    ("total.increased", Change, "A credit that nothing else explains: total +x."),
    ("total.decreased", Change, "A debit that nothing else explains: total -x."),
    ("account.baseline", Baseline, "The balances that an account starts with. Moves nothing."),
    ("account.stale", Stale, "No successful poll for three intervals and the time-out. Moves nothing."),
    ("account.recovered", Recovered, "Successful polls in time after account.stale. Moves nothing."),
    ("threshold.crossed", Crossing, "A balance passed a threshold of this subscription. Moves nothing."),
    (
        "subscription.paused",
        Paused,
        "Another subscription, which names this one in `alerts_to`, was paused. Moves nothing.",
    ),
    ("subscription.ping", Ping, "A sample, made on request. Moves nothing."),
)


MODEL_BY_TYPE: dict[str, type[Event]] = {
    type_: create_model(
        "".join(word.capitalize() for word in type_.split(".")),
        __base__=Event,
        __doc__=meaning,
        type=(Literal[type_], ...),  # type: ignore[arg-type]  # made while this runs
        data=(data, ...),
    )
    for type_, data, meaning in _CATALOGUE
}
"""The model of each event that there is."""


class _Untitled(GenerateJsonSchema):
    """Leaves out titles that only repeat the names of fields."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


_HEADERS = {
    "webhook-id": "the id of the event, the same on every attempt: act on each once",
    "webhook-timestamp": "Unix seconds of this attempt",
    "webhook-signature": "separated by spaces, one per secret: `v1,` and base64 of HMAC-SHA256, or `v1a,` "
    "and base64 of ed25519, over `{webhook-id}.{webhook-timestamp}.{body}`",
    "watcher-attempt": "the number of this attempt on the retry schedule, from 1",
}
_RESPONSES = {
    "2XX": "Taken. Nothing else is success; redirects are not followed.",
    "410": "Send nothing more: the subscription is paused.",
    "429": "Slow down: nothing is sent to the subscription for `Retry-After` (seconds or a date).",
    "default": "Tried again later, in order; after the last attempt the event becomes a dead letter.",
}


def openapi() -> dict[str, Any]:
    """Return the catalogue of events as an OpenAPI 3.1 document."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in MODEL_BY_TYPE.values()],
        schema_generator=_Untitled,
        ref_template="#/components/schemas/{model}",
    )
    webhooks = {}
    for type_, model in MODEL_BY_TYPE.items():
        schema = {"$ref": f"#/components/schemas/{model.__name__}"}
        operation = {
            "operationId": type_.replace(".", "_"),
            "summary": model.__doc__,
            "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in _HEADERS],
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
            "responses": {status: {"description": says} for status, says in _RESPONSES.items()},
        }
        webhooks[type_] = {"post": operation}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "watcher events",
            "version": __version__,
            "description": "What watcher POSTs to subscribers, signed as Standard Webhooks. Ignore fields "
            "and types that are not listed here: later versions may add some.",
        },
        "webhooks": webhooks,
        "components": {
            "parameters": {
                name: {
                    "name": name,
                    "in": "header",
                    "required": True,
                    "description": says,
                    "schema": {"type": "string"},
                }
                for name, says in _HEADERS.items()
            },
            "schemas": definitions["$defs"],
        },
    }
