"""The verifier for receivers: each way to be invalid names its step, and nothing crashes it."""

import base64
import hashlib
import hmac
import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal, localcontext
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

import watcher.receive
from tests.support.fuzzing import tried
from tests.support.signed_webhooks import (
    NOW,
    OTHER_SECRET,
    PRIVATE,
    SECRET,
    Webhook,
    a_change,
    an_event,
    signed,
)
from watcher.delivery.signing import new_ed25519, public_key
from watcher.receive import Event, InvalidWebhook, Step, UnusableSecret, check_secrets, read_body, verify

PUBLIC = public_key(PRIVATE)
ZEROS = "v1," + "A" * 43 + "="


def received(webhook: Webhook, *secrets: str, now: float = NOW) -> Event:
    return verify(webhook.headers, webhook.body, secrets or SECRET, now=now)


def refusal(webhook: Webhook, *secrets: str, now: float = NOW) -> InvalidWebhook:
    with pytest.raises(InvalidWebhook) as error:
        received(webhook, *secrets, now=now)
    return error.value


def test_a_genuine_webhook_is_its_event() -> None:
    assert received(signed()) == an_event()


def test_a_webhook_signed_with_plain_hmac_is_genuine() -> None:
    key, body = base64.b64decode(SECRET.removeprefix("whsec_")), b'{"id":"evt_9"}'
    digest = hmac.new(key, b"evt_9.%d." % NOW + body, hashlib.sha256).digest()
    headers = {
        "webhook-id": "evt_9",
        "webhook-timestamp": str(NOW),
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }
    assert verify(headers, body, SECRET, now=NOW) == {"id": "evt_9"}


@pytest.mark.parametrize("spelled", [str.upper, str.title, str.lower])
def test_header_names_are_read_in_any_case(spelled: Callable[[str], str]) -> None:
    webhook = signed()
    headers = {spelled(name): value for name, value in webhook.headers.items()}
    assert verify(headers, webhook.body, SECRET, now=NOW) == an_event()
    assert verify(CIMultiDict(headers), webhook.body, SECRET, now=NOW) == an_event()


def test_now_defaults_to_the_clock() -> None:
    with pytest.raises(InvalidWebhook) as error:
        verify(*signed(at=1_614_265_330), SECRET)
    assert error.value.step is Step.TOO_OLD


@pytest.mark.parametrize(
    ("webhook", "step"),
    [
        (signed().but(id=None), Step.MISSING_HEADER),
        (signed().but(timestamp=None), Step.MISSING_HEADER),
        (signed().but(signature=None), Step.MISSING_HEADER),
        (signed().but(signature=""), Step.MISSING_HEADER),
        (signed().but(id="evt_1.1"), Step.MALFORMED_ID),
        (signed().but(id="evt 1"), Step.MALFORMED_ID),
        (signed().but(id="evt_\udc80"), Step.MALFORMED_ID),
        (signed().but(id="evt_1\n"), Step.MALFORMED_ID),
        (signed().but(timestamp=f"{NOW}.0"), Step.MALFORMED_TIMESTAMP),
        (signed().but(timestamp=f"+{NOW}"), Step.MALFORMED_TIMESTAMP),
        (signed().but(timestamp=f"{NOW}\n"), Step.MALFORMED_TIMESTAMP),
        (signed().but(timestamp="1_795_175_095"), Step.MALFORMED_TIMESTAMP),
        (signed().but(timestamp="\uff11795175095"), Step.MALFORMED_TIMESTAMP),
        (signed().but(timestamp="9" * 5000), Step.MALFORMED_TIMESTAMP),
        (signed().but(timestamp="nan"), Step.MALFORMED_TIMESTAMP),
        (signed(at=NOW - 301), Step.TOO_OLD),
        (signed(at=NOW + 301), Step.TOO_NEW),
        (signed().but(signature="v1"), Step.MALFORMED_SIGNATURE),
        (signed().but(signature="v1,"), Step.MALFORMED_SIGNATURE),
        (signed().but(signature="v2," + "A" * 43 + "="), Step.MALFORMED_SIGNATURE),
        (signed().but(signature="v1," + "é" * 44), Step.MALFORMED_SIGNATURE),
        (signed().but(signature=ZEROS), Step.NO_MATCH),
        (signed().but(id="evt_2"), Step.NO_MATCH),
        (signed().but(timestamp=str(NOW + 1)), Step.NO_MATCH),
        (signed()._replace(body=signed().body + b"\n"), Step.NO_MATCH),
        (signed(None, OTHER_SECRET), Step.NO_MATCH),
        (signed(None, PRIVATE), Step.NO_MATCH),
        (signed(b"not json"), Step.NOT_JSON),
        (signed(b'{"amount": NaN}'), Step.NOT_JSON),
        (signed(b"[1]"), Step.NOT_JSON),
        (signed(b"\xff\xfe"), Step.NOT_JSON),
        (signed(b""), Step.NOT_JSON),
        (signed(b"[" * 100_000), Step.NOT_JSON),
        (signed(b'{"n": %s}' % (b"9" * 5000)), Step.NOT_JSON),
        (signed(b'{"n": 1e99999999999999999999}'), Step.NOT_JSON),
    ],
)
def test_each_way_to_be_invalid_names_its_step(webhook: Webhook, step: Step) -> None:
    problem = refusal(webhook)
    assert problem.step is step
    assert problem.status == 400


@pytest.mark.parametrize("at", [NOW - 300, NOW + 300])
def test_clocks_may_differ_by_five_minutes(at: int) -> None:
    assert received(signed(at=at)) == an_event()


def test_the_tolerance_may_be_chosen() -> None:
    webhook = signed(at=NOW - 11)
    assert verify(*webhook, SECRET, now=NOW, tolerance_s=11)
    with pytest.raises(InvalidWebhook, match="11 s ago, at most 10 s"):
        verify(*webhook, SECRET, now=NOW, tolerance_s=10)


@pytest.mark.parametrize("also", ["v1", "v2,abc", "v1,short", "", ",", "v1,v1,v1", "v1a,AAAA", ZEROS])
def test_other_signatures_beside_a_valid_one_do_not_matter(also: str) -> None:
    webhook = signed()
    signature = webhook.headers["webhook-signature"]
    assert received(webhook.but(signature=f"{also} {signature}"))
    assert received(webhook.but(signature=f"{signature} {also}"))


def test_a_valid_signature_behind_too_many_others_is_not_found() -> None:
    webhook = signed()
    crowd = " ".join([*[ZEROS] * 32, webhook.headers["webhook-signature"]])
    assert refusal(webhook.but(signature=crowd)).step is Step.NO_MATCH


def test_during_a_rotation_old_and_new_receivers_both_verify_and_afterwards_only_the_new_one() -> None:
    during, after = signed(None, OTHER_SECRET, SECRET), signed(None, OTHER_SECRET)
    assert received(during, SECRET) == received(during, OTHER_SECRET) == received(after, OTHER_SECRET)
    assert refusal(after, SECRET).step is Step.NO_MATCH


def test_a_receiver_that_rotates_first_gives_both_secrets() -> None:
    assert received(signed(None, SECRET), OTHER_SECRET, SECRET)
    assert received(signed(None, OTHER_SECRET), OTHER_SECRET, SECRET)


def test_a_signature_of_a_private_key_verifies_with_its_public_key() -> None:
    webhook = signed(None, PRIVATE)
    assert received(webhook, PUBLIC) == an_event()
    assert received(webhook, SECRET, PUBLIC) == an_event()
    assert refusal(webhook._replace(body=b"{}"), PUBLIC).step is Step.NO_MATCH
    assert refusal(webhook, public_key(new_ed25519())).step is Step.NO_MATCH


def test_a_signature_of_one_scheme_does_not_count_for_the_other() -> None:
    shared_alone, private_alone = signed(None, SECRET), signed(None, PRIVATE)
    assert "signed as v1, 1 in all; verified as v1a" in str(refusal(shared_alone, PUBLIC))
    assert "signed as v1a, 1 in all; verified as v1 " in str(refusal(private_alone, SECRET))


def test_a_seen_event_is_a_duplicate_and_is_answered_with_200() -> None:
    with pytest.raises(InvalidWebhook) as error:
        verify(*signed(), SECRET, now=NOW, seen={"evt_1"}.__contains__)
    assert error.value.step is Step.DUPLICATE
    assert error.value.status == 200
    assert error.value.event == an_event()
    assert verify(*signed(event_id="evt_2"), SECRET, now=NOW, seen={"evt_1"}.__contains__)


def test_only_genuine_ids_are_asked_for() -> None:
    asked: list[str] = []

    def seen(event_id: str) -> bool:
        asked.append(event_id)
        return False

    for webhook in (signed().but(signature=ZEROS), signed(b"not json"), signed()):
        try:
            verify(*webhook, SECRET, now=NOW, seen=seen)
        except InvalidWebhook:
            continue
    assert asked == ["evt_1"]


@pytest.mark.parametrize(
    ("secrets", "why"),
    [
        ([], "no secret"),
        ("", "no"),
        (["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], "neither whsec_ nor whpk_"),
        ([SECRET, PRIVATE], "verify with its whpk_"),
        (["whsec_AAAA"], "3 bytes, it must be 24 to 64"),
        (["whsec_" + "ü" * 40], "not base64"),
        (["whpk_AAAA"], "3 bytes, it must be 32"),
    ],
)
def test_a_bad_secret_is_reported_whatever_the_webhook(secrets: str | list[str], why: str) -> None:
    with pytest.raises(UnusableSecret, match=why):
        verify({}, b"", secrets)
    with pytest.raises(UnusableSecret, match=why):
        check_secrets(secrets)


def test_without_cryptography_a_public_key_says_what_to_install_beside_a_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(UnusableSecret, match=r"^whpk_ keys need cryptography: pip install cryptography$"):
        check_secrets(PUBLIC)


def test_a_parsed_body_is_the_receivers_mistake() -> None:
    with pytest.raises(TypeError, match="as they came"):
        verify({}, json.dumps(an_event()), SECRET)  # type: ignore[arg-type]


def test_amounts_add_up_exactly_as_the_documentation_shows() -> None:
    widest = f"{2**256 - 1}.{'0' * 77}1"
    event = received(signed(an_event(data=a_change(effect={"total": widest}))))
    with localcontext(prec=160):
        balance = Decimal(0) + Decimal(event["data"]["effect"]["total"])
    assert f"{balance:f}" == widest


def test_numbers_with_a_point_are_exact_too() -> None:
    assert read_body(b'{"n": 0.1, "m": 123456789012345678901234567890}') == {
        "n": Decimal("0.1"),
        "m": 123456789012345678901234567890,
    }


def test_no_message_quotes_anything_from_outside() -> None:
    marked = signed().but(id="canary.", timestamp="canary", signature="canary")
    for webhook in (marked, marked.but(id="canary"), marked.but(id="canary", timestamp=str(NOW))):
        assert "canary" not in str(refusal(webhook))
    assert "canary" not in str(refusal(signed(b"canary")))


IDS = st.just("evt_1") | st.text(max_size=20)
TIMESTAMPS = st.just(str(NOW)) | st.integers(NOW - 400, NOW + 400).map(str) | st.text(max_size=20)
TOKENS = st.tuples(
    st.sampled_from(["v1", "v1a", "v2", ""]), st.binary(max_size=66).map(base64.b64encode)
).map(lambda token: f"{token[0]},{token[1].decode()}")
SIGNATURES = st.lists(TOKENS | st.text(max_size=20), max_size=4).map(" ".join)


@tried(100)
@given(IDS, TIMESTAMPS, SIGNATURES, st.binary(max_size=50))
def test_no_header_and_no_body_raises_anything_else(
    event_id: str, timestamp: str, signature: str, body: bytes
) -> None:
    headers = {"webhook-id": event_id, "webhook-timestamp": timestamp, "webhook-signature": signature}
    with pytest.raises(InvalidWebhook):
        verify(headers, body, [SECRET, PUBLIC], now=NOW)


def test_ten_thousand_mangled_headers_never_verify_and_never_crash() -> None:
    chance = random.Random(20261120)
    webhook = signed(None, SECRET, PRIVATE)
    for _ in range(10_000):
        name = chance.choice(list(webhook.headers))
        mangled = webhook.headers | {name: mangle(webhook.headers[name], chance)}
        if mangled == webhook.headers:
            continue
        try:
            event = verify(mangled, webhook.body, [SECRET, PUBLIC], now=NOW)
        except InvalidWebhook:
            continue
        # One of the two signatures was mangled and the other one was left whole: that is genuine.
        kept = set(mangled["webhook-signature"].split(" "))
        assert kept & set(webhook.headers["webhook-signature"].split(" "))
        assert (name, event) == ("webhook-signature", an_event())


def mangle(text: str, chance: random.Random) -> str:
    """Replace, drop, insert or repeat up to three times, with characters that are worth a try."""
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(text) + 1)
        odd = chance.choice(
            ["", " ", ",", ".", "\0", "\n", "=", "ä", "1", "\udc80", "\ud800", "v1,", text[at:]]
        )
        text = text[:at] + odd + text[at + chance.randint(0, 2) :]
    return text


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
@pytest.mark.parametrize("value", [None, "", b"", 7, [], [None], {"value": "v1,"}, [["v1,"]]])
def test_header_values_that_are_no_text_count_as_missing(name: str, value: object) -> None:
    headers: dict[str, Any] = signed().headers | {name: value}
    with pytest.raises(InvalidWebhook) as error:
        verify(headers, signed().body, SECRET, now=NOW)
    assert error.value.step is Step.MISSING_HEADER


def as_wsgi(headers: dict[str, str]) -> dict[str, object]:
    environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
    return {"REQUEST_METHOD": "POST", "wsgi.input": io.BytesIO(), "wsgi.version": (1, 0), **environ}


def as_message(headers: dict[str, str]) -> Message:
    message = Message()
    for name, value in headers.items():
        message[name.title()] = value
    return message


SHAPES: dict[str, Callable[[dict[str, str]], Any]] = {
    "list values": lambda headers: {name: [value] for name, value in headers.items()},
    "tuple values": lambda headers: {name.title(): (value,) for name, value in headers.items()},
    "a value twice": lambda headers: {name: [value, value] for name, value in headers.items()},
    "WSGI environ": as_wsgi,
    "ASGI pairs": lambda headers: [(name.encode(), value.encode()) for name, value in headers.items()],
    "ASGI dict": lambda headers: {name.encode(): value.encode() for name, value in headers.items()},
    "ASGI lists": lambda headers: [[name.encode(), value.encode()] for name, value in headers.items()],
    "pairs of text": lambda headers: iter(headers.items()),
    "http.server": as_message,
    "multidict": CIMultiDict,
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("body_type", [bytes, bytearray, memoryview])
def test_headers_and_body_are_accepted_in_the_types_of_every_framework(
    shape: Callable[[dict[str, str]], Any], body_type: Callable[[bytes], bytes]
) -> None:
    webhook = signed()
    assert verify(shape(webhook.headers), body_type(webhook.body), SECRET, now=NOW) == an_event()
    assert read_body(body_type(webhook.body)) == an_event()
    forged = shape(webhook.but(signature=ZEROS).headers)
    with pytest.raises(InvalidWebhook) as error:
        verify(forged, body_type(webhook.body), SECRET, now=NOW)
    assert error.value.step is Step.NO_MATCH


@pytest.mark.parametrize(
    "secrets",
    [
        SECRET.encode(),
        [SECRET.encode()],
        (OTHER_SECRET, SECRET.encode()),
        {SECRET},
        bytearray(SECRET, "ascii"),
    ],
)
def test_a_secret_may_be_bytes(secrets: Any) -> None:
    check_secrets(secrets)
    assert verify(*signed(), secrets, now=NOW) == an_event()


@pytest.mark.parametrize("secrets", [[None], [7], 7, b"\xff" * 40, [b"whsec_\xff" * 9]])
def test_a_secret_that_is_no_text_is_the_receivers_mistake(secrets: Any) -> None:
    for use in (check_secrets, lambda given: verify(*signed(), given, now=NOW)):
        with pytest.raises(UnusableSecret):
            use(secrets)


@pytest.mark.parametrize(
    "headers", [None, 7, "webhook-id: evt_1", b"webhook-id", ["webhook-id"], [("a", "b", "c")], [7]]
)
def test_headers_that_are_neither_a_mapping_nor_pairs_are_the_receivers_mistake(headers: Any) -> None:
    with pytest.raises(TypeError, match="headers must be a mapping, or pairs"):
        verify(headers, b"{}", SECRET)


@pytest.mark.parametrize("body", ["text", None, {}, 7, ["{}"], io.BytesIO(b"{}")])
def test_a_body_of_any_other_type_is_the_receivers_mistake(body: Any) -> None:
    with pytest.raises(TypeError, match="as they came"):
        verify(signed().headers, body, SECRET)


@pytest.mark.parametrize(
    ("name", "step"),
    [("webhook-id", Step.MALFORMED_ID), ("webhook-timestamp", Step.MALFORMED_TIMESTAMP)],
)
def test_two_ids_or_times_that_differ_are_refused_and_two_signature_headers_are_one(
    name: str, step: Step
) -> None:
    webhook = signed()
    twice = [*webhook.headers.items(), (name, str(NOW + 1))]
    with pytest.raises(InvalidWebhook) as error:
        verify(twice, webhook.body, SECRET, now=NOW)
    assert error.value.step is step
    assert verify([("webhook-signature", ZEROS), *webhook.headers.items()], webhook.body, SECRET, now=NOW)


@pytest.mark.parametrize("signature", [ZEROS, "v1,", "x", ""])
def test_a_header_of_two_hundred_thousand_signatures_costs_nothing(signature: str) -> None:
    webhook = signed().but(signature=" ".join([signature] * 200_000))
    began = time.process_time()
    assert refusal(webhook).step in (Step.NO_MATCH, Step.MALFORMED_SIGNATURE)
    assert time.process_time() - began < 0.1


SHAPED = st.recursive(
    st.none()
    | st.integers()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.just("evt_1")
    | st.just(str(NOW)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=3), inner)
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(["webhook-id", b"Webhook-Timestamp", "HTTP_WEBHOOK_SIGNATURE"]) | st.text(max_size=5)


@tried(100)
@given(
    SHAPED | st.lists(st.tuples(NAMES, SHAPED), max_size=4) | st.dictionaries(NAMES, SHAPED, max_size=4),
    SHAPED,
    SHAPED,
)
def test_no_type_of_headers_body_or_secrets_raises_anything_else(
    headers: Any, body: Any, secrets: Any
) -> None:
    for given_body, given_secrets in ((b"{}", [SECRET]), (body, [SECRET]), (b"{}", secrets)):
        with pytest.raises((InvalidWebhook, UnusableSecret, TypeError)):
            verify(headers, given_body, given_secrets, now=NOW)


def test_it_works_as_a_copy_outside_of_watcher(tmp_path: Path) -> None:
    source = Path(watcher.receive.__file__).read_text()
    (tmp_path / "copied_receive.py").write_text(source)
    webhook = signed()
    code = (
        "import sys; sys.modules['watcher'] = sys.modules['cryptography'] = None; import copied_receive;"
        f"print(copied_receive.verify({webhook.headers!r}, {webhook.body!r}, {SECRET!r}, now={NOW})['id'])"
    )
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    shown = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    ).stdout
    assert shown.strip() == "evt_1"
