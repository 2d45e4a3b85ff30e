"""Describes `/v1` as OpenAPI 3.1: what comes in, by the models that `check` goes by, and what goes out."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, Literal, NamedTuple, cast

import orjson
from aiohttp import web
from pydantic import BaseModel, Field
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

from watcher import __version__
from watcher.api.edits import LINES, Again
from watcher.api.events import TYPE
from watcher.api.problems import MOST_OF_A_PAGE, query_of
from watcher.durations import duration_text
from watcher.observe.views import SUBSCRIPTION_STATES
from watcher.providers.contract import PLACE_BY_KIND, provider_class
from watcher.run.worker import Worker
from watcher.settings import SubscriptionSettings

State = Literal["in_force", "unverified", "shadowed", "locked", "unfit"]


class Problem(BaseModel):
    """What a request is refused with (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="what is wrong, and what to do about it")
    errors: list["Mistake"] = Field([], description="all that is wrong with a body")
    oldest: str | int | None = Field(None, description="of 410: the oldest cursor, or sequence, that is held")


class Mistake(BaseModel):
    pointer: str = Field(description="JSON pointer (RFC 6901) to what is wrong")
    detail: str = Field(description="in the words of `watcher check`")


class Described(BaseModel):
    name: str
    read_only: bool = Field(description="the configuration file defines it: it is changed there")
    state: State = Field(
        description="unverified: its URL has to answer a ping. shadowed: the file has its name. "
        "locked: this worker lacks the key. unfit: this worker cannot use it"
    )
    reason: str | None = Field(description="why it is not in force")
    version: int | None = Field(description="what `If-Match` takes; null where it is read-only")
    settings: dict[str, Any] = Field(description="as it was put, secrets masked")


class AccountStatus(BaseModel):
    """What is known of an account."""

    problems: list[str] = []
    polled_at: str | None = None
    reason: str | None = None
    rejections: int = 0
    rejected_since: str | None = None


class Account(Described):
    status: AccountStatus


class Accounts(BaseModel):
    items: list[Described]
    next: str | None = Field(description="the `after` of the next page; null: this is the last one")


class SubscriptionStatus(BaseModel):
    state: Literal[SUBSCRIPTION_STATES]  # type: ignore[valid-type]  # the same words
    queues: int
    deliveries: int = Field(description="how many wait")
    retrying: int
    dead: int
    oldest_s: int | None
    breaker: str
    failing_since: str | None
    paused_at: str | None
    backing_off_s: int
    per_second: float | None
    reason: str | None


class Subscription(Described):
    status: SubscriptionStatus


class Subscriptions(Accounts):
    pass


class Edited(BaseModel):
    """What became of an edit. `secrets` and `token` are shown this once."""

    name: str
    change: Literal["created", "changed", "unchanged", "secret", "token", "paused", "resumed"]
    secrets: list[str] = Field([], description="made by this request: for the receiver")
    token: str | None = Field(None, description="made by this request: opens the subscription's events")


class Due(BaseModel):
    account: str
    provider: str | None
    state: Literal["due", "in_hand", "backing_off", "unscheduled"]
    due_in_ms: int | None
    rejections: int | None
    error_class: str | None
    reason: str | None


class Resent(BaseModel):
    subscription: str
    deliveries: int = Field(description="how many are queued again")
    accounts: int
    waiting: int = Field(description="how many wait there still, and are not queued twice")
    unreadable: int
    full: list[str] = Field(description="accounts of which more would wait than may")
    paused: bool
    dry_run: bool


class Pinged(BaseModel):
    name: str
    delivered: bool = Field(description="whether the answer was 2xx")
    verified: bool = Field(description="whether it gets events")
    status: int | None
    error: str | None
    answer: str | None = Field(description="how the answer begins")
    fix: str | None
    duration_ms: int


class Holding(BaseModel):
    """The balances of an account; amounts are exact decimal text."""

    account: str
    provider: str
    sequence: int | None = Field(description="of the last event that led to them")
    polled_at: str | None
    age_s: int | None
    note: str | None
    balances: list[dict[str, Any]]


class Holdings(BaseModel):
    items: list[dict[str, Any]]
    next: str | None
    events: str = Field(description="the `after` by which events follow on these balances")


class Deliveries(BaseModel):
    items: list[dict[str, Any]]
    next: str | None


class Events(BaseModel):
    """Events, byte for byte as they were or are to be sent."""

    items: list[dict[str, Any]] = Field(description="see `watcher schema events`")
    next: str = Field(description="the `after` of what follows, now or later")
    more: bool = Field(description="whether there is more right now")
    unreadable: int = 0


class Operation(NamedTuple):
    """One method of a path. `refusals` are those besides what any request may be refused with."""

    method: str
    path: str
    id: str
    summary: str
    answers: Mapping[int, type[BaseModel] | None]
    body: str | None = None
    query: tuple[str, ...] = ()
    refusals: tuple[int, ...] = ()
    is_guarded: bool = False
    is_open: bool = False  # to the subscription's own token


_ACCOUNT, _SUBSCRIPTION = "/v1/accounts/{name}", "/v1/subscriptions/{name}"
_PAGE = ("after", "limit")
_EDIT = (404, 409, 412, 413, 415, 422, 507)
_TOLD = (404, 409, 413, 415)
_RENEWED = (404, 409, 413, 415)

OPERATIONS = (
    Operation("get", "/v1/accounts", "listAccounts", "All accounts, by name", {200: Accounts}, query=_PAGE),
    Operation("get", _ACCOUNT, "getAccount", "One account", {200: Account}, refusals=(404,)),
    Operation(
        "put",
        _ACCOUNT,
        "putAccount",
        "Add an account, or change it",
        {200: Edited, 201: Edited},
        "AccountSettings",
        refusals=_EDIT,
        is_guarded=True,
    ),
    Operation(
        "delete",
        _ACCOUNT,
        "deleteAccount",
        "Stop polling an account",
        {204: None},
        refusals=(404, 409, 412, 413, 415),
        is_guarded=True,
    ),
    Operation("post", f"{_ACCOUNT}/poll", "pollAccount", "Poll it now", {202: Due}, refusals=_TOLD),
    Operation("get", f"{_ACCOUNT}/balances", "getBalances", "What it holds", {200: Holding}, refusals=(404,)),
    Operation(
        "post",
        "/v1/accounts:batch",
        "putAccounts",
        "Add or change up to 1,000 accounts, one a line: the answer has a line for each, with its `status`",
        {200: None},
        "Lines",
        refusals=(413, 415),
    ),
    Operation(
        "get",
        "/v1/subscriptions",
        "listSubscriptions",
        "All of them, by name",
        {200: Subscriptions},
        query=_PAGE,
    ),
    Operation("get", _SUBSCRIPTION, "getSubscription", "One of them", {200: Subscription}, refusals=(404,)),
    Operation(
        "put",
        _SUBSCRIPTION,
        "putSubscription",
        "Add a subscription, or change it. A new URL has to answer a ping before it gets events",
        {200: Edited, 201: Edited},
        "SubscriptionSettings",
        refusals=_EDIT,
        is_guarded=True,
    ),
    Operation(
        "delete",
        _SUBSCRIPTION,
        "deleteSubscription",
        "Send it nothing more",
        {204: None},
        refusals=(404, 409, 412, 413, 415),
        is_guarded=True,
    ),
    Operation(
        "get",
        f"{_SUBSCRIPTION}/deliveries",
        "listDeliveries",
        "What waits for it, or was given up",
        {200: Deliveries},
        query=("state", *_PAGE),
        refusals=(404,),
    ),
    Operation(
        "post",
        f"{_SUBSCRIPTION}/secret",
        "renewSecret",
        "Make a new secret; the old ones sign on for 24 hours",
        {200: Edited},
        refusals=_RENEWED,
    ),
    Operation(
        "post",
        f"{_SUBSCRIPTION}/token",
        "renewToken",
        "Make a new token; the old ones are good for 24 hours more",
        {200: Edited},
        refusals=_RENEWED,
    ),
    Operation(
        "post",
        f"{_SUBSCRIPTION}/pause",
        "pauseSubscription",
        "Send it nothing until it is resumed; its events are kept",
        {200: Edited},
        refusals=_TOLD,
    ),
    Operation(
        "post",
        f"{_SUBSCRIPTION}/resume",
        "resumeSubscription",
        "Send it what waits, whatever failed before",
        {200: Edited},
        refusals=_TOLD,
    ),
    Operation(
        "post",
        f"{_SUBSCRIPTION}/resend",
        "resend",
        "Send again: one event, dead letters, or what the log holds",
        {200: Resent},
        "Again",
        refusals=(*_TOLD, 422),
    ),
    Operation(
        "post",
        f"{_SUBSCRIPTION}/ping",
        "pingSubscription",
        "Send a sample now, ten a minute and host at most: a URL that takes it is verified",
        {200: Pinged},
        refusals=_TOLD,
    ),
    Operation(
        "get",
        f"{_SUBSCRIPTION}/events",
        "pullEvents",
        "Events that were queued for it, byte for byte",
        {200: Events},
        query=("account", "type", *_PAGE),
        refusals=(404, 410),
        is_open=True,
    ),
    Operation(
        "get",
        f"{_SUBSCRIPTION}/balances",
        "pullBalances",
        "What its accounts hold: where a receiver that lost its database begins",
        {200: Holdings},
        query=_PAGE,
        refusals=(404,),
        is_open=True,
    ),
    Operation(
        "get",
        "/v1/events",
        "listEvents",
        "The event log",
        {200: Events},
        query=("account", "subscription", "type", *_PAGE),
        refusals=(404, 410),
    ),
)

_ALWAYS = (400, 401, 403, 429, 503)
_REFUSALS = {
    400: "A query, a header or a body that cannot be read",
    401: "No token that is known here",
    403: "The token is not good for this",
    404: "There is nothing of this name",
    409: "The configuration file defines it, or it cannot be edited as it is",
    410: "The log holds that no longer: `oldest` is where it begins",
    412: "Another version is there than `If-Match` or `If-None-Match` asked for",
    413: "The body is too long",
    415: "The body is of another content type",
    422: "A body with mistakes: `errors` has all of them",
    429: "Too many requests by one token: `Retry-After` says when",
    503: "This worker or its Redis cannot answer now: `Retry-After` says when",
    507: "There are as many as there can be",
}
_QUERY: Mapping[str, tuple[str, JsonSchemaValue]] = {
    "after": ("the `next` of the page before; of events with `account`, a sequence, too", {"type": "string"}),
    "limit": ("how many, at most", {"type": "integer", "minimum": 1, "maximum": MOST_OF_A_PAGE}),
    "account": ("of this account alone", {"type": "string"}),
    "subscription": ("as they were queued for this subscription", {"type": "string"}),
    "type": ("of this type, or of a glob such as `deposit.*`", {"type": "string", "pattern": f"^{TYPE}$"}),
    "state": ("what waits, or dead letters", {"enum": ["waiting", "dead"], "default": "waiting"}),
}
_NAME = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"}
_HOW_ADDRESSED: Mapping[str, Mapping[str, Any]] = {
    "EvmAccount": {"address": "0xd8dA6BF26964aF9D7eEd9e03E53415D37aA96045"},
    "ExchangeAccount": {},
    "HttpAccount": {},
    "LoopringAccount": {"account_id": 10110, "interval": "30s"},
    "MetaKeepAccount": {
        "of": {"email": "alice@example.com"},
        "currencies": ["0x7ceB23fD6bC0adD59E62ac25578270cFf1b9f619"],
    },
}
"""An example of what an account says besides, by model."""
_SUBSCRIPTION_EXAMPLE = {
    "url": "https://ops.example.com/hooks/balances",
    "accounts": ["treasury", "shop-*"],
    "events": ["deposit.*"],
}
_TAG = {"type": "string", "pattern": r'^(\*|"[0-9]+")$'}


def openapi(names_by_kind: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
    """Return the document. `names_by_kind` are the providers that there are; without it, any may be."""
    kinds = names_by_kind or dict.fromkeys(PLACE_BY_KIND, ())
    schemas, accounts = _schemas(tuple(kinds))
    for model, of_kinds in accounts.items():
        schemas[model]["required"].remove("name")
        if names := sorted(name for kind in of_kinds for name in kinds[kind]):
            schemas[model]["properties"]["provider"] |= {"enum": names}
            schemas[model]["examples"] = [{"provider": name, **_HOW_ADDRESSED[model]} for name in names]
    schemas["AccountSettings"] = {"anyOf": [_ref(model) for model in accounts]}
    schemas["SubscriptionSettings"]["required"].remove("name")
    schemas["SubscriptionSettings"]["examples"] = [_SUBSCRIPTION_EXAMPLE]
    paths: dict[str, dict[str, Any]] = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "watcher",
            "version": __version__,
            "description": "Adds accounts and subscriptions while watcher runs, and gives events to pull. "
            "Answers may have fields that are not listed here: there will be more.",
        },
        "security": [{"operator": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "operator": {"type": "http", "scheme": "bearer", "description": "WATCHER_HTTP_TOKEN"},
                "subscription": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "the token that a subscription was given",
                },
            },
            "responses": {
                f"Refused{status}": {
                    "description": text,
                    "content": {"application/problem+json": {"schema": _ref("Problem")}},
                }
                for status, text in _REFUSALS.items()
            },
            "schemas": schemas,
        },
    }


def routes(worker: Worker) -> list[web.RouteDef]:
    @cache
    def document(names_by_kind: tuple[tuple[str, tuple[str, ...]], ...]) -> bytes:
        return orjson.dumps(openapi(dict(names_by_kind)))

    async def show(request: web.Request) -> web.Response:
        """This document, with the providers that there are."""
        query_of(request)
        names_by_kind: dict[str, list[str]] = {}
        for name, provider in worker.settings.provider_by_name.items():
            names_by_kind.setdefault(provider.kind, []).append(name)
        body = document(tuple((kind, tuple(names)) for kind, names in names_by_kind.items()))
        return web.Response(body=body, content_type="application/json")

    return [web.get("/v1/openapi.json", show)]


class _Untitled(GenerateJsonSchema):
    """Leaves out titles that only repeat the names of fields."""

    @classmethod
    def of(cls, *models: type[BaseModel]) -> dict[str, Any]:
        """Return the schemas of models and of what they hold, by name."""
        template = "#/components/schemas/{model}"
        mode: Literal["validation"] = "validation"
        wanted = [(model, mode) for model in models]
        schemas = models_json_schema(wanted, ref_template=template, schema_generator=cls)[1]["$defs"]
        return cast(dict[str, Any], schemas)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class _AsWritten(_Untitled):
    """Writes durations as text; numbers may be text, too."""

    def encode_default(self, dft: Any) -> Any:
        if isinstance(dft, timedelta):
            return duration_text(dft)
        if isinstance(dft, tuple):
            return [self.encode_default(one) for one in dft]
        return super().encode_default(dft)

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return {**super().int_schema(schema), "type": ["integer", "string"], "pattern": "^[0-9]+$"}

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {**super().float_schema(schema), "type": ["number", "string"], "pattern": "^[0-9.]+$"}


def _schemas(kinds: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Return all models as schemas, and which of them are accounts of which kinds."""
    accounts: dict[str, list[str]] = {}
    models: dict[str, type[BaseModel]] = {}
    for kind in kinds:
        model = provider_class(kind).Account
        models[model.__name__] = model
        accounts.setdefault(model.__name__, []).append(kind)
    answers = {model for one in OPERATIONS for model in one.answers.values() if model}
    taken = _AsWritten.of(*models.values(), SubscriptionSettings, Again)
    given = _Untitled.of(Problem, *sorted(answers, key=lambda model: model.__name__))
    return {**taken, **given}, accounts


def _operation(one: Operation) -> dict[str, Any]:
    parameters = (
        [{"name": "name", "in": "path", "required": True, "schema": _NAME}] if "{" in one.path else []
    )
    for name in one.query:
        text, schema = _QUERY[name]
        parameters.append({"name": name, "in": "query", "description": text, "schema": schema})
    if one.is_guarded:
        guards = ("If-Match", "If-None-Match")
        parameters += [{"name": header, "in": "header", "schema": _TAG} for header in guards]
    answers = {str(status): _answer(status, model) for status, model in one.answers.items()}
    refused = {
        str(status): {"$ref": f"#/components/responses/Refused{status}"}
        for status in sorted({*_ALWAYS, *one.refusals})
    }
    described = {
        "operationId": one.id,
        "summary": one.summary,
        "parameters": parameters,
        "responses": {**answers, **refused},
    }
    if one.is_open:
        described["security"] = [{"operator": []}, {"subscription": []}]
    if one.body == "Lines":
        lines = {"schema": {"description": "accounts, a JSON object a line"}}
        described["requestBody"] = {"required": True, "content": {LINES[0]: lines}}
    elif one.body:
        content = {"application/json": {"schema": _ref(one.body)}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _answer(status: int, model: type[BaseModel] | None) -> dict[str, Any]:
    if model is None:
        return {"description": "Done"}
    described = {
        "description": {201: "Added", 202: "It is to happen"}.get(status, "Done"),
        "content": {"application/json": {"schema": _ref(model.__name__)}},
    }
    if model in (Account, Subscription) or 201 in (status,):
        described["headers"] = {"ETag": {"schema": {"type": "string"}, "description": "what If-Match takes"}}
    return described


def _ref(model: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model}"}
