"""Every key in Redis, with its type, what it holds and what writes it. No other module writes a key's name.

An account hashes to one of 16 shards, and every key of its shard carries the tag `{shard}`: one script
may touch them together, on Redis Cluster too. Refuses to talk to Redis.
"""

from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

SHARDS = 16
"""Stored with the state; a program with another number is refused: it would look in the wrong places."""


DEAD_OF = "dead "
"""In front of a subscription, in `Keys.sizes`, where it has dead letters."""


@lru_cache(maxsize=4096)  # during a poll it is asked several times
def shard_of(account: str) -> int:
    return crc32(account.encode()) % SHARDS


@dataclass(frozen=True, slots=True)
class Keys:
    """Names the keys of one namespace. `permanent` keys live as long as what they describe."""

    namespace: str

    def meta(self) -> str:
        """HASH, permanent: shards, schema, moved, moving, turn, wanted (numbers of layouts, see `layout`),
        providers, enrolled (a list of accounts). Written by `Roster` and `Layout`."""
        return f"{self.namespace}:meta"

    def mover(self) -> str:
        """STRING, expires: which process moves the store from one layout to another. By `Layout`."""
        return f"{self.namespace}:mover"

    def breakers(self) -> str:
        """HASH, permanent: subscription -> its circuit breaker, if it failed. Written by `Breakers`."""
        return f"{self.namespace}:breakers"

    def watch(self) -> str:
        """STRING, permanent: `since_ms seen_ms` of the workers that look which accounts are stale. By
        note_watch."""
        return f"{self.namespace}:watch"

    def workers(self) -> str:
        """HASH, permanent: worker -> `seen_ms json`, of the last hour. By note_worker."""
        return f"{self.namespace}:workers"

    def configuration(self, digest: str) -> str:
        """STRING, expires: what a configuration in use leads to, as digests. Written by `Configurations`."""
        return f"{self.namespace}:configuration:{digest}"

    def waiting(self, digest: str) -> str:
        """STRING, expires: since when (ms) a configuration is waited for, now gone. By `Configurations`."""
        return f"{self.namespace}:waiting:{digest}"

    def marks(self) -> str:
        """HASH, permanent: subscription -> `url configuration`, for which its queues are filled. By mark."""
        return f"{self.namespace}:marks"

    def keeper(self) -> str:
        """STRING, expires: which worker keeps backlogs and memory within their bounds. By take_lease."""
        return f"{self.namespace}:keeper"

    def verifier(self) -> str:
        """STRING, expires: which worker pings what is not verified yet. By take_lease."""
        return f"{self.namespace}:verifier"

    def ping_rate(self, host: str) -> str:
        """STRING, expires: when a subscriber's host may be pinged next, in ms. Written by take_turns."""
        return f"{self.namespace}:rate:ping:{host}"

    def rate(self, provider: str) -> str:
        """STRING, expires: when a provider's next request may start, in ms. Written by take_turns."""
        return f"{self.namespace}:rate:{provider}"

    def subscription_rate(self, subscription: str) -> str:
        """STRING, expires: when a subscription's next attempt may start, how many were delivered this second
        and the one before, and until when turns are held. Written by take_turn."""
        return f"{self.namespace}:rate:subscription:{subscription}"

    def probes(self, subscription: str) -> str:
        """ZSET, expires: probes of a half-open subscription -> when their leases end, in ms. By probe."""
        return f"{self.namespace}:probes:{subscription}"

    def layout(self, shard: int) -> str:
        """HASH, permanent: how far the last move of this shard came: turn, step, done, counts of what was
        moved, and meanwhile the subscriptions found (`name …`). By take_shard and move."""
        return self._tagged(shard, "layout")

    def polls(self, shard: int, provider: str) -> str:
        """ZSET, permanent: account -> when its poll is due (or its lease ends), in ms; its fraction says
        which (`leases`)."""
        return self._tagged(shard, "schedule", "polls", provider)

    def due_polls(self, shard: int) -> str:
        """ZSET, permanent: provider -> no later than when its first poll is due, in ms."""
        return self._tagged(shard, "due", "polls")

    def failing(self, shard: int, provider: str) -> str:
        """HASH, permanent: account -> `count since_ms error_class reason` of its rejected polls in a row."""
        return self._tagged(shard, "failing", provider)

    def removed(self, shard: int) -> str:
        """ZSET, permanent: account that is not configured any more -> when it is forgotten, in ms. Filled by
        take_off, emptied by forget, and by `Roster` where an account is put back."""
        return self._tagged(shard, "removed")

    def account_records(self, shard: int) -> str:
        """HASH, permanent: account of the directory -> `version edited plain`, a newline, and the encrypted
        part; behind `edited` perhaps when it was written (`directory`). By put_records and delete_records."""
        return self._tagged(shard, "directory", "accounts")

    def subscription_records(self, shard: int) -> str:
        """HASH, permanent: subscription of the directory -> its record, as of an account."""
        return self._tagged(shard, "directory", "subscriptions")

    def changes(self, shard: int) -> str:
        """STREAM, trimmed: what changed in the directory, as `version-first`: 1 and an account, or 2 and a
        subscription. By put_records and delete_records."""
        return self._tagged(shard, "directory", "changes")

    def names(self, provider: str) -> str:
        """HASH, permanent: asset -> JSON [symbol, name, decimals], as they were first seen. By note_names."""
        return f"{self.namespace}:names:{provider}"

    def state(self, account: str) -> str:
        """STRING, permanent: version, polled_at, height, sequence and the rest (`state`). Written by commit
        and touch."""
        return f"{self.namespace}:{{{shard_of(account)}}}:account:{account}"

    def queued(self, account: str) -> str:
        """HASH, permanent: subscription -> sequence of the last delivery that a commit queued for it. By
        commit."""
        return f"{self.namespace}:{{{shard_of(account)}}}:queued:{account}"

    def bodies(self, shard: int) -> str:
        """HASH, permanent: reference `id sequence` -> `count type`, a newline, and the event's JSON up to
        `subscription`; the count is that of the log's records, queues and dead letters that refer to it.
        Moved by every script that makes or drops a reference."""
        return self._tagged(shard, "bodies")

    def sizes(self, shard: int) -> str:
        """HASH, permanent: log, dead, attempts -> bytes that they take; `dead SUBSCRIPTION` -> its dead
        letters; trimmed -> the last record that the log no longer holds. By the scripts that fill and trim
        them."""
        return self._tagged(shard, "sizes")

    def backlogs(self, shard: int) -> str:
        """HASH, permanent: subscription -> how many deliveries wait for it in the shard. Moved by every
        script that fills or empties a queue."""
        return self._tagged(shard, "backlogs")

    def log(self, shard: int) -> str:
        """STREAM, trimmed: what every commit recorded: account, entry (`follows reference` of an event, or
        `follows` and JSON), queued (`subscription previous`, a line each). For events, replay and audit;
        never for delivery. Trimmed by commit."""
        return self._tagged(shard, "events")

    def due_subscriptions(self, shard: int) -> str:
        """ZSET, permanent: subscription -> no later than when its first queue is due, in ms."""
        return self._tagged(shard, "due", "queues")

    def queues(self, shard: int, subscription: str) -> str:
        """ZSET, permanent: account -> when its queue is due (or its lease ends), in ms."""
        return f"{self.namespace}:{{{shard}}}:schedule:queues:{subscription}"

    def queue(self, subscription: str, account: str) -> str:
        """LIST, permanent: the pending deliveries, oldest first, each `reference previous`; or a STRING: the
        one that found it empty, and came alone. Pushed by commit, popped by settle, give_up and shorten."""
        return f"{self.namespace}:{{{shard_of(account)}}}:queue:{subscription}:{account}"

    def tries(self, shard: int, subscription: str) -> str:
        """HASH, permanent: account -> `count delivery` of the failed attempts of its queue's head. By
        settle."""
        return self._tagged(shard, "retries", subscription)

    def results(self, shard: int, subscription: str) -> str:
        """ZSET, expires: account -> when its queue's last attempt ended, in ms; of a failed one 10^15 more.
        '' -> 0 stands for a shard where all is well. By settle and count_results."""
        return self._tagged(shard, "results", subscription)

    def row(self, shard: int, subscription: str) -> str:
        """STRING, expires: when a delivery was last taken (ms), a second, how many attempts were taken and
        failed in it, and in the one before; then, a line each, `ms kind account` of the failures since, five
        at most. Written by settle."""
        return self._tagged(shard, "row", subscription)

    def dead(self, shard: int, subscription: str) -> str:
        """STREAM, trimmed: dead letters: account, reason, delivery (as it was queued). By settle, give_up
        and shorten."""
        return self._tagged(shard, "dead_letters", subscription)

    def given_up(self, shard: int) -> str:
        """STREAM, trimmed: dead letters there was no memory left for: subscription, account, reason, delivery
        (as it was queued; its body is gone). By settle, give_up and shorten."""
        return self._tagged(shard, "given_up")

    def attempts(self, shard: int, subscription: str) -> str:
        """STREAM, trimmed: attempts that failed, and the one that ended the row. Written by settle."""
        return self._tagged(shard, "attempts", subscription)

    def nothing(self, shard: int) -> str:
        """Never exists: deleting it first lets a script drain queues on a server that is full (OOM)."""
        return self._tagged(shard, "nothing")

    def trial(self, shard: int, kind: str) -> str:
        """Never exists once a script has ended: what `guarantee` tries a user's rights on."""
        return self._tagged(shard, "trial", kind)

    def _tagged(self, shard: int, *parts: str) -> str:
        return ":".join((self.namespace, f"{{{shard}}}", *parts))


@dataclass(frozen=True, slots=True)
class OldKeys(Keys):
    """The keys that have another name in layout 1, and the schedules while they are moved."""

    def breakers(self) -> str:
        return f"{self.namespace}:standings"

    def polls(self, shard: int, provider: str) -> str:
        return self._tagged(shard, "polls", provider)

    def state(self, account: str) -> str:
        return self._tagged(shard_of(account), "state", account)

    def log(self, shard: int) -> str:
        return self._tagged(shard, "log")

    def due_subscriptions(self, shard: int) -> str:
        return self._tagged(shard, "due")

    def queues(self, shard: int, subscription: str) -> str:
        return self._tagged(shard, "lanes", subscription)

    def queue(self, subscription: str, account: str) -> str:
        return self._tagged(shard_of(account), "lane", subscription, account)

    def tries(self, shard: int, subscription: str) -> str:
        return self._tagged(shard, "tries", subscription)

    def dead(self, shard: int, subscription: str) -> str:
        return self._tagged(shard, "dead", subscription)

    def moving_polls(self, shard: int, provider: str) -> str:
        return self._tagged(shard, "moving", "polls", provider)

    def moving_queues(self, shard: int, subscription: str) -> str:
        return self._tagged(shard, "moving", "queues", subscription)


MOST = 10**14
"""Above every count and every time in ms (until the year 5138): what is larger is damage."""


def stamp_of(polled_at_ms: int, height: int | None) -> str:
    """Write what `touch` replaces: the time of the last poll and, where there is one, its height."""
    return f"{polled_at_ms:014d}" if height is None else f"{polled_at_ms:014d} {height:020d}"


def read_count(digits: bytes) -> int:
    """Read a count, or a time in ms. Raises ValueError."""
    if not digits.isdigit() or len(digits) > len(str(MOST)):  # int() would read `1_0` too
        raise ValueError("not a count")
    return check_count(int(digits))


def check_count(value: object) -> int:
    """Take a number for a count. Raises ValueError."""
    if type(value) is not int or not 0 <= value < MOST:
        raise ValueError("not a count")
    return value


def read_score(score: bytes) -> int:
    """Read when a member of a schedule is due, in ms; a score beyond all times becomes the latest time."""
    return int(min(max(float(score), 0.0), MOST - 1))
