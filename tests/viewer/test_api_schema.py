"""The JSON API answers what its OpenAPI document says, whatever it is asked.

``STEP_EXPORTER_EXAMPLES=500`` asks more of each operation.
"""

from __future__ import annotations

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from viewer_server import KEY, Server
from viewer_spans import agent_run

from step_exporter.viewer.api import openapi

pytestmark = pytest.mark.once

EXAMPLES = int(os.environ.get("STEP_EXPORTER_EXAMPLES", "5"))
HEADERS = {"Authorization": f"Bearer {KEY}"}

UNDECIDABLE = [positive_data_acceptance, negative_data_rejection]
"""No schema says which text is a cursor that a page gave, and in a query any text is a list of one."""

schema = schemathesis.openapi.from_dict(openapi())


@pytest.fixture
def filled(server: Server) -> Server:
    assert server.send(agent_run()).status == 200
    return server


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_the_document_says(case: schemathesis.Case, filled: Server) -> None:
    case.call_and_validate(base_url=filled.base, headers=HEADERS, excluded_checks=UNDECIDABLE)
