"""What tests share: builders, servers, workers, subscribers, judges.

What only one folder needs lies in that folder.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""
