"""``step-exporter row-level-security``: SQL that confines PostgreSQL roles to an organization."""

from __future__ import annotations

from step_exporter.cli.options import app
from step_exporter.store.row_level_security import script


@app.command()
def row_level_security() -> None:
    """Print SQL for PostgreSQL by which a role sees the rows of one organization only. Its first lines say how."""
    print(script(), end="")
