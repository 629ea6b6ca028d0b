"""Provider names: the many spellings of emitters, as the newest names of OpenTelemetry's registry."""

from __future__ import annotations

import re
from typing import Any

from step_exporter.conventions._values import text

# https://github.com/open-telemetry/semantic-conventions-genai, gen_ai.provider.name
_REGISTRY = (
    "anthropic",
    "aws.bedrock",
    "azure.ai.inference",
    "azure.ai.openai",
    "cohere",
    "deepseek",
    "gcp.gemini",
    "gcp.gen_ai",
    "gcp.vertex_ai",
    "groq",
    "ibm.watsonx.ai",
    "mistral_ai",
    "moonshot_ai",
    "openai",
    "perplexity",
    "x_ai",
)

_SPELLINGS = {
    # names that the registry itself replaced
    "xai": "x_ai",
    "vertex_ai": "gcp.vertex_ai",
    "gemini": "gcp.gemini",
    "az.ai.inference": "azure.ai.inference",
    "az.ai.openai": "azure.ai.openai",
    # LangChain, LlamaIndex, litellm, OpenLLMetry, OpenInference
    "aws": "aws.bedrock",
    "bedrock": "aws.bedrock",
    "amazon_bedrock": "aws.bedrock",
    "azure": "azure.ai.openai",
    "azure_openai": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "google": "gcp.gen_ai",
    "google_genai": "gcp.gen_ai",
    "google_vertexai": "gcp.vertex_ai",
    "vertexai": "gcp.vertex_ai",
    "mistral": "mistral_ai",
    "mistralai": "mistral_ai",
    "watsonx": "ibm.watsonx.ai",
    "gcp.vertex": "gcp.vertex_ai",
    # LangChain4j
    "open_ai": "openai",
    "azure_open_ai": "azure.ai.openai",
    "google_ai_gemini": "gcp.gemini",
    "google_vertex_ai_gemini": "gcp.vertex_ai",
    "google_vertex_ai_anthropic": "gcp.vertex_ai",
    # where a request went, which LiveKit gives
    "api.anthropic.com": "anthropic",
    "api.cohere.com": "cohere",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.openai.com": "openai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
    "generativelanguage.googleapis.com": "gcp.gemini",
    # Vercel's providers are <package>.<api>; what stands before the dot
    "amazon-bedrock": "aws.bedrock",
    "azure-openai": "azure.ai.openai",
    "google.generative-ai": "gcp.gemini",
    "google.vertex": "gcp.vertex_ai",
}

_FRAMEWORKS = frozenset(
    {
        "ag2",
        "agno",
        "autogen",
        "claude_agent_sdk",
        "crewai",
        "dspy",
        "gcp.vertex.agent",
        "haystack",
        "langchain",
        "langgraph",
        "llama_index",
        "llamaindex",
        "mastra",
        "microsoft.agent_framework",
        "none",  # litellm, where it does not know it
        "openai_agents",
        "pydantic-ai",
        "pydantic_ai",
        "semantic_kernel",
        "semantic-kernel",
        "smolagents",
        "strands-agents",
        "strands",
    }
)
"""What emitters write into ``gen_ai.system`` though it serves no model."""

_KNOWN: dict[str, str | None] = {
    **{name: name for name in _REGISTRY},
    **_SPELLINGS,
    **dict.fromkeys(_FRAMEWORKS),
}
_ADDRESS = re.compile(r"[\d.]+|.*:\d+")
"""An IPv4 address, or any with a port: nobody's name."""


def is_known(name: str) -> bool:
    """Whether a name is some spelling of a provider's."""
    return _KNOWN.get(name.lower()) is not None


def provider(value: Any) -> str | None:
    """The registry's name of a provider; None for a framework; a name that nobody knows as it came."""
    name = text(value)
    if name is None:
        return None
    if name in _KNOWN:
        return _KNOWN[name]
    lower = name.strip().lower()
    if lower in _KNOWN:
        return _KNOWN[lower]
    head, dot, rest = lower.partition(".")
    if dot:  # openai.chat, google.generative-ai.chat, google.vertex.chat
        two = f"{head}.{rest.partition('.')[0]}"
        if two in _KNOWN or head in _KNOWN:
            return _KNOWN.get(two) or _KNOWN.get(head)
    if _ADDRESS.fullmatch(lower):
        return None
    return lower or None


def of_scope(scope_name: str) -> str | None:
    """The provider whose client library an instrumentation is for, where its scope is named so."""
    return _KNOWN.get(scope_name.rpartition(".")[2])
