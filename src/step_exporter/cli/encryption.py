"""The commands of encryption at rest: ``generate-key``, ``rotate-key``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from step_exporter.cli.options import DEFAULT_URL as URL
from step_exporter.cli.options import Db, app
from step_exporter.cli.output import print_json, progress, show
from step_exporter.cli.text import count
from step_exporter.store import audit
from step_exporter.store.audit import Caller
from step_exporter.store.encryption import generate_key
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.rotation import rotate_key
from step_exporter.store.schema import check_schema


@app.command(name="generate-key")
def generate_key_() -> None:
    """Print a new key to encrypt a database by, for OTEL_EXPORTER_STEPS_ENCRYPTION_KEY. Nothing keeps it."""
    print(generate_key())


@app.command(name="rotate-key")
def rotate_key_(db: Db = URL, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Encrypt everything by the first key of OTEL_EXPORTER_STEPS_ENCRYPTION_KEY, also what was written without any."""
    reader = create_sync_engine(db, read_only=True)  # says so where there is no file, and makes none
    with reader.connect() as conn:
        check_schema(conn)
    reader.dispose()
    engine = create_sync_engine(db)
    try:
        with progress("encrypting") as tell:
            done = rotate_key(engine, tell, Caller(audit.current_user()))
    finally:
        engine.dispose()
    if as_json:
        print_json({"traces": done})
    else:
        show([Text(f"{count(done, 'trace')} encrypted")])
