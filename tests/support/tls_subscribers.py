"""Certificates for subscribers, made when they are needed, and a client that trusts them all."""

import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_DAY = timedelta(days=1)


def a_certificate(name: str, *, expires_in: timedelta = _DAY) -> tuple[ssl.SSLContext, str]:
    """Make a server's side that is called `name`, and the certificate that a client may trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - 2 * _DAY)
        .not_valid_after(now + expires_in)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "server.pem"
        encoding, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        path.write_bytes(key.private_bytes(encoding, private, serialization.NoEncryption()) + pem)
        context.load_cert_chain(path)
    return context, pem.decode()


def a_client_trusting(certificate: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=certificate)
    return context


class TlsFault(NamedTuple):
    """A port that TLS fails at for one reason, what is to be said of it, and a word of what fixes it."""

    tls: Callable[[], tuple[ssl.SSLContext, str]] | None
    says: bytes
    words: str
    fix: str
    scheme: str = "https"


NAME = "in.hooks.example"


def of_version(version: ssl.TLSVersion, *, wants_certificate: bool = False) -> tuple[ssl.SSLContext, str]:
    context, certificate = a_certificate(NAME)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    if wants_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=certificate)
    return context, certificate


def untrusted() -> tuple[ssl.SSLContext, str]:
    return a_certificate(NAME)[0], a_certificate("other.example")[1]


NO_HANDSHAKE = "TLS failed: it hung up during the handshake"
NO_TLS = "TLS failed: its port does not speak TLS"
CERTIFICATE = "its certificate does not verify: "

TROUBLES = {
    "a port that speaks HTTP": TlsFault(None, b"HTTP/1.1 400 Bad Request\r\n\r\n", NO_TLS, "http://"),
    "a port that speaks SMTP": TlsFault(None, b"220 mail.example ESMTP\r\n", NO_TLS, "http://"),
    "a port that hangs up": TlsFault(None, b"", NO_HANDSHAKE, "1.2 or 1.3"),
    "an old TLS": TlsFault(
        lambda: of_version(ssl.TLSVersion.TLSv1_1), b"", "TLS failed: its TLS is older than 1.2", "1.2 or 1.3"
    ),
    "a client certificate is wanted, TLS 1.2": TlsFault(
        lambda: of_version(ssl.TLSVersion.TLSv1_2, wants_certificate=True),
        b"",
        "TLS failed: it refuses the handshake",
        "client certificate",
    ),
    "a client certificate is wanted, TLS 1.3": TlsFault(
        lambda: of_version(ssl.TLSVersion.TLSv1_3, wants_certificate=True),
        b"",
        "TLS failed: it wants a client certificate",
        "presents none",
    ),
    "a certificate that has expired": TlsFault(
        lambda: a_certificate(NAME, expires_in=-_DAY), b"", f"{CERTIFICATE}certificate has expired", "renewed"
    ),
    "a certificate for another name": TlsFault(
        lambda: a_certificate("other.example"), b"", f"{CERTIFICATE}hostname mismatch", "the name"
    ),
    "a certificate that nobody signed": TlsFault(
        untrusted, b"", f"{CERTIFICATE}self-signed certificate", "SSL_CERT_FILE="
    ),
    "http:// at a port that speaks TLS": TlsFault(
        None,
        b"\x15\x03\x01\x00\x02\x02\x28",
        "its answer is not HTTP: its port speaks TLS",
        "write https://",
        "http",
    ),
}


@contextmanager
def a_faulty_port(trouble: TlsFault) -> Iterator[tuple[str, str]]:
    """Serve it as OpenSSL does, which says goodbye, and asyncio does not: yields URL and certificate."""
    context, certificate = trouble.tls() if trouble.tls else (None, a_certificate(NAME)[1])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=_serve, args=(listening, context, trouble.says))
        server.start()
        try:
            yield f"{trouble.scheme}://{NAME}:{listening.getsockname()[1]}", certificate
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            server.join()


def _serve(listening: socket.socket, context: ssl.SSLContext | None, says: bytes) -> None:
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        connection.settimeout(5)
        with connection:
            try:
                _answer(connection, context, says)
            except OSError:  # as it is to be
                _drain(connection)


def _answer(connection: socket.socket, context: ssl.SSLContext | None, says: bytes) -> None:
    if context is None:
        connection.recv(65_536)
        connection.sendall(says)
        connection.shutdown(socket.SHUT_WR)
        _drain(connection)
        return
    with connection.dup() as inner, context.wrap_socket(inner, server_side=True) as secure:
        secure.recv(65_536)


def _drain(connection: socket.socket) -> None:
    """Read to the end: closing on unread bytes is a reset, which takes an alert back."""
    with suppress(OSError):
        while connection.recv(65_536):
            pass
