"""Microsoft Agent Framework's workflows (1.23); its agents and requests follow the GenAI conventions."""

from __future__ import annotations

from step_exporter.conventions._draft import Draft
from step_exporter.facts import RawSpan, Role

MARKERS = frozenset({"workflow.id"})
SCOPE = "agent_framework"


def role(raw: RawSpan) -> Role | None:
    """A run of a workflow by its name; ``workflow.build``, before it, runs nothing."""
    return Role.WORKFLOW if raw.name.partition(" ")[0] == "workflow.run" else Role.OTHER


def fill(raw: RawSpan, draft: Draft) -> None:
    """Nothing beside the role: a run is named by its agent."""
