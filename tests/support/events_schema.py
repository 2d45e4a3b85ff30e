"""Compares what is sent with the published catalogue of events."""

import json

from watcher.schema import MODEL_BY_TYPE


def assert_valid(body: bytes) -> None:
    """Fail unless `body` is an event as `watcher schema events` describes it, to the last bound."""
    said = json.loads(body)
    assert said["type"] in MODEL_BY_TYPE, f"{said['type']} is not in the catalogue"
    MODEL_BY_TYPE[said["type"]].model_validate_json(body, strict=True)
