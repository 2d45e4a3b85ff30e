"""The page: one file that holds no data and runs only its own script, and the document that it asks for.

Refuses to load anything from anywhere else, and to change anything.
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files

from watcher.observe.listener import Answer, Route
from watcher.observe.page.look import Look
from watcher.run.worker import Worker

_HTML = "text/html; charset=utf-8"
_JSON = "application/json"


def routes(worker: Worker) -> Mapping[str, Route]:
    """What is served, by path."""
    html = files("watcher.observe.page").joinpath("page.html").read_text("utf-8")
    page = Answer(200, html.encode(), _HTML, policy_of(html))
    look = Look(worker)

    async def show() -> Answer:
        return page

    async def tell() -> Answer:
        return Answer(200, await look.json(), _JSON)

    return {"/": show, "/page.json": tell}


def policy_of(html: str) -> str:
    """Write the content security policy of a page: its own script and style, its own origin, nothing else."""
    return (
        f"default-src 'none'; script-src {_hash_of('script', html)}; style-src {_hash_of('style', html)}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )


def _hash_of(element: str, html: str) -> str:
    (text,) = re.findall(rf"<{element}>(.*?)</{element}>", html, re.DOTALL)
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
