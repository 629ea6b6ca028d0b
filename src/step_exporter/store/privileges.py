"""What a PostgreSQL role may do with the tables, and what somebody has to grant it."""

from __future__ import annotations

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

from step_exporter.ddl import tables_of_traces
from step_exporter.errors import DatabaseError
from step_exporter.models import Base

_WHO = "SELECT quote_ident(current_user), quote_ident(coalesce(current_schema(), 'public'))"
_MAY_WRITE = """
SELECT bool_and(has_table_privilege(t, 'SELECT') AND has_table_privilege(t, 'INSERT')
                AND has_table_privilege(t, 'UPDATE') AND has_table_privilege(t, 'DELETE'))
       AND has_sequence_privilege(pg_get_serial_sequence('quarantine', 'id'), 'USAGE')
FROM unnest(CAST(:tables AS text[])) AS t"""
_WRITTEN = [*(table.name for table in tables_of_traces(Base.metadata)), "quarantine"]
_REFUSED = frozenset({"42501", "3F000"})
"""SQLSTATE: insufficient privilege; no schema in the search path that the role may use."""


def check_may_write(engine: Engine) -> None:
    """Raise ``DatabaseError``, with the statements that its owner has to run, unless rows of traces can be written.

    Before the first batch, so that the message says what is to be done; nothing to look at in SQLite.
    """
    if engine.dialect.name != "postgresql":
        return
    with engine.connect() as conn:
        try:
            if conn.scalar(text(_MAY_WRITE), {"tables": _WRITTEN}):
                return
        except ProgrammingError:  # speaks PostgreSQL, but has no such functions: writing will tell
            return
        role, schema = conn.exec_driver_sql(_WHO).one()
    raise DatabaseError(f"{role} may not write to the tables. Their owner runs: {_to_write(role, schema)}")


def how_to_grant(engine: Engine, error: DBAPIError) -> str:
    """What to run for a role that was refused to make the tables; nothing if that is not what is wrong."""
    if getattr(error.orig, "sqlstate", None) not in _REFUSED:
        return ""
    with engine.connect() as conn:
        role, schema = conn.exec_driver_sql(_WHO).one()
    return (
        f" Run GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}; or make them as another role (step-exporter migrate),"
        f" who then runs: {_to_write(role, schema)}"
    )


def _to_write(role: str, schema: str) -> str:
    return (
        f"GRANT USAGE ON SCHEMA {schema} TO {role};"
        f" GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role};"
        f" GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role};"
    )
