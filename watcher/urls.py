"""Reads a URL that is to be sent as it was written: yarl, left to itself, rewrites paths and queries.

A signed URL breaks where `%2F` becomes `/`, and a receiver's path where `/a/../b` becomes `/b`.
"""

import string
from functools import lru_cache
from urllib.parse import quote

from yarl import URL


@lru_cache(maxsize=1024)  # for every request of a provider it is the same few
def as_written(text: str) -> URL:
    """Read `text`, and keep its path and query byte for byte. Raises ValueError, for some texts IndexError.

    Two things are not as written. A request line is ASCII, so other characters are percent-encoded as UTF-8,
    which is what they stand for in a URL (RFC 3987). The host is in the form in which it is looked up: lower
    case, IDNA.
    """
    read, written = URL(text), URL(text, encoded=True)
    path, query = written.raw_path, written.raw_query_string
    if not query and text.endswith("?"):
        path += "?"  # yarl has no place for an empty query, and sends as they are the bytes of a path
    return URL.build(
        scheme=read.scheme,
        authority=read.raw_authority,
        path=in_ascii(path),
        query_string=in_ascii(query),
        encoded=True,
    )


def in_ascii(text: str) -> str:
    """Percent-encode what is not ASCII, as UTF-8, and nothing else."""
    return quote(text, safe=string.printable)
