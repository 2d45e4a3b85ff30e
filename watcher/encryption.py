"""Encrypts what a record of the directory holds besides its name and filters, so that Redis never shows it.

AES-256-GCM with a list of keys: the first encrypts, all of them decrypt. The associated data are the
namespace and the record's kind, name and plain part: what is copied to another record cannot be decrypted
there. Refuses to read a key from anywhere, and to show one: no message and no repr holds a key or what was
encrypted.
"""

import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from watcher.printable import many

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PREFIX = "wkey_"

_KEY_BYTES = 32
_MARK_BYTES = 4
"""Of a hash of the key, in front of what it encrypted: they say which key decrypts it."""
_NONCE_BYTES = 12
"""Nonces are random: a key encrypts far fewer than the 2^32 times up to which that is safe."""


class BadKey(ValueError):
    """A key that cannot encrypt: it is refused at load. The message never holds it."""


CIPHER = "cryptography: pip install 'balance-watcher[api]'"
"""What the cipher needs, and how to get it."""


class NoCipher(BadKey):
    """The extra `api` is not installed, and without it nothing is encrypted or decrypted."""


class Undecryptable(Exception):
    """It cannot be decrypted: the message says why, and holds nothing of it."""


class Locked(Undecryptable):
    """It was encrypted with another key: add that key to `[api] secret_key`."""


class Keyring:
    """The keys of `[api] secret_key`, for the records of one namespace."""

    __slots__ = ("_cipher_by_mark", "_mark", "_namespace")

    def __init__(self, keys: Sequence[str], namespace: str) -> None:
        """Read keys, `wkey_` + base64 of 32 bytes. Raises BadKey."""
        if not keys:
            raise BadKey("no key to encrypt with")
        self._namespace = namespace
        raw = [_key(text) for text in keys]
        self._cipher_by_mark: dict[bytes, AESGCM] = {_mark(key): _cipher(key) for key in raw}
        self._mark = _mark(raw[0])

    def encrypt(self, kind: str, name: str, plain: Mapping[str, Any], content: Mapping[str, Any]) -> bytes:
        """Encrypt `content`, which is JSON, for this record: to other bytes each time."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        text = _json(content)
        encrypted = self._cipher_by_mark[self._mark].encrypt(nonce, text, self._associated(kind, name, plain))
        return self._mark + nonce + encrypted

    def decrypt(self, kind: str, name: str, plain: Mapping[str, Any], encrypted: bytes) -> dict[str, Any]:
        """Return the content that was encrypted for this record. Raises Undecryptable."""
        from cryptography.exceptions import InvalidTag

        cipher = self._cipher_by_mark.get(encrypted[:_MARK_BYTES])
        if cipher is None:
            raise Locked("it was encrypted with a key that is not in [api] secret_key")
        nonce = encrypted[_MARK_BYTES : _MARK_BYTES + _NONCE_BYTES]
        rest = encrypted[_MARK_BYTES + _NONCE_BYTES :]
        try:
            content = json.loads(cipher.decrypt(nonce, rest, self._associated(kind, name, plain)))
        except (InvalidTag, ValueError, RecursionError):
            # `from None`: a parser's own error shows what it read
            raise Undecryptable(
                "it was changed, or moved from another record, since it was encrypted"
            ) from None
        if not isinstance(content, dict):
            raise Undecryptable("it holds something else than a record")
        return content

    def is_current(self, encrypted: bytes) -> bool:
        """Say whether the first key encrypted it; if not, it is to be encrypted again."""
        return encrypted[:_MARK_BYTES] == self._mark

    def is_older(self, encrypted: bytes) -> bool:
        """Say whether another of our keys encrypted it."""
        return encrypted[:_MARK_BYTES] in self._cipher_by_mark and not self.is_current(encrypted)

    def __repr__(self) -> str:
        return f"Keyring(<{many(len(self._cipher_by_mark), 'key')}>)"

    def _associated(self, kind: str, name: str, plain: Mapping[str, Any]) -> bytes:
        return _json([self._namespace, kind, name, plain])


def new_key() -> str:
    """Make a key: `wkey_…`."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()


def check_key(text: str) -> None:
    """Raises BadKey if a key cannot encrypt."""
    _cipher(_key(text))


def _key(text: str) -> bytes:
    if not text.startswith(PREFIX):
        raise BadKey(f"not a key: it does not begin with {PREFIX}")
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except ValueError:
        # `from None`: a traceback should hold nothing of a key
        raise BadKey(f"what follows {PREFIX} is not base64 (A-Z a-z 0-9 + / and = at the end)") from None
    if len(key) != _KEY_BYTES:
        raise BadKey(f"{PREFIX} holds {many(len(key), 'byte')}, it must be {_KEY_BYTES}")
    return key


def _mark(key: bytes) -> bytes:
    return sha256(b"watcher: the mark of a key\0" + key).digest()[:_MARK_BYTES]


def _cipher(key: bytes) -> "AESGCM":
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise NoCipher(f"needs {CIPHER}") from error
    return AESGCM(key)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
