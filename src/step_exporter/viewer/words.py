"""What the codes in the rows mean, in words."""

from __future__ import annotations

FLAGS = {
    "bad_number": "A count is no whole number; the raw value is in the attributes.",
    "clock_skew": "A time is impossible, an end lies before its start, or another service's clock differs.",
    "id_collision": "Different spans came under this id; those that lost are in the table quarantine.",
    "no_completion_usage": "Nobody reported the tokens out.",
    "no_prompt_usage": "Nobody reported the tokens in.",
    "no_llm_span": "An agent without spans of its LLM requests.",
    "normalised": "The emitter leaves cached or reasoning tokens out of its counts; they were added.",
    "parent_inferred": "Who called this agent was told from the times.",
    "redaction_failed": "A text could not be redacted and is left out.",
    "tokens_inconsistent": "The reported total is not tokens in + out, or a part exceeds its whole.",
    "tool_error": "A tool failed.",
    "truncated": "A value was cut; its length and SHA-256 stand in its place.",
    "unreadable": "The span could not be read; it is stored as it came.",
    "unsafe_value": "A value that no database stores as it is was escaped.",
    "orphan": "Its parent span never came.",
    "cycle": "Its parents go round in a circle.",
    "abandoned": "Its process was found gone before it ended.",
    "open": "It has not ended yet.",
}


def flag_words(flag: str) -> str:
    """A flag as a sentence."""
    return FLAGS.get(flag, flag.replace("_", " "))
