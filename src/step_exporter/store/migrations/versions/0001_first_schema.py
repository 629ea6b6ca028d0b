"""The first schema.

Frozen: what a released migration does must not change, so it repeats what ``models`` and ``ddl`` say.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0001"
down_revision = None

_ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_UTC = sa.DateTime().with_variant(sa.DateTime(timezone=True), "postgresql")
_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade(op: Operations) -> None:
    """Make the tables, triggers and views."""

    op.create_table(
        "annotations",
        sa.Column("trace_id", _ID, nullable=False),
        sa.Column("span_id", _ID, nullable=False),
        sa.Column("key", _ID, nullable=False),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("set_by", sa.Text(), nullable=True),
        sa.Column("set_at", _UTC, nullable=False),
        sa.PrimaryKeyConstraint("trace_id", "span_id", "key", name="pk_annotations"),
    )
    op.create_table(
        "audit",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("at", _UTC, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("trace_id", _ID, nullable=True),
        sa.Column("organization_id", _ID, nullable=True),
        sa.Column("subject", sa.Text(), nullable=True),
        sa.Column("details", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_table(
        "contents",
        sa.Column("trace_id", _ID, nullable=False),
        sa.Column("hash", _ID, nullable=False),
        sa.Column("parent_hash", _ID, nullable=True),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("trace_id", "hash", name="pk_contents"),
    )
    op.create_table(
        "deletions",
        sa.Column("trace_id", _ID, nullable=False),
        sa.Column("kind", _ID, nullable=False),
        sa.Column("id", _ID, nullable=False),
        sa.Column("deleted_by", sa.Text(), nullable=True),
        sa.Column("deleted_at", _UTC, nullable=False),
        sa.PrimaryKeyConstraint("trace_id", "kind", "id", name="pk_deletions"),
    )
    op.create_table(
        "encryption_keys",
        sa.Column("id", _ID, nullable=False),
        sa.Column("hash_key", sa.Text(), nullable=False),
        sa.Column("is_converting", sa.Boolean(), nullable=False),
        sa.Column("added_at", _UTC, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_encryption_keys"),
    )
    op.create_table(
        "maintenance",
        sa.Column("task", _ID, nullable=False),
        sa.Column("due_at", _UTC, nullable=False),
        sa.PrimaryKeyConstraint("task", name="pk_maintenance"),
    )
    op.create_table(
        "messages",
        sa.Column("trace_id", _ID, nullable=False),
        sa.Column("id", _ID, nullable=False),
        sa.Column("parent_id", _ID, nullable=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("content_hash", _ID, nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("tool_calls", sa.Text(), nullable=True),
        sa.Column("tool_call_id", sa.Text(), nullable=True),
        sa.Column("step_id", _ID, nullable=True),
        sa.Column("run_id", _ID, nullable=True),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("trace_id", "id", name="pk_messages"),
    )
    op.create_index("ix_messages_run_id", "messages", ["trace_id", "run_id"])
    op.create_index("ix_messages_step_id", "messages", ["trace_id", "step_id"])
    op.create_table(
        "organizations",
        sa.Column("id", _ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_organizations"),
    )
    op.create_table(
        "processes",
        sa.Column("id", _ID, nullable=False),
        sa.Column("host", sa.Text(), nullable=True),
        sa.Column("boot_id", sa.Text(), nullable=True),
        sa.Column("pid", sa.BigInteger(), nullable=True),
        sa.Column("pid_start", sa.BigInteger(), nullable=True),
        sa.Column("started_at", _UTC, nullable=False),
        sa.Column("heartbeat_at", _UTC, nullable=True),
        sa.Column("ended_at", _UTC, nullable=True),
        sa.Column("seen", sa.BigInteger(), nullable=True),
        sa.Column("committed", sa.BigInteger(), nullable=True),
        sa.Column("spooled", sa.BigInteger(), nullable=True),
        sa.Column("dropped", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_processes"),
    )
    op.create_table(
        "providers",
        sa.Column("id", _ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_providers"),
    )
    op.create_table(
        "quarantine",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("trace_id", _ID, nullable=True),
        sa.Column("span_id", _ID, nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", _UTC, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_quarantine"),
    )
    op.create_index("ix_quarantine_trace_id", "quarantine", ["trace_id", "span_id"])
    op.create_table(
        "resources",
        sa.Column("trace_id", _ID, nullable=False),
        sa.Column("hash", _ID, nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("trace_id", "hash", name="pk_resources"),
    )
    op.create_table(
        "runs",
        sa.Column("trace_id", _ID, nullable=False),
        sa.Column("id", _ID, nullable=False),
        sa.Column("span_id", _ID, nullable=True),
        sa.Column("parent_run_id", _ID, nullable=True),
        sa.Column("agent_id", _ID, nullable=True),
        sa.Column("agent_name", sa.Text(), nullable=True),
        sa.Column("conversation_id", sa.Text(), nullable=True),
        sa.Column("organization_id", _ID, nullable=True),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("stop_reason", sa.Text(), nullable=True),
        sa.Column("start_ns", sa.BigInteger(), nullable=True),
        sa.Column("total_duration_ns", sa.BigInteger(), nullable=True),
        sa.Column("ttft_ns", sa.BigInteger(), nullable=True),
        sa.Column("step_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("total_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("error_type", sa.Text(), nullable=True),
        sa.Column("service_name", sa.Text(), nullable=True),
        sa.Column("created_at", _UTC, nullable=False),
        sa.Column("updated_at", _UTC, nullable=False),
        sa.PrimaryKeyConstraint("trace_id", "id", name="pk_runs"),
    )
    op.create_index(
        "ix_runs_conversation_id",
        "runs",
        ["conversation_id", "created_at"],
        **_where("conversation_id IS NOT NULL"),
    )
    op.create_index("ix_runs_created_at", "runs", ["created_at"])
    op.create_index("ix_runs_id", "runs", ["id"])
    op.create_table(
        "spans",
        sa.Column("trace_id", _ID, nullable=False),
        sa.Column("span_id", _ID, nullable=False),
        sa.Column("parent_span_id", _ID, nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("start_ns", sa.BigInteger(), nullable=True),
        sa.Column("end_ns", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("status_code", sa.Text(), nullable=False),
        sa.Column("status_message", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("convention", sa.Text(), nullable=True),
        sa.Column("service_name", sa.Text(), nullable=True),
        sa.Column("service_instance_id", sa.Text(), nullable=True),
        sa.Column("process_id", _ID, nullable=True),
        sa.Column("abandoned_ns", sa.BigInteger(), nullable=True),
        sa.Column("resource", _ID, nullable=True),
        sa.Column("scope", _ID, nullable=True),
        sa.Column("trace_flags", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("trace_state", sa.Text(), nullable=True),
        sa.Column("parent_is_remote", sa.Boolean(), nullable=True),
        sa.Column("attributes", sa.Text(), nullable=True),
        sa.Column("events", sa.Text(), nullable=True),
        sa.Column("links", sa.Text(), nullable=True),
        sa.Column("dropped_attributes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("dropped_events", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("dropped_links", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("flags", sa.Text(), nullable=True),
        sa.Column("collisions", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("revision", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("trace_id", "span_id", name="pk_spans"),
    )
    op.create_index("ix_spans_process_id", "spans", ["process_id"], **_where("state = 'open'"))
    op.create_table(
        "traces",
        sa.Column("trace_id", _ID, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("first_ns", sa.BigInteger(), nullable=True),
        sa.Column("last_ns", sa.BigInteger(), nullable=True),
        sa.Column("changed_at", _UTC, nullable=False),
        sa.PrimaryKeyConstraint("trace_id", name="pk_traces"),
    )
    op.create_index("ix_traces_last_ns", "traces", ["last_ns"])
    op.create_table(
        "steps",
        sa.Column("trace_id", _ID, nullable=False),
        sa.Column("id", _ID, nullable=False),
        sa.Column("span_id", _ID, nullable=False),
        sa.Column("parent_step_id", _ID, nullable=True),
        sa.Column("origin", sa.Text(), nullable=True),
        sa.Column("organization_id", _ID, nullable=True),
        sa.Column("provider_id", _ID, nullable=True),
        sa.Column("run_id", _ID, nullable=True),
        sa.Column("agent_id", _ID, nullable=True),
        sa.Column("agent_name", sa.Text(), nullable=True),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("provider_name", sa.Text(), nullable=True),
        sa.Column("provider_category", sa.Text(), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("model_handle", sa.Text(), nullable=True),
        sa.Column("model_endpoint", sa.Text(), nullable=True),
        sa.Column("context_window_limit", sa.BigInteger(), nullable=True),
        sa.Column("completion_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("total_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cached_input_tokens", sa.BigInteger(), nullable=True),
        sa.Column("cache_write_tokens", sa.BigInteger(), nullable=True),
        sa.Column("reasoning_tokens", sa.BigInteger(), nullable=True),
        sa.Column("completion_tokens_details", sa.Text(), nullable=True),
        sa.Column("prompt_tokens_details", sa.Text(), nullable=True),
        sa.Column("stop_reason", sa.Text(), nullable=True),
        sa.Column("tags", sa.Text(), nullable=True),
        sa.Column("tid", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("feedback", sa.Text(), nullable=True),
        sa.Column("error_type", sa.Text(), nullable=True),
        sa.Column("error_data", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("flags", sa.Text(), nullable=True),
        sa.Column("service_name", sa.Text(), nullable=True),
        sa.Column("convention", sa.Text(), nullable=True),
        sa.Column("created_at", _UTC, nullable=False),
        sa.Column("updated_at", _UTC, nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name="fk_steps_organization_id", ondelete="RESTRICT"
        ),
        sa.ForeignKeyConstraint(["provider_id"], ["providers.id"], name="fk_steps_provider_id", ondelete="RESTRICT"),
        sa.PrimaryKeyConstraint("trace_id", "id", name="pk_steps"),
    )
    op.create_index("ix_steps_agent_id", "steps", ["agent_id", "created_at"], **_where("agent_id IS NOT NULL"))
    op.create_index("ix_steps_created_at", "steps", ["created_at"])
    op.create_index("ix_steps_id", "steps", ["id"])
    op.create_index(
        "ix_steps_organization_id", "steps", ["organization_id", "run_id"], **_where("organization_id IS NOT NULL")
    )
    op.create_index("ix_steps_run_id", "steps", ["run_id", "created_at"])
    op.create_table(
        "step_metrics",
        sa.Column("trace_id", _ID, nullable=False),
        sa.Column("id", _ID, nullable=False),
        sa.Column("run_id", _ID, nullable=True),
        sa.Column("agent_id", _ID, nullable=True),
        sa.Column("organization_id", _ID, nullable=True),
        sa.Column("provider_id", _ID, nullable=True),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("step_start_ns", sa.BigInteger(), nullable=True),
        sa.Column("llm_request_start_ns", sa.BigInteger(), nullable=True),
        sa.Column("llm_request_ns", sa.BigInteger(), nullable=True),
        sa.Column("tool_execution_ns", sa.BigInteger(), nullable=True),
        sa.Column("step_ns", sa.BigInteger(), nullable=True),
        sa.Column("ttft_ns", sa.BigInteger(), nullable=True),
        sa.Column("llm_request_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("tool_call_count", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("base_template_id", sa.Text(), nullable=True),
        sa.Column("template_id", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["trace_id", "id"], ["steps.trace_id", "steps.id"], name="fk_step_metrics_trace_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("trace_id", "id", name="pk_step_metrics"),
    )
    op.create_index("ix_step_metrics_run_id", "step_metrics", ["run_id"])

    dialect = op.get_context().dialect.name
    if dialect == "postgresql":
        for table in _TABLES_OF_TRACES:
            op.execute(f"ALTER TABLE {table} SET ({_AUTOVACUUM})")
        for table, columns in _LZ4.items():
            op.execute(_use_lz4(table, columns))
    for statement in _TRIGGERS[dialect]:
        op.execute(statement)
    options = " WITH (security_invoker = true)" if dialect == "postgresql" else ""
    for name, select in _VIEWS.items():
        op.execute(f"CREATE VIEW {name}{options} AS{select}")


def _where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


_TABLES_OF_TRACES = (
    "annotations",
    "contents",
    "deletions",
    "messages",
    "resources",
    "runs",
    "spans",
    "step_metrics",
    "steps",
    "traces",
)
_AUTOVACUUM = (
    "autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,"
    " autovacuum_analyze_scale_factor = 0.05, toast.autovacuum_vacuum_scale_factor = 0.02"
)
_LZ4 = {
    "spans": ("attributes", "events"),
    "contents": ("body",),
    "steps": ("error_data",),
    "quarantine": ("body",),
}


def _use_lz4(table: str, columns: tuple[str, ...]) -> str:
    changes = ", ".join(f"ALTER COLUMN {column} SET COMPRESSION lz4" for column in columns)
    return f"""
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)) THEN
        ALTER TABLE {table} {changes};
    END IF;
END $$"""


_TRIGGERS = {
    "sqlite": (
        """
CREATE TRIGGER IF NOT EXISTS runs_before_delete BEFORE DELETE ON runs BEGIN
    UPDATE steps SET run_id = NULL WHERE +trace_id = OLD.trace_id AND run_id = OLD.id;
    UPDATE step_metrics SET run_id = NULL WHERE +trace_id = OLD.trace_id AND run_id = OLD.id;
    UPDATE messages SET run_id = NULL WHERE trace_id = OLD.trace_id AND run_id = OLD.id;
END""",
        """
CREATE TRIGGER IF NOT EXISTS steps_before_delete BEFORE DELETE ON steps BEGIN
    UPDATE messages SET step_id = NULL WHERE trace_id = OLD.trace_id AND step_id = OLD.id;
    DELETE FROM step_metrics WHERE trace_id = OLD.trace_id AND id = OLD.id;
END""",
    ),
    "postgresql": (
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

_VIEWS = {
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
