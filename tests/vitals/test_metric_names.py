"""Names, units and labels of the metrics are as Prometheus wants them, and are what is told."""

import re
import shutil
import subprocess
import typing
from datetime import timedelta

import pytest
from builders import a_provider, a_subscription, an_account
from scraped import parsed

from watcher.delivery.outcomes import Outcome
from watcher.metric_names import ATTEMPT_OUTCOMES, METRICS, POLL_OUTCOMES, TROUBLES, Meaning
from watcher.metrics import Metrics
from watcher.providers.contract import Trouble
from watcher.settings import Settings
from watcher.worker import Worker

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


async def told() -> str:
    """What a worker tells that has done nothing yet."""
    return (await Metrics(Worker(some_settings(), name="w")).text()).decode()


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
        "has labels of small letters": all(re.fullmatch("[a-z]+", label) for label in meaning.labels),
        "has no label of another's": not {"le", "job", "instance", "quantile"} & set(meaning.labels),
    }
    return [f"{name}: not so: {rule}" for rule, is_kept in rules.items() if not is_kept]


def test_names_units_and_labels_are_as_prometheus_wants_them() -> None:
    assert [complaint for name, meaning in METRICS.items() for complaint in complaints(name, meaning)] == []


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("watcher_polls", Meaning("counter", "Polls that this worker ended.")),
        ("watcher_lanes_total", Meaning("gauge", "Lanes with deliveries in them.")),
        ("watcher_lag_ms", Meaning("gauge", "How late the event loop was.")),
        ("watcher_poll_duration", Meaning("histogram", "From the start of a poll to its end.")),
        ("watcher_lag_gauge", Meaning("gauge", "How late the event loop was.")),
        ("polls_total", Meaning("counter", "Polls that this worker ended.")),
        ("watcher_Polls_total", Meaning("counter", "Polls that this worker ended.")),
        ("watcher_polls_total", Meaning("counter", "polls")),
        ("watcher_polls_by_provider_total", Meaning("counter", "Polls that ended here.", ("provider",))),
    ],
)
def test_a_name_that_is_not_so_is_found(name: str, meaning: Meaning) -> None:
    assert complaints(name, meaning)


async def test_what_is_told_is_what_the_catalogue_has_and_nothing_else() -> None:
    text = await told()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    ours = {name: kind for name, kind in kinds.items() if name.startswith("watcher_")}
    of_the_store = {name for name, meaning in METRICS.items() if meaning.is_shared}
    assert ours == {name: meaning.kind for name, meaning in METRICS.items() if name not in of_the_store}
    assert {name for name in kinds if name not in ours} <= {
        name for name in kinds if name.startswith("process_")
    }
    helps = dict(re.findall(r"^# HELP (watcher_\S+) (.*)$", text, re.MULTILINE))
    assert helps == {name: METRICS[name].text for name in ours}


async def test_every_sample_carries_exactly_the_labels_of_the_catalogue() -> None:
    for name, labels in parsed(await told()).samples:
        told_of = re.sub(r"_(bucket|sum|count)$", "", name)
        if told_of.startswith("watcher_"):
            assert {label for label, _ in labels} - {"le"} == set(METRICS[told_of].labels)


async def test_every_count_begins_at_zero_so_that_its_first_is_an_increase() -> None:
    scraped = parsed(await told())
    assert scraped.value("watcher_attempts_total", subscription="others", outcome="refused") == 0
    assert scraped.value("watcher_polls_total", provider="shop", outcome="quarantined") == 0
    assert scraped.value("watcher_changes_total", provider="shop", type="withdrawal.returned") == 0
    assert scraped.value("watcher_poll_duration_seconds_count", provider="shop") == 0
    assert scraped.value("watcher_accounts", provider="loopring") == 2


async def test_the_number_of_series_is_bounded_by_the_configuration() -> None:
    """With 2 providers and 2 subscriptions: no more than these, whatever happens."""
    assert len(parsed(await told()).samples) < 140


def test_the_words_of_labels_are_those_of_the_code() -> None:
    assert set(TROUBLES) == set(typing.get_args(Trouble))
    assert set(ATTEMPT_OUTCOMES) == {outcome.value for outcome in Outcome}
    assert len(set(POLL_OUTCOMES)) == 5


async def test_promtool_has_nothing_to_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on this machine (it comes with Prometheus)")
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=(await told()).encode(),
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
