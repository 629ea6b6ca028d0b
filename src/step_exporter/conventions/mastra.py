"""Mastra (1.4), as far as it goes beyond the GenAI conventions.

A request's span has its answer's text alone; the prompt, and which tools it asked for, are on the step's around it.
"""

from __future__ import annotations

from step_exporter.conventions import answers
from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import moment_ns
from step_exporter.facts import RawSpan, Role

MARKERS = frozenset({"mastra.completion_start_time", "mastra.model_step.input", "mastra.model_step.output"})


def role(raw: RawSpan) -> Role | None:
    """None: the operation says it."""


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in the request's id, which the step has, and when the first token came: of the agent's first request, which
    the later ones repeat."""
    if draft.role is Role.STEP and draft.request_id is None:
        draft.request_id = answers.answer(raw.attributes.get("mastra.metadata.body")).id
    if draft.role is Role.LLM and draft.first_token_ns is None:
        moment = moment_ns(raw.attributes.get("mastra.completion_start_time"))
        if moment is not None and raw.start_ns is not None and moment >= raw.start_ns:
            draft.first_token_ns = moment
