"""Checks MetaKeep's optional request signature (PROVIDERS, B1).

Refuses to be imported before somebody turns signatures on: it needs `cryptography`, which the
extra `balance-watcher[ed25519]` installs.
"""

import base64
import binascii
import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from watcher.sandbox.answers import Call

SKEW_MS = 60_000
"""A timestamp further than a minute from the server's time is no good."""


def is_signed(call: Call, *, now_ms: int) -> bool:
    """Say whether X-Api-Signature fits the call and its x-api-key, which is a compressed P-256 point."""
    timestamp = call.headers.get("X-Timestamp", "")
    if not (timestamp.isascii() and timestamp.isdecimal() and abs(int(timestamp) - now_ms) <= SKEW_MS):
        return False
    try:
        point = base64.b64decode(call.headers.get("x-api-key", ""), validate=True)
        signature = base64.b64decode(call.headers.get("X-Api-Signature", ""), validate=True)
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        key.verify(encode_dss_signature(r, s), digest(call), ec.ECDSA(SHA256()))
    except (binascii.Error, ValueError, InvalidSignature):
        return False
    return len(signature) == 64


def digest(call: Call) -> bytes:
    """Hash what is signed; it is hashed once more when it is signed, as the provider's sample does."""
    lines = [call.host, call.method, call.path]
    if "Idempotency-Key" in call.headers:
        lines.append(f"Idempotency-Key:{call.headers['Idempotency-Key']}")
    lines.append(f"X-Timestamp:{call.headers.get('X-Timestamp', '')}")
    return hashlib.sha256("\n".join(lines).encode() + b"\n" + call.body).digest()
