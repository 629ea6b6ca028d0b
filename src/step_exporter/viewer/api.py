"""The JSON API, ``/api/…``, and its OpenAPI document.

Where Letta's ``/v1/steps`` has a parameter or field of the kind, it has the same name here. Times in ns are
integers, with the same as text beside them (``*_ns_text``) for JavaScript, whose numbers are exact to 2^53.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Collection
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from typing import Any, Literal, NamedTuple, cast

import orjson
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from step_exporter.errors import InputError
from step_exporter.facts import MAX_NS
from step_exporter.store.filters import RUN_STATUSES, STEP_STATUSES, RunFilter, StepFilter
from step_exporter.store.records import MessageRecord, Record, RunRecord, StepMetricsRecord, StepRecord, nanoseconds
from step_exporter.store.statistics import GROUPS, Group, StatsRecord
from step_exporter.store.tools import ToolStatsRecord
from step_exporter.viewer.body import Bodies, BodyError
from step_exporter.viewer.reading import PageStore

Json = dict[str, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Parameter(NamedTuple):
    """A query parameter."""

    name: str
    field: str | None
    """The filter's field; None for those of the page."""
    schema: Json
    description: str


_TEXT: Json = {"type": "string"}
_MANY: Json = {"type": "array", "items": {"type": "string"}}
_BOOL: Json = {"type": "boolean"}
_TRACE: Json = {"type": "string", "pattern": "^[0-9a-fA-F]{32}$"}
_TRACE_PREFIX: Json = {"type": "string", "pattern": "^[0-9a-fA-F]{4,32}$"}
_TRACES: Json = {"type": "array", "items": _TRACE}
_GROUPS: Json = {"type": "array", "items": {"enum": list(GROUPS)}}
_TIME: Json = {"type": "string", "format": "date-time"}
_PAGE = (
    Parameter("after", None, _TEXT, "The `next` of the page before."),
    Parameter("limit", None, {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "Rows on a page."),
    Parameter("order", None, {"type": "string", "enum": ["desc", "asc"], "default": "desc"}, "Newest or oldest first."),
)
_TIMES = (
    Parameter("start_date", "started_after", _TIME, "Begun at or after; ISO 8601, UTC where no zone is given."),
    Parameter("end_date", "started_before", _TIME, "Begun before."),
)
_STEP_PARAMETERS = (
    *_PAGE,
    *_TIMES,
    Parameter("trace_ids", "trace_ids", _TRACES, "Whole trace ids, at most 1,000, each as a parameter of its own."),
    Parameter("run_id", "run_id", _TEXT, ""),
    Parameter("agent_id", "agent_id", _TEXT, ""),
    Parameter("agent_name", "agent_name", _TEXT, ""),
    Parameter("model", "model", _TEXT, ""),
    Parameter("provider_name", "provider_name", _TEXT, ""),
    Parameter("status", "status", {"type": "string", "enum": list(STEP_STATUSES)}, ""),
    Parameter("error_type", "error_type", _TEXT, ""),
    Parameter("tags", "tags_any", _MANY, "Steps with at least one of these tags."),
    Parameter("tags_all", "tags_all", _MANY, "Steps with all of these tags."),
    Parameter("feedback", "feedback", {"type": "string", "enum": ["positive", "negative"]}, ""),
    Parameter("has_feedback", "has_feedback", _BOOL, ""),
    Parameter("organization_id", "organization_id", _TEXT, ""),
    Parameter("project_id", "project_id", _TEXT, ""),
    Parameter("conversation_id", "conversation_id", _TEXT, ""),
    Parameter("service_name", "service_name", _TEXT, ""),
)
_RUN_PARAMETERS = (
    *_PAGE,
    *_TIMES,
    Parameter("trace_ids", "trace_ids", _TRACES, "Whole trace ids, at most 1,000, each as a parameter of its own."),
    Parameter("run_id", "run_id", _TEXT, ""),
    Parameter("parent_run_id", "parent_run_id", _TEXT, ""),
    Parameter("top_level", "top_level", _BOOL, "Only runs without a parent run, or only those with one."),
    Parameter("agent_id", "agent_id", _TEXT, ""),
    Parameter("agent_name", "agent_name", _TEXT, ""),
    Parameter("status", "status", {"type": "string", "enum": list(RUN_STATUSES)}, ""),
    Parameter("error_type", "error_type", _TEXT, ""),
    Parameter("organization_id", "organization_id", _TEXT, ""),
    Parameter("project_id", "project_id", _TEXT, ""),
    Parameter("conversation_id", "conversation_id", _TEXT, ""),
    Parameter("service_name", "service_name", _TEXT, ""),
)
_STATS_PARAMETERS = (
    Parameter("by", None, _GROUPS, "Several are combined."),
    *(each for each in _STEP_PARAMETERS if each not in _PAGE),
)
_TOOL_PARAMETERS = (*_TIMES, Parameter("service_name", "service_name", _TEXT, ""))
_TRACE_ID = Parameter("trace_id", None, _TRACE_PREFIX, "The trace, or its beginning, if several have such a step.")


class Api:
    """Handlers of the API. All run in threads."""

    def __init__(self, store: PageStore, forms: Bodies) -> None:
        self._store = store
        self._forms = forms

    def routes(self) -> list[Route]:
        """The routes."""
        found = [Route(f"/api{path}", getattr(self, name)) for path, name, *_ in OPERATIONS]
        return [
            *found,
            Route("/api/steps/{step_id}/feedback", self.feedback, methods=["POST"]),
            Route("/api/openapi.json", self.document),
        ]

    def steps(self, request: Request) -> Response:
        """A page of steps."""
        which = StepFilter(**_filter(request, _STEP_PARAMETERS))
        return _answer(self._store.steps(which, **_page(request)).to_dict(js=True))

    def step(self, request: Request) -> Response:
        """One step."""
        return _answer(self._step(request).to_dict(js=True))

    def metrics(self, request: Request) -> Response:
        """The metrics of a step."""
        step = self._step(request)
        metrics = step.metrics.to_dict(js=True) if step.metrics else {}
        return _answer({"id": step.id, "trace_id": step.trace_id, **metrics})

    def step_messages(self, request: Request) -> Response:
        """The messages that a step added."""
        step = self._step(request)
        return _answer({"items": _messages(self._store.messages(step.trace_id, step_id=step.id))})

    def runs(self, request: Request) -> Response:
        """A page of runs."""
        which = RunFilter(**_filter(request, _RUN_PARAMETERS))
        return _answer(self._store.runs(which, **_page(request)).to_dict(js=True))

    def trace(self, request: Request) -> Response:
        """All of a trace."""
        check_parameters(request, ())
        return _answer(self._store.trace(request.path_params["trace_id"]).to_dict(js=True))

    def trace_messages(self, request: Request) -> Response:
        """The messages of a trace."""
        check_parameters(request, ())
        return _answer({"items": _messages(self._store.messages(request.path_params["trace_id"]))})

    def stats(self, request: Request) -> Response:
        """Counts, percentiles, tokens and, where ``genai-prices`` is installed, cost of steps, by groups."""
        which = StepFilter(**_filter(request, _STATS_PARAMETERS))
        by = cast("list[Group]", request.query_params.getlist("by"))
        found = self._store.stats(by, which, cost=self._store.price is not None)
        return _answer({"items": [record.to_dict(js=True) for record in found]})

    def tool_stats(self, request: Request) -> Response:
        """Counts, error rates and percentiles of tool calls, by tool."""
        given = _filter(request, _TOOL_PARAMETERS)
        after, before = (
            None if moment is None else _ns(moment)
            for moment in (given.get("started_after"), given.get("started_before"))
        )
        found = self._store.tool_stats(after, before, given.get("service_name"))
        return _answer({"items": [record.to_dict(js=True) for record in found]})

    async def feedback(self, request: Request) -> Response:
        """Set or take back what somebody thinks of a step, and set its tags."""
        try:
            async with self._forms.read(request) as body:
                given: Any = orjson.loads(body)
        except (BodyError, ValueError) as error:
            raise InputError(f"a JSON object was expected: {error}") from None
        if not isinstance(given, dict) or "feedback" not in given:
            raise InputError("a JSON object with feedback was expected")
        said = cast("Json", given)
        if unknown := sorted(said.keys() - _FEEDBACK["properties"].keys()):
            raise InputError(f"there is no {unknown[0]!r:.60}; there are {', '.join(_FEEDBACK['properties'])}")
        value, tags = check_feedback(said["feedback"]), said.get("tags")
        if not (tags is None or isinstance(tags, list)):
            raise InputError("tags is a list of texts")
        step = await to_thread.run_sync(self._step, request)
        set_it = partial(self._store.feedback, step.id, value, tags, trace_id=step.trace_id, by="api")
        await to_thread.run_sync(set_it)
        return _answer({"id": step.id, "trace_id": step.trace_id, "feedback": value})

    def document(self, request: Request) -> Response:
        """The OpenAPI document."""
        return _answer(openapi())

    def _step(self, request: Request) -> StepRecord:
        check_parameters(request, (_TRACE_ID.name,))
        return self._store.step(request.path_params["step_id"], request.query_params.get("trace_id"))


OPERATIONS: tuple[tuple[str, str, str, tuple[Parameter, ...], Json], ...] = (
    ("/steps", "steps", "A page of steps, newest first.", _STEP_PARAMETERS, {"page": "Step"}),
    ("/steps/{step_id}", "step", "One step, by its id or that of any of its spans.", (_TRACE_ID,), {"one": "Step"}),
    ("/steps/{step_id}/metrics", "metrics", "Its metrics.", (_TRACE_ID,), {"one": "StepMetrics"}),
    ("/steps/{step_id}/messages", "step_messages", "The messages it added.", (_TRACE_ID,), {"items": "Message"}),
    ("/stats", "stats", "Counts, error rates, percentiles, tokens of steps.", _STATS_PARAMETERS, {"items": "Stats"}),
    ("/stats/tools", "tool_stats", "The same of tool calls, by tool.", _TOOL_PARAMETERS, {"items": "ToolStats"}),
    ("/runs", "runs", "A page of runs, newest first.", _RUN_PARAMETERS, {"page": "Run"}),
    ("/traces/{trace_id}", "trace", "All of a trace: runs, steps, spans, messages, tree.", (), {"one": "Trace"}),
    ("/traces/{trace_id}/messages", "trace_messages", "The messages of a trace.", (), {"items": "Message"}),
)
"""Path, handler, what it gives, its query parameters, and the schema of that."""


def check_feedback(value: Any) -> Literal["positive", "negative"] | None:
    """The value, if it is feedback. Raises ``InputError``."""
    if value in ("positive", "negative", None):
        return value
    raise InputError(f"feedback is positive, negative or nothing, not {value!r:.40}")


def check_parameters(request: Request, names: Collection[str], lists: Collection[str] = ()) -> None:
    """Raise ``InputError`` for a query parameter that there is not, and for one given again that is no list."""
    for name in request.query_params:
        if name not in names:
            raise InputError(f"there is no parameter {name!r:.60}; there are {', '.join(names) or 'none'}")
        if name not in lists and len(request.query_params.getlist(name)) > 1:
            raise InputError(f"{name} is given several times; one is enough")


def _ns(moment: datetime) -> int:
    """Nanoseconds since the Unix epoch; what lies beyond their columns is their beginning or end."""
    return min(max((moment - _EPOCH) // _MICROSECOND * 1000, 0), MAX_NS)


def _messages(found: tuple[MessageRecord, ...]) -> list[Json]:
    return [message.to_dict(js=True) for message in found]


def _answer(value: Json) -> Response:
    return Response(
        orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_SUBCLASS),
        media_type="application/json",
    )


def _filter(request: Request, parameters: tuple[Parameter, ...]) -> dict[str, Any]:
    known = {parameter.name: parameter for parameter in parameters}
    check_parameters(request, known, [name for name, each in known.items() if each.schema["type"] == "array"])
    found: dict[str, Any] = {}
    for name, parameter in known.items():
        if parameter.field is not None and name in request.query_params:
            values = request.query_params.getlist(name)
            found[parameter.field] = values if parameter.schema["type"] == "array" else _value(parameter, values[0])
    return found


def _value(parameter: Parameter, text: str) -> Any:
    if parameter.schema is _BOOL:
        if text not in ("true", "false"):
            raise InputError(f"{parameter.name} is true or false, not {text!r:.40}")
        return text == "true"
    if parameter.schema is _TIME:
        try:
            moment = datetime.fromisoformat(text.replace(" ", "+"))  # a query's plus sign that was not escaped
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        except ValueError:
            raise InputError(f"{parameter.name} is a time in ISO 8601, not {text!r:.40}") from None
    return text


def _page(request: Request) -> dict[str, Any]:
    limit = request.query_params.get("limit", "100")
    order = request.query_params.get("order", "desc")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 6):
        raise InputError(f"limit is a number from 1 to 1000, not {limit!r:.40}")
    if order not in ("desc", "asc"):
        raise InputError(f"order is desc or asc, not {order!r:.40}")
    return {
        "after": request.query_params.get("after"),
        "limit": int(limit),
        "order": "newest" if order == "desc" else "oldest",
    }


# The document


def openapi() -> Json:
    """The OpenAPI 3.1 document. Schemas are made from the records that are sent."""
    paths: Json = {}
    for path, name, summary, parameters, result in OPERATIONS:
        of_path = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        paths[f"/api{path}"] = {
            "get": {
                "operationId": name,
                "summary": summary,
                "parameters": [
                    *({"name": each, "in": "path", "required": True, "schema": _OF_PATH[each]} for each in of_path),
                    *(
                        {"name": each.name, "in": "query", "schema": each.schema, "description": each.description}
                        for each in parameters
                    ),
                ],
                "responses": {
                    "200": _json("What was asked for.", _result(result)),
                    **_error_answers(),
                },
            }
        }
    paths["/api/steps/{step_id}/feedback"] = {
        "post": {
            "operationId": "feedback",
            "summary": "Set what somebody thinks of a step (null takes it back), and its tags.",
            "parameters": [
                {"name": "step_id", "in": "path", "required": True, "schema": _TEXT},
                {"name": "trace_id", "in": "query", "schema": _TRACE_PREFIX, "description": _TRACE_ID.description},
            ],
            "requestBody": {"required": True, "content": {"application/json": {"schema": _FEEDBACK}}},
            "responses": {"200": _json("What is set now.", {"type": "object"}), **_error_answers()},
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "step_exporter", "version": version("step_exporter")},
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Step": _record(StepRecord),
                "StepMetrics": _record(StepMetricsRecord),
                "Run": _record(RunRecord),
                "Message": _record(MessageRecord),
                "Trace": {"type": "object", "properties": {"trace_id": _TEXT}, "required": ["trace_id"]},
                "Stats": _record(StatsRecord),
                "ToolStats": _record(ToolStatsRecord),
                "Error": {"type": "object", "properties": {"error": _TEXT}, "required": ["error"]},
            },
        },
    }


def _error_answers() -> Json:
    return {status: _json(words, {"$ref": "#/components/schemas/Error"}) for status, words in _ERRORS.items()}


_OF_PATH = {"step_id": _TEXT, "trace_id": _TRACE_PREFIX}
_FEEDBACK: Json = {
    "type": "object",
    "properties": {
        "feedback": {"enum": ["positive", "negative", None]},
        "tags": {"type": ["array", "null"], "items": {"type": "string"}, "description": "Set in the place of others."},
    },
    "required": ["feedback"],
    "additionalProperties": False,
}
_ERRORS = {
    "400": "It cannot be asked like that.",
    "401": "The API key is missing.",
    "403": "The request came from elsewhere.",
    "404": "There is nothing.",
    "409": "The id names something in several traces.",
    "503": "The database does not answer.",
}


def _json(words: str, schema: Json) -> Json:
    return {"description": words, "content": {"application/json": {"schema": schema}}}


def _result(result: Json) -> Json:
    ((form, name),) = result.items()
    one: Json = {"$ref": f"#/components/schemas/{name}"}
    if form == "one":
        return one
    properties: Json = {"items": {"type": "array", "items": one}}
    if form == "page":
        properties["next"] = {"type": ["string", "null"]}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _record(record: type[Record]) -> Json:
    hints, exact = typing.get_type_hints(record), nanoseconds(record)
    properties: Json = {}
    for field in fields(record):  # pyright: ignore[reportArgumentType]  # all are dataclasses
        properties[field.name] = _schema(hints[field.name])
        if field.name in exact:
            properties[field.name + "_text"] = {"type": ["string", "null"]}
    return {"type": "object", "properties": properties}


_TYPES = {str: "string", int: "integer", bool: "boolean", float: "number", type(None): "null"}


def _schema(hint: Any) -> Json:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_schema(each) for each in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _schema(arguments[0])}
    if hint is datetime:
        return _TIME
    if hint is StepMetricsRecord:
        return {"$ref": "#/components/schemas/StepMetrics"}
    name = _TYPES.get(cast("type[Any]", hint))
    return {"type": name} if name else {} if hint is Any else {"type": "object"}
