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

from step_exporter.ddl import VERSION, VERSION_TABLE, VIEWS, partitioned
from step_exporter.errors import DatabaseError, InputError, SchemaError
from step_exporter.models import Base
from step_exporter.store.encryption import ensure_keys
from step_exporter.store.privileges import how_to_grant

MAX_PARTITIONS = 256
"""PostgreSQL plans each statement over all of them."""
MIGRATIONS = Path(__file__).parent / "migrations"

_LOCK_KEY = 0x73746570_65787072  # "stepexpr"


def ensure_schema(engine: Engine, partitions: int | None = None) -> None:
    """Create the tables, or bring them up to date. Costs a look at the version where they are current.

    One process does it, others wait; it happens as a whole or not at all. ``partitions`` (PostgreSQL, for new tables
    only): hash partitions by trace_id of each table of traces. Raises ``SchemaError``, having altered nothing, if the
    tables were made by a newer version, are somebody else's or have not so many partitions; ``InputError`` for a number
    that cannot be; ``DatabaseError`` if the database refuses.
    """
    if partitions is not None:
        check_partitions(engine.dialect.name, partitions)
    try:
        with engine.begin() as connection:
            migrate(connection, partitions)
            ensure_keys(connection)
            if partitions is not None and partitions != count_partitions(connection):
                raise SchemaError(
                    "The tables are there already, and not in so many partitions: that is chosen once, for a new"
                    " database. Make another one and bring the traces over: step-exporter export --format otlp, import."
                )
    except DBAPIError as error:
        why = f"{str(error.orig).strip()}.{how_to_grant(engine, error)}"
        raise DatabaseError(f"The tables of step_exporter cannot be made: {why}") from error


def migrate(connection: Connection, partitions: int | None = None) -> None:
    """``ensure_schema`` in the transaction of ``connection``, for callers that hold one (``run_sync``)."""
    if schema_version(connection) == VERSION:
        return
    if connection.dialect.name == "postgresql":  # SQLite: the transaction began IMMEDIATE
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
    version = schema_version(connection)  # another process may have been faster
    if version is None:
        _refuse_strangers(connection)
        metadata = partitioned(Base.metadata, partitions) if partitions else Base.metadata
        metadata.create_all(connection, checkfirst=False)
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


def check_partitions(dialect: str, partitions: int) -> None:
    """Raise ``InputError`` for a number of partitions that cannot be."""
    if dialect != "postgresql":
        raise InputError("partitions are for PostgreSQL")
    if type(partitions) is not int or not 2 <= partitions <= MAX_PARTITIONS:
        raise InputError(f"partitions are a number from 2 to {MAX_PARTITIONS}, not {partitions!r:.40}")


def count_partitions(connection: Connection) -> int:
    """How many hash partitions each table of traces has; 0 where they are plain ones."""
    if connection.dialect.name != "postgresql":
        return 0
    return connection.scalar(text("SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass('traces')")) or 0


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
