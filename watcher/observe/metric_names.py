"""The catalogue of metrics: every name that `/metrics` tells, with its kind, its labels and its meaning.

Names are stable, in base units; a label holds a name of the configuration in force or a word of ours, never
an account and never a text from outside. Refuses to know any value: `metrics` does.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

POLL_OUTCOMES = ("committed", "unchanged", "rejected", "discarded", "quarantined")
ERROR_CLASSES = ("auth", "configuration", "rate", "transient", "malformed", "gone")
ATTEMPT_OUTCOMES = ("delivered", "retry", "refused")


class Meaning(NamedTuple):
    """What a metric counts or measures. `is_shared`: all workers of a namespace tell the same of it."""

    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    is_shared: bool = False


METRICS: Mapping[str, Meaning] = {
    "watcher_build_info": Meaning("gauge", "Always 1; the label tells the version.", ("version",)),
    "watcher_polls_total": Meaning(
        "counter",
        f"Polls that this worker ended, by outcome: {', '.join(POLL_OUTCOMES)}.",
        ("provider", "outcome"),
    ),
    "watcher_polls_rejected_total": Meaning(
        "counter",
        f"Polls that were rejected, by class of error: {', '.join(ERROR_CLASSES)}.",
        ("provider", "error_class"),
    ),
    "watcher_poll_duration_seconds": Meaning(
        "histogram", "From the start of a poll to its end, the commit included.", ("provider",)
    ),
    "watcher_changes_total": Meaning(
        "counter", "Events that this worker committed, by type.", ("provider", "type")
    ),
    "watcher_attempts_total": Meaning(
        "counter",
        "Attempts of this worker, by outcome: delivered, retry, or refused for the last time.",
        ("subscription", "outcome"),
    ),
    "watcher_deliveries_pushed_out_total": Meaning(
        "counter",
        "Deliveries that full queues gave up for newer ones that this worker committed.",
        ("subscription",),
    ),
    "watcher_delivery_lag_seconds": Meaning(
        "histogram", "From the commit of an event to its delivery, retries included."
    ),
    "watcher_requests_in_flight": Meaning("gauge", "Polls and attempts of this worker under way."),
    "watcher_loop_lag_seconds": Meaning(
        "gauge", "How late the event loop was at worst, in the last one to two minutes."
    ),
    "watcher_clock_skew_seconds": Meaning(
        "gauge", "By how much this machine's clock is ahead of the server's; looked at once a minute."
    ),
    "watcher_log_lines_dropped_total": Meaning("counter", "Log lines lost because nobody read them."),
    "watcher_configuration_last_reload_ok": Meaning(
        "gauge", "0 while the last configuration that was read has mistakes, and the one before is in force."
    ),
    "watcher_configuration_differs": Meaning(
        "gauge",
        "Providers, subscriptions and accounts that another worker of the namespace configures differently.",
    ),
    "watcher_accounts": Meaning("gauge", "Accounts of the configuration in force.", ("provider",)),
    "watcher_store_up": Meaning(
        "gauge", "1 where Redis answers and takes writes; at 0 everything below is missing."
    ),
    "watcher_accounts_failing": Meaning(
        "gauge", "Accounts whose last poll was refused.", ("provider",), is_shared=True
    ),
    "watcher_accounts_rejected": Meaning(
        "gauge",
        "Accounts whose last poll was refused for what only a person can mend: "
        "auth (a wrong key, a forbidden account), configuration.",
        ("provider", "error_class"),
        is_shared=True,
    ),
    "watcher_accounts_stale": Meaning(
        "gauge", "Accounts whose polls have been refused for three intervals.", ("provider",), is_shared=True
    ),
    "watcher_poll_overdue_seconds": Meaning(
        "gauge",
        "For how long the first poll that is due has been waiting to be claimed.",
        ("provider",),
        is_shared=True,
    ),
    "watcher_queues_waiting": Meaning(
        "gauge", "Queues (one an account) with deliveries in them.", ("subscription",), is_shared=True
    ),
    "watcher_oldest_undelivered_seconds": Meaning(
        "gauge",
        "Age of the oldest delivery that waits, 0 if none does; of a long backlog a sample is measured.",
        ("subscription",),
        is_shared=True,
    ),
    "watcher_subscription_failing": Meaning(
        "gauge", "1 from the first failed attempt until a delivery.", ("subscription",), is_shared=True
    ),
    "watcher_subscription_paused": Meaning(
        "gauge",
        "1 while a subscription gets no attempts until it is resumed.",
        ("subscription",),
        is_shared=True,
    ),
    "watcher_dead_letters": Meaning(
        "gauge", "Deliveries that were given up and are kept.", ("subscription",), is_shared=True
    ),
}
