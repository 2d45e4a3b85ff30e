"""The one reader of the environment: NAME, or the small file that NAME_FILE names; and where watcher.toml is.

What is empty counts as unset, everywhere. Refuses to repeat what a variable or a file holds in a message,
and to import anything of weight.
"""

import os
from collections.abc import Mapping
from pathlib import Path

_FILE_LIMIT = 64 * 1024
"""Bytes of a file that holds one value: a secret is short, and /dev/zero is not."""

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_SAVE_AS_UTF_8 = "UTF-16, not UTF-8: save it as UTF-8"


class NotSet(LookupError):
    """A value that is not there; the message says what to do about it."""


class EmptyFile(NotSet):
    """A file that should hold a value, and holds nothing."""


class NotText(ValueError):
    """Bytes that are not UTF-8. `start` is the place of the first one that is not."""

    def __init__(self, reason: str, start: int = 0) -> None:
        super().__init__(reason)
        self.start = start


class Environment:
    """The variables of a process. `files` are those with single values that were read, or tried, so far."""

    PLACES = Path("watcher.toml"), Path("/etc/watcher/watcher.toml")
    """Where the configuration is looked for when neither an option nor a variable names it."""

    def __init__(self, variables: Mapping[str, str] = os.environ, *, is_running: bool = False) -> None:
        self._variables = variables
        self._missing = "; a running process does not see what is set later" if is_running else ""
        self.files: dict[Path, None] = {}

    def place_of(self, path: Path | None) -> Path | None:
        """Choose the configuration: `path`, or WATCHER_CONFIG, or the first of PLACES that is there."""
        if named := path or self.get("WATCHER_CONFIG"):
            return Path(named)
        # Not Path.is_file: `sudo -u watcher` in a home that is closed to that user may not even look.
        return next((place for place in self.PLACES if os.path.isfile(place)), None)

    def get(self, name: str) -> str | None:
        """Read a variable that no file stands in for."""
        return self._variables.get(name) or None

    def value_of(self, name: str) -> str | None:
        """Read a variable, or the file that NAME_FILE names; None where neither is set.

        Raises NotSet where the file cannot be read, and EmptyFile.
        """
        if value := self.get(name):
            return value
        path = self.get(f"{name}_FILE")
        return self.content_of(path, f"the file that {name}_FILE names") if path else None

    def required(self, name: str) -> str:
        """Read a variable, or the file that NAME_FILE names. Raises NotSet."""
        if value := self.value_of(name):
            return value
        todo = f"{self._missing}: restart it, or write ${{file:/path}} instead" if self._missing else ""
        if name in self._variables:
            raise NotSet(f"{name} is empty, which counts as unset, and there is no {name}_FILE{todo}")
        raise NotSet(f"the environment has no {name} and no {name}_FILE{todo}")

    def content_of(self, path: str, subject: str) -> str:
        """Read the value in a file, without a newline at its end. Raises NotSet, and EmptyFile."""
        self.files[Path(path)] = None
        try:
            with open(path, "rb") as file:
                data = file.read(_FILE_LIMIT + 1)
            if len(data) > _FILE_LIMIT:
                raise NotSet(f"{subject} is longer than {_FILE_LIMIT} bytes")
            text = decoded(data)
        except OSError as error:
            raise NotSet(f"{subject} cannot be read: {error.strerror}") from None
        except NotText as error:
            raise NotSet(f"{subject} is {error}") from None
        except ValueError:  # a path with NUL in it
            raise NotSet(f"{subject} cannot be read: no such path") from None
        value = text.removesuffix("\n").removesuffix("\r")
        if not value:
            raise EmptyFile(f"{subject} is empty")
        return value


def utf_16_flaw(beginning: bytes) -> str | None:
    """Say what is wrong with a text that was saved as UTF-16, by its first bytes."""
    return _SAVE_AS_UTF_8 if beginning.startswith(_UTF_16) or b"\0" in beginning[:4] else None


def decoded(data: bytes) -> str:
    """Decode what an editor wrote as UTF-8, with or without a byte order mark. Raises NotText."""
    if flaw := utf_16_flaw(data):
        raise NotText(flaw)
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode()
    except UnicodeDecodeError as error:
        raise NotText("not UTF-8 text", error.start) from None
