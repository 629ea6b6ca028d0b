"""PostgreSQL's row-level security for the tables: who connects as another role than their owner sees one organization's
rows. The same rule as ``organizations``, save that of a trace of several organizations no span is seen.
"""

from __future__ import annotations

from collections.abc import Mapping

from step_exporter.ddl import VERSION_TABLE, tables_of_traces
from step_exporter.models import Base

_OWN = "organization_id = (SELECT step_exporter_organization())"  # a subquery is asked once, not for each row
_WHOLE = "step_exporter_owns(trace_id)"

POLICIES: Mapping[str, str] = {
    "steps": _OWN,
    "step_metrics": _OWN,
    "runs": _OWN,
    "audit": _OWN,
    "organizations": "id = (SELECT step_exporter_organization())",
    # The tables that these look into hold only what the reader may see.
    "providers": "EXISTS (SELECT FROM steps WHERE steps.provider_id = providers.id)",
    "traces": "EXISTS (SELECT FROM steps WHERE steps.trace_id = traces.trace_id)"
    " OR EXISTS (SELECT FROM runs WHERE runs.trace_id = traces.trace_id)",
    "messages": "EXISTS (SELECT FROM steps WHERE steps.trace_id = messages.trace_id AND steps.id = messages.step_id)"
    " OR messages.step_id IS NULL AND EXISTS"
    " (SELECT FROM runs WHERE runs.trace_id = messages.trace_id AND runs.id = messages.run_id)",
    "contents": f"{_WHOLE} OR EXISTS (SELECT FROM messages"
    " WHERE messages.trace_id = contents.trace_id AND messages.content_hash = contents.hash)",
    "encryption_keys": "true",  # ids, and what the keys themselves encrypted
    VERSION_TABLE: "true",
}
"""What a reader sees of these tables. Of the others that are keyed on their trace: what is of a trace that is wholly
the organization's. Of the rest (``processes``, ``quarantine``) nothing."""

_HEAD = """\
-- Row-level security for the tables of step_exporter, made by: step-exporter row-level-security
-- Run it as the owner of the tables, whom it does not concern; again after each upgrade. Then, for each organization:
--   CREATE ROLE acme LOGIN PASSWORD '…';
--   GRANT SELECT ON ALL TABLES IN SCHEMA public TO acme;
--   ALTER ROLE acme SET step_exporter.organization_id = 'acme';
BEGIN;

-- Whose rows the session sees. Who may run SQL of their own can set it to another value: for such people replace
-- this function, after this script, by one that goes by session_user.
CREATE OR REPLACE FUNCTION step_exporter_organization() RETURNS text LANGUAGE sql STABLE AS
$$ SELECT nullif(current_setting('step_exporter.organization_id', true), '') $$;

-- Whether every step and run of a trace is of that organization: asked on behalf of the owner, who sees them all.
CREATE OR REPLACE FUNCTION step_exporter_owns(trace text) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER AS
$$ DECLARE own text := step_exporter_organization(); BEGIN RETURN
    (EXISTS (SELECT FROM steps WHERE trace_id = trace AND organization_id = own)
        OR EXISTS (SELECT FROM runs WHERE trace_id = trace AND organization_id = own))
    AND NOT EXISTS (SELECT FROM steps WHERE trace_id = trace AND organization_id IS DISTINCT FROM own)
    AND NOT EXISTS (SELECT FROM runs WHERE trace_id = trace AND organization_id IS DISTINCT FROM own);
END $$;
-- The caller's temporary tables come last, so that none stands in for ours.
DO $$ BEGIN
    EXECUTE format('ALTER FUNCTION step_exporter_owns SET search_path = %I, pg_temp', current_schema());
END $$;
"""

_PARTITIONS = """\
-- Partitions, where there are any, are read through their tables only.
DO $$ DECLARE part regclass; BEGIN
    FOR part IN SELECT inhrelid FROM pg_inherits WHERE inhparent = ANY (ARRAY[{tables}]::regclass[]) LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', part);
    END LOOP;
END $$;

COMMIT;
"""


def script() -> str:
    """The SQL: functions, and a policy for each table. It may be run any number of times."""
    parts = [_HEAD]
    names = sorted(Base.metadata.tables)
    policies = {table.name: _WHOLE for table in tables_of_traces(Base.metadata)} | dict(POLICIES)
    for name in names:
        parts.append(f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY;")
        parts.append(f"DROP POLICY IF EXISTS step_exporter ON {name};")
        if name in policies:
            parts.append(f"CREATE POLICY step_exporter ON {name} FOR SELECT USING ({policies[name]});")
        parts.append("")
    return "\n".join([*parts, _PARTITIONS.format(tables=", ".join(f"'{name}'" for name in names))])
