"""Makes the tables, brings older ones up to date, and says so where they are not ours.

The schema has a number, kept in the table ``step_exporter_version``. A new version is a file in
``migrations/versions`` (an Alembic migration whose ``upgrade`` takes the ``Operations``), and ``ddl.VERSION`` and the
same change in ``models`` or ``ddl``: new databases are made from those, and a test compares the two ways.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, inspect, select, text
from sqlalchemy.exc import DBAPIError

from step_exporter.ddl import VERSION, VERSION_TABLE, VIEWS
from step_exporter.errors import DatabaseError, SchemaError
from step_exporter.models import Base

MIGRATIONS = Path(__file__).parent / "migrations"

_LOCK_KEY = 0x73746570_65787072  # "stepexpr"


def ensure_schema(engine: Engine) -> None:
    """Create the tables, or bring them up to date. Costs a look at the version where they are current.

    One process does it, others wait; it happens as a whole or not at all. Raises ``SchemaError``, having altered
    nothing, if the tables were made by a newer version, or are somebody else's; ``DatabaseError`` if the database
    refuses.
    """
    try:
        with engine.begin() as connection:
            migrate(connection)
    except DBAPIError as error:
        raise DatabaseError(f"The tables of step_exporter cannot be made: {error.orig}") from error


def migrate(connection: Connection) -> None:
    """``ensure_schema`` in the transaction of ``connection``, for callers that hold one (``run_sync``)."""
    if schema_version(connection) == VERSION:
        return
    if connection.dialect.name == "postgresql":  # SQLite: the transaction began IMMEDIATE
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
    version = schema_version(connection)  # another process may have been faster
    if version is None:
        _refuse_strangers(connection)
        Base.metadata.create_all(connection, checkfirst=False)
    elif version != VERSION:
        _refuse_newer(version)
        upgrade(connection, version)


def check_schema(connection: Connection) -> None:
    """Raise ``SchemaError`` if there is nothing here that this version can read."""
    version = schema_version(connection)
    if version is None:
        raise SchemaError("There are no tables of step_exporter in this database: no span was written to it yet.")
    _refuse_newer(version)
    if version != VERSION:
        raise SchemaError(
            f"The database has schema version {version}, this step_exporter needs {VERSION}: run step-exporter migrate."
        )


def schema_version(connection: Connection) -> str | None:
    """The version of the schema, such as ``0001``; None where there are no tables of ours."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(select(Base.metadata.tables[VERSION_TABLE].c.version_num))


def upgrade(connection: Connection, version: str | None) -> None:
    """Run the migrations after ``version`` (None: all of them) in the transaction of ``connection``."""
    # Imported here: 150 ms that only a migration costs. Alembic's own commands go through module-level proxies, and
    # a migration of the app that runs in another thread would see ours; hence the objects below.
    from alembic.operations import Operations
    from alembic.runtime.migration import MigrationContext, MigrationStep
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(MIGRATIONS))
    revisions = [*scripts.iterate_revisions(VERSION, version or "base")]
    steps = [MigrationStep.upgrade_from_script(scripts.revision_map, revision) for revision in reversed(revisions)]

    def run(heads: object, context: object) -> list[Any]:
        return steps

    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "fn": run})
    context.run_migrations(op=Operations(context))


def _refuse_newer(version: str) -> None:
    if version > VERSION:
        raise SchemaError(
            f"The database has schema version {version}, made by a newer step_exporter; this one knows {VERSION}."
            " Upgrade step_exporter."
        )


def _refuse_strangers(connection: Connection) -> None:
    """Tables of our names that we did not make hold somebody's data. Other tables are no matter."""
    inspector = inspect(connection)
    taken = {name.lower() for name in (*inspector.get_table_names(), *inspector.get_view_names())}
    clashes = sorted(taken & {*Base.metadata.tables, *VIEWS})
    if clashes:
        raise SchemaError(
            f"The database already has tables or views named {', '.join(clashes)} that step_exporter did not make."
            " Use a database of its own, or on PostgreSQL a schema: ?options=-csearch_path%3Dsteps"
        )
