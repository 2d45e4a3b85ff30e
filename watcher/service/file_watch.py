"""Notices that files were edited, by looking at them again and again: no library, any file system.

Refuses to read them, and to speak of an edit before the files have been left alone for one look.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

_Stamp = tuple[int, int, int] | None
"""None: there is no such file."""


class FileWatch:
    """Files as they were when they were last read. Look once a second."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = tuple(files)
        self._read = self._looked = self._stamps()

    def follow(self, files: Iterable[Path]) -> None:
        """Look at these files from now on."""
        known, self.files = self._read, tuple(files)
        self._read = {**self._stamps(), **{file: known[file] for file in self.files if file in known}}

    def reading(self) -> None:
        """Note that the files are about to be read as they are now."""
        self._read = self._looked = self._stamps()

    def look(self) -> bool:
        """Say whether the files differ from what was read, and have stayed so since the last look.

        One that was there, and is gone, is in the middle of a replacement.
        """
        stamps, before = self._stamps(), self._looked
        self._looked = stamps
        is_whole = not any(stamp is None and self._read.get(file) for file, stamp in stamps.items())
        return is_whole and stamps == before and stamps != self._read

    def _stamps(self) -> Mapping[Path, _Stamp]:
        return {file: _stamp(file) for file in self.files}


def _stamp(file: Path) -> _Stamp:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
