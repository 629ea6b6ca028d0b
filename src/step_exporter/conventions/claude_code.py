"""Claude Code's own spans (``CLAUDE_CODE_ENABLE_TELEMETRY``, beta tracing): by scope, name and plain attributes."""

from __future__ import annotations

from step_exporter.conventions._draft import Draft
from step_exporter.conventions._values import text
from step_exporter.facts import RawSpan, Role

SCOPE = "com.anthropic.claude_code.tracing"

_NAMES = {
    "claude_code.interaction": Role.AGENT,
    "claude_code.llm_request": Role.LLM,
    "claude_code.tool": Role.TOOL,
}


def role(raw: RawSpan) -> Role | None:
    """By name. A tool's span holds its execution, the wait for the user's consent and hooks, all none of ours."""
    return _NAMES.get(raw.name, Role.OTHER)


def fill(raw: RawSpan, draft: Draft) -> None:
    """Fill in the session, the tool, and what a request cost. Cached tokens are not among ``input_tokens``."""
    get = raw.attributes.get
    draft.conversation_id = draft.conversation_id or text(get("session.id"))
    draft.agent_id = draft.agent_id or text(get("agent_id"))
    if get("success") is False and raw.status_code != "ok":
        draft.failed = True
        draft.error_message = draft.error_message or text(get("error"))
    if draft.role is Role.TOOL:
        draft.tool_name = draft.tool_name or text(get("tool_name"))
        draft.call_id = draft.call_id or text(get("gen_ai.tool.call.id")) or text(get("tool_use_id"))
    elif draft.role is Role.LLM:
        draft.provider_name = draft.provider_name or "anthropic"
        draft.model = draft.model or text(get("model"))
        draft.request_id = draft.request_id or text(get("gen_ai.response.id")) or text(get("request_id"))
        draft.stop_reason = draft.stop_reason or text(get("stop_reason"))
        draft.tokens.take(
            raw.attributes,
            prompt="input_tokens",
            completion="output_tokens",
            cached="cache_read_tokens",
            cache_write="cache_creation_tokens",
        )
        draft.tokens.cache_apart = True
        draft.first_token_after(raw, get("ttft_ms"), 1e6)
