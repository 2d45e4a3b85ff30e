"""What one worker did: plain counts that its loops raise and its heartbeat line tells."""

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Tally:
    """Counts since the worker started."""

    polls: int = 0
    refused: int = 0
    changes: int = 0
    deliveries: int = 0
    retried: int = 0

    def since(self, before: "Tally") -> dict[str, int]:
        """Say what was added since an earlier copy."""
        return {f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(self)}
