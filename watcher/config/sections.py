"""Read what stands once in a file: [redis], [worker], [log], [egress], and what the environment says of them.

Refuses to know providers, accounts and subscriptions.
"""

from typing import NamedTuple

from watcher.config.findings import UNKNOWN, Entry, Findings, did_you_mean
from watcher.config.rules import leftover_flaw, redis_url_flaw
from watcher.config.tables import overridden, section, settings_of
from watcher.environment import Environment
from watcher.settings import EgressSettings, LogSettings, RedisSettings, WorkerSettings

SECTIONS = ("redis", "worker", "log", "egress", "providers", "accounts", "accounts_file", "subscriptions")
"""Every key that may stand at the top of a file."""


class Sections(NamedTuple):
    """None stands for a section with a mistake in it."""

    redis: RedisSettings | None
    worker: WorkerSettings | None
    log: LogSettings | None
    egress: EgressSettings | None


def read_sections(document: Entry, environment: Environment, findings: Findings) -> Sections:
    """Read the single sections and refuse unknown ones."""
    for name in document.table.keys() - set(SECTIONS):
        findings.mistake(document.finding((name,), UNKNOWN + did_you_mean(name, SECTIONS)))
    log = section(document, "log", findings)
    names = {"level": "LOG_LEVEL", "format": "LOG_FORMAT", "prefix": "LOG_PREFIX"}
    log = overridden(log, names, environment, findings)
    return Sections(
        redis=read_redis(document, environment, findings),
        worker=settings_of(WorkerSettings, section(document, "worker", findings), findings),
        log=settings_of(LogSettings, log, findings),
        egress=settings_of(EgressSettings, section(document, "egress", findings), findings),
    )


def read_redis(document: Entry, environment: Environment, findings: Findings) -> RedisSettings | None:
    """Read [redis] alone."""
    entry = overridden(section(document, "redis", findings), {"url": "REDIS_URL"}, environment, findings)
    redis = settings_of(RedisSettings, entry, findings)
    url = entry.table.get("url")
    flaw = redis_url_flaw(url) if isinstance(url, str) else None
    if flaw:
        findings.mistake(entry.finding(("url",), flaw))
    elif isinstance(url, str) and (doubtful := leftover_flaw(url)):
        findings.warn(entry.finding(("url",), doubtful))
    return redis
