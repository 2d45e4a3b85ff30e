"""The encrypted part of a record decrypts with its key, under its own name, and nowhere else."""

import base64
import sys
from typing import Any

import pytest

from watcher.encryption import PREFIX, BadKey, Keyring, Locked, NoCipher, Undecryptable, check_key, new_key

KEY, OTHER = (PREFIX + base64.b64encode(bytes([number] * 32)).decode() for number in (1, 2))
PLAIN = {"accounts": ["treasury"], "events": ["deposit.*"]}
CONTENT = {"settings": {"url": "https://ops.example.com/canary"}, "secrets": [{"until_ms": None}]}


def keyring(*keys: str, namespace: str = "watcher") -> Keyring:
    return Keyring(keys or (KEY,), namespace)


def encrypted(ring: Keyring) -> bytes:
    return ring.encrypt("subscription", "ops", PLAIN, CONTENT)


def opened(ring: Keyring, text: bytes, **place: Any) -> dict[str, Any]:
    where: dict[str, Any] = {"kind": "subscription", "name": "ops", "plain": PLAIN, **place}
    return ring.decrypt(where["kind"], where["name"], where["plain"], text)


def test_encrypted_content_can_be_decrypted_and_shows_nothing() -> None:
    text = encrypted(keyring())
    assert opened(keyring(), text) == CONTENT
    assert opened(keyring(), text, plain=dict(reversed(PLAIN.items()))) == CONTENT
    assert b"canary" not in text
    assert b"secrets" not in text


def test_the_same_content_is_never_encrypted_to_the_same_bytes() -> None:
    assert len({encrypted(keyring()) for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "place", [{"kind": "account"}, {"name": "ops2"}, {"plain": {**PLAIN, "accounts": ["*"]}}]
)
def test_a_record_decrypts_only_under_its_own_name(place: dict[str, Any]) -> None:
    with pytest.raises(Undecryptable, match="changed, or moved from another record"):
        opened(keyring(), encrypted(keyring()), **place)


def test_a_record_does_not_decrypt_in_another_namespace() -> None:
    with pytest.raises(Undecryptable):
        opened(keyring(namespace="other"), encrypted(keyring()))


def test_a_changed_or_truncated_record_does_not_decrypt() -> None:
    ring, text = keyring(), encrypted(keyring())
    for place in range(len(text)):
        flipped = bytes([*text[:place], text[place] ^ 1, *text[place + 1 :]])
        for broken in (flipped, text[:place]):
            with pytest.raises(Undecryptable) as refused:
                opened(ring, broken)
            assert isinstance(refused.value, Locked) == (broken[:4] != text[:4])


def test_the_first_key_encrypts_and_all_of_them_decrypt() -> None:
    before, both, after = keyring(OTHER), keyring(KEY, OTHER), keyring(KEY)
    old, new = encrypted(before), encrypted(both)
    assert (opened(both, old), opened(both, new), opened(after, new)) == (CONTENT,) * 3
    assert [both.is_current(text) for text in (old, new)] == [False, True]
    assert [both.is_older(text) for text in (old, new)] == [True, False]
    assert not after.is_older(old), "it is none of ours"
    with pytest.raises(Locked, match=r"a key that is not in \[api\] secret_key"):
        opened(after, old)


def test_invalid_content_is_refused() -> None:
    ring = keyring()
    text = ring.encrypt("subscription", "ops", PLAIN, ["canary"])  # type: ignore[arg-type]
    with pytest.raises(Undecryptable, match="something else than a record"):
        opened(ring, text)


def test_a_generated_key_can_be_used() -> None:
    key = new_key()
    assert key.startswith(PREFIX)
    assert len({new_key() for _ in range(10)}) == 10
    check_key(key)
    assert opened(keyring(key), encrypted(keyring(key))) == CONTENT


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("whsec_" + KEY.removeprefix(PREFIX), f"does not begin with {PREFIX}"),
        (PREFIX, "holds 0 bytes, it must be 32"),
        (PREFIX + base64.b64encode(b"canary" * 5).decode(), "holds 30 bytes, it must be 32"),
        (PREFIX + "canary!", "is not base64"),
    ],
)
def test_a_bad_key_is_refused_and_never_shown(key: str, why: str) -> None:
    for use in (lambda: Keyring([key], "watcher"), lambda: check_key(key)):
        with pytest.raises(BadKey, match=why) as refused:
            use()
        assert "canary" not in str(refused.value)
        assert refused.value.__cause__ is None


def test_a_keyring_needs_a_key_and_shows_none() -> None:
    with pytest.raises(BadKey, match="no key"):
        Keyring([], "watcher")
    assert repr(keyring(KEY, OTHER)) == "Keyring(<2 keys>)"


def test_without_cryptography_a_key_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(NoCipher, match=r"pip install 'balance-watcher\[api\]'$"):
        check_key(KEY)
