"""The forms of the trace page: what people think of a step, and the tags they give it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple
from urllib.parse import parse_qs, urlencode

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from step_exporter.errors import InputError
from step_exporter.store.query import StepStore
from step_exporter.viewer.api import check_feedback
from step_exporter.viewer.body import Bodies, BodyError

MAX_TAG = 100
"""Characters of a tag that is given on the page."""


class Edits:
    """Handlers of the forms. Without JavaScript they lead back to the page that they were on."""

    def __init__(self, store: StepStore, forms: Bodies) -> None:
        self._store = store
        self._forms = forms

    async def feedback(self, request: Request) -> Response:
        """``POST /traces/{trace_id}/feedback`` with ``feedback``: positive, negative or nothing."""
        form = await self._form(request)
        value = check_feedback(form.values.get("feedback") or None)
        set_it = partial(self._store.feedback, form.step_id, value, trace_id=form.trace_id, by="viewer")
        await to_thread.run_sync(set_it)
        return form.back()

    async def tags(self, request: Request) -> Response:
        """``POST /traces/{trace_id}/tags`` with a tag to ``add`` or to ``remove``."""
        form = await self._form(request)
        add, remove = form.values.get("add", "").strip(), form.values.get("remove")
        if len(add) > MAX_TAG:
            raise InputError(f"a tag has at most {MAX_TAG} characters")

        def change() -> None:
            old = self._store.step(form.step_id, form.trace_id).tags or []
            new = {tag for tag in (*old, add) if tag and tag != remove}
            if new != set(old):
                self._store.tags(form.step_id, sorted(new), trace_id=form.trace_id, by="viewer")

        await to_thread.run_sync(change)
        return form.back()

    async def _form(self, request: Request) -> _Form:
        try:
            async with self._forms.read(request) as body:
                found = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=10)
        except (BodyError, ValueError) as error:
            raise InputError(f"the form cannot be read: {error}") from None
        values = {name: given[-1] for name, given in found.items()}
        return _Form(request.path_params["trace_id"], values.get("step_id", ""), values)


class _Form(NamedTuple):
    trace_id: str
    step_id: str
    values: dict[str, str]

    def back(self) -> Response:
        kind = "step" if self.values.get("kind") == "step" else "span"
        where = urlencode({kind: self.values.get("span_id", "")})
        return RedirectResponse(f"/traces/{self.trace_id}?{where}", 303)
