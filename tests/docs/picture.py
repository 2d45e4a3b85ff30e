"""The picture of the demo in README.md: a terminal, drawn line by line as the demo says them.

python -m tests.docs.picture        # runs `watcher demo`, and writes deploy/pictures/demo.svg
"""

import errno
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple
from xml.sax.saxutils import escape

from tests.docs.blocks import ROOT

PICTURE = ROOT / "deploy" / "pictures" / "demo.svg"
COMMAND = "watcher demo"

_LINE_HEIGHT, _CHARACTER_WIDTH, _MARGIN = 20, 8.5, 16
_CLASS_BY_CODE = {"1": "b", "2": "d", "31": "r", "32": "g", "33": "y"}
_STYLE = """
rect { fill: #161b22 }
text { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #e6edf3; white-space: pre }
.b { font-weight: bold } .d { fill: #9198a1 } .r { fill: #ff7b72 } .g { fill: #56d364 } .y { fill: #e3b341 }
@media (prefers-reduced-motion: no-preference) {
text { animation: said 1ms backwards } @keyframes said { from { opacity: 0 } }
}
"""


class Line(NamedTuple):
    """A line with its colours, and how many seconds after the first one it came."""

    after_s: float
    text: str


def demonstration(*options: str) -> Iterator[Line]:
    """Run the demo at a wide terminal. Raises CalledProcessError where it judges itself bad."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", *COMMAND.split(), *options]
    environ = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "60"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environ) as demo:
        os.close(theirs)
        begun_at, partial = None, b""
        while read := _read(ours):
            begun_at = begun_at or time.monotonic()
            *lines, partial = (partial + read).split(b"\n")
            for line in lines:
                yield Line(time.monotonic() - begun_at, line.decode().rstrip("\r"))
        os.close(ours)
    if demo.returncode:
        raise subprocess.CalledProcessError(demo.returncode, command)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError as error:
        if error.errno != errno.EIO:  # what a terminal says whose last program has ended
            raise
        return b""


def drawn(lines: list[Line]) -> str:
    """An SVG of them, which shows each when it came; at once if reduced motion is asked for."""
    lines = [Line(0, f"$ \x1b[1m{COMMAND}\x1b[0m"), *lines]
    width = round(max(len(plain(line.text)) for line in lines) * _CHARACTER_WIDTH) + 2 * _MARGIN
    height = len(lines) * _LINE_HEIGHT + 2 * _MARGIN
    texts = [
        f'<text x="{_MARGIN}" y="{_MARGIN + 15 + number * _LINE_HEIGHT}"'
        f' style="animation-delay:{line.after_s:.1f}s">{_coloured(line.text)}</text>'
        for number, line in enumerate(lines)
        if line.text
    ]
    return "\n".join(
        (
            '<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve"'
            f' viewBox="0 0 {width} {height}" width="{width}">',
            f"<title>What {COMMAND} says</title><style>{_STYLE}</style>",
            f'<rect width="{width}" height="{height}" rx="8"/>',
            *texts,
            "</svg>\n",
        )
    )


def plain(text: str) -> str:
    return re.sub(r"\x1b\[\d+m", "", text)


def _coloured(text: str) -> str:
    """Each run of a colour is a span of a class."""
    first, *runs = re.split(r"\x1b\[(\d+)m", text)
    spans = [escape(first)]
    for code, run in zip(runs[::2], runs[1::2], strict=True):
        class_ = _CLASS_BY_CODE.get(code)
        spans.append(f'<tspan class="{class_}">{escape(run)}</tspan>' if class_ and run else escape(run))
    return "".join(spans)


def until_the_verdict(lines: list[Line]) -> list[Line]:
    """Without what it says to do next."""
    texts = [plain(line.text) for line in lines]
    end = texts.index("Next:")
    return lines[: end - 1]


if __name__ == "__main__":
    PICTURE.write_text(drawn(until_the_verdict([*demonstration()])), "utf-8")
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size:,} bytes")
