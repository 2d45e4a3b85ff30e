"""The catalogue of events as an OpenAPI 3.1 document, made of the models in `schema`.

Refuses to describe anything but what is POSTed: the body, its headers and what an answer means.
"""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from watcher import __version__
from watcher.schema import MODEL_BY_TYPE, Event


class _Untitled(GenerateJsonSchema):
    """Leaves out titles that only repeat the names of fields."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def openapi() -> dict[str, Any]:
    """Return the catalogue of events as an OpenAPI 3.1 document."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in MODEL_BY_TYPE.values()],
        schema_generator=_Untitled,
        ref_template="#/components/schemas/{model}",
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "watcher events",
            "version": __version__,
            "description": "What watcher POSTs to subscribers, signed as Standard Webhooks. Take fields that "
            "are not listed here, and types that you do not know: there will be more.",
        },
        "webhooks": {type_: {"post": _operation(type_, model)} for type_, model in MODEL_BY_TYPE.items()},
        "components": {
            "parameters": {name: _header(name, says) for name, says in _HEADERS.items()},
            "schemas": definitions["$defs"],
        },
    }


_HEADERS = {
    "webhook-id": "the id of the event, the same on every attempt: drop what you have seen",
    "webhook-timestamp": "Unix seconds of this attempt",
    "webhook-signature": "separated by spaces, one per secret: `v1,` and base64 of HMAC-SHA256, or `v1a,` "
    "and base64 of ed25519, over `{webhook-id}.{webhook-timestamp}.{body}`",
    "watcher-attempt": "the number of this attempt, from 1",
}
_RESPONSES = {
    "2XX": "Taken. Nothing else is success; redirects are not followed.",
    "410": "Send nothing more: the subscription is paused.",
    "429": "Slow down: `Retry-After` (seconds or a date) holds the whole subscription, as 502 to 504 do.",
    "default": "Tried again later, in order, and at last given up as a dead letter.",
}


def _header(name: str, says: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": True, "description": says, "schema": {"type": "string"}}


def _operation(type_: str, model: type[Event]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {
        "operationId": type_.replace(".", "_"),
        "summary": model.__doc__,
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in _HEADERS],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {status: {"description": says} for status, says in _RESPONSES.items()},
    }
