"""The lines of a waterfall: every span once, in the step that it lies in, whatever the tree looks like."""

from __future__ import annotations

from step_exporter.store.outline import OutlineSpan, OutlineStep, as_tree


def span(
    name: str, parent: str | None, start: int | None, end: int | None, role: str = "other", state: str = "ended"
) -> OutlineSpan:
    return OutlineSpan(name, parent, name, role, start, end, state, "unset", None, None)


def step(anchor: str, start: int, took: int | None) -> OutlineStep:
    return OutlineStep(f"step-{anchor}", anchor, "run", "success", "m", None, 1, 1, 2, None, None, start, took, 1)


def drawn(spans: list[OutlineSpan], *steps: OutlineStep) -> list[str]:
    """The lines as text: two blanks a level, steps in brackets."""
    rows = as_tree(spans, steps)
    return ["  " * row.depth + (f"[{row.span.name}]" if row.step else row.span.name) for row in rows]


AGENT = span("agent", None, 0, 100, "agent")


def test_what_lies_beside_a_request_in_its_time_stands_in_its_step() -> None:
    spans = [AGENT, span("a", "agent", 0, 10, "llm"), span("tool", "agent", 10, 20, "tool"),
             span("inner", "tool", 11, 12), span("between", "agent", 25, 26),
             span("b", "agent", 30, 40, "llm")]  # fmt: skip
    found = drawn(spans, step("a", 0, 20), step("b", 30, 10))
    assert found == ["agent", "  [a]", "    a", "    tool", "      inner", "  between", "  [b]", "    b"]


def test_what_lies_in_the_time_of_two_steps_stands_in_neither() -> None:
    spans = [AGENT, span("a", "agent", 0, 10, "llm"), span("b", "agent", 1, 10, "llm"),
             span("both", "agent", 12, 13, "tool"), span("one", "agent", 25, 29, "tool")]  # fmt: skip
    found = drawn(spans, step("a", 0, 30), step("b", 1, 20))
    assert found == ["agent", "  [a]", "    a", "    one", "  [b]", "    b", "  both"]


def test_what_is_open_stands_in_the_open_step() -> None:
    spans = [AGENT, span("a", "agent", 0, 10, "llm"), span("tool", "agent", 10, None, "tool", "open")]
    assert drawn(spans, step("a", 0, None)) == ["agent", "  [a]", "    a", "    tool"]
    assert drawn(spans, step("a", 0, 10)) == ["agent", "  [a]", "    a", "  tool"]


def test_a_span_that_is_a_step_has_no_second_line() -> None:
    spans = [span("turn", None, 0, 10, "step"), span("chat", "turn", 0, 5, "llm")]
    assert drawn(spans, step("turn", 0, 10)) == ["turn", "  chat"]


def test_requests_without_a_parent_or_in_a_circle_are_there_once() -> None:
    spans = [span("lost", "gone", 5, 6, "llm"), span("x", "y", 1, 2, "llm"), span("y", "x", 1, 2, "llm"),
             span("self", "self", 1, None, "llm"), span("timeless", None, None, None, "llm")]  # fmt: skip
    steps = [step(each.name, each.start_ns or 0, 1) for each in spans]
    rows = as_tree(spans, steps)
    assert sorted(row.span.name for row in rows if row.step is None) == sorted(each.name for each in spans)
    assert {row.span.name: row.placed for row in rows if row.depth == 0} == {
        "timeless": None,
        "lost": "orphan",
        "self": "cycle",
        "x": "cycle",
    }
