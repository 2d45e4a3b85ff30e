"""Reads the body of an answer to its end, unpacked, and never more of it than fits.

Refuses to leave unpacking to aiohttp, which takes a gzip stream that was cut off for a whole one.
"""

import zlib

import aiohttp

from watcher.providers.contract import Rejected

LIMIT = 1024 * 1024
"""Bytes of a body, packed and unpacked. A list of 3,000 balances is half of that."""

_GZIP = 16 + zlib.MAX_WBITS


async def read_body(response: aiohttp.ClientResponse) -> bytes:
    """Read and unpack a body. Raises Rejected, and what aiohttp raises when the connection breaks."""
    chunks: list[bytes] = []
    size = 0
    while chunk := await response.content.readany():
        chunks.append(chunk)
        size += len(chunk)
        if size > LIMIT:
            response.close()
            raise _too_large()
    packed = b"".join(chunks)
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        return packed
    if encoding in ("gzip", "x-gzip"):
        return _unpack(packed)
    raise Rejected("malformed", "the answer is packed in a way that was not asked for")


def _unpack(packed: bytes) -> bytes:
    stream = zlib.decompressobj(_GZIP)
    try:
        body = stream.decompress(packed, LIMIT + 1)
    except zlib.error:
        raise Rejected("malformed", "the answer is not gzip, as it says") from None
    if len(body) > LIMIT:
        raise _too_large()
    if not stream.eof or stream.unused_data:
        raise Rejected("malformed", "the answer is not one whole gzip stream")
    return body


def _too_large() -> Rejected:
    return Rejected("malformed", "the answer is larger than 1 MiB")
