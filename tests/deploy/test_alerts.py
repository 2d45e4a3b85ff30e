"""The alerts use metrics that exist, fire on their problem, and are explained."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from tests.docs.blocks import texts_in
from watcher.observe.catalogue import EVENTS
from watcher.observe.metrics import API_OUTCOMES, ATTEMPT_OUTCOMES, ERROR_CLASSES, METRICS, POLL_OUTCOMES
from watcher.store.guarantee import Persistence

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus-alerts.yaml"
README = texts_in("deploy/")
WORDS_BY_LABEL = {
    "outcome": {*POLL_OUTCOMES, *ATTEMPT_OUTCOMES, *API_OUTCOMES},
    "error_class": {*ERROR_CLASSES},
    "job": {"watcher"},
    "persistence": {*get_args(Persistence)},
}

(GROUP,) = yaml.safe_load(ALERTS.read_text())["groups"]
RULE_BY_NAME: dict[str, Any] = {rule["alert"]: rule for rule in GROUP["rules"]}

OF_ALL_WORKERS = ("WatcherAllDown", "WatcherStoreNearlyFull", "WatcherSubscriptionsUnverified")
"""Alerts that name no instance, provider or subscription."""

every_alert = pytest.mark.parametrize("name", RULE_BY_NAME)


def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool on this machine (it comes with Prometheus)")
    return found


def metrics_in(expression: str) -> set[str]:
    """The metrics of an expression; of a histogram, under its own name."""
    names = re.findall(r"\b(?:watcher|process)_[a-z_]+", expression)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def test_alert_names_are_unique() -> None:
    assert len(RULE_BY_NAME) == len(GROUP["rules"]) >= 12
    assert all(re.fullmatch("Watcher[A-Z][A-Za-z]+", name) for name in RULE_BY_NAME)


@every_alert
def test_the_metrics_and_labels_of_an_alert_exist(name: str) -> None:
    expression = RULE_BY_NAME[name]["expr"]
    assert metrics_in(expression) <= METRICS.keys()
    assert metrics_in(expression) or re.search(r"\bup\{", expression)
    for label, word in re.findall(r'(\w+)="([^"]*)"', expression):
        assert word in WORDS_BY_LABEL[label]
    labels = {label for metric in metrics_in(expression) for label in METRICS[metric].labels}
    for group in re.findall(r"(?:by|on) \(([^)]*)\)", expression):
        assert {*group.split(", ")} <= labels


@every_alert
def test_values_shared_by_all_workers_make_one_alert(name: str) -> None:
    expression = RULE_BY_NAME[name]["expr"]
    for metric in metrics_in(expression):
        if METRICS[metric].is_shared:
            assert re.search(rf"max(?: by \(\w+\) )?\((?:\w+\()?{metric}\b", expression)


@every_alert
def test_an_alert_has_a_severity_and_a_summary(name: str) -> None:
    rule = RULE_BY_NAME[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    summary = rule["annotations"]["summary"]
    by = re.findall(r"by \((\w+)\)", rule["expr"])
    for label in re.findall(r"\$labels\.(\w+)", summary):
        assert label in by or (label == "instance" and not by)
    assert "$labels." in summary or name in OF_ALL_WORKERS


def sections() -> dict[str, tuple[str, str]]:
    """What an alert means and what to do, by its name, as the section of that name says."""
    found = re.findall(r"^### (Watcher\w+)\n\n\*\*(.+?)\*\*\s(.+?)\n\n", README, re.MULTILINE | re.DOTALL)
    return {name: (meaning, advice) for name, meaning, advice in found}


def test_every_alert_has_a_section_in_the_text_and_vice_versa() -> None:
    assert re.findall(r"^### (Watcher.*)$", README, re.MULTILINE) == [*sections()] == [*RULE_BY_NAME]
    assert all(len(meaning) > 20 and len(advice) > 10 for meaning, advice in sections().values())


def test_log_lines_and_metrics_that_the_explanations_name_exist() -> None:
    stated = " ".join(text for section in sections().values() for text in section)
    said = set(re.findall(r"`([a-z]+\.[a-z_]+)`", stated))
    assert {"account.quarantined", "loop.lagged"} <= said <= EVENTS.keys()
    assert metrics_in(stated) <= METRICS.keys()


def test_the_scrape_job_is_the_one_that_the_alerts_are_about() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (block,) = (block for block in blocks if "scrape_configs" in block)
    (job,) = yaml.safe_load(block)["scrape_configs"]
    jobs = {job for rule in RULE_BY_NAME.values() for job in re.findall(r'job="(\w+)"', rule["expr"])}
    assert {job["job_name"]} == jobs
    assert f"rule_files: [{ALERTS.name}]" in block


def test_promtool_finds_the_rules_well_formed() -> None:
    checked = subprocess.run(
        [promtool(), "check", "rules", ALERTS], capture_output=True, check=False, timeout=30
    )
    assert checked.returncode == 0, checked.stderr


AT = 'instance="w1:8787", job="watcher"'
WELL = {
    f"up{{{AT}}}": "1x60",
    f"watcher_store_up{{{AT}}}": "1x60",
    f"watcher_store_refused{{{AT}}}": "0x60",
    f'watcher_store_guarantee{{{AT}, persistence="everysec", eviction="noeviction"}}': "1x60",
    f'watcher_store_guarantee{{{AT}, persistence="none", eviction="noeviction"}}': "0x60",
    f"watcher_store_memory_ratio{{{AT}}}": "0.8x60",
    f"watcher_stands_by{{{AT}}}": "0x60",
    f'watcher_polls_total{{{AT}, provider="shop", outcome="unchanged"}}': "0+60x60",
    f'watcher_polls_total{{{AT}, provider="shop", outcome="rejected"}}': "0+1x60",
    f'watcher_polls_total{{{AT}, provider="shop", outcome="quarantined"}}': "0x60",
    f'watcher_accounts_rejected{{{AT}, provider="shop", error_class="auth"}}': "0x60",
    f'watcher_accounts_rejected{{{AT}, provider="shop", error_class="configuration"}}': "0x60",
    f'watcher_polls_rejected_total{{{AT}, provider="shop", error_class="transient"}}': "0+1x60",
    f'watcher_accounts_stale{{{AT}, provider="shop"}}': "0x60",
    f'watcher_poll_overdue_seconds{{{AT}, provider="shop"}}': "0.1x60",
    f'watcher_subscription_paused{{{AT}, subscription="ops"}}': "0x60",
    f'watcher_oldest_undelivered_seconds{{{AT}, subscription="ops"}}': "2x60",
    f'watcher_dead_letters{{{AT}, subscription="ops"}}': "5x60",
    f"watcher_loop_lag_seconds{{{AT}}}": "0.01x60",
    f"watcher_clock_skew_seconds{{{AT}}}": "-0.3x60",
    f"watcher_configuration_last_reload_ok{{{AT}}}": "1x60",
    f"watcher_configuration_differs{{{AT}}}": "0x60",
    f"watcher_directory_behind_seconds{{{AT}}}": "0x60",
    f"watcher_directory_locked{{{AT}}}": "0x60",
    f"watcher_subscriptions_unverified{{{AT}}}": "0x60",
    f'watcher_api_requests_total{{{AT}, outcome="answered"}}': "0+600x60",
    f'watcher_api_requests_total{{{AT}, outcome="refused"}}': "0+1x60",
    f'watcher_api_requests_total{{{AT}, outcome="failed"}}': "0x60",
    f"watcher_log_lines_dropped_total{{{AT}}}": "0x60",
}
ILL = {
    "WatcherAllDown": {"up": "0x60"},
    "WatcherWorkerDown": {"up": "0x60"},
    "WatcherStoreDown": {"watcher_store_up": "0x60"},
    "WatcherStoreRefused": {"watcher_store_refused": "0x50 1x10"},
    "WatcherStoreForgets": {'persistence="none"': "1x60"},
    "WatcherStoreNearlyFull": {"watcher_store_memory_ratio": "0.9x60"},
    "WatcherProviderRefusesKey": {'error_class="auth"': "0x50 1x10"},
    "WatcherAccountsRejected": {'error_class="configuration"': "2x60"},
    "WatcherProviderFails": {'outcome="rejected"': "0+70x60"},
    "WatcherAccountsStale": {"watcher_accounts_stale": "3x60"},
    "WatcherAccountQuarantined": {'outcome="quarantined"': "0x50 1x10"},
    "WatcherPollsOverdue": {"watcher_poll_overdue_seconds": "90x60"},
    "WatcherSubscriptionPaused": {"watcher_subscription_paused": "1x60"},
    "WatcherDeliveriesWait": {"watcher_oldest_undelivered_seconds": "4000x60"},
    "WatcherDeadLetters": {"watcher_dead_letters": "5x50 6x10"},
    "WatcherLoopLags": {"watcher_loop_lag_seconds": "2x60"},
    "WatcherClockSkewed": {"watcher_clock_skew_seconds": "-75x60"},
    "WatcherConfigurationsDiffer": {"watcher_configuration_differs": "2x60"},
    "WatcherStandsBy": {"watcher_stands_by": "1x60"},
    "WatcherReloadRefused": {"watcher_configuration_last_reload_ok": "0x60"},
    "WatcherDirectoryBehind": {"watcher_directory_behind_seconds": "90x60"},
    "WatcherDirectoryLocked": {"watcher_directory_locked": "3x60"},
    "WatcherSubscriptionsUnverified": {"watcher_subscriptions_unverified": "2x70"},
    "WatcherApiRefuses": {'outcome="refused"': "0+30x60"},
    "WatcherApiFails": {'outcome="failed"': "0x50 9x10"},
    "WatcherLogLinesDropped": {"watcher_log_lines_dropped_total": "0x50 9x10"},
}
"""For each alert, what is otherwise while all else is well. All values are one a minute."""

AFTER = "58m"


def series(otherwise: dict[str, str]) -> list[dict[str, str]]:
    stated = []
    for name, values in WELL.items():
        changed = [
            other for part, other in otherwise.items() if part in (name.partition("{")[0], *name.split(", "))
        ]
        changed += [other for part, other in otherwise.items() if f"{part}}}" in name]
        stated.append({"series": name, "values": changed[0] if changed else values})
    return stated


def fires(name: str, otherwise: dict[str, str]) -> dict[str, Any]:
    """A test of promtool's: these series, and an alert that fires with some labels, or with none at all."""
    return {
        "interval": "1m",
        "input_series": series(otherwise),
        "promql_expr_test": [_question(name, otherwise)],
    }


def _question(name: str, otherwise: dict[str, str]) -> dict[str, Any]:
    firing = f'count(ALERTS{{alertname="{name}", alertstate="firing"}})'
    samples = [{"labels": "{}", "value": 1}] if otherwise else []
    return {"expr": firing, "eval_time": AFTER, "exp_samples": samples}


def test_every_alert_fires_on_its_problem_and_not_while_all_is_healthy(tmp_path: Path) -> None:
    assert [*ILL] == [*RULE_BY_NAME]
    tests = [fires(name, otherwise) for name, trouble in ILL.items() for otherwise in (trouble, {})]
    paused = {"watcher_subscription_paused": "1x60", **ILL["WatcherDeliveriesWait"]}
    silent = {**fires("WatcherDeliveriesWait", paused)}
    silent["promql_expr_test"] = [{**silent["promql_expr_test"][0], "exp_samples": []}]
    text = json.dumps({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [*tests, silent]})
    (tmp_path / "tests.yaml").write_text(text)  # JSON is YAML
    checked = subprocess.run(
        [promtool(), "test", "rules", tmp_path / "tests.yaml"], capture_output=True, check=False, timeout=60
    )
    assert checked.returncode == 0, checked.stdout.decode() + checked.stderr.decode()
