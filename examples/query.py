"""Four ways to read the same steps: SQL, SQLAlchemy models, StepStore and AsyncStepStore.

step-exporter demo && python examples/query.py
"""

import asyncio
import sqlite3

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from step_exporter import AsyncStepStore, StepStore
from step_exporter.models import Step
from step_exporter.store.filters import StepFilter

# 1. SQL: tables are keyed on the trace id, times are integer nanoseconds.
database = sqlite3.connect("steps.db")
[trace_id] = database.execute("SELECT trace_id FROM steps ORDER BY created_at DESC LIMIT 1").fetchone()
for row in database.execute(
    """
    SELECT s.agent_name, s.model, s.status, s.total_tokens, m.step_ns / 1000000
    FROM steps s JOIN step_metrics m USING (trace_id, id)
    WHERE s.trace_id = ? ORDER BY s.created_at
    """,
    (trace_id,),
):
    print("sql:       ", *row)
database.close()

# 2. The models, for queries of your own.
engine = create_engine("sqlite:///steps.db")
with Session(engine) as session:
    for step in session.scalars(select(Step).where(Step.trace_id == trace_id).order_by(Step.created_at)):
        run = step.run.agent_name if step.run else None
        print("models:    ", run, step.model, step.status, step.metrics and step.metrics.tool_call_count, "tools")
engine.dispose()

# 3. The store: records, pages, and a whole trace at once.
with StepStore("sqlite:///steps.db") as store:
    for record in store.steps(StepFilter(trace_ids=[trace_id]), order="oldest", limit=10):
        print("store:     ", record.agent_name, record.model, record.status, record.total_tokens)
    trace = store.trace(trace_id[:8])  # the unique beginning of an id will do
    print("trace:     ", len(trace.runs), "runs,", len(trace.steps), "steps,", len(trace.messages), "messages")


# 4. The same in asyncio.
async def failed_steps() -> int:
    async with AsyncStepStore("sqlite:///steps.db") as store:
        return len(await store.steps(StepFilter(status="failed")))


print("async:     ", asyncio.run(failed_steps()), "failed steps")
