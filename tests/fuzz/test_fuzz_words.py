"""Single values from outside: URLs, headers, durations, Retry-After, secrets. Rejected, or bounded."""

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import assume, example
from hypothesis import strategies as st

from tests.support.builders import SECRET
from tests.support.fuzzing import (
    can_be_shown,
    damaged,
    damaged_text,
    fuzz,
    json_objects,
    scalars,
    text_objects,
    texts,
)
from tests.support.signed_webhooks import NOW, PRIVATE, signed
from watcher.config.tables import (
    event_flaw,
    glob_flaw,
    header_flaws,
    mask_flaw,
    redis_url_flaw,
    signing_secret_flaw,
)
from watcher.delivery.egress import Policy, RefusedUrl, check_url
from watcher.delivery.signing import BadSecret, Signer, public_key
from watcher.delivery.sink import LONGEST_RETRY_AFTER_S, Attempt, Outcome, judge
from watcher.durations import parse_duration, retry_after_s
from watcher.engine.breaker import Answer
from watcher.receive import InvalidWebhook, UnusableSecret, check_secrets, verify
from watcher.store.address import check_address, safe_url
from watcher.store.client import connect
from watcher.store.exceptions import ConfigurationRefused, StoreError
from watcher.store.guarantee import judge as judge_server

URL = "https://ops.example.com:8443/hooks/balances?token=a%20b"
REDIS_URL = "rediss://me:pass%40word@db.example.com:7000/3?ssl_cert_reqs=none&db=2"
POLICIES = st.sampled_from([Policy(), Policy(allow_http=True, nat64=True)])
AT = datetime(2026, 11, 20, 14, 3, 5, tzinfo=UTC)
RETRIES = tuple(map(parse_duration, ("0s", "5s", "24h")))
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")


@fuzz(damaged_text(URL) | texts.map("https://{}/".format) | texts, POLICIES)
def test_any_url_is_refused_or_can_be_sent_as_it_is(text: str, policy: Policy) -> None:
    try:
        url = check_url(text, policy)
    except RefusedUrl as refused:
        can_be_shown(refused)
        return
    assert f"{url.raw_host}{url.raw_path_qs}".isascii()
    assert not re.search(r"[\s\x00-\x20\x7f]", f"{url.raw_host}{url.raw_path_qs}")
    assert str(check_url(str(url), policy)) == str(url)  # a port that goes without saying is not compared


@example("rediss://me@\x1fdb.example.com")
@fuzz(damaged_text(REDIS_URL) | texts)
def test_any_address_of_redis_is_refused_or_makes_a_client(text: str) -> None:
    assert safe_url(text).isprintable()
    try:
        check_address(text)
    except ConfigurationRefused as refused:
        can_be_shown(refused)
    else:
        connect(text)
    assert isinstance(redis_url_flaw(text), str | None)


@fuzz(damaged({"x-team": "money", "authorization": "Bearer a", "x": "1"}, "Host", "x-Team") | json_objects())
def test_any_headers_are_refused_or_can_be_sent(headers: dict[str, Any]) -> None:
    if list(header_flaws(headers)):
        return
    for name, value in headers.items():
        assert TOKEN.match(name)
        assert not isinstance(value, str) or re.fullmatch(r"[\x20-\x7e]+", value)


@fuzz(texts | damaged_text("deposit.*") | damaged_text("[a-z]?*"))
def test_any_glob_and_any_mask_is_judged(text: str) -> None:
    for flaw in (glob_flaw, event_flaw, mask_flaw):
        assert isinstance(flaw(text), str | None)


@fuzz(scalars | damaged_text("250ms") | st.from_regex(r"[0-9]{1,12}(ms|s|m|h|d)", fullmatch=True))
def test_any_duration_is_refused_or_within_a_year(value: Any) -> None:
    with suppress(ValueError):
        assert timedelta(0) <= parse_duration(value) <= timedelta(days=366)


@fuzz(texts | damaged_text("Fri, 20 Nov 2026 14:03:05 GMT") | st.from_regex(r"[0-9]{1,25}", fullmatch=True))
def test_any_retry_after_is_bounded_or_none(header: str) -> None:
    wish_s = retry_after_s(header, AT, most_s=900)
    assert wish_s is None or 0 <= wish_s <= 900


@fuzz(
    st.builds(
        Attempt,
        st.sampled_from([*Answer]),
        st.integers(0, 10**6),
        status=st.none() | st.integers(-1, 1000),
        error=st.none() | texts,
        retry_after_s=st.none() | st.floats(0, LONGEST_RETRY_AFTER_S),
    ),
    st.integers(0, 10**15),
    st.floats(0, 1),
)
def test_any_attempt_is_judged_within_bounds(attempt: Attempt, failed_before: int, chance: float) -> None:
    verdict = judge(attempt, failed_before, RETRIES, chance=chance)
    assert (verdict.outcome is Outcome.DELIVERED) == (attempt.answer is Answer.DELIVERED)
    longest_ms = 1000 * 86_400 * 1.1
    assert 0 <= verdict.wait_ms <= longest_ms


@fuzz(texts | damaged_text(SECRET) | damaged_text(PRIVATE) | damaged_text(public_key(PRIVATE)))
def test_any_secret_signs_or_is_refused(text: str) -> None:
    try:
        Signer([text])
    except BadSecret as refused:
        can_be_shown(refused)
    assert isinstance(signing_secret_flaw(text), str | None)
    with suppress(UnusableSecret):
        check_secrets(text)


@fuzz(damaged_text(SECRET), st.binary(max_size=30))
def test_what_signs_for_the_sender_verifies_for_the_receiver(secret: str, content: bytes) -> None:
    try:
        signer = Signer([secret])
    except BadSecret:
        return
    body = b'{"a":"' + content.hex().encode() + b'"}'
    signature = signer.signature("evt_1", NOW, body)
    headers = {"webhook-id": "evt_1", "webhook-timestamp": str(NOW), "webhook-signature": signature}
    assert verify(headers, body, secret, now=NOW)


GENUINE, BODY = signed(None, SECRET, PRIVATE)
KEYS = [SECRET, public_key(PRIVATE)]


@fuzz(text_objects(*GENUINE), st.binary(max_size=20))
def test_no_headers_crash_or_deceive_a_receiver(headers: dict[str, str], body: bytes) -> None:
    with suppress(InvalidWebhook):
        raise AssertionError(verify(headers, body, KEYS, now=NOW))


@fuzz(st.sampled_from(sorted(GENUINE)), st.data())
def test_no_damaged_webhook_verifies(name: str, data: st.DataObject) -> None:
    value = data.draw(damaged_text(GENUINE[name]))
    # A signature among others that mean nothing is a signature.
    is_still_there = name == "webhook-signature" and set(value.split(" ")) & set(GENUINE[name].split(" "))
    assume(value != GENUINE[name] and not is_still_there)
    with suppress(InvalidWebhook):
        raise AssertionError(verify({**GENUINE, name: value}, BODY, KEYS, now=NOW))


INFO = {
    "redis_version": "7.2.4",
    "redis_mode": "standalone",
    "cluster_enabled": 0,
    "role": "master",
    "loading": 0,
    "aof_enabled": 1,
    "maxmemory": 1,
    "maxmemory_policy": "allkeys-lru",
    "connected_slaves": 1,
}
CONFIG = {"appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction"}


@example({"connected_slaves": "many", "maxmemory": "", "maxmemory_policy": {}}, {})
@fuzz(damaged(INFO, "valkey_version", "server_mode") | json_objects(*INFO), text_objects(*CONFIG))
def test_any_answer_of_a_server_about_itself_is_a_guarantee_or_a_refusal(
    info: dict[str, Any], config: dict[str, str]
) -> None:
    with suppress(StoreError):
        assert judge_server(info, config, at="db").sentence.isprintable()
