"""Runs the pulling program of deploy/RECEIVING.md, and gives it the webhooks that arrive.

    PROGRAM=receiver.py PORT=8788 SECRET=whsec_… REFUSES=0.1 python tests/faults/pulling_receiver.py

It refuses some events at the first attempt, and has lost them then, where they are tried once.
"""

import os
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from random import random
from typing import Any

from watcher.receive import InvalidWebhook, PullRefused, verify

PROGRAM, PORT, SECRET, REFUSES = (os.environ[name] for name in ("PROGRAM", "PORT", "SECRET", "REFUSES"))

CATCH_UP_S = 1
"""Where the last event of an account is lost, no gap shows it."""


def begun() -> dict[str, Any]:
    """Run the program from its beginning, again while the API is away."""
    while True:
        names: dict[str, Any] = {}
        try:
            exec(compile(Path(PROGRAM).read_text(), PROGRAM, "exec"), names)
        except (OSError, PullRefused):
            time.sleep(0.1)
        else:
            return names


class Handler(BaseHTTPRequestHandler):
    program: dict[str, Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        status = 200
        try:
            event = verify(self.headers.items(), body, SECRET)
            if event["type"] != "subscription.ping" and random() < float(REFUSES):
                status = 422
            else:
                self.program["record"](self.program["journal"].take(event))
        except InvalidWebhook as problem:
            status = problem.status
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing: what the program says goes to stdout."""


def main() -> None:
    Handler.program = program = begun()
    with HTTPServer(("127.0.0.1", int(PORT)), Handler) as server:
        server.timeout, caught_up_at = 0.2, time.monotonic()
        while True:
            server.handle_request()
            if time.monotonic() > caught_up_at + CATCH_UP_S and program["journal"].ask() is None:
                caught_up_at = time.monotonic()
                program["journal"].catch_up()
            try:
                program["pull"]()
            except (OSError, PullRefused):
                time.sleep(0.05)  # the worker is away: webhooks and the next look go on


if __name__ == "__main__":
    main()
