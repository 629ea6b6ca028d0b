"""PostgreSQL takes many rows at once, those of new traces by COPY, others as arrays: no row knows by which way it came,
and what the database does not take that way costs nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec.structs import replace
from sqlalchemy import Engine, event, make_url, text
from test_ingest import TRACE, agent_run, rows, span

from dumps import dump, opened
from step_exporter.facts import RawSpan
from step_exporter.store.encryption import generate_key
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.rebuild import verify
from step_exporter.store.schema import ensure_schema

ANOTHER = "1af7651916cd43dd8448eb211c80319c"
TEXTS = [
    "",
    "\\N",
    "\\",
    "\\\\n\\x00",
    "\\.",
    "tab\tnew\nline\r\v\f\b",
    "NUL \0",
    "NULL",
    '{"a","b"}',
    '"',
    "'",
    "{}",
    ",",
    "%s %(a)s %%",
    "😀 \U0010ffff é",
    "\ud800",
]


@pytest.fixture
def postgresql(postgres_url: str) -> Iterator[Engine]:
    with opened(postgres_url) as engine:
        yield engine


def errors_of(engine: Engine) -> list[BaseException]:
    """What the database refuses from now on. A batch that is refused is halved, so that its rows do not tell."""
    errors: list[BaseException] = []
    event.listen(engine, "handle_error", lambda context: errors.append(context.original_exception))
    return errors


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[Engine]:
    with opened(sqlite_url) as engine:
        yield engine


def awkward(trace: str = TRACE) -> list[RawSpan]:
    """LLM requests that say each text in every place that a row keeps text in."""
    return [
        span(
            number,
            None,
            trace,
            name=said,
            status_code="error",
            status_message=said,
            trace_state=said,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": said,
                "gen_ai.conversation.id": said,
                "gen_ai.input.messages": [{"role": "user", "parts": [{"type": "text", "content": said}]}],
                "error.type": said,
                "n": 10**400,
                "gen_ai.usage.input_tokens": 2**63 - 10**6 if number == 5 else number,
                said or "empty": [said, None, 1.5, True, -(2**63)],
            },
        )
        for number, said in enumerate(TEXTS, 1)
    ]


def refuse(engine: Engine, action: str, condition: str = "true") -> None:
    """Let the database do something before each row of ``spans`` that meets a condition."""
    with engine.begin() as conn:
        conn.execute(text("CREATE SEQUENCE times"))  # which no rollback takes back
        conn.execute(
            text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
                f" $$ BEGIN IF {condition} THEN {action}; END IF; RETURN NEW; END $$"
            )
        )
        conn.execute(text("CREATE TRIGGER refuse BEFORE INSERT ON spans FOR EACH ROW EXECUTE FUNCTION refuse()"))


POISON = "RAISE EXCEPTION 'no poison' USING ERRCODE = 'data_exception'"


# --- the same rows by every way


@pytest.mark.parametrize("size", [1, 3, 7, 1000], ids="batches of {}".format)
def test_every_text_and_number_arrives_as_it_does_on_sqlite(sqlite: Engine, postgresql: Engine, size: int) -> None:
    errors = errors_of(postgresql)
    for engine in (sqlite, postgresql):
        writer, spans = Writer(engine), awkward()
        for at in range(0, len(spans), size):
            assert writer.write(spans[at : at + size]).quarantined == 0
        assert list(verify(engine)) == []
    assert rows(sqlite, "spans", "span_id", "name", "status_message", "attributes") == rows(
        postgresql, "spans", "span_id", "name", "status_message", "attributes"
    )
    for table in ("contents", "resources", "step_metrics", "messages"):
        assert rows(sqlite, table) == rows(postgresql, table)
    steps = ("id", "model", "error_type", "prompt_tokens", "error_data", "status")
    assert rows(sqlite, "steps", *steps) == rows(postgresql, "steps", *steps)
    assert errors == []


def test_what_is_no_span_arrives_in_the_quarantine_as_it_does_on_sqlite(sqlite: Engine, postgresql: Engine) -> None:
    errors = errors_of(postgresql)
    for engine in (sqlite, postgresql):
        assert Writer(engine).write([replace(raw, trace_id="?") for raw in awkward()]).quarantined == len(TEXTS)
    columns = ("trace_id", "span_id", "reason", "detail", "body")
    assert rows(sqlite, "quarantine", *columns) == rows(postgresql, "quarantine", *columns)
    assert errors == []


def test_new_and_known_traces_in_one_batch(sqlite: Engine, postgresql: Engine) -> None:
    errors = errors_of(postgresql)
    known, new = agent_run(turns=5), agent_run(ANOTHER, turns=5)
    for engine in (sqlite, postgresql):
        writer = Writer(engine)
        assert writer.write(known[:4]).new == 4
        result = writer.write([*known, *new, *new[:3]])
        assert (result.new, result.duplicates) == (len(known) - 4 + len(new), 4 + 3)
        assert Writer(engine).write([*known, *new]).duplicates == len(known) + len(new)
        assert list(verify(engine)) == []
    assert dump(sqlite, "contents", "resources", "messages", "step_metrics") == dump(
        postgresql, "contents", "resources", "messages", "step_metrics"
    )
    for table, columns in (("spans", ("span_id", "revision", "role")), ("steps", ("id", "run_id", "total_tokens"))):
        assert rows(sqlite, table, *columns) == rows(postgresql, table, *columns)
    assert errors == []


def test_an_array_that_would_be_too_large_goes_in_parts(postgresql: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from step_exporter.store import copying

    monkeypatch.setattr(copying, "_MAX_ARRAY", 100)
    writer, spans = Writer(postgresql), agent_run(turns=5)
    writer.write(spans[:1])
    assert writer.write(spans).new == len(spans) - 1
    assert list(verify(postgresql)) == []


# --- what the database refuses


def test_a_bad_span_of_a_new_trace_costs_its_neighbours_nothing(postgresql: Engine) -> None:
    refuse(postgresql, POISON, "NEW.name = 'poison'")
    bad = (77, 300)
    spans = [
        span(number, None, f"{number // 10 + 1:032x}", name="poison" if number in bad else "fine")
        for number in range(1, 512)
    ]
    result = Writer(postgresql).write(spans)
    assert (result.new, result.quarantined) == (509, 2)
    refused = rows(postgresql, "quarantine", "span_id", "reason", "detail")
    assert [(span_id, reason, "no poison" in detail) for span_id, reason, detail in refused] == [
        (f"{number:016x}", "unstorable", True) for number in bad
    ]


def test_a_number_that_no_column_holds_costs_other_traces_nothing(
    postgresql: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the driver that refuses it, in the middle of the COPY."""
    monkeypatch.setattr("step_exporter.derive.runs.counted", lambda tokens: tokens)  # as if sums were not bounded
    spans = [raw for number in range(1, 9) for raw in agent_run(f"{number:032x}")]
    usage = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 2**63 - 1}
    huge = [span(number, None, ANOTHER, attributes=usage) for number in (1, 2)]  # and their sum in the run's row
    assert Writer(postgresql).write([*spans, *huge]).new == len(spans) + 2
    assert len(rows(postgresql, "runs")) == 8
    assert rows(postgresql, "quarantine", "trace_id", "reason") == [(ANOTHER, "underived")]


@pytest.mark.parametrize(
    "action",
    [
        "RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01'",
        "RAISE EXCEPTION 'serialization' USING ERRCODE = '40001'",
        "RAISE EXCEPTION 'lock timeout' USING ERRCODE = '55P03'",
        "RAISE EXCEPTION 'statement timeout' USING ERRCODE = '57014'",
        "PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(1)",
    ],
    ids=["deadlock", "serialization", "lock", "timeout", "lost"],
)
def test_what_passes_in_the_middle_of_a_copy_is_tried_again(postgresql: Engine, action: str) -> None:
    refuse(postgresql, action, "NEW.name = 'span 7' AND nextval('times') = 1")
    result = Writer(postgresql).write([span(number) for number in range(1, 11)])
    assert (result.new, result.quarantined) == (10, 0)
    assert list(verify(postgresql)) == []


def test_spans_whose_trace_somebody_deleted_by_hand_are_still_there(postgresql: Engine) -> None:
    spans = [raw for number in range(20) for raw in agent_run(f"{number + 1:032x}")]
    Writer(postgresql).write(spans[:100])
    with postgresql.begin() as conn:
        conn.execute(text("DELETE FROM traces"))
    result = Writer(postgresql).write(spans)
    assert (result.committed, result.quarantined) == (len(spans), 0)
    assert len(rows(postgresql, "spans")) == len(spans)


def test_derived_rows_whose_facts_somebody_deleted_by_hand_are_replaced(postgresql: Engine) -> None:
    spans = agent_run(turns=5)
    Writer(postgresql).write(spans)
    with postgresql.begin() as conn:
        for table in ("traces", "spans", "resources", "contents"):
            conn.execute(text(f"DELETE FROM {table}"))
    assert Writer(postgresql).write(spans).new == len(spans)
    assert list(verify(postgresql)) == []
    assert rows(postgresql, "quarantine") == []


def test_a_role_that_writes_through_policies_does_not_copy(postgresql: Engine, postgres_url: str) -> None:
    """PostgreSQL copies into no table whose row-level security concerns the role."""
    role = "writer_with_policies"
    tables = [row[0] for row in rows(postgresql, "pg_tables WHERE schemaname = 'public'", "tablename")]
    with postgresql.begin() as conn:
        conn.execute(text(f"DROP ROLE IF EXISTS {role}"))
        conn.execute(text(f"CREATE ROLE {role} LOGIN"))
        conn.execute(text(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"))
        for table in tables:
            conn.execute(text(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"))
            conn.execute(text(f"CREATE POLICY all_of_it ON {table} USING (true)"))
    engine = create_sync_engine(make_url(postgres_url).set(username=role))
    try:
        writer = Writer(engine)
        for trace in (TRACE, ANOTHER):
            assert writer.write(agent_run(trace)).new == 7
        assert list(verify(engine)) == []
    finally:
        engine.dispose()
        with postgresql.begin() as conn:
            conn.execute(text(f"DROP OWNED BY {role}"))
            conn.execute(text(f"DROP ROLE {role}"))


# --- partitions, encryption


def test_partitions_and_encryption_change_nothing(postgres_url: str) -> None:
    engine = create_sync_engine(postgres_url, encryption_key=generate_key())
    try:
        ensure_schema(engine, 3)
        writer = Writer(engine)
        errors = errors_of(engine)
        assert writer.write(agent_run("3" * 32)).new == 7
        assert writer.write([*agent_run("4" * 32), *agent_run("3" * 32)]).new == 7
        assert errors == []
        refuse(engine, POISON, "NEW.span_id = '0000000000000003'")
        spans = [*awkward(), *agent_run(ANOTHER)]
        assert writer.write(spans[:2]).new == 2
        result = writer.write(spans)
        assert (result.new, result.duplicates, result.quarantined) == (len(spans) - 3, 2, 1)
        assert list(verify(engine)) == []
    finally:
        engine.dispose()
