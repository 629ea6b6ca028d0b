"""What belongs to the schema and is not a table: triggers, views, partial indexes.

``attach`` ties them to the metadata, so that ``Base.metadata.create_all`` makes the whole schema, its version
included, and ``drop_all`` takes it away. The migrations repeat the text: what a migration did must not change.

PostgreSQL may keep the tables of traces in hash partitions by trace_id (``partitioned``). Partitions by time cannot be:
every key begins with trace_id.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from sqlalchemy import DDL, Column, MetaData, PrimaryKeyConstraint, String, Table, TextClause, event, text

VERSION = "0001"
"""The version of the schema that ``models`` and this module describe."""
VERSION_TABLE = "step_exporter_version"


class PartialIndex(TypedDict):
    """The keywords of a partial ``Index``."""

    sqlite_where: TextClause
    postgresql_where: TextClause


def where(condition: str) -> PartialIndex:
    """An index over the rows that meet the condition, on both engines."""
    return PartialIndex(sqlite_where=text(condition), postgresql_where=text(condition))


# SQLite: "+trace_id" keeps the planner from walking the primary key, which would read the whole trace. The sqlite3
# shell has foreign keys off unless asked, so the trigger takes the metrics along as well.
SQLITE_TRIGGERS: Mapping[str, tuple[str, ...]] = {
    "runs": (
        """
CREATE TRIGGER IF NOT EXISTS runs_before_delete BEFORE DELETE ON runs BEGIN
    UPDATE steps SET run_id = NULL WHERE +trace_id = OLD.trace_id AND run_id = OLD.id;
    UPDATE step_metrics SET run_id = NULL WHERE +trace_id = OLD.trace_id AND run_id = OLD.id;
    UPDATE messages SET run_id = NULL WHERE trace_id = OLD.trace_id AND run_id = OLD.id;
END""",
    ),
    "steps": (
        """
CREATE TRIGGER IF NOT EXISTS steps_before_delete BEFORE DELETE ON steps BEGIN
    UPDATE messages SET step_id = NULL WHERE trace_id = OLD.trace_id AND step_id = OLD.id;
    DELETE FROM step_metrics WHERE trace_id = OLD.trace_id AND id = OLD.id;
END""",
    ),
}

# PostgreSQL: the search path of the moment of creation, so that a session with another one deletes as well.
POSTGRESQL_TRIGGERS: Mapping[str, tuple[str, ...]] = {
    "runs": (
        """
CREATE OR REPLACE FUNCTION runs_before_delete() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE steps SET run_id = NULL WHERE trace_id = OLD.trace_id AND run_id = OLD.id;
    UPDATE step_metrics SET run_id = NULL WHERE trace_id = OLD.trace_id AND run_id = OLD.id;
    UPDATE messages SET run_id = NULL WHERE trace_id = OLD.trace_id AND run_id = OLD.id;
    RETURN OLD;
END $$""",
        """
CREATE OR REPLACE TRIGGER runs_before_delete BEFORE DELETE ON runs
FOR EACH ROW EXECUTE FUNCTION runs_before_delete()""",
    ),
    "steps": (
        """
CREATE OR REPLACE FUNCTION steps_before_delete() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE messages SET step_id = NULL WHERE trace_id = OLD.trace_id AND step_id = OLD.id;
    RETURN OLD;
END $$""",
        """
CREATE OR REPLACE TRIGGER steps_before_delete BEFORE DELETE ON steps
FOR EACH ROW EXECUTE FUNCTION steps_before_delete()""",
    ),
}

# PostgreSQL. Retention deletes whole traces in batches. By default autovacuum comes when a fifth of a table is dead,
# and what is new makes the file grow until then.
AUTOVACUUM = (
    "autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,"
    " autovacuum_analyze_scale_factor = 0.05, toast.autovacuum_vacuum_scale_factor = 0.02"
)

LZ4: Mapping[str, tuple[str, ...]] = {
    "spans": ("attributes", "events"),
    "contents": ("body",),
    "steps": ("error_data",),
    "quarantine": ("body",),
}
"""Columns of long values. pglz, the default, takes three times the CPU to write 20 KiB messages."""

SECURITY_INVOKER = "WITH (security_invoker = true)"
"""PostgreSQL's row-level security holds in a view for whoever reads it; else the view's owner would read for all."""

VIEWS: Mapping[str, str] = {
    "step_overview": """
SELECT s.trace_id, s.id, s.run_id, s.created_at, s.service_name, s.agent_name, s.provider_name, s.model,
    s.status, s.stop_reason, s.error_type, s.prompt_tokens, s.completion_tokens, s.total_tokens,
    s.cached_input_tokens, s.reasoning_tokens, m.llm_request_count, m.tool_call_count,
    m.step_ns / 1000000.0 AS step_ms, m.llm_request_ns / 1000000.0 AS llm_request_ms,
    m.tool_execution_ns / 1000000.0 AS tool_execution_ms, m.ttft_ns / 1000000.0 AS ttft_ms,
    s.feedback, s.tags, s.flags
FROM steps s LEFT JOIN step_metrics m ON m.trace_id = s.trace_id AND m.id = s.id""",
    "run_overview": """
SELECT r.trace_id, r.id, r.parent_run_id, r.created_at, r.service_name, r.agent_name, r.conversation_id,
    r.status, r.stop_reason, r.error_type, r.total_duration_ns / 1000000.0 AS total_duration_ms,
    r.ttft_ns / 1000000.0 AS ttft_ms, r.step_count, r.prompt_tokens, r.completion_tokens, r.total_tokens,
    (SELECT count(*) FROM steps s
        WHERE s.trace_id = r.trace_id AND s.run_id = r.id AND s.status = 'failed') AS failed_step_count,
    (SELECT sum(m.tool_call_count) FROM step_metrics m
        WHERE m.trace_id = r.trace_id AND m.run_id = r.id) AS tool_call_count
FROM runs r""",
    "model_usage": """
SELECT s.provider_name, s.model, count(*) AS step_count,
    sum(CASE WHEN s.status = 'failed' THEN 1 ELSE 0 END) AS failed_step_count,
    sum(m.llm_request_count) AS llm_request_count, sum(s.prompt_tokens) AS prompt_tokens,
    sum(s.completion_tokens) AS completion_tokens, sum(s.total_tokens) AS total_tokens,
    sum(s.cached_input_tokens) AS cached_input_tokens, sum(s.reasoning_tokens) AS reasoning_tokens,
    avg(m.llm_request_ns) / 1000000.0 AS mean_llm_request_ms,
    min(s.created_at) AS first_at, max(s.created_at) AS last_at
FROM steps s LEFT JOIN step_metrics m ON m.trace_id = s.trace_id AND m.id = s.id
WHERE s.model IS NOT NULL
GROUP BY s.provider_name, s.model""",
    "message_content": """
SELECT m.trace_id, m.id, m.run_id, m.step_id, m.position, m.role, m.name, m.tool_calls, m.tool_call_id, c.body
FROM messages m LEFT JOIN contents c ON c.trace_id = m.trace_id AND c.hash = m.content_hash""",
}


def tables_of_traces(metadata: MetaData) -> list[Table]:
    """The tables whose key begins with trace_id."""
    return [table for table in metadata.sorted_tables if next(iter(table.primary_key)).name == "trace_id"]


def use_lz4(table: str) -> str:
    """PostgreSQL: compress the long columns of a table by lz4, where the server was built with it."""
    columns = ", ".join(f"ALTER COLUMN {column} SET COMPRESSION lz4" for column in LZ4[table])
    return f"""
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)) THEN
        ALTER TABLE {table} {columns};
    END IF;
END $$"""


def partitioned(metadata: MetaData, partitions: int) -> MetaData:
    """The same schema for PostgreSQL with its tables of traces in so many hash partitions by trace_id."""
    twins = MetaData(naming_convention=metadata.naming_convention)
    for table in metadata.sorted_tables:
        if table.name != VERSION_TABLE:
            table.to_metadata(twins)
    for table in tables_of_traces(twins):
        table.dialect_options["postgresql"]["partition_by"] = "HASH (trace_id)"
    attach(twins, partitions)
    return twins


def attach(metadata: MetaData, partitions: int = 0) -> None:
    """Make and drop the version, the triggers, the views, and on PostgreSQL the partitions and what they are stored by,
    with the tables."""
    for name in LZ4:  # before the partitions, which take it over
        _on(metadata.tables[name], "after_create", use_lz4(name), "postgresql")
    for table in tables_of_traces(metadata):
        parts = [f"{table.name}_p{number}" for number in range(partitions)]
        for number, part in enumerate(parts):
            bounds = f"FOR VALUES WITH (MODULUS {partitions}, REMAINDER {number})"
            _on(table, "after_create", f"CREATE TABLE {part} PARTITION OF {table.name} {bounds}", "postgresql")
        for stored in parts or [table.name]:
            _on(table, "after_create", f"ALTER TABLE {stored} SET ({AUTOVACUUM})", "postgresql")
    # As Alembic makes it.
    version = Table(
        VERSION_TABLE,
        metadata,
        Column("version_num", String(32), nullable=False),
        PrimaryKeyConstraint("version_num", name=f"{VERSION_TABLE}_pkc"),
    )
    _on(version, "after_create", f"INSERT INTO {VERSION_TABLE} VALUES ('{VERSION}')")  # noqa: S608  constants
    for dialect, triggers in (("sqlite", SQLITE_TRIGGERS), ("postgresql", POSTGRESQL_TRIGGERS)):
        for table, statements in triggers.items():
            for statement in statements:
                _on(metadata.tables[table], "after_create", statement, dialect)
    for name, select in VIEWS.items():
        _on(metadata, "after_create", f"CREATE VIEW IF NOT EXISTS {name} AS{select}", "sqlite")
        _on(metadata, "after_create", f"CREATE OR REPLACE VIEW {name} {SECURITY_INVOKER} AS{select}", "postgresql")
        _on(metadata, "before_drop", f"DROP VIEW IF EXISTS {name}")
    for table in POSTGRESQL_TRIGGERS:
        _on(metadata, "after_drop", f"DROP FUNCTION IF EXISTS {table}_before_delete", "postgresql")


def _on(target: object, when: str, statement: str, dialect: str | None = None) -> None:
    # DDL() fills in % patterns; there are none of ours.
    ddl = DDL(statement.strip().replace("%", "%%"))
    event.listen(target, when, ddl.execute_if(dialect=dialect) if dialect else ddl)
