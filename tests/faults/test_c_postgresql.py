"""C: PostgreSQL goes, comes back, says no. The server is the module's own, so that it can be stopped."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from clusters import Cluster, Proxy, pgbouncer, removed
from fault_apps import ended

from step_exporter.errors import DatabaseError
from step_exporter.exporter import StepSpanExporter
from step_exporter.processor import StepSpanProcessor
from step_exporter.sdk import SpanConverter
from step_exporter.store.engine import create_sync_engine
from step_exporter.store.ingest import Writer
from step_exporter.store.query import StepStore
from step_exporter.store.schema import ensure_schema

pytestmark = pytest.mark.once

LONG = bool(os.environ.get("STEP_EXPORTER_LONG"))
"""Run what is in the docs with the larger number."""
KILL = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE datname = current_database() AND pid <> pg_backend_pid()"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with removed(Cluster(max_connections="20", superuser_reserved_connections="3", log_connections="all")) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture
def name(cluster: Cluster) -> str:
    """Of a new, empty database."""
    name = f"test_{uuid.uuid4().hex}"
    cluster.execute(f"CREATE DATABASE {name}")
    return name


@pytest.fixture
def url(cluster: Cluster, name: str) -> str:
    return cluster.url(name)


@pytest.fixture
def role(cluster: Cluster, name: str) -> Iterator[str]:
    """A new role, which may connect."""
    role = f"role_{uuid.uuid4().hex}"
    cluster.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'hunter2'")
    yield role
    cluster.execute(f"DROP OWNED BY {role}", database=name)
    cluster.execute(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


def spans(first: int, last: int, traces: int = 7) -> list[Any]:
    return [ended(number, trace_id=number % traces + 1) for number in range(first, last + 1)]


def until(holds: Callable[[], bool]) -> None:
    """Wait for it, but not for ever."""
    end = time.monotonic() + 120
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)


def brought_in(exporter: StepSpanExporter) -> None:
    """Let the exporter bring in what it spooled, in the time that takes."""

    def is_in() -> bool:
        exporter.tend()
        return not exporter.stats().spooled

    until(is_in)


def test_a1_random_kills_lose_nothing_that_was_acknowledged_on_postgresql(url: str) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "kills.py"
    kills = os.environ.get("STEP_EXPORTER_KILLS", "25")
    done = subprocess.run(
        [sys.executable, str(script), "--kills", kills, "--db", url], capture_output=True, text=True, timeout=7200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 missing, 0 twice, 0 rows" in done.stdout


def test_c1_a_server_that_is_restarted_in_the_middle_of_batches_costs_nothing(
    cluster: Cluster, url: str, assert_invariants: Any, no_pause: None
) -> None:
    processor = StepSpanProcessor(url, batch=20, interval_seconds=0.01)
    done = threading.Event()
    total = 0

    def work() -> None:
        nonlocal total
        while not done.wait(0.003):
            total += 1
            processor.on_end(ended(total, trace_id=total // 30 + 1))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    for _ in range(100 if LONG else 3):
        before = processor.flush(30).committed
        cluster.restart("immediate")
        until(lambda before=before: processor.flush(1).committed > before)
    done.set()
    thread.join(30)
    processor.flush(30)
    until(lambda: not processor.flush(5).spooled)
    processor.shutdown(60)
    report = processor.flush()
    assert (report.committed, report.dropped) == (total, {})
    assert_invariants(url, report, spans=total)


def test_c1_connections_that_are_cut_in_the_middle_cost_nothing(url: str, assert_invariants: Any) -> None:
    processor = StepSpanProcessor(url, batch=20, interval_seconds=0.01)
    processor.on_end(ended(1))
    assert processor.flush(30).committed == 1
    done = threading.Event()
    cuts = 0

    def cut() -> None:
        nonlocal cuts
        with psycopg.connect(url, autocommit=True) as admin:
            while not done.wait(0.05):
                cuts += len(admin.execute(KILL).fetchall())

    thread = threading.Thread(target=cut)
    thread.start()
    for number in range(2, 1002):
        processor.on_end(ended(number, trace_id=number % 7 + 1))
        if number % 100 == 0:
            processor.flush(0.2)
    done.set()
    thread.join(30)
    processor.shutdown(60)
    assert cuts > 0
    report = processor.flush()
    assert (report.committed + report.spooled, report.dropped) == (1001, {})
    assert_invariants(url, report, spans=1001)


def test_c2_a_commit_whose_answer_is_lost_is_repeated_without_effect(
    url: str, assert_invariants: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    transact = Writer._transact
    lost = [1]

    def answer_is_lost(self: Writer, batch: Any) -> Any:
        result = transact(self, batch)
        if lost:
            lost.pop()
            raise ConnectionResetError("the answer to COMMIT never came")
        return result

    monkeypatch.setattr("step_exporter.store.ingest.is_passing", lambda error: isinstance(error, ConnectionResetError))
    monkeypatch.setattr(Writer, "_transact", answer_is_lost)
    exporter = StepSpanExporter(url)
    exporter.export(spans(1, 100))
    assert (exporter.stats().committed, exporter.stats().duplicates) == (100, 100)
    assert_invariants(url, exporter.stats(), spans=100, faults=0)
    exporter.shutdown()


def test_c3_the_standby_that_is_promoted_gets_the_rest(assert_invariants: Any, no_pause: None) -> None:
    with removed(Cluster(synchronous_standby_names="*")) as primary:
        primary.start()
        with removed(Cluster(copy_of=primary, synchronous_standby_names="")) as standby:
            standby.start()
            url = (
                f"postgresql://postgres@/postgres?host=127.0.0.1:{primary.port}&host=127.0.0.1:{standby.port}"
                "&target_session_attrs=read-write"
            )
            exporter = StepSpanExporter(url)
            exporter.export(spans(1, 100))
            primary.stop("immediate")
            exporter.export(spans(101, 200))
            assert exporter.stats()[:2] == (200, 100)
            standby.promote()
            exporter.export(spans(201, 300))
            brought_in(exporter)
            assert exporter.stats()[:2] == (300, 300)
            exporter.shutdown()
            assert_invariants(standby.url(), exporter.stats(), spans=300, faults=1)


def test_c3_a_session_that_became_read_only_is_left_for_another(
    cluster: Cluster, name: str, url: str, assert_invariants: Any
) -> None:
    exporter = StepSpanExporter(url)
    exporter.export(spans(1, 10))
    with psycopg.connect(url) as conn:
        ((pid,),) = conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'step_exporter' AND datname = current_database()"
        ).fetchall()
    cluster.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    cluster.execute(f"SELECT pg_terminate_backend({pid})")
    back = threading.Timer(
        0.5, lambda: cluster.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = off")
    )
    back.start()
    exporter.export(spans(11, 30))  # the sessions opened meanwhile stay read-only: only a new one can write
    back.join()
    assert (exporter.stats().committed, exporter.stats().spooled) == (30, 0)
    assert_invariants(url, exporter.stats(), spans=30, faults=0)
    exporter.shutdown()


@pytest.mark.parametrize("state", ["40001", "40P01", "55P03"])
def test_c4_serialization_failures_deadlocks_and_locks_are_tried_again(
    cluster: Cluster, name: str, url: str, state: str, assert_invariants: Any
) -> None:
    engine = create_sync_engine(url)
    ensure_schema(engine)
    engine.dispose()
    cluster.execute(  # a sequence is not rolled back: the first three transactions fail
        "CREATE SEQUENCE tries",
        f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('tries') <= 3 THEN RAISE EXCEPTION 'injected' USING ERRCODE = '{state}'; END IF;
            RETURN NULL; END $$""",
        "CREATE TRIGGER refuse AFTER INSERT ON spans FOR EACH STATEMENT EXECUTE FUNCTION refuse()",
        database=name,
    )
    exporter = StepSpanExporter(url)
    exporter.export([ended(1)])
    assert cluster.execute("SELECT last_value > 3 FROM tries", database=name) == [(True,)]
    assert_invariants(url, exporter.stats(), spans=1, faults=0)
    exporter.shutdown()


def test_c4_eight_writers_of_the_same_spans_in_any_order(
    cluster: Cluster, name: str, url: str, assert_invariants: Any
) -> None:
    raws = [SpanConverter()(span) for span in spans(1, 200, traces=11)]
    engines = [create_sync_engine(url) for _ in range(8)]
    ensure_schema(engines[0])
    errors: list[BaseException] = []

    def write(number: int) -> None:
        try:
            rng = random.Random(number)
            writer = Writer(engines[number])
            shuffled = rng.sample(raws, len(raws))
            at = 0
            while at < len(shuffled):
                size = rng.randint(1, 40)
                writer.write(shuffled[at : at + size])
                at += size
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for engine in engines:
        engine.dispose()
    assert errors == []
    deadlocks = f"SELECT deadlocks FROM pg_stat_database WHERE datname = '{name}'"
    assert cluster.execute(deadlocks) == [(0,)]
    assert_invariants(url, spans=200)


@pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="PgBouncer is not installed: apt-get install pgbouncer")
def test_c5_pgbouncer_in_transaction_mode_works(
    cluster: Cluster, name: str, url: str, tmp_path: Path, assert_invariants: Any
) -> None:
    with pgbouncer(cluster, tmp_path) as port:
        pooled = cluster.url(name, port=port)
        others = [StepSpanExporter(f"{pooled}?application_name=app{number}") for number in range(4)]
        errors: list[BaseException] = []

        def export(number: int) -> None:
            try:
                for at in range(0, 100, 10):
                    first = number * 100 + at + 1
                    others[number].export([ended(first + n, trace_id=(first + n) % 9 + 1) for n in range(10)])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=export, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        with StepStore(pooled) as store:
            for _ in range(10):
                assert len(store.steps(limit=1000)) == 400
        for exporter in others:
            assert (exporter.stats().committed, exporter.stats().spooled) == (100, 0)
            exporter.shutdown()
    assert errors == []
    assert_invariants(url, spans=400, faults=0)


@pytest.mark.parametrize(
    "setting", ["statement_timeout = '100ms'", "transaction_timeout = '250ms'"], ids=["statement", "transaction"]
)
def test_c6_what_takes_longer_than_the_database_allows_is_written_in_smaller_batches(
    cluster: Cluster, name: str, url: str, setting: str, assert_invariants: Any
) -> None:
    engine = create_sync_engine(url)
    ensure_schema(engine)
    engine.dispose()
    cluster.execute(  # 40 spans take 400 ms
        """CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN PERFORM pg_sleep(0.01 * (SELECT count(*) FROM new)); RETURN NULL; END $$""",
        "CREATE TRIGGER slow AFTER INSERT ON spans REFERENCING NEW TABLE AS new"
        " FOR EACH STATEMENT EXECUTE FUNCTION slow()",
        f"ALTER DATABASE {name} SET {setting}",
        database=name,
    )
    exporter = StepSpanExporter(url)
    exporter.export(spans(1, 40))
    assert (exporter.stats().committed, exporter.stats().spooled) == (40, 0)
    cluster.execute(f"ALTER DATABASE {name} RESET ALL")
    exporter.shutdown()
    assert_invariants(url, exporter.stats(), spans=40, faults=0)


def test_c6_a_lock_timeout_waits_for_the_other(cluster: Cluster, name: str, url: str, assert_invariants: Any) -> None:
    cluster.execute(f"ALTER DATABASE {name} SET lock_timeout = '50ms'")
    exporter = StepSpanExporter(url)
    exporter.export(spans(1, 10))
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE spans")
        release = threading.Timer(0.3, other.rollback)
        release.start()
        exporter.export(spans(11, 20))
        release.join()
    assert_invariants(url, exporter.stats(), spans=20, faults=0)
    assert exporter.stats().committed == 20
    exporter.shutdown()


def test_c6_a_transaction_that_was_idle_too_long_is_repeated(
    cluster: Cluster, name: str, url: str, assert_invariants: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from step_exporter.store import ingest

    cluster.execute(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '500ms'")
    exporter = StepSpanExporter(url)
    exporter.export(spans(1, 10))
    catch_up, naps = ingest.catch_up, [1.0]

    def slowly(*args: Any) -> Any:
        if naps:
            time.sleep(naps.pop())  # a machine that is busy elsewhere
        return catch_up(*args)

    monkeypatch.setattr(ingest, "catch_up", slowly)
    exporter.export([ended(11)])
    assert (exporter.stats().committed, naps) == (11, [])
    assert "idle-in-transaction" in cluster.log
    assert_invariants(url, exporter.stats(), spans=11, faults=0)
    exporter.shutdown()


def test_c7_a_server_that_has_no_connection_left_is_waited_for_with_a_spool(
    cluster: Cluster, name: str, url: str, role: str, assert_invariants: Any, no_pause: None
) -> None:
    cluster.execute(f"GRANT CREATE ON SCHEMA public TO {role}", database=name)
    exporter = StepSpanExporter(cluster.url(name, role))
    others: list[psycopg.Connection[Any]] = []
    try:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                others.append(psycopg.connect(cluster.url(user=role)))
        exporter.export(spans(1, 10))
        assert (exporter.stats().committed, exporter.stats().spooled) == (0, 10)
    finally:
        for other in others:
            other.close()
    brought_in(exporter)  # the server takes its time to free the slots
    assert exporter.stats().committed == 10
    assert_invariants(url, exporter.stats(), spans=10, faults=1)
    exporter.shutdown()


def test_c8_a_role_that_may_not_create_tables_is_told_what_to_grant(
    cluster: Cluster, name: str, url: str, role: str, assert_invariants: Any, caplog: Any, no_pause: None
) -> None:
    exporter = StepSpanExporter(cluster.url(name, f"{role}:hunter2"))
    exporter.export(spans(1, 10))
    assert exporter.stats().spooled == 10
    (line,) = [record.getMessage() for record in caplog.records]
    grant = f"GRANT USAGE, CREATE ON SCHEMA public TO {role}"
    assert grant in line
    cluster.execute(grant, database=name)
    exporter.export(spans(11, 20))
    assert exporter.stats().committed == 20
    assert_invariants(url, exporter.stats(), spans=20, faults=1)
    exporter.shutdown()


def test_c8_a_role_that_may_not_write_is_told_what_to_grant(
    cluster: Cluster, name: str, url: str, role: str, assert_invariants: Any, caplog: Any, no_pause: None
) -> None:
    engine = create_sync_engine(url)
    ensure_schema(engine)
    engine.dispose()
    cluster.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}", database=name)
    exporter = StepSpanExporter(cluster.url(name, role))
    exporter.export(spans(1, 10))
    assert exporter.stats().spooled == 10
    (line,) = [record.getMessage() for record in caplog.records]
    grants = line.partition("Their owner runs: ")[2].split(";")[:3]
    assert len(grants) == 3
    cluster.execute(*grants, database=name)
    exporter.export(spans(11, 20))
    assert exporter.stats().committed == 20

    cluster.execute(f"REVOKE INSERT ON spans FROM {role}", database=name)  # at run time
    exporter.export(spans(21, 30))
    assert exporter.stats().spooled == 10
    cluster.execute(f"GRANT INSERT ON spans TO {role}", database=name)
    exporter.export(spans(31, 40))
    assert exporter.stats().committed == 40
    assert_invariants(url, exporter.stats(), spans=40)
    exporter.shutdown()


def test_c8_a_role_that_may_keep_no_account_stores_its_spans(
    cluster: Cluster, name: str, url: str, role: str, assert_invariants: Any, caplog: Any
) -> None:
    engine = create_sync_engine(url)
    ensure_schema(engine)
    engine.dispose()
    grants = "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES", "USAGE ON ALL SEQUENCES"
    cluster.execute(*(f"GRANT {grant} IN SCHEMA public TO {role}" for grant in grants), database=name)
    cluster.execute(f"REVOKE INSERT ON processes FROM {role}", database=name)
    exporter = StepSpanExporter(cluster.url(name, role))
    exporter.export(spans(1, 10))
    exporter.export(spans(11, 20))
    assert exporter.stats().committed == 20
    assert_invariants(url, exporter.stats(), spans=20, faults=0)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "cannot keep account of this process's spans: permission denied for table processes" in line
    exporter.shutdown()


def test_c9_a_wrong_password_is_in_no_message_and_not_tried_again_and_again(
    cluster: Cluster, name: str, role: str, caplog: Any
) -> None:
    cluster.allow(f"host all {role} 127.0.0.1/32 scram-sha-256", "host all all 127.0.0.1/32 trust")
    try:
        exporter = StepSpanExporter(cluster.url(name, f"{role}:hunter3"))
        for number in range(1, 101):
            exporter.export([ended(number)])
        assert exporter.stats().spooled == 100
        exporter.shutdown()
    finally:
        cluster.allow("host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust")
    (line,) = [record.getMessage() for record in caplog.records]
    assert f'password authentication failed for user "{role}"' in line
    assert "hunter" not in caplog.text
    refused = cluster.log.count(f'password authentication failed for user "{role}"')
    assert 1 <= refused < 10  # 100 exports: a second and then twice as long lies between attempts


def test_c9_a_server_without_tls_is_not_written_to_where_tls_is_required(
    cluster: Cluster, url: str, caplog: Any
) -> None:
    exporter = StepSpanExporter(f"{url}?sslmode=require")
    exporter.export(spans(1, 3))
    assert exporter.stats().spooled == 3
    exporter.shutdown()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "server does not support SSL, but SSL was required" in line


def test_c9_a_wrong_address_names_no_password_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    exporter = StepSpanExporter("postgresql://user:hunter2@127.0.0.1:1/steps?connect_timeout=1")
    for number in range(1, 4):
        exporter.export([ended(number)])
    (line,) = [record.getMessage() for record in caplog.records]
    assert "127.0.0.1" in line
    assert "hunter2" not in caplog.text
    assert exporter.stats().spooled == 3
    exporter.shutdown()


def test_c10_shutdown_keeps_its_deadline_while_the_network_swallows_everything(
    cluster: Cluster, name: str, url: str, assert_invariants: Any
) -> None:
    proxy = Proxy(cluster.port)
    try:
        processor = StepSpanProcessor(cluster.url(name, port=proxy.port), batch=50)
        for span in spans(1, 100):
            processor.on_end(span)
        assert processor.flush(30).committed == 100
        proxy.go_dark()
        for span in spans(101, 300):
            processor.on_end(span)
        began = time.monotonic()
        assert processor.flush(0.5).committed == 100
        processor.shutdown(2)
        assert time.monotonic() - began < 3.5  # the deadlines' sum and a second
        report = processor.flush(0)
        assert (report.committed, report.spooled, report.dropped) == (100, 200, {})
        proxy.light_up()
        other_writer = "?application_name=next"  # the first one still waits for its answer
        successor = StepSpanExporter(cluster.url(name, port=proxy.port) + other_writer)
        successor.export([ended(301)])
        assert successor.stats().adopted == 200
        successor.shutdown()
    finally:
        proxy.close()
    assert_invariants(url, report, spans=301)


def test_c10_a_statement_that_is_never_answered_is_given_up(
    cluster: Cluster, name: str, url: str, assert_invariants: Any, no_pause: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("step_exporter.sharing.ANSWER_S", 0.3)
    proxy = Proxy(cluster.port)
    try:
        exporter = StepSpanExporter(f"{cluster.url(name, port=proxy.port)}?connect_timeout=2")
        exporter.export(spans(1, 10))
        proxy.go_dark()
        exporter.export(spans(11, 20))
        assert (exporter.stats().committed, exporter.stats().spooled) == (10, 10)
        proxy.light_up()
        exporter.export(spans(21, 30))
        assert exporter.stats().committed == 30
        exporter.shutdown()
    finally:
        proxy.close()
    assert_invariants(url, exporter.stats(), spans=30, faults=1)


def test_c11_another_time_zone_date_style_client_encoding_and_search_path_change_nothing(
    cluster: Cluster, name: str, url: str, assert_invariants: Any
) -> None:
    cluster.execute(
        f"ALTER DATABASE {name} SET timezone = 'Asia/Kathmandu'",
        f"ALTER DATABASE {name} SET datestyle = 'German, DMY'",
        f"ALTER DATABASE {name} SET client_encoding = 'LATIN1'",
        f"ALTER DATABASE {name} SET bytea_output = 'escape'",
        f"ALTER DATABASE {name} SET search_path = other, public",
    )
    start_ns = 1_764_000_000_000_000_001
    exporter = StepSpanExporter(url)
    exporter.export([ended(1, name="Grüße 漢 🦜", start_time=start_ns, end_time=start_ns + 1)])
    exporter.shutdown()
    with StepStore(url) as store:
        (step,) = store.steps()
        (span,) = store.trace(step.trace_id).spans
        assert (span.name, span.start_ns, span.end_ns) == ("Grüße 漢 🦜", start_ns, start_ns + 1)
        assert int(step.created_at.timestamp()) == start_ns // 1_000_000_000
    assert_invariants(url, exporter.stats(), spans=1, faults=0)


def test_c11_a_database_that_cannot_hold_unicode_is_refused(cluster: Cluster, caplog: Any) -> None:
    cluster.execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    exporter = StepSpanExporter(cluster.url("ascii"))
    exporter.export(spans(1, 3))
    assert exporter.stats().spooled == 3
    exporter.shutdown()
    (line,) = [record.getMessage() for record in caplog.records]
    assert "stores text as SQL_ASCII" in line
    assert "ENCODING 'UTF8'" in line
    with pytest.raises(DatabaseError, match="SQL_ASCII"), StepStore(cluster.url("ascii")) as store:
        store.steps()


def test_c12_children_that_come_while_their_traces_are_pruned_and_deleted_are_stored(
    url: str, assert_invariants: Any
) -> None:
    exporter = StepSpanExporter(url)
    exporter.export(spans(1, 7))
    done = threading.Event()
    errors: list[BaseException] = []

    def prune() -> None:
        try:
            with StepStore(url) as store:
                while not done.is_set():
                    store.prune(older_than=timedelta(0))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=prune)
    thread.start()
    for number in range(8, 108):
        exporter.export([ended(number, trace_id=number % 7 + 1, parent=number - 7)])
    done.set()
    thread.join(30)
    assert errors == []
    assert (exporter.stats().committed, exporter.stats().spooled) == (107, 0)
    exporter.export([ended(500, trace_id=1, parent=499)])
    with StepStore(url) as store:
        assert 500 in {int(span.span_id, 16) for span in store.trace(f"{1:032x}").spans}
    assert_invariants(url, exporter.stats(), faults=0)
    exporter.shutdown()
