"""Seals what a record of the directory holds besides its name and filters: the store never shows it.

AES-256-GCM with a list of keys: the first seals, all of them open. What is sealed opens in its place only:
in that namespace, as the record of that kind and name, beside that plain part. Refuses to read a key from
anywhere, and to show one: neither a message nor a repr ever holds a key, or anything that was sealed.
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
"""Of a hash of the key, in front of what it seals: the right one is found at once."""
_NONCE_BYTES = 12
"""By chance, as a key seals far less than the 2^32 times after which that would become doubtful."""


class BadKey(ValueError):
    """A key that cannot seal: it is refused at load. The message never holds it."""


class NoCipher(BadKey):
    """Without the extra `api` no key can seal."""


class Unopened(Exception):
    """What is sealed cannot be opened: the message says why, and holds nothing of it."""


class Locked(Unopened):
    """It was sealed with a key that is not among ours: with that one in `[api] secret_key` it opens."""


class Keyring:
    """The keys of `[api] secret_key`, for the records of one namespace."""

    __slots__ = ("_cipher_by_mark", "_mark", "_namespace")

    def __init__(self, keys: Sequence[str], namespace: str) -> None:
        """Read keys, `wkey_` + base64 of 32 bytes. Raises BadKey."""
        if not keys:
            raise BadKey("no key to seal with")
        self._namespace = namespace
        raw = [_key(text) for text in keys]
        self._cipher_by_mark: dict[bytes, AESGCM] = {_mark(key): _cipher(key) for key in raw}
        self._mark = _mark(raw[0])

    def seal(self, kind: str, name: str, plain: Mapping[str, Any], content: Mapping[str, Any]) -> bytes:
        """Seal `content`, which is JSON, for the record of that kind and name; never twice alike."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        text = _json(content)
        sealed = self._cipher_by_mark[self._mark].encrypt(nonce, text, self._place(kind, name, plain))
        return self._mark + nonce + sealed

    def open(self, kind: str, name: str, plain: Mapping[str, Any], sealed: bytes) -> dict[str, Any]:
        """Open what lies in the record of that kind and name, beside that plain part. Raises Unopened."""
        from cryptography.exceptions import InvalidTag

        cipher = self._cipher_by_mark.get(sealed[:_MARK_BYTES])
        if cipher is None:
            raise Locked("it was encrypted with a key that is not in [api] secret_key")
        nonce = sealed[_MARK_BYTES : _MARK_BYTES + _NONCE_BYTES]
        rest = sealed[_MARK_BYTES + _NONCE_BYTES :]
        try:
            content = json.loads(cipher.decrypt(nonce, rest, self._place(kind, name, plain)))
        except (InvalidTag, ValueError, RecursionError):
            # `from None`: a parser's own error shows what it read
            raise Unopened("it was changed, or moved from another record, since it was sealed") from None
        if not isinstance(content, dict):
            raise Unopened("it holds something else than a record")
        return content

    def is_current(self, sealed: bytes) -> bool:
        """Say whether the first key has sealed it; if not, that one is to seal it anew."""
        return sealed[:_MARK_BYTES] == self._mark

    def is_older(self, sealed: bytes) -> bool:
        """Say whether another of our keys has sealed it."""
        return sealed[:_MARK_BYTES] in self._cipher_by_mark and not self.is_current(sealed)

    def __repr__(self) -> str:
        return f"Keyring(<{many(len(self._cipher_by_mark), 'key')}>)"

    def _place(self, kind: str, name: str, plain: Mapping[str, Any]) -> bytes:
        return _json([self._namespace, kind, name, plain])


def new_key() -> str:
    """Make a key: `wkey_…`."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()


def check_key(text: str) -> None:
    """Raises BadKey where a key cannot seal."""
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
        raise NoCipher("needs cryptography: pip install 'balance-watcher[api]'") from error
    return AESGCM(key)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
