"""The catalogue of log lines: every event name that `watcher` logs, with its level and its fields.

Names and fields are documented and stable: a test compares them with what the code says, both ways.
Refuses to log: it is data.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

Level = Literal["debug", "info", "warning", "error"]

FIELD_MEANINGS: Mapping[str, str] = {
    "account": "name of the account; of a delivery of subscription.paused, of the paused subscription",
    "accounts": "how many accounts",
    "added": "how many are new",
    "address": "where metrics and probes are served",
    "affected": "which of our own names this is about",
    "answer": "how the receiver's answer begins: at most 200 characters, control characters escaped",
    "asset": "id of the asset",
    "assets": "how many assets",
    "attempt": "number of this attempt, from 1",
    "attempts": "how many noted attempts",
    "by": "who wanted it: a user at a host, or the name of a token",
    "bytes": "how many bytes were cut off the end of the file",
    "change": "what became of it: created, changed, deleted, or what of it is new: secret, token, verified",
    "changed": "how many are there still, and differ",
    "changes": "how many changes were found, each one an event (in a heartbeat: since the last one)",
    "copy": "path of the copy of the file as it was",
    "dead_letters": "how many dead letters",
    "deliveries": "how many deliveries (in a heartbeat: since the last one; of an attempt: in one message)",
    "drain_ms": "how long work in hand may take at most",
    "dropped_lines": "log lines lost since the start, because they were not read",
    "due": "how many accounts and queues are due and not yet claimed",
    "duration_ms": "how long it took, or has lasted",
    "error_class": "class of the error: auth, configuration, rate, transient, malformed or gone",
    "event_id": "id of the event, as in the header webhook-id",
    "event_type": "type of the event, such as deposit.cleared",
    "eviction": "maxmemory-policy of Redis",
    "exception": "the traceback, without local variables",
    "file": "path of the configuration file, or of the one that was repaired",
    "guarantee": "what this server promises, in one sentence",
    "in_flight": "requests under way",
    "inactive": "a few of the subscriptions that this worker leaves to the other one",
    "kind": "account or subscription",
    "lag_ms": "from the commit of the event to its delivery, or how late the event loop is",
    "last_event_id": "id of the last event that went in the same message",
    "layout": "number of the layout of the store: 2 is that of this version, 1 that of version 0.1",
    "library": "which library spoke",
    "limit_bytes": "bytes that Redis may take, its maxmemory",
    "lines": "how many log lines",
    "message": "what it said",
    "mistakes": "how many mistakes were found",
    "name": "name of the account or subscription",
    "names": "a few of them: +new, -gone, or the name of one, of one that differs with its keys",
    "next_ms": "how long until the next try",
    "our_bytes": "about how many bytes are watcher's",
    "pause_in_ms": "how long until a subscription is paused that goes on failing",
    "pending_confirmation": "how many changes wait for their other half",
    "per_second": "attempts that may begin in a second, over all workers",
    "persistence": "how Redis keeps its data: its appendfsync, aof, snapshots, none or hidden",
    "polls": "how many polls since the last heartbeat",
    "provider": "name of the provider",
    "providers": "how many providers",
    "reason": "why, in a short text of ours",
    "reasons": "the first few mistakes: file, line and what is wrong",
    "records": "how many records: of the log, or of the directory",
    "rejected": "how many polls were rejected since the last heartbeat",
    "removed": "how many are gone",
    "retried": "how many attempts failed since the last heartbeat",
    "rss_mb": "memory of the process",
    "section": "which part of the configuration: providers, accounts, subscriptions, or the other settings",
    "sequence": "sequence of the event, strictly rising per account",
    "server": "name and version of the server: redis 7.2.4 or valkey 9.0.1",
    "signal": "name of the signal",
    "skew_ms": "by how much the clock differs from that of Redis",
    "status": "HTTP status of the answer",
    "subscription": "name of the subscription",
    "subscriptions": "how many subscriptions",
    "times": "how many times in a row, so far (of a successful poll: were rejected before it)",
    "token": "whose token is shown: `operator`, or `subscription NAME`; null for none that is known",
    "unchanged": "whether the snapshot equals the last one",
    "used_bytes": "bytes that Redis takes, as it counts them against its limit",
    "version": "version of watcher",
    "worker": "name of this worker",
    "workers": "a few of the workers that are waited for, each with its version",
}


class Line(NamedTuple):
    """One event name: its level, the fact it states, the fields it may carry (each where it is known).

    Where it has nothing new it is logged at the level debug instead. A failure that lasts is logged when it
    begins, an hour later, then once a day, and when it is over: `log.Throttle`.
    """

    level: Level
    fact: str
    fields: tuple[str, ...] = ()


_DELIVERY = (
    "subscription",
    "account",
    "event_id",
    "event_type",
    "sequence",
    "attempt",
    "status",
    "duration_ms",
)
_TOGETHER = ("deliveries", "last_event_id")
_LASTS = ("duration_ms", "times")
_POLL = ("account", "provider", "duration_ms")

EVENTS: Mapping[str, Line] = {
    "worker.started": Line(
        "info",
        "A worker began to claim work.",
        ("worker", "version", "accounts", "subscriptions", "providers"),
    ),
    "worker.draining": Line(
        "info",
        "A worker was asked to stop: it claims nothing more and finishes what it has in hand.",
        ("worker", "signal", "in_flight", "drain_ms"),
    ),
    "worker.stopped": Line("info", "A worker has given back its leases and ends.", ("worker", "duration_ms")),
    "worker.cut_off": Line(
        "warning",
        "The time to drain ran out; what was under way is tried again elsewhere when its lease ends.",
        ("worker", "in_flight"),
    ),
    "poll.left": Line(
        "info",
        "`watcher run --once` found an account in the hand of another worker, and left it to that one.",
        ("account", "provider"),
    ),
    "worker.heartbeat": Line(
        "info",
        "Once a minute: a worker is alive, and what it did since the last time.",
        (
            *("worker", "polls", "rejected", "changes", "deliveries", "retried", "due", "in_flight"),
            *("lag_ms", "rss_mb", "dropped_lines"),
        ),
    ),
    "loop.lagged": Line(
        "warning",
        "Something held the event loop up, so leases may have run out.",
        ("worker", "lag_ms", *_LASTS),
    ),
    "loop.recovered": Line("info", "Nothing has held the event loop up for a minute.", ("worker", *_LASTS)),
    "lease.lost": Line(
        "info",
        "A lease ran out before the work was done; its result was discarded, and another worker does it.",
        ("account", "subscription", "reason"),
    ),
    "clock.skewed": Line(
        "warning",
        "This machine's clock is not that of Redis; receivers refuse signatures that are 5 minutes off.",
        ("worker", "skew_ms", *_LASTS),
    ),
    "clock.recovered": Line(
        "info", "This machine's clock agrees with that of Redis again.", ("worker", "skew_ms", *_LASTS)
    ),
    "configuration.loaded": Line(
        "info",
        "A configuration is in force: at the start, after SIGHUP, or after an edit with --watch.",
        ("file", "providers", "accounts", "subscriptions"),
    ),
    "configuration.changed": Line(
        "info",
        "What a reload changed in one section: how much, and a few names.",
        ("section", "added", "removed", "changed", "names"),
    ),
    "configuration.doubtful": Line(
        "warning", "Something in the configuration is allowed but hardly meant.", ("reason",)
    ),
    "directory.followed": Line(
        "info",
        "Accounts and subscriptions that programs added, changed or deleted were taken over: how many, since "
        "the last such line.",
        ("accounts", "subscriptions"),
    ),
    "directory.shadowed": Line(
        "warning",
        "The configuration file has accounts or subscriptions of the same names as records of the directory, "
        "and wins: the records rest.",
        ("records", "names", "reason"),
    ),
    "directory.locked": Line(
        "warning",
        "Records of the directory that this worker cannot use; it leaves them to workers that can.",
        ("records", "names", "reason"),
    ),
    "directory.resealed": Line(
        "info",
        "No record that this worker can open needs an older key of [api] any more: so many were sealed anew.",
        ("records",),
    ),
    "directory.restored": Line(
        "warning",
        "Redis has lost what programs had added: this worker has written it again.",
        ("records",),
    ),
    "configuration.refused": Line(
        "error",
        "A reload found mistakes; the configuration before it stays. `watcher check` lists all of them.",
        ("mistakes", "reasons"),
    ),
    "configuration.differs": Line(
        "warning",
        "Another worker of the namespace has another provider, account or URL under the same name; of each, "
        "one side is inactive.",
        ("worker", "names", "changed", "inactive", "accounts", *_LASTS),
    ),
    "configuration.agrees": Line(
        "info", "No other worker has another provider, account or URL under the same name any more.", _LASTS
    ),
    "listener.started": Line("info", "Metrics and probes are served over HTTP.", ("address",)),
    "listener.refused": Line(
        "warning",
        "A request over HTTP was refused, and `reason` says what to do. Each kind at most once an hour.",
        ("status", "reason", *_LASTS),
    ),
    "api.refused": Line(
        "warning",
        "A request under /v1 was refused: `token` says whose it shows, if any, and `reason` why. Each kind "
        "at most once an hour.",
        ("status", "reason", "token", *_LASTS),
    ),
    "store.guarantee": Line(
        "info",
        "What this Redis promises: at the start, and whenever it has changed.",
        ("server", "persistence", "eviction", "guarantee"),
    ),
    "store.weak": Line(
        "warning",
        "Redis is set up so that a promise of ours does not hold, or promises less than it did.",
        ("server", "reason"),
    ),
    "store.repaired": Line(
        "warning",
        "The embedded server's append-only file ended in what no server reads, as after a power loss: that "
        "was cut off, and a copy was kept.",
        ("file", "bytes", "copy", "reason"),
    ),
    "store.unreachable": Line(
        "error", "Redis does not answer; work waits for it.", ("reason", "next_ms", *_LASTS)
    ),
    "store.refusing": Line(
        "error",
        "Redis answers with errors: writes (memory, disk, a replica), credentials, rights, quotas; or it is "
        "set up so that nothing may be committed to it.",
        ("reason", "next_ms", *_LASTS),
    ),
    "store.relieved": Line(
        "warning",
        "Redis was 85 % full (`used` of `limit`, in bytes): so many of the oldest log records and attempts "
        "were taken away, then dead letters, then deliveries of the largest backlog, until it was 80 % full.",
        ("used_bytes", "limit_bytes", "records", "attempts", "dead_letters", "deliveries"),
    ),
    "store.full": Line(
        "error",
        "Redis is 85 % full, and there is nothing left to give up; about `ours` bytes of it are watcher's.",
        ("used_bytes", "limit_bytes", "our_bytes", *_LASTS),
    ),
    "store.recovered": Line("info", "Redis does its part again.", _LASTS),
    "layout.awaited": Line(
        "info",
        "The store is not in this version's layout, or is to leave it: this worker stands by. Said when it "
        "begins to wait, and once a minute.",
        ("worker", "layout", "reason", "workers", "duration_ms"),
    ),
    "layout.moved": Line(
        "info",
        "This worker has brought the move of the store to another layout to its end; of how much, in all.",
        ("worker", "layout", "accounts", "records", "dead_letters", "deliveries", "duration_ms"),
    ),
    "directory.changed": Line(
        "info",
        "A client of the API, or a command, changed what is polled or delivered: the audit of all changes.",
        ("kind", "name", "change", "by"),
    ),
    "accounts.removed": Line(
        "warning",
        "Accounts are not configured any more; if the file was cut short, put it back within ten minutes.",
        ("accounts", "names", "reason"),
    ),
    "accounts.forgotten": Line(
        "info", "The states of accounts are gone that were removed ten minutes ago.", ("accounts",)
    ),
    "state.lost": Line(
        "error", "Redis has lost its state; accounts get new baselines, no events.", ("accounts",)
    ),
    "account.baseline": Line(
        "info",
        "The first snapshot of an account, or the first one after `watcher accounts reset`, is its baseline.",
        ("account", "provider", "assets", "by"),
    ),
    "account.stale": Line(
        "warning",
        "No successful poll for three intervals and the time-out; 20 accounts or more are one line.",
        ("account", "accounts", "provider", "reason", "duration_ms"),
    ),
    "account.recovered": Line(
        "info",
        "Successful polls in time of an account that was stale, or one that was quarantined.",
        ("account", "accounts", "provider", *_LASTS),
    ),
    "account.quarantined": Line(
        "error",
        "The state of this account cannot be read; it alone is left out.",
        ("account", "reason", *_LASTS),
    ),
    "poll.finished": Line(
        "info",
        "A successful poll: its snapshot is the account's state.",
        (*_POLL, "unchanged", "changes", "pending_confirmation", "times"),
    ),
    "poll.rejected": Line(
        "info",
        "A poll was rejected: the account's state and its time stay.",
        (*_POLL, "error_class", "reason", "status", "next_ms", "times"),
    ),
    "poll.discarded": Line(
        "info",
        "A successful answer came too late or during a stop, and was not used.",
        (*_POLL, "reason", "times"),
    ),
    "event.created": Line(
        "info",
        "A change was committed and is owed to the subscriptions that match.",
        ("account", "provider", "asset", "event_id", "event_type", "sequence", "subscriptions"),
    ),
    "account.suspect": Line(
        "info",
        "A full listing suddenly names nothing: that counts only after a minute of successful polls.",
        ("account", "provider", "assets"),
    ),
    "asset.suspect": Line(
        "info",
        "An asset fell in a way that the next successful poll must confirm before it counts.",
        ("account", "asset", "reason"),
    ),
    "subscription.overflowed": Line(
        "warning",
        "More deliveries waited than `max_backlog`, or than Redis had memory for: the oldest of its longest "
        "queues were given up, and became dead letters where there is memory for these. Said at once, then "
        "every five minutes of what has come together.",
        ("subscription", "deliveries", "reason"),
    ),
    "delivery.delivered": Line(
        "info",
        "A subscriber took it; where a message held several, it says how many, and is about the first one.",
        (*_DELIVERY, *_TOGETHER, "lag_ms"),
    ),
    "delivery.retried": Line(
        "info",
        "An attempt failed; the next one is due.",
        (*_DELIVERY, *_TOGETHER, "reason", "next_ms", "answer"),
    ),
    "delivery.dead": Line(
        "warning",
        "The last attempt failed: the delivery is a dead letter, kept, and the queue goes on.",
        (*_DELIVERY, "reason", "answer"),
    ),
    "subscription.failing": Line(
        "warning",
        "A subscription's circuit breaker opened, or stays open for longer; if it goes on so, it is paused.",
        ("subscription", "reason", "next_ms", "pause_in_ms", *_LASTS),
    ),
    "subscription.recovered": Line(
        "info",
        "A subscription's circuit breaker closed: it takes events again.",
        ("subscription", "duration_ms"),
    ),
    "subscription.rate_limited": Line(
        "warning",
        "A subscriber takes fewer requests than it gets. Nothing is sent for as long as it asks (`next_ms`), "
        "then so many attempts a second over all workers, and more with each second.",
        ("subscription", "reason", "per_second", "next_ms"),
    ),
    "subscription.paused": Line(
        "warning",
        "A subscription gets no more attempts until it is resumed; its events are kept. Said by the worker "
        "that paused it or reported it, and by each that finds it so at its start.",
        ("subscription", "reason"),
    ),
    "subscription.resumed": Line(
        "info",
        "A subscription that was paused, or whose circuit breaker was open, is delivered to again: by hand, "
        "or for its new URL.",
        ("subscription",),
    ),
    "subscription.verified": Line(
        "info",
        "The URL of a subscription that a client made answered a ping: from now on it gets its events.",
        ("subscription", "duration_ms"),
    ),
    "subscription.unverified": Line(
        "warning",
        "The URL of a subscription that a client made did not answer a ping with 2xx: its events wait. Said "
        "once, then seldom, while it is pinged again; without `next_ms` a day has passed, and it is pinged "
        "only if a client asks for it.",
        ("subscription", "reason", "attempt", "next_ms"),
    ),
    "provider.unavailable": Line(
        "warning",
        "A provider fails for all its accounts; one account at a time asks it from now on.",
        ("provider", "error_class", "reason", "status", *_LASTS),
    ),
    "provider.refusing": Line(
        "error",
        "A provider refuses what only a person can fix: a wrong key, an account that is not there.",
        ("provider", "error_class", "reason", "status", "account", "accounts", *_LASTS),
    ),
    "provider.recovered": Line(
        "info",
        "A provider answers again; with a `reason`: what it refused for that, it takes again.",
        ("provider", "reason", *_LASTS),
    ),
    "resolver.changed": Line(
        "info",
        "Names are looked up by another resolv.conf or hosts file; what failed on one is tried again.",
        ("providers", "subscriptions"),
    ),
    "library.warned": Line("warning", "A library that we use logged a warning.", ("library", "message")),
    "library.failed": Line(
        "error", "A library that we use logged an error.", ("library", "message", "exception")
    ),
    "log.dropped": Line("warning", "Log lines were lost because they were not read in time.", ("lines",)),
    "bug": Line(
        "error",
        "Something that was not planned; please report it with the traceback.",
        ("affected", "account", "subscription", "exception", "times"),
    ),
}
