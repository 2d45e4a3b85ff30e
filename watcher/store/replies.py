"""Says in our words what an error reply of Redis means, and whose fault it is.

There are three kinds, and everybody above goes by the type alone:

- **Ours**: the server finds fault with the command itself, or with what lies under its keys. That is
  WRONGTYPE (DamagedKey), an error of Lua at a line of our script (`user_script:7: attempt to …`), a wrong
  form, number or kind of arguments: the closed list `_OURS`. It is a ResponseError of redis-py: bad data
  quarantines its account alone, and the rest is logged as a bug.
- **The configuration's** (ConfigurationRefused): waiting heals nothing. A command that starts exits with 78,
  a worker that runs waits all the same: its operator may mend the server.
- **The store's** (StoreUnreachable): everything else. StoreRefuses is an error reply, also one that nobody
  has seen before: quotas, proxies and services have words of their own. A worker asks again within two
  seconds, a command exits with 69.

The place of an error does not say whose fault it is. What a command answers that a script called comes with
`script: <sha>, on @user_script:7.` behind it (7.0), or `Error running script (call to f_<sha>):
@user_script:7: ` before it (6.2), a right that was taken away and a full memory alike. Only what Lua itself
complains of has its line without the `@`.

Refuses to show what a reply repeats of its command: that may be a password.
"""

import re
from collections.abc import Mapping, Sequence

from redis.exceptions import ResponseError

from watcher.printable import printable, without_secrets
from watcher.store.exceptions import (
    ConfigurationRefused,
    PartOfCluster,
    StoreError,
    StoreRefuses,
    StoreUnreachable,
)

_OURS = re.compile(
    r"(?<![@\w])user_script:\d+: |Error compiling script|[Ww]rong number of arg"
    r"|[Nn]umber of keys can't be|\bsyntax error\b|is not (an integer|a valid float|a float)\b"
    r"|\bstream ID\b|The ID specified in X|The stream has exhausted"
)

_Words = tuple[type[StoreError], str]
_CREDENTIALS: _Words = (ConfigurationRefused, "refuses the credentials in redis.url")
_RIGHTS: _Words = (
    ConfigurationRefused,
    "forbids its user a command or key that watcher needs; allow them as deploy/users.acl does",
)
_NODE: _Words = (PartOfCluster, "is part of a Cluster: name it by redis+cluster://")
_SLOTS: _Words = (StoreRefuses, "moves or misses some of the slots of its Cluster; it heals by itself")
_NO_NODE: _Words = (ConfigurationRefused, "is not part of a Cluster: name it by redis://")

_BY_CODE: Mapping[str, _Words] = {
    "MISCONF": (
        StoreRefuses,
        "refuses writes (MISCONF): it could not write to its disk; look at its disk space and its log",
    ),
    "OOM": (StoreRefuses, "refuses writes (OOM): its memory is full; raise its maxmemory"),
    "READONLY": (
        StoreRefuses,
        "refuses writes (READONLY): it is a replica; point redis.url at the primary",
    ),
    "NOREPLICAS": (StoreRefuses, "refuses writes (NOREPLICAS): too few of its replicas are connected"),
    "MASTERDOWN": (
        StoreRefuses,
        "is a replica that has lost its primary (MASTERDOWN), and answers when it has found it again; point "
        "redis.url at the primary",
    ),
    "BUSY": (
        StoreRefuses,
        "is busy with a script that does not end (BUSY), and none of watcher's takes so long; end it by "
        "SCRIPT KILL, or FUNCTION KILL",
    ),
    "LOADING": (StoreUnreachable, "is still loading its data; it will answer when it is done"),
    "CLUSTERDOWN": _SLOTS,
    "TRYAGAIN": _SLOTS,
    "MOVED": _NODE,
    "ASK": _NODE,
    "CROSSSLOT": _NODE,
    "NOPERM": _RIGHTS,
    "WRONGPASS": _CREDENTIALS,
    "NOAUTH": (
        ConfigurationRefused,
        "asks for credentials: put them into redis.url, as in redis://user:password@host",
    ),
    "DENIED": (
        ConfigurationRefused,
        "is in protected mode and takes connections of its own machine only: set a password there",
    ),
}
_CODE = re.compile(r"\b(" + "|".join(_BY_CODE) + r")\b")

_BY_PHRASE: Mapping[str, _Words] = {
    "max number of clients": (
        StoreRefuses,
        "has no connection left (max number of clients reached): raise its maxclients, or see by CLIENT LIST "
        "who holds them",
    ),
    "user executing the script can't": _RIGHTS,
    "ACL failure in script": _RIGHTS,
    "without any password configured": (
        ConfigurationRefused,
        "has no password: take the credentials out of redis.url",
    ),
    "no password is set": (ConfigurationRefused, "has no password: take the credentials out of redis.url"),
    "invalid password": _CREDENTIALS,
    "Invalid Username or Password": _CREDENTIALS,
    "for 'auth' command": _CREDENTIALS,
    "SELECT is not allowed in cluster mode": _NODE,
    "cluster support disabled": _NO_NODE,
    "DB index": (
        ConfigurationRefused,
        "has no database of that number: it comes last in redis.url, or as ?db=",
    ),
}

_UNKNOWN = re.compile(r"unknown (?:redis )?(?:sub)?command(?:,? ['`\"](\w{1,32}))?", re.IGNORECASE)
_BY_UNKNOWN: Mapping[str, _Words] = {
    "SENTINEL": (ConfigurationRefused, "is no Sentinel: name the server itself, by redis://"),
    "CLUSTER": _NO_NODE,
}
_REPEATED = re.compile(r",? with args beginning with.*", re.DOTALL)
_MOST_KEYS = 3
_SHOWN = 90
"""Characters of an unknown error: what is to be done about it must fit into the same log line."""


class DamagedKey(ResponseError):
    """Under a key of watcher's lies something of another type: somebody else wrote it."""

    exit_code = 69

    def __init__(self, at: str) -> None:
        super().__init__(status_code="WRONGTYPE")
        self._at = at
        self.keys: Sequence[str] = ()
        """Those of the command: one of them is damaged."""

    def __str__(self) -> str:
        shown = [*self.keys[:_MOST_KEYS], *(["…"] if len(self.keys) > _MOST_KEYS else [])]
        one = "one of " if len(shown) > 1 else ""
        keys = ", ".join(shown) or "a key"
        what = f"{one}{keys} is not of watcher's type (WRONGTYPE): restore it or delete it"
        return f"in Redis at {self._at}, {what}"


def of_reply(text: str, at: str) -> StoreError | DamagedKey | None:
    if re.search(r"\bWRONGTYPE\b", text):
        return DamagedKey(at)
    if words := _known(text):
        kind, because = words
        trouble = kind(f"Redis at {at} {because}")
        trouble.cause = because
        return trouble
    if _OURS.search(text):
        return None
    shown = printable(without_secrets(_REPEATED.sub("", text)), _SHOWN) or "one without words"
    return StoreRefuses(
        f"Redis at {at} answers with an unknown error: {shown}; look at its limits and log, or its proxy's"
    )


def _known(text: str) -> _Words | None:
    if unknown := _UNKNOWN.search(text):
        name = (unknown[1] or "").upper()
        because = f"does not know a command that watcher needs{name and f' ({name})'}"
        return _BY_UNKNOWN.get(name, (ConfigurationRefused, f"{because}: is it renamed, or is this a proxy?"))
    if code := _CODE.search(text):
        return _BY_CODE[code[1]]
    return next((words for phrase, words in _BY_PHRASE.items() if phrase in text), None)
