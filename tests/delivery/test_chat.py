"""Messages for people: what is sent to each service, and what its answers mean."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.delivery.test_sentences import a_change, a_sample
from tests.support.builders import a_subscription
from tests.support.raw_subscribers import LOOPBACK
from watcher.delivery.breakers import SubscriptionBreakers
from watcher.delivery.chat import ChatTarget, target_of
from watcher.delivery.formats.services import SERVICES
from watcher.delivery.webhook import WebhookTarget
from watcher.engine.breaker import Answer
from watcher.journal.events import Delivery
from watcher.settings import FORMATS, Format, SubscriptionSettings

GOLDEN = Path(__file__).parents[1] / "data" / "formats"
KEY = "0123456789abcdef0123456789ABCDEF"
NEEDS: dict[str, dict[str, Any]] = {"telegram": {"chat": "-1001234567890"}, "pagerduty": {"routing_key": KEY}}
"""What the settings of a format cannot do without."""

EVENTS = {
    "deposit.cleared": a_change(),
    "account.stale": a_sample("account.stale"),
    "account.recovered": a_sample("account.recovered"),
    "subscription.paused": a_sample("subscription.paused"),
}


def a_chat(format_: str = "slack", **fields: Any) -> ChatTarget:
    given = {"name": "ops", "url": "http://127.0.0.1:8080/hook", "format": format_}
    return ChatTarget(
        SubscriptionSettings.model_validate({**given, **NEEDS.get(format_, {}), **fields}), LOOPBACK
    )


def sent(target: ChatTarget, *deliveries: Delivery) -> tuple[dict[str, str], bytes]:
    """The headers and the body of a request."""
    head, _, body = target.request(deliveries, 1, 0).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /hook HTTP/1.1"
    return dict(line.split(": ", 1) for line in lines[1:]), body


def text_of(format_: str, body: bytes) -> str:
    """The text of a message, escaped as it is."""
    if format_ == "ntfy":
        return body.decode()
    message = json.loads(body)
    match format_:
        case "slack" | "telegram":
            return str(message["text"])
        case "discord":
            return str(message["content"])
        case "pagerduty":
            return str(message["payload"]["summary"])
        case _:
            blocks = message["attachments"][0]["content"]["body"]
            return "\n".join(run["text"] for block in blocks for run in block["inlines"])


@pytest.mark.parametrize("format_", FORMATS)
def test_turns_are_spaced_by_the_rate_of_the_service(format_: Format) -> None:
    shared: Any = None  # nothing of it is asked
    alert: Any = None
    breakers = SubscriptionBreakers(shared, now_ms=lambda: 0, alert=alert, most=1)
    settings = a_subscription(format=format_)
    per_second = {"slack": 1, "discord": 2, "teams": 4, "telegram": 1, "ntfy": 0.2, "pagerduty": 2}
    assert breakers.spacing_ms(settings) == (1000 / per_second[format_] if format_ in per_second else 0)
    faster = settings.model_copy(update={"requests_per_second": 50.0})
    assert breakers.spacing_ms(faster) == 20, "what is configured wins"


def test_the_format_decides_the_kind_of_target() -> None:
    assert isinstance(target_of(a_subscription(), LOOPBACK), WebhookTarget)
    assert isinstance(target_of(a_chat().settings, LOOPBACK), ChatTarget)
    assert set(FORMATS) == {"standard", *SERVICES}


@pytest.mark.parametrize("format_", SERVICES)
def test_a_request_is_the_golden_one_byte_for_byte(format_: str) -> None:
    golden = json.loads((GOLDEN / f"{format_}.json").read_text())
    assert golden["source"].startswith("https://")
    assert golden["requests"].keys() == EVENTS.keys()
    for type_, request in golden["requests"].items():
        headers, body = sent(a_chat(format_), EVENTS[type_])
        expected = request["body"]
        assert body == (expected.encode() if isinstance(expected, str) else orjson.dumps(expected))
        assert headers.pop("content-length") == str(len(body))
        assert headers.pop("user-agent").startswith("watcher/")
        assert headers == {
            "Host": "127.0.0.1:8080",
            "accept": "*/*",
            **golden["headers"],
            **request["headers"],
        }


@pytest.mark.parametrize("format_", [name for name in SERVICES if name != "pagerduty"])
def test_a_message_has_a_line_for_each_delivery(format_: str) -> None:
    target = a_chat(format_)
    deliveries = [a_change(amount=str(number)) for number in range(3)]
    assert target.together(deliveries) == 3
    said = text_of(format_, sent(target, *deliveries)[1]).splitlines()
    assert said == [f"treasury: deposit cleared, +{number} LRC (total 112.5)" for number in range(3)]
    assert target.together(deliveries * 20) == 20


@pytest.mark.parametrize("format_", [name for name in SERVICES if name != "pagerduty"])
def test_fewer_go_together_rather_than_being_shortened(format_: str) -> None:
    words = "of {account} at {time}, as an operator wants to read it " * 4
    target = a_chat(format_, template="{amount} {asset}: " + words)
    deliveries = [a_change(amount=str(number)) for number in range(20)]
    count = target.together(deliveries)
    assert 1 < count < 20 or format_ == "teams"
    lines = text_of(format_, sent(target, *deliveries[:count])[1]).splitlines()
    assert len(lines) == count
    for number, line in enumerate(lines):
        assert line.replace("\\", "").startswith(f"+{number} LRC: of treasury at 2026-11-20 14")
        assert line.count("an operator wants") == 4


def test_a_pager_gets_one_event_at_a_time() -> None:
    assert a_chat("pagerduty").together([a_change(), a_change()]) == 1


def test_an_alert_and_its_end_have_the_same_key() -> None:
    stale, recovered, other, paused = (
        json.loads(sent(a_chat("pagerduty"), delivery)[1])
        for delivery in (
            *(
                a_change(f"account.{word}", since="2026-11-20T14:03:05.120Z")
                for word in ("stale", "recovered")
            ),
            a_change(),
            a_sample("subscription.paused"),
        )
    )
    assert (stale["event_action"], recovered["event_action"]) == ("trigger", "resolve")
    assert stale["dedup_key"] == recovered["dedup_key"] == "watcher account treasury"
    assert (other["event_action"], other["dedup_key"]) == ("trigger", "evt_1")
    assert (paused["event_action"], paused["dedup_key"]) == ("trigger", "watcher subscription sample")


def test_a_header_that_is_configured_wins_over_ours() -> None:
    headers, _ = sent(
        a_chat("ntfy", headers={"Priority": "min", "title": "watcher"}), a_sample("account.stale")
    )
    assert (headers["Priority"], headers["title"], headers["markdown"]) == ("min", "watcher", "no")
    assert "priority" not in headers


@pytest.mark.parametrize("format_", SERVICES)
def test_a_long_sentence_is_shortened_and_its_amounts_stay_whole(format_: str) -> None:
    amount = "9" * 59 + "." + "123456789012345678"
    wide = a_change(
        asset={"id": "x" * 128, "symbol": "&*" * 32}, amount=amount, after={"total": amount, "locked": "0"}
    )
    template = "{account} {amount} {asset} {asset_id}" + " {reason}{asset}{total}" * 20
    target, limit = a_chat(format_, template=template), SERVICES[format_].limit
    text = text_of(format_, sent(target, wide)[1])
    assert SERVICES[format_].size(text) <= limit
    assert amount in text.replace("\\", "")
    many = [wide] * 20
    count = target.together(many)
    text = text_of(format_, sent(target, *many[:count])[1])
    assert SERVICES[format_].size(text) <= limit
    assert text.replace("\\", "").count(amount) >= 2 * count


OK, GONE, FAILED, REJECTED = Answer.DELIVERED, Answer.GONE, Answer.FAILED, Answer.REJECTED
SAYS_NO = "its answer has status 200 and says that it failed"
ANSWERS = [
    ("slack", 200, "ok", OK, None),
    ("slack", 200, '{"ok":true}', OK, None),
    ("slack", 200, '{"ok":false,"error":"channel_not_found"}', GONE, "channel_not_found"),
    ("slack", 200, '{"ok":false}', FAILED, SAYS_NO),
    ("slack", 404, "channel_not_found", GONE, "channel_not_found"),
    ("slack", 404, "no_service\n", GONE, "no_service"),
    ("slack", 403, "action_prohibited", GONE, "action_prohibited"),
    ("slack", 403, "invalid_token", GONE, "invalid_token"),
    ("slack", 400, "user_not_found", GONE, "user_not_found"),
    ("slack", 410, "channel_is_archived", GONE, "channel_is_archived"),
    ("slack", 400, "invalid_payload", REJECTED, None),
    ("slack", 404, "<html>", FAILED, None),
    ("slack", 500, "rollup_error", FAILED, None),
    ("discord", 204, "", OK, None),
    ("discord", 404, '{"message": "Unknown Webhook", "code": 10015}', GONE, "unknown webhook"),
    ("discord", 401, '{"message": "Invalid Webhook Token", "code": 50027}', GONE, "invalid webhook token"),
    ("discord", 400, '{"message": "Invalid Form Body", "code": 50035, "errors": {}}', REJECTED, None),
    ("discord", 404, "[10015]", FAILED, None),
    ("teams", 202, "", OK, None),
    ("teams", 200, "1", OK, None),
    (
        *("teams", 400, '{"error":{"code":"WorkflowTriggerIsNotEnabled","message":"state \'Disabled\'"}}'),
        *(GONE, "WorkflowTriggerIsNotEnabled"),
    ),
    ("teams", 404, '{"error":{"code":"WorkflowNotFound"}}', GONE, "WorkflowNotFound"),
    ("teams", 400, '{"error":"no object"}', REJECTED, None),
    (
        *(
            "teams",
            200,
            "Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP ",
        ),
        *(FAILED, SAYS_NO),
    ),
    (
        "teams",
        200,
        "Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error 429 with "
        "ContextId tcid=0",
        Answer.SLOW_DOWN,
        "its answer has status 200 and says 429",
    ),
    ("telegram", 200, '{"ok":true,"result":{}}', OK, None),
    ("telegram", 401, '{"ok":false,"error_code":401,"description":"Unauthorized"}', GONE, "unauthorized"),
    ("telegram", 404, '{"ok":false,"error_code":404,"description":"Not Found"}', GONE, "not found"),
    ("telegram", 400, '{"ok":false,"description":"Bad Request: chat not found"}', GONE, "chat not found"),
    (
        *("telegram", 403, '{"ok":false,"description":"Forbidden: bot was blocked by the user"}'),
        *(GONE, "bot was blocked by the user"),
    ),
    ("telegram", 403, '{"ok":false,"description":"Forbidden: of another kind"}', GONE, "forbidden"),
    ("telegram", 400, '{"ok":false,"description":"Bad Request: message thread not found"}', REJECTED, None),
    ("telegram", 400, '{"ok":false,"description":"Bad Request: message is too long"}', REJECTED, None),
    ("telegram", 200, '{"ok":false}', FAILED, SAYS_NO),
    ("ntfy", 200, '{"id":"x","event":"message"}', OK, None),
    ("ntfy", 401, '{"code":40101,"http":401,"error":"unauthorized"}', GONE, "unauthorized"),
    ("ntfy", 403, '{"code":40301,"http":403,"error":"forbidden"}', GONE, "forbidden"),
    ("ntfy", 429, '{"code":42901,"http":429,"error":"limit reached"}', Answer.SLOW_DOWN, None),
    ("pagerduty", 202, '{"status":"success","message":"Event processed"}', OK, None),
    (
        *("pagerduty", 400, '{"status":"invalid event","errors":["Length of \'routing_key\' is incorrect"]}'),
        *(GONE, "invalid routing key"),
    ),
    ("pagerduty", 400, '{"message":"Invalid Routing Key"}', GONE, "invalid routing key"),
    ("pagerduty", 400, '{"status":"invalid event","errors":["\'severity\' is invalid"]}', REJECTED, None),
]


@pytest.mark.parametrize(("format_", "status", "body", "answer", "error"), ANSWERS)
def test_the_answers_of_each_service_are_understood(
    format_: str, status: int, body: str, answer: Answer, error: str | None
) -> None:
    reading = a_chat(format_).read(status, body.encode())
    assert (reading.answer, reading.error) == (answer, error)
    assert bool(reading.fix) == (answer is GONE)


@pytest.mark.parametrize("format_", SERVICES)
@pytest.mark.parametrize(
    ("status", "answer"),
    [(429, Answer.SLOW_DOWN), (503, Answer.OVERLOADED), (502, Answer.NO_ANSWER), (302, FAILED), (204, OK)],
)
@pytest.mark.parametrize("body", [b"", b"\xff", b"{", b"[]", b"null", b'{"parameters":1,"error":[]}'])
def test_an_answer_without_a_known_body_is_judged_by_its_status(
    format_: str, status: int, answer: Answer, body: bytes
) -> None:
    assert a_chat(format_).read(status, body).answer is answer


SAID = st.sampled_from(
    (
        "ok",
        "error",
        "code",
        "message",
        "errors",
        "description",
        "parameters",
        "retry_after",
        "migrate_to_chat_id",
    )
)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(
        ("channel_not_found", "Forbidden: x", "routing key", "10015", "WorkflowNotFound", "1e400")
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SAID, inner, max_size=4),
    max_leaves=8,
)


@given(said=ANYTHING, status=st.integers(200, 599))
def test_no_answer_is_too_odd_to_be_read(said: object, status: int) -> None:
    for format_ in SERVICES:
        reading = a_chat(format_).read(status, json.dumps(said).encode())
        assert reading.retry_after_s is None or 0 <= reading.retry_after_s <= 86_400
        assert reading.error is None or len(reading.error) < 60
        assert reading.answer is OK or status >= 300 or reading.error


@pytest.mark.parametrize(
    ("format_", "body", "asked_s"),
    [
        ("discord", b'{"message":"You are being rate limited.","retry_after":0.65,"global":false}', 0.65),
        ("telegram", b'{"ok":false,"error_code":429,"parameters":{"retry_after":35}}', 35.0),
        ("discord", b'{"retry_after":1e300}', 86_400.0),
        ("discord", b'{"retry_after":-1}', 0.0),
        ("discord", b'{"retry_after":"1"}', None),
        ("discord", b'{"retry_after":true}', None),
        ("telegram", b'{"parameters":{"retry_after":null}}', None),
    ],
)
def test_a_retry_after_in_the_body_is_read(format_: str, body: bytes, asked_s: float | None) -> None:
    reading = a_chat(format_).read(429, body)
    assert (reading.answer, reading.retry_after_s) == (Answer.SLOW_DOWN, asked_s)


def test_a_moved_group_names_its_new_id() -> None:
    body = (
        b'{"ok":false,"description":"Bad Request: group chat was upgraded to a supergroup chat","parameters":'
    )
    reading = a_chat("telegram").read(400, body + b'{"migrate_to_chat_id":-1002}}')
    assert (reading.answer, reading.fix) == (GONE, "write the new id of the group: chat = -1002")


def test_a_telegram_chat_is_a_number_or_a_channel() -> None:
    for chat, id_ in ((-100123, -100123), ("42", 42), ("@channel", "@channel")):
        _, body = sent(a_chat("telegram", chat=chat), a_change())
        assert json.loads(body)["chat_id"] == id_
