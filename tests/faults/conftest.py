"""Marks everything in this folder as `fault`: it takes minutes, so `pytest` leaves it to `pytest -m fault`."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.path.name != "test_verdict.py":
            item.add_marker(pytest.mark.fault)
