"""The tables, as SQLAlchemy declarative models, for your own queries.

    from sqlalchemy import create_engine, select
    from sqlalchemy.orm import Session
    from step_exporter.models import Step

    trace_id = "4f1c2a…"  # all 32 digits
    with Session(create_engine("sqlite:///steps.db")) as session:
        for step in session.scalars(select(Step).where(Step.trace_id == trace_id)):
            print(step.model, step.total_tokens, step.metrics.llm_request_ns)

Facts (``traces`` to ``quarantine``) are what arrived; ``steps``, ``step_metrics``, ``runs`` and ``messages``
are derived from them and can be made again. Every row of telemetry is keyed on its trace. Times ``*_ns`` are
integer nanoseconds, since the Unix epoch where they are points in time; ``*_at`` are UTC. NULL means unknown.

There is no foreign key between rows that may arrive in any order: ``run_id`` and ``step_id`` are nulled by
triggers when the run or step is deleted (``ddl``), and the relationships over them are for reading only. A
composite ``ON DELETE SET NULL`` cannot say it: SQLite would null ``trace_id`` as well.
"""

from __future__ import annotations

import json
import operator
import secrets
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Text,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import TypeDecorator, TypeEngine

from step_exporter import ddl

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc_datetime(ns: int) -> datetime:
    """The UTC time of nanoseconds since the Unix epoch, cut to microseconds."""
    return _EPOCH + timedelta(microseconds=ns // 1000)


def utc_now() -> datetime:
    """The current time, UTC-aware."""
    return datetime.now(UTC)


def canonical_json(value: Any) -> str:
    """JSON text with sorted keys and no spaces, so that equal values are equal text.

    Raises ``ValueError`` for NaN and infinity, which JSON does not have.
    """
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def _from_json(value: str | None) -> Any:
    return None if value is None else json.loads(value)


def _from_sqlite(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value + "+00:00")


def _from_postgresql(value: datetime | None) -> datetime | None:
    return None if value is None else value.astimezone(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """A UTC-aware ``datetime``: ``timestamptz`` in PostgreSQL, text ``YYYY-MM-DD HH:MM:SS.ffffff`` in SQLite."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Times with a zone where the engine has them."""
        return dialect.type_descriptor(DateTime(timezone=dialect.name == "postgresql"))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Any aware time, as UTC. A naive one raises ``ValueError``: its zone would be a guess."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; use datetime.now(UTC)")
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        """Always UTC, whatever the session's time zone. SQLite's text is read at once: 0.2 µs, by way of a naive
        time 1.5."""
        return _from_postgresql if dialect.name == "postgresql" else _from_sqlite


class CanonicalJSON(TypeDecorator[Any]):
    """JSON as canonical text on both engines, so that values compare as text and hold what ``jsonb`` refuses
    (``\\u0000``). ``None`` is NULL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """Canonical JSON text."""
        return None if value is None else canonical_json(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        """The Python value."""
        return _from_json

    def coerce_compared_value(self, op: Any, value: Any) -> Any:
        """``==`` compares with a JSON value, anything else (``like``) with its text."""
        return self if op in (operator.eq, operator.ne) or not isinstance(value, str) else Text()


Id = Annotated[str, "id"]
"""A column that rows are found by. PostgreSQL compares it bytewise, as SQLite and Python do: pages come in one
order everywhere, and a libc that changes its collation does not break the indexes."""
Json = Annotated[Any, mapped_column(CanonicalJSON)]
Count = Annotated[int, mapped_column(default=0, server_default=text("0"))]


class Base(DeclarativeBase):
    """The declarative base; ``Base.metadata`` holds the whole schema, triggers and views included."""

    metadata = MetaData(
        naming_convention={"pk": "pk_%(table_name)s", "fk": "fk_%(table_name)s_%(column_0_name)s"},
    )
    type_annotation_map = {  # noqa: RUF012  SQLAlchemy's name and type
        str: Text(),
        Id: Text().with_variant(Text(collation="C"), "postgresql"),
        int: BigInteger(),
        bool: Boolean(),
        datetime: UtcDateTime(),
    }


# Facts


class Trace(Base):
    """A trace. Its row is the lock that every writer of the trace takes."""

    __tablename__ = "traces"
    __table_args__ = (Index("ix_traces_last_ns", "last_ns"),)

    trace_id: Mapped[Id] = mapped_column(primary_key=True, doc="32 lower-case hexadecimal digits")
    epoch: Mapped[int] = mapped_column(
        default=lambda: secrets.randbits(63), doc="random, tells a trace that was deleted and made again apart"
    )
    revision: Mapped[Count] = mapped_column(doc="grows when a fact was new")
    first_ns: Mapped[int | None] = mapped_column(doc="the earliest time of its spans")
    last_ns: Mapped[int | None] = mapped_column(doc="the latest time of its spans; what retention goes by")
    changed_at: Mapped[datetime] = mapped_column(default=utc_now, doc="when a fact was last new")


class Span(Base):
    """A span as it arrived, content taken out (``contents``). No foreign key leads to or from it."""

    __tablename__ = "spans"
    __table_args__ = (
        # Only open spans are in it, so that finding those of a process that is gone costs ended spans nothing.
        Index("ix_spans_process_id", "process_id", **ddl.where("state = 'open'")),
    )

    trace_id: Mapped[Id] = mapped_column(primary_key=True)
    span_id: Mapped[Id] = mapped_column(primary_key=True, doc="16 lower-case hexadecimal digits")
    parent_span_id: Mapped[Id | None] = mapped_column(doc="NULL on a root; the parent may never arrive")
    name: Mapped[str] = mapped_column()
    kind: Mapped[str] = mapped_column(doc="internal, server, client, producer or consumer")
    start_ns: Mapped[int | None] = mapped_column()
    end_ns: Mapped[int | None] = mapped_column(doc="NULL while open, and where the emitter gave no usable end")
    state: Mapped[str] = mapped_column(doc="open or ended")
    status_code: Mapped[str] = mapped_column(doc="unset, ok or error")
    status_message: Mapped[str | None] = mapped_column()
    role: Mapped[str] = mapped_column(doc="workflow, agent, step, llm, tool or other")
    convention: Mapped[str | None] = mapped_column(doc="the vocabulary that decided the role, such as genai")
    service_name: Mapped[str | None] = mapped_column()
    service_instance_id: Mapped[str | None] = mapped_column()
    process_id: Mapped[Id | None] = mapped_column(doc="the processes row of who emitted it, if that is known")
    abandoned_ns: Mapped[int | None] = mapped_column(doc="when its process was found gone")
    resource: Mapped[Id | None] = mapped_column(doc="hash of its OTLP resource in resources")
    scope: Mapped[Id | None] = mapped_column(doc="hash of its instrumentation scope in resources")
    trace_flags: Mapped[Count] = mapped_column()
    trace_state: Mapped[str | None] = mapped_column()
    parent_is_remote: Mapped[bool | None] = mapped_column(doc="whether the parent ran in another process")
    attributes: Mapped[Json | None] = mapped_column(doc="an object; content values are references to contents")
    events: Mapped[Json | None] = mapped_column(doc="an array")
    links: Mapped[Json | None] = mapped_column(doc="an array")
    dropped_attributes: Mapped[Count] = mapped_column()
    dropped_events: Mapped[Count] = mapped_column()
    dropped_links: Mapped[Count] = mapped_column()
    flags: Mapped[Json | None] = mapped_column(doc="what was doubtful on arrival, such as clock_skew")
    collisions: Mapped[Count] = mapped_column(doc="how many different spans lost to this one under the same key")
    revision: Mapped[Count] = mapped_column(doc="of the trace, when this came")


class Content(Base):
    """One element of a content value (a message of a prompt, a tool's result), once per trace."""

    __tablename__ = "contents"

    trace_id: Mapped[Id] = mapped_column(primary_key=True)
    hash: Mapped[Id] = mapped_column(primary_key=True, doc="covers parent_hash and body")
    parent_hash: Mapped[Id | None] = mapped_column(doc="the element before it")
    body: Mapped[str] = mapped_column(doc="as emitted")


class Resource(Base):
    """An OTLP resource or instrumentation scope, once per trace."""

    __tablename__ = "resources"

    trace_id: Mapped[Id] = mapped_column(primary_key=True)
    hash: Mapped[Id] = mapped_column(primary_key=True)
    body: Mapped[Json] = mapped_column(doc="an object: attributes, schema_url, and a scope's name and version")


class Annotation(Base):
    """What a person set on a step. It belongs to whichever step contains the span now."""

    __tablename__ = "annotations"

    trace_id: Mapped[Id] = mapped_column(primary_key=True)
    span_id: Mapped[Id] = mapped_column(primary_key=True, doc="the step's anchor when it was set")
    key: Mapped[Id] = mapped_column(primary_key=True, doc="feedback, tags or tid")
    value: Mapped[Json | None] = mapped_column()
    set_by: Mapped[str | None] = mapped_column()
    set_at: Mapped[datetime] = mapped_column(default=utc_now)


class Deletion(Base):
    """What a person deleted, so that late spans and rebuilds do not bring it back."""

    __tablename__ = "deletions"

    trace_id: Mapped[Id] = mapped_column(primary_key=True)
    kind: Mapped[Id] = mapped_column(primary_key=True, doc="trace, run or step")
    id: Mapped[Id] = mapped_column(primary_key=True)
    deleted_by: Mapped[str | None] = mapped_column()
    deleted_at: Mapped[datetime] = mapped_column(default=utc_now)


class Process(Base):
    """A process that writes: what became of its spans, and whether a dead one or a slow one left spans open."""

    __tablename__ = "processes"

    id: Mapped[Id] = mapped_column(primary_key=True)
    host: Mapped[str | None] = mapped_column()
    boot_id: Mapped[str | None] = mapped_column(doc="of the host's current boot")
    pid: Mapped[int | None] = mapped_column()
    pid_start: Mapped[int | None] = mapped_column(doc="when the pid began, in the host's own unit; pids come again")
    started_at: Mapped[datetime] = mapped_column(default=utc_now)
    heartbeat_at: Mapped[datetime | None] = mapped_column(doc="by the database's clock")
    ended_at: Mapped[datetime | None] = mapped_column()
    seen: Mapped[int | None] = mapped_column(doc="spans that ended in it, by its last heartbeat")
    committed: Mapped[int | None] = mapped_column(doc="of these, how many are in the database")
    spooled: Mapped[int | None] = mapped_column(doc="of these, how many waited on its disk")
    dropped: Mapped[Json | None] = mapped_column(doc="an object: how many were dropped, by reason")


class Quarantine(Base):
    """What could not be stored, or lost a collision, with the reason and the bytes."""

    __tablename__ = "quarantine"
    # Each collision looks for what its span collided with before, each pruned trace for what goes with it.
    __table_args__ = (Index("ix_quarantine_trace_id", "trace_id", "span_id"),)

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    trace_id: Mapped[Id | None] = mapped_column()
    span_id: Mapped[Id | None] = mapped_column()
    reason: Mapped[str] = mapped_column(doc="such as id_collision")
    detail: Mapped[str | None] = mapped_column()
    body: Mapped[bytes | None] = mapped_column()
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Audit(Base):
    """What a person, or a program on their behalf, changed. Nothing deletes an entry, nor changes what it tells of."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    at: Mapped[datetime] = mapped_column(default=utc_now)
    actor: Mapped[str] = mapped_column(doc="who did it")
    action: Mapped[str] = mapped_column(
        doc="feedback, tags, transaction, delete, import, prune, rebuild, requeue or rotate_key"
    )
    trace_id: Mapped[Id | None] = mapped_column()
    organization_id: Mapped[Id | None] = mapped_column(doc="whose rows were changed, where they are of one")
    subject: Mapped[str | None] = mapped_column(doc="the id of the step, run or trace")
    details: Mapped[Json | None] = mapped_column(doc="an object: old and new values, or how many")


class EncryptionKey(Base):
    """A key that values are encrypted by, but for the key itself. No row: nothing is encrypted."""

    __tablename__ = "encryption_keys"

    id: Mapped[Id] = mapped_column(primary_key=True, doc="8 hexadecimal digits, which each encrypted value names")
    hash_key: Mapped[str] = mapped_column(doc="what ids of contents and messages are hashed with, encrypted by the key")
    is_converting: Mapped[bool] = mapped_column(default=False, doc="plain text from before is being encrypted")
    added_at: Mapped[datetime] = mapped_column(default=utc_now)


class Maintenance(Base):
    """When work that one process does for all is due next."""

    __tablename__ = "maintenance"

    task: Mapped[Id] = mapped_column(primary_key=True, doc="prune")
    due_at: Mapped[datetime] = mapped_column(doc="by the database's clock")


# Shared by traces


class Organization(Base):
    """Whom steps belong to. In use, it cannot be deleted."""

    __tablename__ = "organizations"

    id: Mapped[Id] = mapped_column(primary_key=True, doc="native, else derived from the normalised name")
    name: Mapped[str] = mapped_column()


class Provider(Base):
    """Who serves models. In use, it cannot be deleted."""

    __tablename__ = "providers"

    id: Mapped[Id] = mapped_column(primary_key=True, doc="native, else derived from the normalised name")
    name: Mapped[str] = mapped_column()


# Derived


class Step(Base):
    """One turn of an agent's loop: its LLM request and the tools that this request asked for."""

    __tablename__ = "steps"
    __table_args__ = (
        # The last 50 steps of a 2,000-step run: 0.3 ms, by run_id alone 3.5.
        Index("ix_steps_run_id", "run_id", "created_at"),
        Index("ix_steps_created_at", "created_at"),
        Index("ix_steps_id", "id"),
        Index("ix_steps_agent_id", "agent_id", "created_at", **ddl.where("agent_id IS NOT NULL")),
        Index("ix_steps_organization_id", "organization_id", "run_id", **ddl.where("organization_id IS NOT NULL")),
    )

    trace_id: Mapped[Id] = mapped_column(primary_key=True)
    id: Mapped[Id] = mapped_column(primary_key=True, doc="native, else step- and a UUID derived from its anchor")
    span_id: Mapped[Id] = mapped_column(doc="its anchor")
    parent_step_id: Mapped[Id | None] = mapped_column(doc="the step whose tool called this one's agent")
    origin: Mapped[str | None] = mapped_column(doc="the surface that it was started from")
    organization_id: Mapped[Id | None] = mapped_column(ForeignKey("organizations.id", ondelete="RESTRICT"))
    provider_id: Mapped[Id | None] = mapped_column(ForeignKey("providers.id", ondelete="RESTRICT"))
    run_id: Mapped[Id | None] = mapped_column()
    agent_id: Mapped[Id | None] = mapped_column()
    agent_name: Mapped[str | None] = mapped_column()
    project_id: Mapped[str | None] = mapped_column()
    provider_name: Mapped[str | None] = mapped_column()
    provider_category: Mapped[str | None] = mapped_column(doc="such as base or byok")
    model: Mapped[str | None] = mapped_column(doc="the model that served, else the one asked for")
    model_handle: Mapped[str | None] = mapped_column(doc="the name that the app knows the model by")
    model_endpoint: Mapped[str | None] = mapped_column()
    context_window_limit: Mapped[int | None] = mapped_column(doc="tokens")
    completion_tokens: Mapped[Count] = mapped_column(doc="reasoning tokens included")
    prompt_tokens: Mapped[Count] = mapped_column(doc="cached and cache-write included")
    total_tokens: Mapped[Count] = mapped_column(doc="prompt and completion")
    cached_input_tokens: Mapped[int | None] = mapped_column()
    cache_write_tokens: Mapped[int | None] = mapped_column()
    reasoning_tokens: Mapped[int | None] = mapped_column()
    completion_tokens_details: Mapped[Json | None] = mapped_column(doc="an object")
    prompt_tokens_details: Mapped[Json | None] = mapped_column(doc="an object")
    stop_reason: Mapped[str | None] = mapped_column()
    tags: Mapped[Json | None] = mapped_column(doc="an array of strings")
    tid: Mapped[str | None] = mapped_column(doc="transaction id")
    request_id: Mapped[str | None] = mapped_column(doc="the id of the response")
    feedback: Mapped[str | None] = mapped_column(doc="positive or negative")
    error_type: Mapped[str | None] = mapped_column()
    error_data: Mapped[Json | None] = mapped_column(doc="an object: message, traceback, context")
    status: Mapped[str] = mapped_column(doc="pending, running, success, failed, cancelled or abandoned")
    flags: Mapped[Json | None] = mapped_column(doc="what is doubtful, an array of strings")
    service_name: Mapped[str | None] = mapped_column()
    convention: Mapped[str | None] = mapped_column()
    created_at: Mapped[datetime] = mapped_column(doc="when the step began")
    updated_at: Mapped[datetime] = mapped_column(default=utc_now, onupdate=utc_now, doc="when the row was written")

    metrics: Mapped[StepMetrics | None] = relationship(
        back_populates="step", cascade="save-update, merge, delete", passive_deletes=True
    )
    organization: Mapped[Organization | None] = relationship()
    provider: Mapped[Provider | None] = relationship()
    run: Mapped[Run | None] = relationship(
        primaryjoin="and_(foreign(Step.trace_id) == Run.trace_id, foreign(Step.run_id) == Run.id)", viewonly=True
    )
    messages: Mapped[list[Message]] = relationship(
        primaryjoin="and_(Step.trace_id == foreign(Message.trace_id), Step.id == foreign(Message.step_id))",
        order_by="Message.position",
        viewonly=True,
    )
    children: Mapped[list[Step]] = relationship(
        primaryjoin="and_(Step.trace_id == remote(foreign(Step.trace_id)),"
        " Step.id == remote(foreign(Step.parent_step_id)))",
        order_by="[Step.created_at, Step.span_id]",
        viewonly=True,
    )


class StepMetrics(Base):
    """How long a step took and how often it called. It goes with its step."""

    __tablename__ = "step_metrics"
    __table_args__ = (
        ForeignKeyConstraint(["trace_id", "id"], ["steps.trace_id", "steps.id"], ondelete="CASCADE"),
        Index("ix_step_metrics_run_id", "run_id"),
    )

    trace_id: Mapped[Id] = mapped_column(primary_key=True)
    id: Mapped[Id] = mapped_column(primary_key=True, doc="the step's")
    run_id: Mapped[Id | None] = mapped_column()
    agent_id: Mapped[Id | None] = mapped_column()
    organization_id: Mapped[Id | None] = mapped_column()
    provider_id: Mapped[Id | None] = mapped_column()
    project_id: Mapped[str | None] = mapped_column()
    step_start_ns: Mapped[int | None] = mapped_column()
    llm_request_start_ns: Mapped[int | None] = mapped_column(doc="the earliest LLM span's start")
    llm_request_ns: Mapped[int | None] = mapped_column(doc="union of its LLM requests")
    tool_execution_ns: Mapped[int | None] = mapped_column(doc="union of its tools")
    step_ns: Mapped[int | None] = mapped_column(doc="from its first start to its last end")
    ttft_ns: Mapped[int | None] = mapped_column(doc="time to the first token")
    llm_request_count: Mapped[Count] = mapped_column()
    tool_call_count: Mapped[Count] = mapped_column()
    base_template_id: Mapped[str | None] = mapped_column()
    template_id: Mapped[str | None] = mapped_column()

    step: Mapped[Step] = relationship(back_populates="metrics")
    run: Mapped[Run | None] = relationship(
        primaryjoin="and_(foreign(StepMetrics.trace_id) == Run.trace_id, foreign(StepMetrics.run_id) == Run.id)",
        viewonly=True,
    )


class Run(Base):
    """One invocation of an agent."""

    __tablename__ = "runs"
    __table_args__ = (
        Index("ix_runs_created_at", "created_at"),
        Index("ix_runs_id", "id"),
        Index("ix_runs_conversation_id", "conversation_id", "created_at", **ddl.where("conversation_id IS NOT NULL")),
    )

    trace_id: Mapped[Id] = mapped_column(primary_key=True)
    id: Mapped[Id] = mapped_column(primary_key=True, doc="one run id may occur in several traces")
    span_id: Mapped[Id | None] = mapped_column(doc="NULL where no agent or workflow span is known")
    parent_run_id: Mapped[Id | None] = mapped_column(doc="the run whose tool invoked this agent")
    agent_id: Mapped[Id | None] = mapped_column()
    agent_name: Mapped[str | None] = mapped_column()
    conversation_id: Mapped[str | None] = mapped_column()
    organization_id: Mapped[Id | None] = mapped_column()
    project_id: Mapped[str | None] = mapped_column()
    status: Mapped[str] = mapped_column(doc="created, running, completed, failed or cancelled")
    stop_reason: Mapped[str | None] = mapped_column()
    start_ns: Mapped[int | None] = mapped_column()
    total_duration_ns: Mapped[int | None] = mapped_column()
    ttft_ns: Mapped[int | None] = mapped_column(doc="from its start to the first token")
    step_count: Mapped[Count] = mapped_column()
    prompt_tokens: Mapped[Count] = mapped_column()
    completion_tokens: Mapped[Count] = mapped_column()
    total_tokens: Mapped[Count] = mapped_column()
    error_type: Mapped[str | None] = mapped_column()
    service_name: Mapped[str | None] = mapped_column()
    created_at: Mapped[datetime] = mapped_column(doc="when the run began")
    updated_at: Mapped[datetime] = mapped_column(default=utc_now, onupdate=utc_now, doc="when the row was written")

    steps: Mapped[list[Step]] = relationship(
        primaryjoin="and_(Run.trace_id == foreign(Step.trace_id), Run.id == foreign(Step.run_id))",
        order_by="[Step.created_at, Step.span_id]",
        viewonly=True,
    )
    messages: Mapped[list[Message]] = relationship(
        primaryjoin="and_(Run.trace_id == foreign(Message.trace_id), Run.id == foreign(Message.run_id))",
        order_by="Message.position",
        viewonly=True,
    )
    children: Mapped[list[Run]] = relationship(
        primaryjoin="and_(Run.trace_id == remote(foreign(Run.trace_id)), Run.id == remote(foreign(Run.parent_run_id)))",
        order_by="[Run.created_at, Run.span_id]",
        viewonly=True,
    )


class Message(Base):
    """One message of a run: what a step was told or answered. Its text is in ``content``."""

    __tablename__ = "messages"
    __table_args__ = (
        # Read by (a step's messages, a run's), and used by the triggers that null them: without, each deleted run would
        # walk the messages of its trace. Led by the trace, so that new entries are neighbours: 2 µs and 100 bytes each.
        Index("ix_messages_step_id", "trace_id", "step_id"),
        Index("ix_messages_run_id", "trace_id", "run_id"),
    )

    trace_id: Mapped[Id] = mapped_column(primary_key=True)
    id: Mapped[Id] = mapped_column(primary_key=True, doc="covers the run, the message before and what it says")
    parent_id: Mapped[Id | None] = mapped_column(doc="the message before it")
    role: Mapped[str] = mapped_column(doc="system, user, assistant or tool")
    content_hash: Mapped[Id | None] = mapped_column(doc="its element in contents")
    name: Mapped[str | None] = mapped_column(doc="the tool's name on a tool message, the speaker's on others")
    tool_calls: Mapped[Json | None] = mapped_column(doc="an array of objects: id, name, arguments")
    tool_call_id: Mapped[str | None] = mapped_column(doc="the call that a tool message answers")
    step_id: Mapped[Id | None] = mapped_column(doc="the step that said it, else the first that was told it")
    run_id: Mapped[Id | None] = mapped_column()
    position: Mapped[int] = mapped_column()

    step: Mapped[Step | None] = relationship(
        primaryjoin="and_(foreign(Message.trace_id) == Step.trace_id, foreign(Message.step_id) == Step.id)",
        viewonly=True,
    )
    run: Mapped[Run | None] = relationship(
        primaryjoin="and_(foreign(Message.trace_id) == Run.trace_id, foreign(Message.run_id) == Run.id)", viewonly=True
    )
    content: Mapped[Content | None] = relationship(
        primaryjoin="and_(foreign(Message.trace_id) == Content.trace_id,"
        " foreign(Message.content_hash) == Content.hash)",
        viewonly=True,
    )


ddl.attach(Base.metadata)
