"""Many senders at once to two replicas on one database: what was acknowledged is there, once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

SECONDS = os.environ.get("STEP_EXPORTER_SENDERS", "1")
"""How long they send."""


def test_every_acknowledged_span_is_stored_once(database_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.senders", "--seconds", SECONDS, "--senders", "20", "--db", database_url],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 missing, 0 twice, 0 rows that differ" in done.stdout
