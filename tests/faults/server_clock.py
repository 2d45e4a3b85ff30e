"""The clock of a real server, which a test may set while the server runs. Takes a C compiler."""

import shutil
import subprocess
from pathlib import Path

import pytest

COMPILER = shutil.which("cc")
NEEDS_COMPILER = pytest.mark.skipif(not COMPILER, reason="a server's clock is set by a few lines of C")

_SOURCE = Path(__file__).with_name("clock.c")


class ServerClock:
    """Start the server with `environment`; then `set` moves its time, as far as it asks `gettimeofday`."""

    def __init__(self, directory: Path) -> None:
        assert COMPILER
        library = directory / "clock.so"
        self._file = directory / "clock"
        self.set(ahead_s=0)
        command = (COMPILER, "-shared", "-fPIC", "-O1", "-o", library, _SOURCE)
        subprocess.run(command, check=True, timeout=30)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK": str(self._file)}

    def set(self, *, ahead_s: float) -> None:
        with self._file.open("r+b" if self._file.exists() else "wb") as file:  # in place: it is mapped
            file.write(int(ahead_s * 10**6).to_bytes(8, "little", signed=True))
