"""Describes `/v1` as OpenAPI 3.1. Bodies are described by the models that `watcher check` uses."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cache
from hashlib import sha256
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
    """Why a request was refused (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str = Field(description="what is wrong and how to fix it")
    errors: list["Mistake"] = Field([], description="all mistakes in the body")
    oldest: str | int | None = Field(None, description="with 410: the cursor or sequence to go on from")


class Mistake(BaseModel):
    pointer: str = Field(description="where the mistake is: a JSON pointer (RFC 6901)")
    detail: str = Field(description="what is wrong, in the words of `watcher check`")


class Described(BaseModel):
    name: str
    read_only: bool = Field(description="it is defined in the configuration file: change it there")
    state: State = Field(
        description="in_force: it is used. unverified: its URL has not answered a ping yet. "
        "shadowed: the file defines the same name, and the file wins. "
        "locked: this worker does not have the key. unfit: this worker cannot use it, see `reason`"
    )
    reason: str | None = Field(description="why it is not in force; null if it is")
    version: int | None = Field(description="the version to send in `If-Match`; null if it is read-only")
    settings: dict[str, Any] = Field(description="the settings as they were put, with secrets masked")


class AccountStatus(BaseModel):
    """The state of an account."""

    problems: list[str] = []
    polled_at: str | None = None
    reason: str | None = None
    rejections: int = 0
    rejected_since: str | None = None


class Account(Described):
    status: AccountStatus


class Accounts(BaseModel):
    items: list[Described]
    next: str | None = Field(description="the `after` of the next page; null on the last page")


class SubscriptionStatus(BaseModel):
    state: Literal[SUBSCRIPTION_STATES]  # type: ignore[valid-type]  # the same words
    queues: int
    deliveries: int = Field(description="how many deliveries are waiting")
    retrying: int
    dead: int
    oldest_s: int | None
    breaker: str
    failing_since: str | None
    paused_at: str | None
    backing_off_s: int
    per_second: float | None
    reason: str | None
    ping_error: str | None = Field(description="why its URL is not verified: what the last ping met")
    todo: str | None = Field(description="what to do about its state; null where there is nothing to do")


class Subscription(Described):
    status: SubscriptionStatus


class Subscriptions(Accounts):
    pass


class Edited(BaseModel):
    """The result of an edit. `secrets` and `token` are shown only once: in this answer."""

    name: str
    change: Literal["created", "changed", "unchanged", "secret", "token", "paused", "resumed"]
    secrets: list[str] = Field([], description="new signing secrets, to give to the receiver")
    token: str | None = Field(None, description="a new token, for pulling the subscription's events")


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
    deliveries: int = Field(description="how many events are queued again")
    accounts: int
    waiting: int = Field(description="how many are still waiting, and so are not queued again")
    unreadable: int
    full: list[str] = Field(description="accounts whose events would exceed `max_backlog`")
    paused: bool
    dry_run: bool
    next: str | None = Field(
        description="time was over before all was sent again: post it as `after` to go on; null: all is done"
    )


class Pinged(BaseModel):
    name: str
    delivered: bool = Field(description="whether the answer was 2xx")
    verified: bool = Field(description="whether the URL is verified, so that it gets events")
    status: int | None
    error: str | None
    answer: str | None = Field(description="the beginning of the answer's body")
    fix: str | None
    duration_ms: int


class Holding(BaseModel):
    """The balances of an account. Amounts are exact decimal text."""

    account: str
    provider: str
    sequence: int | None = Field(description="the sequence of the last event that led to these balances")
    polled_at: str | None
    age_s: int | None
    note: str | None
    balances: list[dict[str, Any]]


class Holdings(BaseModel):
    items: list[dict[str, Any]]
    next: str | None
    events: str = Field(description="the `after` for the events that follow these balances")


class Deliveries(BaseModel):
    items: list[dict[str, Any]]
    next: str | None


class Events(BaseModel):
    """Events, with the exact bytes of the webhooks."""

    items: list[dict[str, Any]] = Field(description="events, as `watcher schema events` describes them")
    next: str = Field(description="the `after` for the events that follow, now or later")
    more: bool = Field(description="whether more events can be pulled now")
    unreadable: int = Field(0, description="how many records of the log could not be read")


class Operation(NamedTuple):
    """One method of a path. `refusals`: the statuses of its own errors, besides those of every request."""

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
_ACTION = (404, 409, 413, 415)

OPERATIONS = (
    Operation(
        "get", "/v1/accounts", "listAccounts", "List all accounts, by name", {200: Accounts}, query=_PAGE
    ),
    Operation("get", _ACCOUNT, "getAccount", "Read one account", {200: Account}, refusals=(404,)),
    Operation(
        "put",
        _ACCOUNT,
        "putAccount",
        "Add or change an account",
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
    Operation("post", f"{_ACCOUNT}/poll", "pollAccount", "Poll an account now", {202: Due}, refusals=_ACTION),
    Operation(
        "get",
        f"{_ACCOUNT}/balances",
        "getBalances",
        "Read the balances of an account",
        {200: Holding},
        refusals=(404,),
    ),
    Operation(
        "post",
        "/v1/accounts:batch",
        "putAccounts",
        "Add or change up to 1,000 accounts, one on each line. The answer has a line for each",
        {200: None},
        "Lines",
        refusals=(413, 415),
    ),
    Operation(
        "get",
        "/v1/subscriptions",
        "listSubscriptions",
        "List all subscriptions, by name",
        {200: Subscriptions},
        query=_PAGE,
    ),
    Operation(
        "get", _SUBSCRIPTION, "getSubscription", "Read one subscription", {200: Subscription}, refusals=(404,)
    ),
    Operation(
        "put",
        _SUBSCRIPTION,
        "putSubscription",
        "Add or change a subscription. A new URL must answer a ping before it gets events",
        {200: Edited, 201: Edited},
        "SubscriptionSettings",
        refusals=_EDIT,
        is_guarded=True,
    ),
    Operation(
        "delete",
        _SUBSCRIPTION,
        "deleteSubscription",
        "Delete a subscription, with what waits for it and its dead letters",
        {204: None},
        refusals=(404, 409, 412, 413, 415),
        is_guarded=True,
    ),
    Operation(
        "get",
        f"{_SUBSCRIPTION}/deliveries",
        "listDeliveries",
        "List the deliveries that wait, or the dead letters",
        {200: Deliveries},
        query=("state", *_PAGE),
        refusals=(404,),
    ),
    Operation(
        "post",
        f"{_SUBSCRIPTION}/secret",
        "renewSecret",
        "Make a new signing secret. The old ones sign as well for 24 hours",
        {200: Edited},
        refusals=_ACTION,
    ),
    Operation(
        "post",
        f"{_SUBSCRIPTION}/token",
        "renewToken",
        "Make a new token. The old ones stay valid for 24 hours",
        {200: Edited},
        refusals=_ACTION,
    ),
    Operation(
        "post",
        f"{_SUBSCRIPTION}/pause",
        "pauseSubscription",
        "Pause a subscription: it is sent nothing until it is resumed, and its events are kept",
        {200: Edited},
        refusals=_ACTION,
    ),
    Operation(
        "post",
        f"{_SUBSCRIPTION}/resume",
        "resumeSubscription",
        "Resume a subscription: what waits for it is sent at once, even if its breaker was open",
        {200: Edited},
        refusals=_ACTION,
    ),
    Operation(
        "post",
        f"{_SUBSCRIPTION}/resend",
        "resend",
        "Send events again: one event, dead letters, or those of the log since a time",
        {200: Resent},
        "Again",
        refusals=(*_ACTION, 422),
    ),
    Operation(
        "post",
        f"{_SUBSCRIPTION}/ping",
        "pingSubscription",
        "Send a sample event now. A URL that answers 2xx is verified. At most ten a minute for each host",
        {200: Pinged},
        refusals=_ACTION,
    ),
    Operation(
        "get",
        f"{_SUBSCRIPTION}/events",
        "pullEvents",
        "Pull the events that were queued for a subscription, with the exact bytes of the webhooks",
        {200: Events},
        query=("account", "type", *_PAGE),
        refusals=(404, 410),
        is_open=True,
    ),
    Operation(
        "get",
        f"{_SUBSCRIPTION}/balances",
        "pullBalances",
        "Pull the balances of its accounts: a receiver that lost its database starts here",
        {200: Holdings},
        query=_PAGE,
        refusals=(404,),
        is_open=True,
    ),
    Operation(
        "get",
        "/v1/events",
        "listEvents",
        "Read the event log",
        {200: Events},
        query=("account", "subscription", "type", *_PAGE),
        refusals=(404, 410),
    ),
)

_ALWAYS = (400, 401, 403, 429, 503)
_REFUSALS = {
    400: "The query, a header or the body cannot be read",
    401: "The token is missing or unknown",
    403: "The token does not allow this",
    404: "Nothing has this name",
    409: "It is defined in the configuration file, or its present state does not allow this",
    410: "The log no longer holds the events after this place. Go on from `oldest`",
    412: "The version is not the one that `If-Match` or `If-None-Match` asked for",
    413: "The body is too long",
    415: "The content type of the body is not accepted",
    422: "The body has mistakes. `errors` lists all of them",
    429: "Too many requests with one token. `Retry-After` says when to try again",
    503: "The worker or its Redis cannot answer now. `Retry-After` says when to try again",
    507: "No more can be added: the limit is reached",
}
_QUERY: Mapping[str, tuple[str, JsonSchemaValue]] = {
    "after": ("the `next` of the previous page. With `account`, it may be a sequence", {"type": "string"}),
    "limit": ("the most items of a page", {"type": "integer", "minimum": 1, "maximum": MOST_OF_A_PAGE}),
    "account": ("only events of this account", {"type": "string"}),
    "subscription": ("only events that were queued for this subscription", {"type": "string"}),
    "type": (
        "only events of this type, or of a glob such as `deposit.*`",
        {"type": "string", "pattern": f"^{TYPE}$"},
    ),
    "state": ("deliveries that wait, or dead letters", {"enum": ["waiting", "dead"], "default": "waiting"}),
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
"""An example of the other fields of an account, by model."""
_SUBSCRIPTION_EXAMPLE = {
    "url": "https://ops.example.com/hooks/balances",
    "accounts": ["treasury", "shop-*"],
    "events": ["deposit.*"],
}
_TAG = {"type": "string", "pattern": r'^(\*|"[0-9]+")$'}


def openapi(names_by_kind: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
    """Return the document for these providers (their names by kind); without them, for every kind."""
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
            "description": "Add accounts and subscriptions while workers run, and pull events. "
            "Ignore fields that are not listed here: later versions may add some.",
        },
        "security": [{"operator": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "operator": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "the value of WATCHER_HTTP_TOKEN",
                },
                "subscription": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "the token of the subscription, which PUT showed",
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
        """Answer with this document, for the configured providers."""
        query_of(request)
        names_by_kind: dict[str, list[str]] = {}
        for name, provider in worker.settings.provider_by_name.items():
            names_by_kind.setdefault(provider.kind, []).append(name)
        body = document(tuple((kind, tuple(names)) for kind, names in names_by_kind.items()))
        digest = sha256(body).hexdigest()[:16]
        if any(tag.value in (digest, "*") for tag in request.if_none_match or ()):
            return web.Response(status=304, headers={"etag": f'"{digest}"'})
        return web.Response(body=body, content_type="application/json", headers={"etag": f'"{digest}"'})

    return [web.get("/v1/openapi.json", show)]


class _Untitled(GenerateJsonSchema):
    """Writes no title that only repeats the name of a field."""

    @classmethod
    def of(cls, *models: type[BaseModel]) -> dict[str, Any]:
        """Return the schemas of these models, and of those that they refer to, by name."""
        template = "#/components/schemas/{model}"
        mode: Literal["validation"] = "validation"
        wanted = [(model, mode) for model in models]
        schemas = models_json_schema(wanted, ref_template=template, schema_generator=cls)[1]["$defs"]
        return cast(dict[str, Any], schemas)

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


class _AsWritten(_Untitled):
    """Writes durations as text, and lets numbers be text as well."""

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
    """Return the schemas of all models, and the provider kinds of each account model."""
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
        lines = {"schema": {"description": "accounts, one JSON object on each line"}}
        described["requestBody"] = {"required": True, "content": {LINES[0]: lines}}
    elif one.body:
        content = {"application/json": {"schema": _ref(one.body)}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _answer(status: int, model: type[BaseModel] | None) -> dict[str, Any]:
    if model is None:
        return {"description": "Done"}
    described = {
        "description": {201: "Added", 202: "Accepted: it happens soon"}.get(status, "Done"),
        "content": {"application/json": {"schema": _ref(model.__name__)}},
    }
    if model in (Account, Subscription) or 201 in (status,):
        described["headers"] = {
            "ETag": {"schema": {"type": "string"}, "description": "the version to send in If-Match"}
        }
    return described


def _ref(model: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model}"}
