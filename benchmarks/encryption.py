"""What encryption at rest costs: CPU per span and bytes of the file, with a key and without, on all recordings.

PYTHONPATH=tests python -m benchmarks.encryption
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from recordings import sample
from step_exporter.facts import RawSpan
from step_exporter.store.encryption import generate_key
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.load import load_spans, trace_ids
from step_exporter.store.schema import ensure_schema

ROUNDS = 5
BATCH = 500


class Costs(NamedTuple):
    """Of one round."""

    write_s: float
    read_s: float
    size: int


def main() -> None:
    """Print the best of the rounds, in which the two take turns. The first one imports and compiles."""
    raws = sample(1)
    rounds = [{name: measured(raws, key) for name, key in keys()} for _ in range(ROUNDS + 1)][1:]
    for name in rounds[0]:
        found = [costs[name] for costs in rounds]
        write, read = (1e6 * min(times) / len(raws) for times in list(zip(*found, strict=True))[:2])
        print(f"{name:<13}: write {write:.0f} µs, read {read:.0f} µs a span; {found[0].size / 1e6:.1f} MB")


def keys() -> list[tuple[str, str]]:
    """With what."""
    return [("without a key", ""), ("with a key", generate_key())]


def measured(raws: list[RawSpan], key: str) -> Costs:
    """Write the spans to a new file and read them all."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "steps.db"
        engine = create_sync_engine(path, encryption_key=key)
        ensure_schema(engine)
        writer = Writer(engine)
        begun = time.process_time()
        for at in range(0, len(raws), BATCH):
            writer.write(raws[at : at + BATCH])
        written = time.process_time()
        with engine.connect() as conn:
            for trace_id in trace_ids(conn):
                list(load_spans(conn, trace_id))
        read = time.process_time()
        engine.dispose()
        return Costs(written - begun, read - written, path.stat().st_size)


if __name__ == "__main__":
    main()
