"""A count and what is counted, as people write it."""


def many(count: int, noun: str, plural: str | None = None) -> str:
    """Write `1 queue`, `2 queues`, `1,234 deliveries`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
