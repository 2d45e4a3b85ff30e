"""Signatures verify elsewhere: the published vectors, the official library, OpenSSL."""

import base64
import hashlib
import hmac
import re
import shutil
import subprocess
import sys
import time

import pytest
import standardwebhooks
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from tests.support.signed_webhooks import NOW, OTHER_SECRET, PRIVATE, SECRET, signed
from watcher.delivery.signing import BadSecret, Signer, new_ed25519, new_secret, public_key

# The vectors of libraries/go/webhook_{symmetric,asymmetric}_test.go in standard-webhooks/standard-webhooks
VECTOR = ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
VECTOR_V1 = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
VECTOR_V1A = "v1a,tQ9V2XOqn7jL/DQenEFpqIugdBVtiMmER5mhSkXBNwM0mkATuDe6KYYUuxqtaiHeYGb7KaaBRdM5WqyeFiL8Ag=="
CONTENT = b'msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}'


def shared(length: int) -> str:
    return "whsec_" + base64.b64encode(b"k" * length).decode()


def private(key: bytes) -> str:
    return "whsk_" + base64.b64encode(key).decode()


@pytest.mark.parametrize(("secret", "signature"), [(SECRET, VECTOR_V1), (PRIVATE, VECTOR_V1A)])
def test_the_published_test_vectors_are_reproduced(secret: str, signature: str) -> None:
    assert Signer([secret]).signature(*VECTOR) == signature


def test_the_official_library_verifies_what_we_sign() -> None:
    webhook = signed(at=int(time.time()))  # the library looks at the clock itself
    assert standardwebhooks.Webhook(SECRET).verify(webhook.body, webhook.headers)["id"] == "evt_1"


def test_the_official_library_refuses_what_another_secret_signed() -> None:
    webhook = signed(None, OTHER_SECRET, at=int(time.time()))
    with pytest.raises(standardwebhooks.WebhookVerificationError, match="No matching signature"):
        standardwebhooks.Webhook(SECRET).verify(webhook.body, webhook.headers)


@pytest.mark.skipif(not shutil.which("openssl"), reason="the openssl command is not installed")
def test_openssl_makes_the_same_signature() -> None:
    key = base64.b64decode(SECRET.removeprefix("whsec_")).hex()
    command = ["openssl", "dgst", "-sha256", "-binary", "-mac", "HMAC", "-macopt", f"hexkey:{key}"]
    digest = subprocess.run(command, input=CONTENT, capture_output=True, check=True).stdout
    assert Signer([SECRET]).signature(*VECTOR) == "v1," + base64.b64encode(digest).decode()


@given(st.binary(min_size=24, max_size=64), st.integers(0, 2**40), st.binary(max_size=2000))
def test_any_key_and_body_sign_as_plain_hmac_does(key: bytes, timestamp: int, body: bytes) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    expected = hmac.new(key, b"evt_1." + str(timestamp).encode() + b"." + body, hashlib.sha256).digest()
    assert Signer([secret]).signature("evt_1", timestamp, body) == "v1," + base64.b64encode(expected).decode()


def test_each_secret_signs_in_its_order() -> None:
    alone = [Signer([secret]).signature(*VECTOR) for secret in (OTHER_SECRET, PRIVATE, SECRET)]
    assert Signer([OTHER_SECRET, PRIVATE, SECRET]).signature(*VECTOR).split(" ") == alone


def test_a_signer_signs_again_as_it_did_before() -> None:
    signer = Signer([SECRET, PRIVATE])
    first = signer.signature(*VECTOR)
    signer.signature("evt_2", NOW, b"something else")
    assert signer.signature(*VECTOR) == first


def test_a_private_key_is_read_with_and_without_its_public_half() -> None:
    seed = bytes(range(32))
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    assert Signer([private(seed + public)]).signature(*VECTOR) == Signer([private(seed)]).signature(*VECTOR)


def test_a_private_key_with_a_foreign_public_half_is_refused() -> None:
    with pytest.raises(BadSecret, match="do not belong together"):
        Signer([private(bytes(64))])


@pytest.mark.parametrize("length", [24, 64])
def test_shared_keys_of_24_to_64_bytes_are_taken(length: int) -> None:
    assert Signer([shared(length)]).signature(*VECTOR).startswith("v1,")


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        (shared(23), "23 bytes, it must be 24 to 64"),
        (shared(65), "65 bytes, it must be 24 to 64"),
        ("whsec_", "0 bytes"),
        (private(b"k" * 31), "31 bytes, it must be 32 or 64"),
        (private(b"k" * 48), "48 bytes, it must be 32 or 64"),
        (shared(32)[:-1], "not base64"),
        ("whsec_" + "_-" * 20, "not base64"),
        ("whsec_" + "ü" * 40, "not base64"),
        (shared(32) + "\n", "not base64"),
        ("whpk_" + "A" * 43 + "=", "cannot sign"),
        ("**********", "neither whsec_ nor whsk_"),
        ("", "neither whsec_ nor whsk_"),
    ],
)
def test_a_bad_secret_is_refused_without_being_shown(secret: str, why: str) -> None:
    with pytest.raises(BadSecret, match=why) as refusal:
        Signer([SECRET, secret])
    key = re.sub("^wh[a-z]+_", "", secret)
    assert not key or key not in str(refusal.value)


def test_a_signer_without_secrets_cannot_be_made() -> None:
    with pytest.raises(BadSecret, match="no secret"):
        Signer([])


def test_an_id_with_a_dot_is_not_signed() -> None:
    with pytest.raises(ValueError, match="ambiguous"):
        Signer([SECRET]).signature("evt_1.2", NOW, b"{}")


def test_a_repr_says_how_many_secrets_and_no_more() -> None:
    assert repr(Signer([SECRET, PRIVATE])) == "Signer(<2 secrets>)"


def test_new_secrets_are_32_bytes_and_never_the_same() -> None:
    made = {new_secret() for _ in range(100)} | {new_ed25519() for _ in range(100)}
    assert len(made) == 200
    assert {len(base64.b64decode(secret.partition("_")[2])) for secret in made} == {32}


def test_new_secrets_sign() -> None:
    signatures = Signer([new_secret(), new_ed25519()]).signature(*VECTOR).split(" ")
    assert [signature.partition(",")[0] for signature in signatures] == ["v1", "v1a"]


def test_only_private_keys_have_a_public_one() -> None:
    with pytest.raises(BadSecret, match="only a whsk_"):
        public_key(SECRET)


def test_without_cryptography_a_private_key_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)
    with pytest.raises(BadSecret, match=r"pip install 'balance-watcher\[ed25519\]'$"):
        Signer([PRIVATE])


def test_shared_secrets_do_not_need_cryptography() -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None; from watcher.delivery.signing import Signer;"
        f"print(Signer([{SECRET!r}]).signature{VECTOR!r})"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == VECTOR_V1
