"""What came to the simulators, when, and what it was answered; and the limit on how much may come.

Refuses to read a clock: arrival times are arguments.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Hashable
from itertools import pairwise

from watcher.sandbox.answers import Call

KEPT_TIMES = 100_000
KEPT_CALLS = 1_000
"""A sandbox may run for days: counts are for ever, times and requests are the latest ones."""


class Traffic:
    """Requests per endpoint (a path): counts, arrival times in monotonic seconds, and the statuses sent."""

    def __init__(self) -> None:
        self.calls: deque[Call] = deque(maxlen=KEPT_CALLS)
        self._count_by_path: Counter[str] = Counter()
        self._times_by_path: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT_TIMES))
        self._statuses_by_path: dict[str, Counter[int]] = defaultdict(Counter)

    def arrived(self, call: Call, at: float) -> None:
        """Note a request."""
        self.calls.append(call)
        self._count_by_path[call.path] += 1
        self._times_by_path[call.path].append(at)

    def answered(self, path: str, status: int) -> None:
        """Note an answer, as it is about to be sent."""
        self._statuses_by_path[path][status] += 1

    def count(self, path: str | None = None) -> int:
        """Count requests, of one endpoint or of all."""
        return self._count_by_path.total() if path is None else self._count_by_path[path]

    def times(self, path: str) -> list[float]:
        """List when requests came, earliest first."""
        return list(self._times_by_path[path])

    def statuses(self, path: str) -> Counter[int]:
        """Count the answers of one endpoint by status."""
        return Counter(self._statuses_by_path[path])

    def most_within(self, path: str, seconds: float = 1) -> int:
        """Say how many requests came within any such span, at most: what a rate limit is about."""
        times, start, most = self.times(path), 0, 0
        for end, at in enumerate(times):
            while at - times[start] >= seconds:
                start += 1
            most = max(most, end - start + 1)
        return most

    def gaps(self, path: str) -> list[float]:
        """List the seconds between each request and the next."""
        return [after - before for before, after in pairwise(self.times(path))]


class RateLimit:
    """A sliding window of one second. Only requests that are let in count."""

    def __init__(self) -> None:
        self._admitted_by_scope: dict[Hashable, deque[float]] = defaultdict(deque)

    def admits(self, scope: Hashable, at: float, limit: int | None) -> bool:
        """Say whether one more request may come now."""
        admitted = self._admitted_by_scope[scope]
        while admitted and at - admitted[0] >= 1:
            admitted.popleft()
        if limit is not None and len(admitted) >= limit:
            return False
        admitted.append(at)
        return True
