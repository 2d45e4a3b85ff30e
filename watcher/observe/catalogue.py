"""The catalogue of log lines: every event name that `watcher` logs, with its level and its fields.

Names and fields are documented and stable: a test compares them with what the code logs, both ways.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

Level = Literal["debug", "info", "warning", "error"]

FIELD_MEANINGS: Mapping[str, str] = {
    "account": "name of the account; in a delivery of subscription.paused, name of the paused subscription",
    "accounts": "how many accounts",
    "added": "how many are new",
    "address": "where metrics and probes are served",
    "affected": "which part of watcher it is about",
    "answer": "how the receiver's answer begins: at most 200 characters, control characters escaped",
    "asset": "id of the asset",
    "assets": "how many assets",
    "attempt": "number of this attempt, from 1",
    "attempts": "how many recorded attempts",
    "by": "who did it: a user at a host, or the name of a token",
    "bytes": "how many bytes were cut off the end of the file",
    "change": "what was done: created, changed, deleted, or which part is new: secret, token, verified",
    "changed": "how many are in both, and differ",
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
    "guarantee": "what this server guarantees, in one sentence",
    "in_flight": "requests under way",
    "inactive": "a few of the subscriptions that this worker leaves to the other one",
    "kind": "account or subscription",
    "lag_ms": "from the commit of the event to its delivery, or how late the event loop is",
    "last_event_id": "id of the last event that went in the same message",
    "layout": "number of the layout of Redis: 2 is that of this version, 1 that of version 0.1",
    "library": "name of the library",
    "limit_bytes": "bytes that Redis may take, its maxmemory",
    "lines": "how many log lines",
    "message": "what the library logged",
    "mistakes": "how many mistakes were found",
    "name": "name of the account or subscription",
    "names": "a few of the names: +new, -removed, or the name alone; of one that differs, with its keys",
    "next_ms": "how long until the next try",
    "our_bytes": "about how many bytes are watcher's",
    "pause_in_ms": "how long until the subscription is paused, if it goes on failing",
    "pending_confirmation": "how many changes wait for their other half",
    "per_second": "attempts that may begin in a second, over all workers",
    "persistence": "how Redis keeps its data: its appendfsync, aof, snapshots, none or hidden",
    "polls": "how many polls since the last heartbeat",
    "provider": "name of the provider",
    "providers": "how many providers",
    "reason": "why, in a few words",
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
    "times": "how many times in a row so far (of a successful poll: how many were rejected before it)",
    "token": "owner of its token: `operator`, or `subscription NAME`; null if the token is unknown",
    "unchanged": "whether the snapshot equals the last one",
    "used_bytes": "bytes that Redis takes, as it counts them against its limit",
    "version": "version of watcher",
    "worker": "name of this worker",
    "workers": "a few of the workers that this one waits for, each with its version",
}


class Line(NamedTuple):
    """One event name: its level, the fact that it states, and the fields that it may carry.

    A line that says nothing new has the level debug. A failure that lasts is logged when it
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
        "The time to drain ran out; another worker repeats the unfinished work when its lease ends.",
        ("worker", "in_flight"),
    ),
    "poll.left": Line(
        "info",
        "`watcher run --once` left an account to another worker, which was polling it.",
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
        "Something blocked the event loop of the worker, so leases may have run out.",
        ("worker", "lag_ms", *_LASTS),
    ),
    "loop.recovered": Line("info", "Nothing has blocked the event loop for a minute.", ("worker", *_LASTS)),
    "lease.lost": Line(
        "info",
        "A lease ran out before the work was done; the result was discarded, and another worker repeats "
        "the work.",
        ("account", "subscription", "reason"),
    ),
    "clock.skewed": Line(
        "warning",
        "The clocks of this machine and of Redis differ; receivers reject signatures that are 5 minutes off.",
        ("worker", "skew_ms", *_LASTS),
    ),
    "clock.recovered": Line(
        "info", "The clocks of this machine and of Redis agree again.", ("worker", "skew_ms", *_LASTS)
    ),
    "configuration.loaded": Line(
        "info",
        "A configuration is in force: at the start, after SIGHUP, or after an edit with --watch.",
        ("file", "providers", "accounts", "subscriptions"),
    ),
    "configuration.changed": Line(
        "info",
        "A reload changed one section: how many entries, and a few of their names.",
        ("section", "added", "removed", "changed", "names"),
    ),
    "configuration.doubtful": Line(
        "warning", "Something in the configuration is allowed, but is probably a mistake.", ("reason",)
    ),
    "directory.followed": Line(
        "info",
        "The worker applied what programs added, changed or deleted: how many accounts and "
        "subscriptions since the last such line.",
        ("accounts", "subscriptions"),
    ),
    "directory.shadowed": Line(
        "warning",
        "The configuration file and the directory have accounts or subscriptions of the same name. The "
        "file wins; the records of the directory are not used.",
        ("records", "names", "reason"),
    ),
    "directory.locked": Line(
        "warning",
        "This worker cannot use some records of the directory, and leaves them to workers that can.",
        ("records", "names", "reason"),
    ),
    "directory.resealed": Line(
        "info",
        "This worker encrypted these records again, with the first key of [api]. No record that it can "
        "decrypt needs an older key any more.",
        ("records",),
    ),
    "directory.restored": Line(
        "warning",
        "Redis lost what programs had added, and this worker wrote it again.",
        ("records",),
    ),
    "configuration.refused": Line(
        "error",
        "A reload found mistakes, so the configuration before it stays in force. `watcher check` lists "
        "all of them.",
        ("mistakes", "reasons"),
    ),
    "configuration.differs": Line(
        "warning",
        "Another worker of the namespace has a different provider, account or URL under the same name; "
        "for each of them, one of the two workers is inactive.",
        ("worker", "names", "changed", "inactive", "accounts", *_LASTS),
    ),
    "configuration.agrees": Line(
        "info",
        "No other worker has a different provider, account or URL under the same name any more.",
        _LASTS,
    ),
    "listener.started": Line("info", "Metrics and probes are served over HTTP.", ("address",)),
    "listener.refused": Line(
        "warning",
        "A request over HTTP was refused, and `reason` says what to do. Each kind at most once an hour.",
        ("status", "reason", *_LASTS),
    ),
    "api.refused": Line(
        "warning",
        "A request under /v1 was refused: `reason` says why, and `token` is the owner of its "
        "token. Each kind at most once an hour.",
        ("status", "reason", "token", *_LASTS),
    ),
    "store.guarantee": Line(
        "info",
        "What this Redis guarantees. Logged at the start, and whenever it changes.",
        ("server", "persistence", "eviction", "guarantee"),
    ),
    "store.weak": Line(
        "warning",
        "The settings of Redis break one of watcher's guarantees, or Redis guarantees less than before.",
        ("server", "reason"),
    ),
    "store.repaired": Line(
        "warning",
        "The append-only file of the embedded server had an unreadable end, as after a power loss. The "
        "end was cut off, and a copy of the file was kept.",
        ("file", "bytes", "copy", "reason"),
    ),
    "store.restarted": Line(
        "warning",
        "The embedded server had ended, and this worker started it again. `file` is its log.",
        ("file", "reason"),
    ),
    "store.unreachable": Line(
        "error", "Redis does not answer; work waits for it.", ("reason", "next_ms", *_LASTS)
    ),
    "store.refusing": Line(
        "error",
        "Redis answers with errors (memory, disk, a replica, credentials, rights, a quota), or its "
        "settings do not allow a worker to commit.",
        ("reason", "next_ms", *_LASTS),
    ),
    "store.relieved": Line(
        "warning",
        "Redis was 85 % full (`used_bytes` of `limit_bytes`). A worker removed the oldest log records "
        "and attempts, then dead letters, then deliveries of the largest backlog, until it was 80 % "
        "full: so many of each.",
        ("used_bytes", "limit_bytes", "records", "attempts", "dead_letters", "deliveries"),
    ),
    "store.full": Line(
        "error",
        "Redis is 85 % full, and nothing is left that a worker may remove; about `our_bytes` of it are "
        "watcher's.",
        ("used_bytes", "limit_bytes", "our_bytes", *_LASTS),
    ),
    "store.recovered": Line("info", "Redis can be used again.", _LASTS),
    "layout.awaited": Line(
        "info",
        "This worker stands by, because Redis is not in the layout of this version, or is to leave it. "
        "Logged when the wait begins, and once a minute.",
        ("worker", "layout", "reason", "workers", "duration_ms"),
    ),
    "layout.moved": Line(
        "info",
        "This worker finished the move of Redis to another layout: how much was moved in all.",
        ("worker", "layout", "accounts", "records", "dead_letters", "deliveries", "duration_ms"),
    ),
    "directory.changed": Line(
        "info",
        "A client of the API or a command changed an account or a subscription. These lines are the "
        "audit trail.",
        ("kind", "name", "change", "by"),
    ),
    "accounts.removed": Line(
        "warning",
        "Accounts are no longer configured; if the file was cut short, restore it within ten minutes.",
        ("accounts", "names", "reason"),
    ),
    "accounts.forgotten": Line(
        "info", "The state of accounts that were removed ten minutes ago was deleted.", ("accounts",)
    ),
    "state.lost": Line(
        "error",
        "Redis lost its state: accounts get new baselines, and no events of what changed.",
        ("accounts", "reason"),
    ),
    "account.baseline": Line(
        "info",
        "The first snapshot of an account, or the first one after `watcher accounts reset`, is its baseline.",
        ("account", "provider", "assets", "by"),
    ),
    "account.stale": Line(
        "warning",
        "No successful poll for three intervals and the time-out. 20 accounts or more share one line.",
        ("account", "accounts", "provider", "reason", "duration_ms"),
    ),
    "account.recovered": Line(
        "info",
        "An account that was stale, or quarantined, is polled successfully and in time again.",
        ("account", "accounts", "provider", *_LASTS),
    ),
    "account.quarantined": Line(
        "error",
        "The state of this account in Redis cannot be read; the workers skip this account only.",
        ("account", "reason", *_LASTS),
    ),
    "poll.finished": Line(
        "info",
        "A successful poll: its snapshot is the account's state.",
        (*_POLL, "unchanged", "changes", "pending_confirmation", "times"),
    ),
    "poll.rejected": Line(
        "info",
        "A poll was rejected: the account keeps its state, and the time of that state.",
        (*_POLL, "error_class", "reason", "status", "next_ms", "times"),
    ),
    "poll.discarded": Line(
        "info",
        "A successful answer came too late, or during a stop, and was not used.",
        (*_POLL, "reason", "times"),
    ),
    "event.created": Line(
        "info",
        "A change was committed as an event, and queued for the subscriptions that match.",
        ("account", "provider", "asset", "event_id", "event_type", "sequence", "subscriptions"),
    ),
    "account.suspect": Line(
        "info",
        "A full listing suddenly names no asset: that counts only after a minute of successful polls.",
        ("account", "provider", "assets"),
    ),
    "asset.suspect": Line(
        "info",
        "An asset fell in a way that the next successful poll must confirm before it counts.",
        ("account", "asset", "reason"),
    ),
    "subscription.overflowed": Line(
        "warning",
        "More deliveries waited than `max_backlog` allows, or than Redis had memory for. The oldest of "
        "the longest queues were given up, and became dead letters where there was memory for these. "
        "Logged at once, then every five minutes with the sum.",
        ("subscription", "deliveries", "reason"),
    ),
    "delivery.delivered": Line(
        "info",
        "A receiver took the delivery. If a message contained several, `deliveries` says how many, and the "
        "line is about the first one.",
        (*_DELIVERY, *_TOGETHER, "lag_ms"),
    ),
    "delivery.retried": Line(
        "info",
        "An attempt failed; the next one is due in `next_ms`.",
        (*_DELIVERY, *_TOGETHER, "reason", "next_ms", "answer"),
    ),
    "delivery.dead": Line(
        "warning",
        "The last attempt failed: the delivery is kept as a dead letter, and its queue goes on.",
        (*_DELIVERY, "reason", "answer"),
    ),
    "subscription.failing": Line(
        "warning",
        "The circuit breaker of a subscription opened, or stays open for longer. If it does not close, "
        "the subscription is paused.",
        ("subscription", "reason", "next_ms", "pause_in_ms", *_LASTS),
    ),
    "subscription.recovered": Line(
        "info",
        "The circuit breaker of a subscription closed: its receiver takes events again.",
        ("subscription", "duration_ms"),
    ),
    "subscription.rate_limited": Line(
        "warning",
        "A receiver takes fewer requests than it gets. All workers together send nothing for `next_ms`, "
        "then `per_second` attempts a second, and more with each second.",
        ("subscription", "reason", "per_second", "next_ms"),
    ),
    "subscription.paused": Line(
        "warning",
        "A subscription gets no more attempts until it is resumed; its events are kept. Logged by the "
        "worker that paused it or reported the pause, and by each worker that starts while it is "
        "paused.",
        ("subscription", "reason"),
    ),
    "subscription.resumed": Line(
        "info",
        "A subscription that was paused, or whose circuit breaker was open, gets its events again: an "
        "operator resumed it, or it has a new URL.",
        ("subscription",),
    ),
    "subscription.verified": Line(
        "info",
        "The URL of a subscription that came through the API answered a ping: the subscription gets its "
        "events from now on.",
        ("subscription", "duration_ms"),
    ),
    "subscription.unverified": Line(
        "warning",
        "The URL of a subscription that came through the API did not answer a ping with 2xx, so its "
        "events wait. Logged once, then rarely, while workers ping it again; without `next_ms` a day "
        "has passed, and they ping it only when a client asks.",
        ("subscription", "reason", "attempt", "next_ms"),
    ),
    "provider.unavailable": Line(
        "warning",
        "A provider fails for all its accounts; from now on workers ask it for one account at a time.",
        ("provider", "error_class", "reason", "status", *_LASTS),
    ),
    "provider.refusing": Line(
        "error",
        "A provider rejects what only a person can fix: a wrong key, or an account that it does not know.",
        ("provider", "error_class", "reason", "status", "account", "accounts", *_LASTS),
    ),
    "provider.recovered": Line(
        "info",
        "A provider answers again. With a `reason`: it accepts again what it rejected for that reason.",
        ("provider", "reason", *_LASTS),
    ),
    "resolver.changed": Line(
        "info",
        "The worker looks up names with another resolv.conf or hosts file, and tries again what failed "
        "on a name.",
        ("providers", "subscriptions"),
    ),
    "library.warned": Line(
        "warning", "A library that watcher uses logged a warning.", ("library", "message")
    ),
    "library.failed": Line(
        "error", "A library that watcher uses logged an error.", ("library", "message", "exception")
    ),
    "log.dropped": Line("warning", "Log lines were lost, because they were not read in time.", ("lines",)),
    "bug": Line(
        "error",
        "A bug in watcher. Please report it with the traceback.",
        ("affected", "account", "subscription", "exception", "times"),
    ),
}
