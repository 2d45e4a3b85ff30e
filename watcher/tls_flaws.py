"""Says what is wrong with a connection or its TLS, and what fixes it: for subscribers and providers alike.

Refuses to repeat what OpenSSL says: its texts hold host names, and blame a protocol.
"""

import os
import ssl
from typing import NamedTuple

from watcher.http.wire import NotHttp


class Flaw(NamedTuple):
    """What is wrong, and what to do about it (empty: that is plain)."""

    words: str
    fix: str = ""

    @property
    def reason(self) -> str:
        """Both, in one line."""
        return f"{self.words}; {self.fix}" if self.fix else self.words


CANNOT_CONNECT = "cannot connect"
HUNG_UP = Flaw(
    "TLS failed: it hung up during the handshake",
    "check whether its port speaks TLS 1.2 or 1.3, and whether it wants a client certificate",
)
_NO_TLS = Flaw("TLS failed: its port does not speak TLS", "write http://, or the port where it speaks TLS")
_SPEAKS_TLS = Flaw("its answer is not HTTP: its port speaks TLS", "write https://")
_OLD = Flaw("TLS failed: its TLS is older than 1.2", "let it speak TLS 1.2 or 1.3")
_WANTS_OURS = Flaw(
    "TLS failed: it wants a client certificate",
    "watcher presents none: let it do without, or go through a proxy of yours that has one",
)
_REFUSED = Flaw(
    "TLS failed: it refuses the handshake",
    "it may want a client certificate, of which watcher has none, or only ciphers that are no longer safe",
)
_OTHER_NAME = Flaw(
    "TLS failed: it has no certificate for this name", "look at the host name, and at its certificates"
)
_WEAK = Flaw("TLS failed: its key or its signature is too weak", "have it use a stronger certificate")
_UNKNOWN = Flaw("TLS failed", "check whether its port speaks TLS 1.2 or 1.3")

_BY_REASON = (
    ("ALERT_CERTIFICATE_REQUIRED", _WANTS_OURS),
    ("ALERT_BAD_CERTIFICATE", _WANTS_OURS),
    ("ALERT_UNKNOWN_CA", _WANTS_OURS),
    ("ALERT_CERTIFICATE_UNKNOWN", _WANTS_OURS),
    ("PROTOCOL_VERSION", _OLD),
    ("UNSUPPORTED_PROTOCOL", _OLD),
    ("WRONG_SSL_VERSION", _OLD),
    ("legacy sigalg", _OLD),  # an OpenSSL newer than Python's list of names says it in words
    ("UNRECOGNIZED_NAME", _OTHER_NAME),
    ("TOO_SMALL", _WEAK),
    ("TOO_WEAK", _WEAK),
    ("HANDSHAKE_FAILURE", _REFUSED),
    ("INSUFFICIENT_SECURITY", _REFUSED),
    ("WRONG_VERSION_NUMBER", _NO_TLS),
    ("HTTP_REQUEST", _NO_TLS),
    ("PACKET_LENGTH_TOO_LONG", _NO_TLS),
    ("RECORD_LAYER_FAILURE", _NO_TLS),
    ("UNEXPECTED_EOF", HUNG_UP),
)
"""By a part of what OpenSSL calls it, whose names differ between versions; the first that fits counts."""

_TRUST = "trust it: SSL_CERT_FILE=/path/ca.pem"
_FIX_BY_CERTIFICATE = (
    ("expired", "have its certificate renewed"),
    ("not yet valid", "look at the clock of this machine, or wait until its certificate is valid"),
    ("mismatch", "write the name that its certificate is for, or have one made for this name"),
    ("self", f"let it use a certificate of an authority, or {_TRUST}"),
    ("local issuer", f"let it send its whole chain; if the authority is your own, {_TRUST}"),
    ("revoked", "have its certificate replaced"),
    ("weak", "have it use a stronger certificate"),
)
_HANGING_UP = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
_LOOK_AT_IT = "look at its certificate: its name, its end, and its issuer"


def tls_flaw(error: BaseException, *, is_handshake: bool = False) -> Flaw | None:
    """Find what is wrong with TLS in an error and its causes; None where it is about something else.

    `is_handshake`: it happened while a connection with TLS was made, where a reset is a refusal of TLS.
    """
    causes = [error]
    while inner := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(inner)
    for cause in reversed(causes):
        if isinstance(cause, ssl.SSLCertVerificationError):
            # The host is behind the comma.
            what = str(getattr(cause, "verify_message", "")).partition(",")[0].lower()
            fix = next((fix for part, fix in _FIX_BY_CERTIFICATE if part in what), _LOOK_AT_IT)
            return Flaw("its certificate does not verify" + (f": {what}" if what else ""), fix)
        if isinstance(cause, ssl.SSLError):
            found = (
                flaw for part, flaw in _BY_REASON if part in (getattr(cause, "reason", None) or str(cause))
            )
            return next(found, HUNG_UP if isinstance(cause, ssl.SSLEOFError) else _UNKNOWN)
        if is_handshake and isinstance(cause, _HANGING_UP):
            return HUNG_UP
        if isinstance(cause, NotHttp) and cause.is_tls:
            return _SPEAKS_TLS
    return None


def cannot_connect(error: BaseException) -> str:
    """Say that there is no connection, and why, as far as the system knows."""
    cause = error.__cause__ or error
    number = cause.errno if isinstance(cause, OSError) else None
    return f"{CANNOT_CONNECT}: {os.strerror(number).lower()}" if number else CANNOT_CONNECT
