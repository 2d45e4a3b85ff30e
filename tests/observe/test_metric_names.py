"""Names, units and labels of the metrics follow Prometheus, and match what is exported."""

import asyncio
import re
import shutil
import subprocess
import typing
from datetime import timedelta
from types import SimpleNamespace
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.builders import a_provider, a_subscription, an_account
from tests.support.scraped import parsed
from watcher.delivery.sink import Outcome
from watcher.observe.metrics import (
    ATTEMPT_OUTCOMES,
    ERROR_CLASSES,
    METRICS,
    POLL_OUTCOMES,
    Figures,
    Labels,
    Meaning,
    Metrics,
    lines,
)
from watcher.observe.views import Overview
from watcher.providers.contract import ErrorClass
from watcher.run.directory import Followed
from watcher.run.worker import Worker
from watcher.settings import Settings
from watcher.store.polls import Failing
from watcher.store.queues import Breaker
from watcher.store.reader import Backlog, Overdue

NO_BASE_UNITS = (
    *("milliseconds", "ms", "millis", "minutes", "hours", "days", "microseconds", "nanoseconds"),
    *("kilobytes", "kb", "megabytes", "mb", "mib", "bits", "percent"),
)
KINDS = ("counter", "gauge", "histogram", "summary", "metric")


def some_settings() -> Settings:
    return Settings(
        provider_by_name={name: a_provider(name) for name in ("loopring", "shop")},
        account_by_name={
            name: an_account(name, provider, interval=timedelta(seconds=30))
            for name, provider in (("a", "loopring"), ("b", "loopring"), ("c", "shop"))
        },
        subscription_by_name={name: a_subscription(name) for name in ("ops", "others")},
    )


NOW_MS = 1_795_175_095_846
SEEN = Overview(
    now_ms=NOW_MS,
    failing={
        "loopring": {
            "a": Failing(9, NOW_MS - 90_000, "gone", "canary"),
            "b": Failing(8, NOW_MS - 89_999, "gone", "canary"),
            "canary": Failing(9, 0, "gone", "no account of this configuration"),
        },
        "shop": {},
    },
    overdue={"loopring": Overdue(2, NOW_MS - 1500), "shop": Overdue(0, None)},
    waiting={
        "ops": Backlog(queues=3, deliveries=7, dead=2, oldest_sequence=NOW_MS - 60_000),
        "others": Backlog(),
    },
    breakers={"ops": Breaker(paused_at_ms=1, since_ms=1, reason="canary")},
    stale={"loopring": ["a"], "shop": []},
    watched_since_ms=0,
)


async def exported(seen: Overview | None = None) -> str:
    """The metrics of a worker that has done nothing, and reads this from Redis."""

    async def look() -> Overview | None:
        return seen

    worker = Worker(some_settings(), name="w")
    worker.followed = cast("Followed", SimpleNamespace(count=lambda *_: 0, behind_s=0.0))  # an empty one
    metrics = Metrics(worker)
    metrics._overview.look = look  # type: ignore[method-assign]
    return (await metrics.text()).decode()


def complaints(name: str, meaning: Meaning) -> list[str]:
    """What Prometheus' naming rules say against a metric."""
    words = name.split("_")
    rules = {
        "begins with the program's name": words[0] == "watcher",
        "is of small letters": re.fullmatch(r"[a-z]+(_[a-z]+)+", name),
        "ends in _total as a counter, and only then": (words[-1] == "total") == (meaning.kind == "counter"),
        "has a base unit": not set(words) & set(NO_BASE_UNITS),
        "tells no kind": not set(words) & set(KINDS),
        "leaves _count, _sum and _bucket to histograms": words[-1] not in ("count", "sum", "bucket"),
        "measures seconds as a histogram": meaning.kind != "histogram" or words[-1] == "seconds",
        "is a gauge as an _info": words[-1] != "info" or meaning.kind == "gauge",
        "says what it means in one sentence": re.fullmatch(r"[A-Z0-9][^\n]{15,150}\.", meaning.text),
        "has labels that are not in its name": not set(meaning.labels) & {*words[2:]},
        "has labels of small letters": all(
            re.fullmatch("[a-z]+(_[a-z]+)*", label) for label in meaning.labels
        ),
        "has no label of another's": not {"le", "job", "instance", "quantile"} & set(meaning.labels),
    }
    return [f"{name}: not so: {rule}" for rule, is_kept in rules.items() if not is_kept]


def test_names_units_and_labels_follow_prometheus_conventions() -> None:
    assert [complaint for name, meaning in METRICS.items() for complaint in complaints(name, meaning)] == []


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("watcher_polls", Meaning("counter", "Polls that this worker ended.")),
        ("watcher_queues_total", Meaning("gauge", "Queues with deliveries in them.")),
        ("watcher_lag_ms", Meaning("gauge", "How late the event loop was.")),
        ("watcher_poll_duration", Meaning("histogram", "From the start of a poll to its end.")),
        ("watcher_lag_gauge", Meaning("gauge", "How late the event loop was.")),
        ("polls_total", Meaning("counter", "Polls that this worker ended.")),
        ("watcher_Polls_total", Meaning("counter", "Polls that this worker ended.")),
        ("watcher_polls_total", Meaning("counter", "polls")),
        ("watcher_polls_by_provider_total", Meaning("counter", "Polls that ended here.", ("provider",))),
    ],
)
def test_a_name_against_the_conventions_is_found(name: str, meaning: Meaning) -> None:
    assert complaints(name, meaning)


async def test_exactly_the_metrics_of_the_catalogue_are_exported() -> None:
    text = await exported(SEEN)
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    ours = {name: kind for name, kind in kinds.items() if name.startswith("watcher_")}
    assert ours == {name: meaning.kind for name, meaning in METRICS.items()}
    assert {name for name in kinds if name not in ours} <= {
        name for name in kinds if name.startswith("process_")
    }
    helps = dict(re.findall(r"^# HELP (watcher_\S+) (.*)$", text, re.MULTILINE))
    assert helps == {name: METRICS[name].text for name in ours}


async def test_an_unreachable_redis_is_shown_as_down_and_its_metrics_are_left_out() -> None:
    names = {name for name, _ in parsed(await exported()).samples}
    assert {name for name, meaning in METRICS.items() if meaning.is_shared} & names == set()
    assert parsed(await exported()).value("watcher_store_up") == 0


async def test_metrics_from_redis_are_labelled_with_configured_names() -> None:
    scraped = parsed(await exported(SEEN))
    assert scraped.value("watcher_store_up") == 1
    assert scraped.value("watcher_accounts_failing", provider="loopring") == 2
    assert scraped.value("watcher_accounts_stale", provider="loopring") == 1
    assert scraped.value("watcher_poll_overdue_seconds", provider="loopring") == 1.5
    assert scraped.value("watcher_poll_overdue_seconds", provider="shop") == 0
    assert scraped.value("watcher_queues_waiting", subscription="ops") == 3
    assert scraped.value("watcher_deliveries_waiting", subscription="ops") == 7
    assert scraped.value("watcher_oldest_undelivered_seconds", subscription="ops") == 60
    assert scraped.value("watcher_dead_letters", subscription="ops") == 2
    assert [
        scraped.value("watcher_subscription_paused", subscription=name) for name in ("ops", "others")
    ] == [1, 0]
    assert "canary" not in scraped.text


async def test_every_sample_carries_exactly_the_labels_of_the_catalogue() -> None:
    for name, labels in parsed(await exported(SEEN)).samples:
        told_of = re.sub(r"_(bucket|sum|count)$", "", name)
        if told_of.startswith("watcher_"):
            assert {label for label, _ in labels} - {"le"} == set(METRICS[told_of].labels)


async def test_every_count_begins_at_zero_so_that_its_first_is_an_increase() -> None:
    scraped = parsed(await exported())
    assert scraped.value("watcher_attempts_total", subscription="others", outcome="refused") == 0
    assert scraped.value("watcher_polls_total", provider="shop", outcome="quarantined") == 0
    assert scraped.value("watcher_changes_total", provider="shop", type="withdrawal.returned") == 0
    assert scraped.value("watcher_poll_duration_seconds_count", provider="shop") == 0
    assert scraped.value("watcher_accounts", provider="loopring") == 2


async def test_the_number_of_series_is_bounded_by_the_configuration() -> None:
    """With 2 providers and 2 subscriptions: no more than these, whatever happens."""
    assert len(parsed(await exported(SEEN)).samples) < 170


def test_the_documented_label_values_are_those_of_the_code() -> None:
    assert set(ERROR_CLASSES) == set(typing.get_args(ErrorClass))
    assert set(ATTEMPT_OUTCOMES) == {outcome.value for outcome in Outcome}
    assert len(set(POLL_OUTCOMES)) == 5


def test_promtool_finds_no_problem() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on this machine (it comes with Prometheus)")
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=asyncio.run(exported(SEEN)).encode(),
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_any_label_value_is_read_back_by_prometheus_unchanged() -> None:
    odd = 'a "b" \\ c\n\\n {d="e"} 1.0'
    meaning = Meaning("counter", "Counts.", ("provider", "outcome"))
    samples = [((odd, "x"), 2**60), (("", odd), 0.25)]
    text = "".join(lines("odd_total", meaning, samples, Labels(meaning.labels), Figures()))
    (family,) = text_string_to_metric_families(text)
    read = [(one.labels, one.value) for one in family.samples]
    assert read == [({"provider": odd, "outcome": "x"}, 2.0**60), ({"provider": "", "outcome": odd}, 0.25)]
    assert family.documentation == "Counts."
    assert family.type == "counter"


def test_a_histogram_is_exported_with_buckets_count_and_sum() -> None:
    meaning = Meaning("histogram", "Lasts.", ("provider",))
    samples = [(("p",), [("0.5", 1), ("+Inf", 3)], 7.5)]
    text = "".join(lines("lasts_seconds", meaning, samples, Labels(meaning.labels), Figures()))
    (family,) = text_string_to_metric_families(text)
    read = {(one.name, one.labels.get("le")): one.value for one in family.samples}
    assert family.type == "histogram"
    assert read == {
        ("lasts_seconds_bucket", "0.5"): 1.0,
        ("lasts_seconds_bucket", "+Inf"): 3.0,
        ("lasts_seconds_count", None): 3.0,
        ("lasts_seconds_sum", None): 7.5,
    }


async def test_writing_the_metrics_of_thousands_does_not_block_other_work() -> None:
    many = SEEN._replace(waiting={f"s-{number}": Backlog() for number in range(5_000)})
    writing, turns = asyncio.create_task(exported(many)), 0
    while not writing.done():
        await asyncio.sleep(0)
        turns += 1
    assert (await writing).count("watcher_queues_waiting{") == 5_000
    assert turns > 3, "the start, the wait for a thread, and the text"
