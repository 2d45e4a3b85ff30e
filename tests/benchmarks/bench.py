"""Measures the worker against a raw aiohttp loop in the same process, server and minute.

    python tests/benchmarks/bench.py            # a minute and a half
    python tests/benchmarks/bench.py --quick    # a second; shows that it runs, its figures mean nothing

Prints medians over the rounds. Only the ratios compare between machines, and between two minutes of
one machine: the worker gets one core, the HTTP server another, and Redis what they leave.
"""

import argparse
import asyncio
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

import uvloop
from measures import Measured, backlog, changed, latencies, unchanged
from raw_loop import Speed, raw_latencies_ms, raw_speed
from stage import Stage, a_stage
from waiting import ASSETS, account_bytes, delivery_bytes

from watcher.logs import configure
from watcher.service import _raise_mmap_threshold
