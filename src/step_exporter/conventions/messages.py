"""Content elements -> messages: the prompt and the answer of an LLM or agent span, in one form.

Emitters write the same conversation in a dozen shapes: GenAI parts, OpenAI chat messages and Responses
items, Anthropic, Bedrock and Gemini blocks, LangChain dumps, OpenInference's flattened attributes. They are
read by shape, not by emitter, because one vocabulary carries the shapes of many providers.

A reply and its echo in the next prompt must come out equal in role, text and the names and arguments of its
tool calls. So ids, speakers and finish reasons are no part of these, reasoning is left out (it is mostly in
one of the two only), arguments are canonical JSON, and the pieces of one reply are one message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, cast

from msgspec import MsgspecError, Raw
from msgspec.json import Encoder
from msgspec.json import decode as json_decode
from msgspec.structs import replace

from step_exporter.conventions import genai_message
from step_exporter.conventions._values import literal
from step_exporter.conventions.clean import is_clean, visible
from step_exporter.conventions.content import ONE_ITEM, Contents, chain, decoder, edges, element_text
from step_exporter.conventions.genai_message import Call, GenAIMessage, Text
from step_exporter.facts import Content, ContentValue, Message, RawSpan, ToolCall, Value

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "ai": "assistant",
    "aimessagechunk": "assistant",
    "model": "assistant",
    "tool-call": "assistant",
    "tool": "tool",
    "function": "tool",
    "tool-response": "tool",
}

_INPUT_KEYS = (
    "llm.input_messages.",
    "gen_ai.prompt.",
    "llm.prompts.",
    "ai.prompt.messages",
    "ai.prompt",
    "mlflow.spanInputs",
    "gen_ai.prompt",
    "gcp.vertex.agent.llm_request",
    "langfuse.observation.input",
    "langwatch.input",
    "braintrust.input_json",
    "gen_ai.content.prompt",
    "genkit:input",
    "mastra.model_step.input",
    "mastra.agent_run.input",
    "haystack.agent.step.llm.input",
    "haystack.component.input",
    "input.value",
    "traceloop.entity.input",
    "gen_ai.task.input",
    "smolagents.task",
    "lmnr.span.input",
    "input",
    "request_data",  # on the OpenAI Agents SDK it has the answer too
)
"""Where a prompt is read from, best first, when there are neither GenAI messages nor GenAI events."""
_OUTPUT_KEYS = (
    "llm.output_messages.",
    "gen_ai.completion.",
    "llm.completions.",
    "mlflow.spanOutputs",
    "gen_ai.completion",
    "gcp.vertex.agent.llm_response",
    "response_data",
    "langfuse.observation.output",
    "langwatch.output",
    "braintrust.output_json",
    "gen_ai.content.completion",
    "genkit:output",
    "gen_ai.output",
    "mastra.model_step.output",
    "mastra.agent_run.output",
    "haystack.agent.step.llm.output",
    "haystack.component.output",
    "output.value",
    "traceloop.entity.output",
    "gen_ai.task.output",
    "final_result",
    "lmnr.span.output",
    "output",
)
_CONVERSATION_KEYS = ("pydantic_ai.all_messages", "all_messages_events", "events", "mlflow.chat.messages")
"""Prompt and answer in one list; what the assistant says at its end is the answer."""
_RAW_INPUT = re.compile(r"llm\.[^.]+\.(?:messages|contents|input|prompt)")
_RAW_SYSTEM = re.compile(r"llm\.[^.]+\.(?:system|instructions)")
_RAW_OUTPUT = re.compile(r"llm\.[^.]+\.(?:choices|candidates|output|content)")

_INPUT_FIELDS = ("messages", "contents", "input", "prompt", "inputs", "task", "question", "query")
"""Fields of a request that hold its messages."""
_OUTPUT_FIELDS = (
    "choices",
    "generations",
    "candidates",
    "replies",
    "message",
    "messages",
    "output",
    "outputs",
    "update",
    "content",
    "text",
    "raw",
)
_SYSTEM_FIELDS = ("system", "instructions", "system_instruction", "systemInstruction")
_SYSTEM_FIELD = re.compile(f'"(?:{"|".join(_SYSTEM_FIELDS)})"')
_LAST_FIELD = re.compile(r'"(\w+)"\s*:[\s\[]*$')

_TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "error-text"})
_REASONING_PARTS = frozenset(
    {"reasoning", "thinking", "redacted_thinking", "redacted-reasoning", "reasoning_content", "reasoningContent"}
)
_REASONING_WRAPPERS = frozenset({"reasoningContent", "reasoning"})
_CALL_PARTS = frozenset({"tool_call", "tool_use", "tool-call", "function_call", "custom_tool_call"})
_RESULT_PARTS = frozenset(
    {"tool_call_response", "tool_result", "tool-result", "function_call_output", "custom_tool_call_output"}
)
_CALL_WRAPPERS = ("tool_call", "toolUse", "functionCall", "function_call", "toolRequest")
_RESULT_WRAPPERS = ("toolResult", "functionResponse", "function_response", "toolResponse", "tool_call_result")
_WRAPPERS = frozenset({*_CALL_WRAPPERS, *_RESULT_WRAPPERS})
_CALL_LISTS = frozenset({"tool_calls", "toolCalls", "additional_kwargs", "function_call", "function_call_name"})
_ID_FIELDS = frozenset({"id", "call_id", "tool_call_id", "tool_use_id", "toolCallId", "toolUseId", "ref"})
_LANGWATCH_KINDS = frozenset({"chat_messages", "json", "list", "raw"})
"""Of LangWatch's wrapped values, beside ``text``, which is a part."""
_SMOLAGENTS_CALLS = "Calling tools:\n["
_SMOLAGENTS_CODE = "python_interpreter"
"""The call that smolagents makes of a reply that was code: the model did not ask for it."""
_REPR = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")
"""What an emitter writes that cannot see into a stream."""

_MAX_DEPTH = 12
"""How deeply messages lie in wrappers; LangChain's ``generations`` are at depth 5."""
_MAX_REPR = 1_000_000
_CACHED_CHARS = 8_000_000

_Object = Mapping[str, Any]

_cache: dict[tuple[str, str, str], tuple[Message, ...]] = {}
_cached_chars = 0


def read_messages(raw: RawSpan, contents: Contents) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The messages that went to the model, system messages first, and those that came back; empty where the span
    carries none. Total: a value that cannot be read gives no message."""
    if not contents.attributes and not contents.events:
        return (), ()
    said = _one_message(contents, "gen_ai.output.messages", "assistant")
    begun = _prompt_so_far(contents)
    if (
        begun is not None
        and said is not None
        and said.role == "assistant"
        and _CALLS_OF_LITELLM not in contents.attributes
    ):
        return _after_system(begun, contents), (said,)
    prompt = list(begun.messages) if begun is not None else _first(contents, ("gen_ai.input.messages",), "user")
    answer = _first(contents, ("gen_ai.output.messages",), "assistant")
    if not prompt or not answer:
        events = _event_messages(raw, contents) or _first(contents, _CONVERSATION_KEYS, "user")
        conversation = _merged(events)
        said = len(conversation) - len(_answer(conversation))
        prompt = prompt or conversation[:said] or _first(contents, _INPUT_KEYS, "user", _RAW_INPUT)
        answer = answer or conversation[said:] or _vercel_answer(contents)
        answer = answer or _first(contents, _OUTPUT_KEYS, "assistant", _RAW_OUTPUT)
    if _CALLS_OF_LITELLM in contents.attributes and not any(message.tool_calls for message in answer):
        # litellm writes the text of a reply to gen_ai.output.messages and its calls here
        answer += [m for m in _first(contents, (_CALLS_OF_LITELLM,), "assistant") if m.tool_calls]
    if begun is not None:
        inputs = _after_system(begun, contents)
    else:
        if not any(message.role == "system" for message in prompt):
            prompt = _system(contents) + prompt
        inputs = with_tool_names(_merged(prompt), ())
    return inputs, with_tool_names(_answer(_merged(answer)), inputs)


def _first(
    contents: Contents, keys: tuple[str, ...], role: str, pattern: re.Pattern[str] | None = None
) -> list[Message]:
    """The messages of the first key that has any; then of the first that the pattern names."""
    for key in keys:
        for values in (contents.attributes, *contents.events):
            if value := values.get(key):
                messages = _read_value(value, role, contents.parsed)
                if any(map(_says_more, messages)):
                    return messages
    if pattern:
        for key, value in sorted(contents.attributes.items()):
            # litellm's reprs: a text that cannot be read is no message
            if pattern.fullmatch(key) and isinstance(_whole(value), (list, dict)):
                return _read_value(value, role, contents.parsed)
    return []


_CALLS_OF_LITELLM = "gen_ai.completion."


def _one_message(contents: Contents, key: str, role: str) -> Message | None:
    """The message of a JSON array of one, as nearly all answers are; None of any other."""
    value = contents.attributes.get(key)
    if value is None or value.form != ONE_ITEM:
        return None
    messages = _new_element(value.elements[0], "json", role, contents.parsed)
    if len(messages) != 1 or messages[0].role == "tool":
        return None
    return messages[0] if messages[0].text or messages[0].tool_calls else None


class _Prompt(Value, frozen=True):
    """The messages of a JSON array, ready to be continued by another prompt that begins with them."""

    messages: tuple[Message, ...] = ()
    """Merged, and tool messages named."""
    names: Mapping[str, str | None] = {}
    """Of the tools that were asked for, by the call's id."""
    nameless: frozenset[str] = frozenset()
    """The calls that tool messages got their names from, or looked for in vain."""
    has_system: bool = False
    says: bool = False
    """Whether more was recorded than roles."""


_NO_PROMPT = _Prompt()
_MAX_PROMPTS = 256
_prompts: dict[str, _Prompt] = {}
"""By the hash of their last element, and with it all that comes before: a loop of 20 steps repeats 400 messages. They
count towards the bound of ``_cache``, and are forgotten with it."""
_MESSAGE_CHARS = 100
"""What a message in a prompt counts beside its text: its place, and a copy with the tool's name."""


def _prompt_so_far(contents: Contents) -> _Prompt | None:
    """The prompt in ``gen_ai.input.messages``, if it is the usual JSON array and not empty: read from where the last
    known one that it continues ends. What was read before is only copied (10 ns a message)."""
    global _cached_chars
    if (only := _one_message(contents, "gen_ai.input.messages", "user")) is not None:
        return _Prompt((only,), {}, frozenset(), only.role == "system", says=True)
    value = contents.attributes.get("gen_ai.input.messages")
    if value is None or value.form[0] != "json" or value.form[1] != "=[":
        return None
    elements = chain(value)
    known, at = _NO_PROMPT, len(elements)
    while at > 0:
        found = _prompts.get(elements[at - 1].hash)
        if found is not None:
            known = found
            break
        at -= 1
    if at < len(elements):
        prompt = _continued(known, elements[at:], contents) or _continued(_NO_PROMPT, elements, contents)
        assert prompt is not None  # nothing is nameless in a prompt that begins
        if len(elements) > 1:
            if at:
                _prompts.pop(elements[at - 1].hash, None)
            if len(_prompts) >= _MAX_PROMPTS:
                _prompts.clear()
            new = prompt.messages[max(0, len(known.messages) - 1) :]  # the last known one may have grown
            _cached_chars += sum([len(message.text) for message in new]) + _MESSAGE_CHARS * len(prompt.messages)
            _prompts[elements[-1].hash] = prompt
        known = prompt
    return known if known.says else None


def _after_system(prompt: _Prompt, contents: Contents) -> tuple[Message, ...]:
    return prompt.messages if prompt.has_system else (*_system(contents), *prompt.messages)


def _continued(prompt: _Prompt, elements: Iterable[Content], contents: Contents) -> _Prompt | None:
    """The prompt with further elements; None if they name a tool that a message before them looked for."""
    new = [message for element in elements for message in _read_element(element, "json", "user", contents.parsed)]
    asked = _asked(new)
    if not prompt.nameless.isdisjoint(asked):
        return None
    names = {**prompt.names, **asked} if asked else prompt.names
    said = len(prompt.messages)
    messages = _merged(new, list(prompt.messages))
    nameless = [at for at in range(said, len(messages)) if _is_nameless(messages[at])]
    for at in nameless:
        messages[at] = _named(messages[at], names)
    return _Prompt(
        tuple(messages),
        names,
        prompt.nameless.union([messages[at].tool_call_id or "" for at in nameless]) if nameless else prompt.nameless,
        prompt.has_system or any(message.role == "system" for message in new),
        prompt.says or any(map(_says_more, new)),
    )


def _says_more(message: Message) -> bool:
    """Whether more than its role was recorded."""
    return bool(message.text or message.tool_calls or message.tool_call_id)


def _is_nameless(message: Message) -> bool:
    return message.role == "tool" and not message.name and bool(message.tool_call_id)


def _asked(messages: Iterable[Message]) -> dict[str, str | None]:
    """The names of the tools that messages ask for, by the call's id."""
    return {call.id: call.name for message in messages for call in message.tool_calls if call.id}


def _named(message: Message, names: Mapping[str, str | None]) -> Message:
    return replace(message, name=names.get(message.tool_call_id or ""))


def _system(contents: Contents) -> list[Message]:
    for values in (contents.attributes, *contents.events):
        if value := values.get("gen_ai.system_instructions"):
            messages = _messages(_whole(value), "system")
            text = "".join(message.text for message in messages)
            return [_from_content(Message("system", text), chain(value)[-1].hash)] if text else []
    given = contents.attributes.get("llm.invocation_parameters")  # OpenInference on Anthropic's SDK
    if given and isinstance(parameters := _whole(given), dict):
        messages = _messages(cast("_Object", parameters).get("system"), "system")
        if messages:
            return [_from_content(replace(message, role="system"), given.elements[-1].hash) for message in messages]
    for key, value in contents.attributes.items():
        if _RAW_SYSTEM.fullmatch(key):  # litellm
            messages = [replace(message, role="system") for message in _messages(_whole(value), "system")]
            return [_from_content(message, chain(value)[-1].hash) for message in messages]
    return []


def _vercel_answer(contents: Contents) -> list[Message]:
    attributes = contents.attributes
    text = next((attributes[key] for key in _VERCEL_TEXTS if key in attributes), None)
    calls = next((attributes[key] for key in _VERCEL_CALLS if key in attributes), None)
    messages = [
        *(_message({"content": element_text(text.elements[0])}, "assistant") if text else ()),
        *(_message({"tool_calls": _decode(element_text(calls.elements[0]))}, "assistant") if calls else ()),
    ]
    source = text or calls
    return [_from_content(m, source.elements[0].hash) for m in _merged(messages)] if source else []


_VERCEL_TEXTS = ("ai.response.text", "ai.response.object", "ai.result.text", "ai.result.object")
_VERCEL_CALLS = ("ai.response.toolCalls", "ai.result.toolCalls")


def _event_messages(raw: RawSpan, contents: Contents) -> list[Message]:
    """GenAI's events before 1.37: ``gen_ai.user.message``, …, ``gen_ai.choice``. Strands writes JSON text of Bedrock
    blocks, Azure's libraries the whole message in ``gen_ai.event.content``."""
    found: list[Message] = []
    for event, values in zip(raw.events, contents.events, strict=False):
        head, _, kind = event.name.removesuffix(".message").partition(".")
        role = "assistant" if kind == "choice" else _ROLES.get(kind, "")
        if head != "gen_ai" or not role or not values:
            continue
        key = next((key for key in ("content", "message", "gen_ai.event.content") if key in values), None)
        content = _whole(values[key]) if key else None
        calls = _whole(values["tool_calls"]) if "tool_calls" in values else None
        message: dict[str, Any] = {"role": role, "content": content, "tool_calls": calls}
        if isinstance(content, dict) and not _is_part(cast("_Object", content)):
            fields = cast("_Object", content)
            message = {**message, "content": None, **(_child(fields, "message") or fields)}
        if role == "tool":
            message.setdefault("tool_call_id", event.attributes.get("id"))
        source = chain(values[key or next(iter(values))])[-1].hash
        found.extend(_from_content(m, source) for m in _message(message, role))
    return found


def _read_value(value: ContentValue, role: str, parsed: dict[str, Any]) -> list[Message]:
    """The messages of one content value."""
    elements = chain(value)
    form = value.form[0]
    messages = [message for element in elements for message in _read_element(element, form, role, parsed)]
    if form != "json" or value.form[1] == "=[":
        return messages
    opening, closing = edges(value)
    field = _LAST_FIELD.search(opening)
    if field and field[1] == "history":
        return []  # of the arguments of a function that happens to be traced
    if (
        field
        and role == "user"
        and messages
        and messages[0].role != "system"
        and _SYSTEM_FIELD.search(opening + closing)
    ):
        around = _decode(opening + closing)
        if isinstance(around, dict):
            sides = value.elements[len(elements) :]
            source = sides[-1].hash if sides else None
            system = _system_of(cast("_Object", around), _MAX_DEPTH)
            messages[:0] = [_from_content(message, source) for message in system]
    return messages


def _read_element(element: Content, form: str, role: str, parsed: dict[str, Any]) -> tuple[Message, ...]:
    """The messages of one element. Remembered by hash, so that a message is read once and not in every prompt that
    repeats it; emptied at a bound of characters. A race of two threads costs a second reading."""
    global _cached_chars
    key = (element.hash, form, role)
    found = _cache.get(key)
    if found is None:
        found = _new_element(element, form, role, parsed)
        if _cached_chars > _CACHED_CHARS:
            _cache.clear()
            _prompts.clear()
            _cached_chars = 0
        _cached_chars += len(element.body) + 500
        _cache[key] = found
    return found


def _new_element(element: Content, form: str, role: str, parsed: dict[str, Any]) -> tuple[Message, ...]:
    """The messages of one element, which is perhaps parsed already."""
    decoded = parsed.pop(element.hash, None)
    if decoded is None:
        decoded = genai_message.parse(element_text(element))
    found: Sequence[Message] = ()
    if isinstance(decoded, GenAIMessage):
        found = _genai_messages(decoded, element.hash)
        if not found:
            decoded = None
    if not found:
        if decoded is None:
            decoded = _decode(element_text(element))
        if form == "indexed" and isinstance(decoded, dict):
            decoded = _nested(cast("_Object", decoded))
        found = _messages(decoded, role)
    return tuple([_from_content(message, element.hash) for message in found])


def _from_content(message: Message, content_hash: str | None) -> Message:
    """The message with the content that it was read from, in texts that every database takes: JSON may have had NUL or
    half a surrogate pair as an escape."""
    texts = [message.text]
    if message.name is not None or message.tool_call_id is not None or message.tool_calls:
        texts += (message.name or "", message.tool_call_id or "")
        for call in message.tool_calls:
            texts += (call.id or "", call.name or "", call.arguments)
    if message.content_hash == content_hash and all(map(is_clean, texts)):
        return message
    calls = [ToolCall(_shown(call.id), _shown(call.name), visible(call.arguments)) for call in message.tool_calls]
    name, call_id = _shown(message.name), _shown(message.tool_call_id)
    return Message(message.role, visible(message.text), name, tuple(calls), call_id, content_hash)


def _shown(text: str | None) -> str | None:
    return None if text is None else visible(text)


def _genai_messages(message: GenAIMessage, content_hash: str) -> tuple[Message, ...]:
    """What ``_messages`` reads of a GenAI message, in a third of its time; nothing where there is more to it."""
    role = _ROLES.get(message.role)
    if role is None:
        return ()
    texts: list[str] = []
    calls: list[ToolCall] = []
    results: list[Message] = []
    for part in message.parts:
        if isinstance(part, Text):
            texts.append(part.content)
        elif isinstance(part, Call):
            calls.append(ToolCall(part.id or None, part.name or None, _arguments_of(part.arguments)))
        elif role != "assistant":
            results.append(Message("tool", _result_text(_of(part.response)), None, (), part.id or None, content_hash))
        else:
            return ()
    text = "".join(texts).strip()
    if role == "tool" and not results:
        return ()
    if role == "assistant" and not calls and "[" in text and _SMOLAGENTS_CALLS in text:
        return ()
    if text or calls or not results:
        results.append(Message(role, text, message.name or None, tuple(calls), None, content_hash))
    return tuple(results)


def _arguments_of(raw: Raw) -> str:
    """``_arguments`` of what JSON says: texts and whole numbers by name, as nearly all are, msgspec writes the same."""
    value = _of(raw)
    if type(value) is dict and _EXACT.issuperset(map(type, cast("_Object", value).values())):
        return _write(value).decode()
    return _arguments(value)


_EXACT = frozenset({str, int, bool, NoneType})
_write = Encoder(order="sorted").encode


def _of(raw: Raw) -> Any:
    """What JSON says, as ``decoder`` has it. msgspec takes a fifth of the time; where numbers are not whole, or lie
    deeper, it is not asked."""
    try:
        value: Any = json_decode(raw)
    except (MsgspecError, RecursionError):
        pass
    else:
        held = cast("_Object", value).values() if type(value) is dict else (value,)
        if _EXACT.issuperset(map(type, held)):
            return cast(Any, value)
    text = str(raw, "utf-8")
    try:
        return decoder.decode(text)
    except (ValueError, RecursionError):  # nested too deeply for it
        return text


def _whole(value: ContentValue) -> Any:
    """A content value as an object: JSON parsed, other text as it is; of a request, its messages."""
    items = [_decode(element_text(element)) for element in chain(value)]
    return items[0] if value.form[0] in ("text", "value") else items


def _messages(value: Any, role: str, depth: int = _MAX_DEPTH) -> list[Message]:
    """The messages of a value of any shape; ``role`` is what they have where they do not say."""
    if depth == 0 or value is None or isinstance(value, (bool, int, float)):
        return []
    if isinstance(value, str):
        text = value.strip()
        return [Message(role, text)] if text and not _REPR.fullmatch(text) else []
    if isinstance(value, list):
        items = cast("list[Any]", value)
        if items and all(isinstance(item, dict) and _is_part(cast("_Object", item)) for item in items):
            return _message({"content": items}, role)
        return [message for item in items for message in _messages(item, role, depth - 1)]
    if not isinstance(value, dict):
        return []
    fields = _unwrapped(cast("_Object", value))
    kind = _kind(fields)
    if isinstance(given := fields.get("function"), list):  # OpenInference on AutoGen: the results of several tools
        results = [_decode(item) for item in cast("list[Any]", given) if isinstance(item, str)]
        return [_result(cast("_Object", result)) for result in results if isinstance(result, dict)]
    if _role(fields.get("role")):
        return _message(fields, role)
    if len(fields) == 1 and isinstance(said := fields.get("user"), str):
        return _message({"content": said}, "user")  # OpenLLMetry's prompts that are no chat
    if _is_part(fields):
        calls = kind in _CALL_PARTS or any(wrapper in fields for wrapper in _CALL_WRAPPERS)
        return _message({"content": [fields]}, "assistant" if calls else role)
    if kind in _REASONING_PARTS:
        return []
    if kind in _LANGWATCH_KINDS and "value" in fields:
        return _messages(fields["value"], role, depth - 1)
    if "tool.name" in fields:  # any-agent
        call = {"name": fields["tool.name"], "arguments": fields.get("tool.args")}
        return _message({"tool_calls": [call]}, "assistant")
    if role == "assistant" and "toolCalls" in fields and "content" not in fields:  # Mastra
        return _message({**fields, "content": fields.get("text")}, role)
    if "parts" in fields or "tool_calls" in fields or ("contents" in fields and role == "assistant"):
        return _message(fields, role)
    if role == "assistant":
        names = _OUTPUT_FIELDS
        system: list[Message] = []
    else:
        names = ("message", *_INPUT_FIELDS, "content")
        system = _system_of(fields, depth)
    for name in names:
        if fields.get(name) and (found := _messages(fields[name], role, depth - 1)):
            return found if any(m.role == "system" for m in found) else system + found
    return system


def _role(value: Any) -> str | None:
    """The role of a name; of an enum's member too, ``ChatRole.SYSTEM``, as OpenInference writes Haystack's."""
    name = str(value).lower()
    return _ROLES.get(name) or _ROLES.get(name.partition("role.")[2])


def _is_definition(content: _Object | None) -> bool:
    return content is not None and (
        (content.get("type") == "function" and isinstance(content.get("function"), dict)) or "input_schema" in content
    )


def _system_of(request: _Object, depth: int) -> list[Message]:
    """The system prompt of a request, which Anthropic, Gemini and the Responses API keep beside the messages."""
    for holder in (request, _child(request, "config") or {}):
        for name in _SYSTEM_FIELDS:
            if found := _messages(holder.get(name), "system", depth - 1):
                return [replace(found[0], role="system", text="".join(m.text for m in found))]
    return []


def _message(fields: _Object, role: str) -> list[Message]:
    """One message; more if it carries the results of several tools."""
    role = _role(fields.get("role")) or role
    if role == "user" and isinstance(fields.get("tool_call_id"), str):
        role = "tool"  # Anthropic's result of a tool is the user's, and OpenInference kept that at first
    if role == "tool" and _is_definition(_child(fields, "content")):
        return []  # Langfuse's LangChain callback appends the tools to the prompt, as messages of role tool
    texts: list[str] = []
    calls: list[ToolCall] = []
    results: list[Message] = []
    for part in _parts(fields):
        if isinstance(part, str):
            texts.append(part)
            continue
        inner = _child(part, "message_content")
        kind = _kind(inner or part)
        if kind in _REASONING_PARTS or part.get("thought") is True or not _REASONING_WRAPPERS.isdisjoint(part):
            continue
        result = part if kind in _RESULT_PARTS else None
        call = part if kind in _CALL_PARTS else None
        if not _WRAPPERS.isdisjoint(part):
            result = next((part[name] for name in _RESULT_WRAPPERS if name in part), result)
            call = next((part[name] for name in _CALL_WRAPPERS if name in part), call)
        if isinstance(result, dict) and role != "assistant":
            results.append(_result(cast("_Object", result)))
        elif isinstance(call, dict):
            calls.append(_call(cast("_Object", call)))
        elif role == "assistant" and kind == "function" and "arguments" in (_child(part, "function") or ()):
            calls.append(_call(part))  # Langtrace writes OpenAI's calls as the content
        else:
            texts.append(_part_text(inner or part))
    named = _calls(fields)
    text = "".join(texts).strip()
    if not named and not calls and role == "assistant" and _SMOLAGENTS_CALLS in text:
        said, _, rest = text.rpartition(_SMOLAGENTS_CALLS)
        listed = _decode("[" + rest)
        if isinstance(listed, list):
            calls = [call for call in _call_list(cast("list[Any]", listed)) if call.name != _SMOLAGENTS_CODE]
            text = said.strip()
    name = _text_or_none(fields.get("name"))
    if role == "tool" and not results:
        text = _result_text(text.removeprefix("Observation:\n"))
        return [Message("tool", text, name, (), _id(fields))]
    message = Message(role, text, name, tuple(named or calls))
    return [*results, message] if text or message.tool_calls or not results else results


def _parts(fields: _Object) -> list[str | _Object]:
    for name in ("parts", "contents", "content"):
        content = fields.get(name)
        if isinstance(content, str) and content.startswith(('[{"', "[{'")):
            listed = _decode(content)  # OpenLLMetry writes a list of parts as text
            if isinstance(listed, list) and all(map(_is_written_part, cast("list[Any]", listed))):
                content = cast("list[Any]", listed)
        while isinstance(content, dict) and "parts" in content:  # Gemini's content of a candidate
            content = cast("_Object", content)["parts"]
        if isinstance(content, dict):
            return [cast("_Object", content)]
        if isinstance(content, list):
            items = cast("list[Any]", content)
            if parts := [cast("str | _Object", item) for item in items if isinstance(item, (str, dict))]:
                return parts
        elif content:
            return [content if isinstance(content, str) else _canonical(content)]
    return []


def _is_written_part(item: Any) -> bool:
    return isinstance(item, dict) and ("type" in item or _is_part(cast("_Object", item)))


def _part_text(part: _Object) -> str:
    """The text of a part; of one that is no text, canonical JSON without ids."""
    kind = _kind(part)
    if kind is None or kind in _TEXT_PARTS:
        for name in ("text", "content", "value", "refusal"):
            text = part.get(name)
            if isinstance(text, str):
                return text
        if kind in _TEXT_PARTS:
            return ""
    return _canonical({key: item for key, item in part.items() if key not in _ID_FIELDS})


def _is_part(fields: _Object) -> bool:
    """Whether an object is a part of a message rather than a message."""
    if "role" in fields:
        return False
    kind = _kind(fields)
    return (
        kind in _CALL_PARTS
        or kind in _RESULT_PARTS
        or (kind in _TEXT_PARTS and any(name in fields for name in ("text", "content", "refusal", "value")))
        or any(isinstance(fields.get(name), dict) for name in (*_RESULT_WRAPPERS, *_CALL_WRAPPERS))
        or (set(fields) == {"text"} and isinstance(fields["text"], str))
    )


def _calls(fields: _Object) -> list[ToolCall]:
    """The tool calls that a message lists beside its content."""
    if _CALL_LISTS.isdisjoint(fields):
        return []
    extra = _child(fields, "additional_kwargs") or {}
    for listed in (fields.get("tool_calls"), fields.get("toolCalls"), extra.get("tool_calls")):
        if isinstance(listed, list) and listed:
            return _call_list(cast("list[Any]", listed))
    single = _child(fields, "function_call") or _child(extra, "function_call")
    if single is None and fields.get("function_call_name"):  # OpenInference
        single = {"name": fields["function_call_name"], "arguments": fields.get("function_call_arguments_json")}
    return [_call(single)] if single else []


def _call_list(listed: list[Any]) -> list[ToolCall]:
    return [_call(cast("_Object", call)) for call in listed if isinstance(call, dict)]


def _call(call: _Object) -> ToolCall:
    call = _child(call, "tool_call") or call
    function = _child(call, "function") or _child(call, "custom") or call
    name = function.get("name") or function.get("toolName") or function.get("tool_name")
    arguments = next(
        (function[key] for key in ("arguments", "args", "input", "parameters") if function.get(key) is not None), None
    )
    return ToolCall(_id(call), _text_or_none(name), _arguments(arguments))


def _result(result: _Object) -> Message:
    output = next((result[key] for key in ("response", "result", "output", "content") if key in result), None)
    origin = _child(result, "origin") or result  # Haystack: the call
    name = _text_or_none(result.get("name") or result.get("toolName") or origin.get("tool_name"))
    return Message("tool", _result_text(output), name, (), _id(result) or _id(origin))


def _id(fields: _Object) -> str | None:
    """The id of a call. The Responses API gives an item an ``id`` of its own."""
    for key in ("call_id", "tool_call_id", "tool_use_id", "toolCallId", "toolUseId", "id", "ref"):
        if found := fields.get(key):
            return _text_or_none(found)
    return None


def _arguments(value: Any) -> str:
    if isinstance(value, str):
        value = _decode(value) if value.strip() else {}
    return value if isinstance(value, str) else _canonical({} if value is None else value)


def _result_text(value: Any, depth: int = _MAX_DEPTH) -> str:
    """A tool's result as text: parts joined, JSON canonical."""
    if isinstance(value, str):
        value = _decode(value)
    if isinstance(value, list):
        items = cast("list[Any]", value)
        if items and all(isinstance(item, dict) and _is_part(cast("_Object", item)) for item in items):
            return "".join(_part_text(cast("_Object", item)) for item in items).strip()
    if isinstance(value, dict):
        fields = cast("_Object", value)
        if depth and _kind(fields) in ("text", "error-text", "json", "error-json"):  # Vercel
            return _result_text(fields.get("value", fields.get("text")), depth - 1)
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else _canonical(value)


def _unwrapped(fields: _Object) -> _Object:
    """LangChain's dumps: ``{lc, id: [..., "HumanMessage"], kwargs}``, ``{type: "human", data}``, and bare fields."""
    kind = _kind(fields)
    inner = _child(fields, "kwargs") if "lc" in fields else _child(fields, "data")
    if inner is not None and ("lc" in fields or str(kind).lower() in _ROLES):
        path = fields.get("id")
        named = str(cast("list[Any]", path)[-1]) if isinstance(path, list) and path else ""
        role = inner.get("type") or kind
        if str(role).lower() not in _ROLES:
            role = named.removesuffix("Chunk").removesuffix("Message").lower()
        return {**inner, "role": role}
    if kind and kind.lower() in _ROLES and "content" in fields and "role" not in fields:
        return {**fields, "role": kind}
    return (_child(fields, "message") or fields) if len(fields) == 1 else fields


def _nested(flat: _Object) -> Any:
    """``{"message.tool_calls.0.id": x}`` as ``{"message": {"tool_calls": [{"id": x}]}}``."""
    tree: dict[str, Any] = {}
    for path, item in flat.items():
        node = tree
        *way, last = path.split(".")
        for name in way:
            child = node.get(name)
            if not isinstance(child, dict):
                child = node[name] = dict[str, Any]()
            node = cast("dict[str, Any]", child)
        node.setdefault(last, item)
    return _listed(tree, _MAX_DEPTH)


def _listed(node: Any, depth: int) -> Any:
    if not isinstance(node, dict) or depth == 0:
        return cast("Any", node)
    fields = {key: _listed(item, depth - 1) for key, item in cast("_Object", node).items()}
    if fields and all(key.isascii() and key.isdecimal() for key in fields):
        return [fields[key] for key in sorted(fields, key=lambda key: (len(key), key))]
    return fields


def _merged(messages: Iterable[Message], into: list[Message] | None = None) -> list[Message]:
    """The pieces of one reply as one message: parallel calls, which the Responses API sends as items, always come
    before their results. A reply without text and calls (reasoning only, or not recorded) is none."""
    merged: list[Message] = [] if into is None else into
    for message in messages:
        before = merged[-1] if merged else None
        if message.role != "assistant":
            merged.append(message)
        elif not message.text and not message.tool_calls:
            continue
        elif before is not None and before.role == "assistant" and (before.tool_calls or not message.text):
            merged[-1] = replace(
                before,
                text=before.text + message.text,
                tool_calls=before.tool_calls + message.tool_calls,
                content_hash=before.content_hash if before.text else message.content_hash or before.content_hash,
            )
        else:
            merged.append(message)
    return merged


def _answer(messages: list[Message]) -> list[Message]:
    """What the assistant says after everybody else."""
    last = next((i for i in range(len(messages), 0, -1) if messages[i - 1].role != "assistant"), 0)
    return messages[last:]


def asked_call_ids(answer: Iterable[Message]) -> tuple[str, ...]:
    """The ids of the tool calls that an answer asks for, in order."""
    # OpenLLMetry gives the item's id of a Responses API call (fc_…), which no tool ever carries
    return tuple(
        call.id for message in answer for call in message.tool_calls if call.id and not call.id.startswith("fc_")
    )


def with_tool_names(messages: Sequence[Message], before: Sequence[Message]) -> tuple[Message, ...]:
    """The messages, tool messages with the name of the tool that was called."""
    nameless = [n for n, m in enumerate(messages) if _is_nameless(m)]
    if not nameless:
        return tuple(messages)
    names = _asked((*before, *messages))
    named = list(messages)
    for n in nameless:
        named[n] = _named(named[n], names)
    return tuple(named)


def _child(fields: _Object, name: str) -> _Object | None:
    child = fields.get(name)
    return cast("_Object", child) if isinstance(child, dict) else None


def _kind(fields: _Object) -> str | None:
    return _text_or_none(fields.get("type"))


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _decode(text: str) -> Any:
    """JSON, or a Python literal as litellm writes them; else the text itself."""
    head = text.lstrip()[:2]
    if not head.startswith(("{", "[", '"')):
        return text
    try:
        return decoder.decode(text)
    except (ValueError, RecursionError):
        pass
    if head in ("[{", "{'", "['") and "'" in text and (found := literal(text, _MAX_REPR)) is not None:
        try:
            return _plain(found)
        except (ValueError, RecursionError, TypeError):
            pass
    return text


def _plain(value: Any) -> Any:
    """A literal with its tuples as lists and its keys as text."""
    return json.loads(json.dumps(value, default=str))


_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str).encode
"""Made once, like ``decoder``."""


def _canonical(value: Any) -> str:
    try:
        return _encode(value)
    except (ValueError, TypeError, RecursionError):
        return ""
