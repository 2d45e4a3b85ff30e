"""Signs attempts as Standard Webhooks describes it: the value of a header, made with secrets that are read
once.

Refuses to verify (`watcher.receive` does that, and shares no line with this), to read a secret from anywhere,
and to show one: no message and no repr holds a key. Source:
https://github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
"""

import base64
import hmac
import secrets as chance
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from watcher.printable import many

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SHARED = "whsec_"
PRIVATE = "whsk_"
PUBLIC = "whpk_"

SHARED_BYTES = (24, 64)
"""Shortest and longest shared key: 192 to 512 bits, as the specification says."""
_NEW_SHARED_BYTES = 32  # as long as the digest: longer adds nothing, shorter is weaker
_SEED_BYTES = 32

_Sign = Callable[[bytes], str]
"""Takes signed content, returns one signature: `v1,…` or `v1a,…`."""


class BadSecret(ValueError):
    """A secret that cannot sign: the subscription is refused at load. The message never holds it."""


class Signer:
    """The secrets of one subscription. All of them sign, so that the receiver can change to a new one at any
    time."""

    __slots__ = ("_signs",)

    def __init__(self, secrets: Sequence[str]) -> None:
        """Read `secrets`: `whsec_` + base64 of 24 to 64 bytes, or `whsk_` + base64 of an ed25519 key.

        Raises BadSecret, also where `whsk_` is used without the extra `balance-watcher[ed25519]`.
        """
        if not secrets:
            raise BadSecret("no secret to sign with")
        self._signs = tuple(_sign_with(secret) for secret in secrets)

    def signature(self, event_id: str, timestamp: int, body: bytes) -> str:
        """Return the value of `webhook-signature` for one attempt: one signature per secret, in their order.

        `timestamp` is that of the attempt, in Unix seconds, not that of the event: receivers refuse old ones.
        """
        if "." in event_id:
            raise ValueError("an event id with a '.' would make the signed content ambiguous")
        content = b"%b.%d.%b" % (event_id.encode(), timestamp, body)
        return " ".join([sign(content) for sign in self._signs])

    def __repr__(self) -> str:
        return f"Signer(<{len(self._signs)} secrets>)"


def new_secret() -> str:
    """Make a shared secret, for both sides: `whsec_…`."""
    return SHARED + base64.b64encode(chance.token_bytes(_NEW_SHARED_BYTES)).decode()


def new_ed25519() -> str:
    """Make a private key, for the sender alone: `whsk_…`. `public_key` makes the receiver's part."""
    return PRIVATE + base64.b64encode(chance.token_bytes(_SEED_BYTES)).decode()


def public_key(secret: str) -> str:
    """Return the `whpk_…` that verifies what `secret`, a `whsk_…`, signs. Raises BadSecret."""
    if not secret.startswith(PRIVATE):
        raise BadSecret(f"only a {PRIVATE} secret has a public key")
    return PUBLIC + base64.b64encode(_private_key(secret).public_key().public_bytes_raw()).decode()


def _sign_with(secret: str) -> _Sign:
    if secret.startswith(PRIVATE):
        sign = _private_key(secret).sign
        return lambda content: "v1a," + base64.b64encode(sign(content)).decode()
    if secret.startswith(PUBLIC):
        raise BadSecret(f"{PUBLIC}… is a public key: it verifies, but it cannot sign; give the {PRIVATE}…")
    if not secret.startswith(SHARED):
        raise BadSecret(f"not a secret: it begins with neither {SHARED} nor {PRIVATE}")
    key = _decoded(secret, SHARED)
    shortest, longest = SHARED_BYTES
    if not shortest <= len(key) <= longest:
        raise BadSecret(f"{SHARED} holds {many(len(key), 'byte')}, it must be {shortest} to {longest}")
    keyed = hmac.new(key, digestmod="sha256")  # copying it is a quarter faster than hmac.digest

    def signed(content: bytes) -> str:
        digest = keyed.copy()
        digest.update(content)
        return "v1," + base64.b64encode(digest.digest()).decode()

    return signed


def _private_key(secret: str) -> "Ed25519PrivateKey":
    """Read a seed, or a seed with its public key behind it: the specification's libraries write both."""
    key = _decoded(secret, PRIVATE)
    if len(key) not in (_SEED_BYTES, 2 * _SEED_BYTES):
        raise BadSecret(
            f"{PRIVATE} holds {many(len(key), 'byte')}, it must be {_SEED_BYTES} or {2 * _SEED_BYTES}"
        )
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise BadSecret(
            f"{PRIVATE} secrets need cryptography: pip install 'balance-watcher[ed25519]'"
        ) from error
    private = Ed25519PrivateKey.from_private_bytes(key[:_SEED_BYTES])
    if key[_SEED_BYTES:] not in (b"", private.public_key().public_bytes_raw()):
        raise BadSecret(f"the two halves of this {PRIVATE} secret do not belong together")
    return private


def _decoded(secret: str, prefix: str) -> bytes:
    try:
        return base64.b64decode(secret.removeprefix(prefix), validate=True)
    except ValueError:
        # `from None`: the decoder's own error is of no use, and a traceback should hold nothing of a secret
        raise BadSecret(f"what follows {prefix} is not base64 (A-Z a-z 0-9 + / and = at the end)") from None
