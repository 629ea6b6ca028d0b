"""``step-exporter diff``: what two traces did differently, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Annotated, Any

import typer
from rich.text import Text

from step_exporter.cli.options import DEFAULT_URL as URL
from step_exporter.cli.options import Db, Json, Organization, app
from step_exporter.cli.output import print_json, show
from step_exporter.cli.text import UNKNOWN, duration, harmless
from step_exporter.store.query import StepStore
from step_exporter.store.records import StepRecord, TraceRecord

COMPARED = (
    "agent_name",
    "model",
    "provider_name",
    "status",
    "stop_reason",
    "error_type",
    "prompt_tokens",
    "completion_tokens",
)
"""What makes two steps differ. Times always do; they are shown beside."""


Described = dict[str, Any]
Pair = tuple[Described | None, Described | None]


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="TRACE", help="Trace id, or its unique beginning.")],
    second: Annotated[str, typer.Argument(metavar="TRACE", help="The trace to compare it with.")],
    db: Db = URL,
    organization: Organization = None,
    as_json: Json = False,
) -> None:
    """Compare two traces step by step: models, tools, statuses, tokens, and times beside them."""
    with StepStore(db, organization_id=organization) as store:
        traces = store.trace(first), store.trace(second)
    pairs: list[Pair] = list(zip_longest(_described(traces[0]), _described(traces[1])))
    if as_json:
        print_json(
            {
                "traces": [trace.trace_id for trace in traces],
                "steps": [{"first": one, "second": other, "differ": _differing(one, other)} for one, other in pairs],
            }
        )
    else:
        show(_lines(traces[0].trace_id, traces[1].trace_id, pairs))


def _described(trace: TraceRecord) -> list[dict[str, Any]]:
    return [_step(trace, step) for step in trace.steps]


def _step(trace: TraceRecord, step: StepRecord) -> dict[str, Any]:
    tools = [
        span.attributes.get("gen_ai.tool.name") or span.name
        for span in trace.spans
        if span.role == "tool" and span.step_id == step.id
    ]
    values = {name: getattr(step, name) for name in COMPARED}
    return {
        "id": step.id,
        **values,
        "tools": [str(tool) for tool in tools],
        "step_ns": step.metrics and step.metrics.step_ns,
    }


def _differing(one: dict[str, Any] | None, other: dict[str, Any] | None) -> list[str]:
    if one is None or other is None:
        return ["missing"]
    return [name for name in (*COMPARED, "tools") if one[name] != other[name]]


def _lines(first: str, second: str, pairs: list[Pair]) -> Iterator[Text]:
    yield Text(f"- {first}", style="red")
    yield Text(f"+ {second}", style="green")
    same = 0
    for number, (one, other) in enumerate(pairs, 1):
        names = _differing(one, other)
        times = " → ".join(duration(step["step_ns"]) if step else UNKNOWN for step in (one, other))
        label = harmless(str((one or other or {}).get("agent_name") or UNKNOWN))
        if not names:
            same += 1
            yield Text(f"  step {number}  {label}  {times}", style="dim")
            continue
        yield Text(f"  step {number}  {label}  {times}", style="bold")
        if one is None or other is None:
            yield Text(
                f"  {'+' if one is None else '-'} only in the {'second' if one is None else 'first'}", style="yellow"
            )
            continue
        for name in names:
            yield Text(f"  - {name}: {harmless(str(one[name]))}", style="red")
            yield Text(f"  + {name}: {harmless(str(other[name]))}", style="green")
    yield Text(f"{same} of {len(pairs)} steps are alike")
