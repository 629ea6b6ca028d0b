"""Environment variables. ``opentelemetry-instrument`` makes each one a flag (``--exporter_steps_url …``)."""

from __future__ import annotations

import os

from step_exporter.errors import ConfigurationError

OTEL_EXPORTER_STEPS_URL = "OTEL_EXPORTER_STEPS_URL"
"""The database: a SQLite or PostgreSQL URL, or the path of a SQLite file. Default: ``sqlite:///steps.db``."""
OTEL_EXPORTER_STEPS_CONTENT = "OTEL_EXPORTER_STEPS_CONTENT"
"""``off`` keeps prompts, answers, tool arguments and results out of the database. Default: ``on``."""
OTEL_EXPORTER_STEPS_RECORD = "OTEL_EXPORTER_STEPS_RECORD"
"""``all`` keeps spans of local trees without an agent, LLM or tool span as well. Default: ``steps``."""
OTEL_EXPORTER_STEPS_SPOOL = "OTEL_EXPORTER_STEPS_SPOOL"
"""Directory in which spans wait on disk while the database cannot be used, or ``off``. Default:
``$XDG_STATE_HOME/step_exporter``."""
OTEL_EXPORTER_STEPS_RETENTION_DAYS = "OTEL_EXPORTER_STEPS_RETENTION_DAYS"
"""Traces that ended so many days ago are deleted, every ten minutes. Default: none are."""
OTEL_EXPORTER_STEPS_RETENTION_MAX_BYTES = "OTEL_EXPORTER_STEPS_RETENTION_MAX_BYTES"
"""The oldest traces are deleted down to this size, such as ``2GB``, every ten minutes. Default: none are."""
OTEL_EXPORTER_STEPS_PENDING = "OTEL_EXPORTER_STEPS_PENDING"
"""``true`` adds ``StepSpanProcessor`` under ``opentelemetry-instrument``: steps are seen while they run, and every
span is accounted for. Set ``OTEL_TRACES_EXPORTER=none`` beside it. Default: ``false``."""
OTEL_EXPORTER_STEPS_ENCRYPTION_KEY = "OTEL_EXPORTER_STEPS_ENCRYPTION_KEY"
"""The base64 of 64 bytes (``step-exporter generate-key``): content, attributes and errors are stored encrypted.
Of several, separated by commas, the first encrypts and all decrypt. Default: none, nothing is encrypted."""


def keeps_content(given: str | bool | None = None, name: str = "content") -> bool:
    """Whether content is stored: what is given under that name, else the variable says so. Raises
    ``ConfigurationError``."""
    return choice(name, given, OTEL_EXPORTER_STEPS_CONTENT, ("on", "off")) == "on"


def choice(name: str, given: str | bool | None, variable: str, choices: tuple[str, str]) -> str:
    """One of two words: what is given under that name, else the variable, else the first. Raises
    ``ConfigurationError``."""
    value = given if given is not None else os.environ.get(variable) or choices[0]
    if isinstance(value, bool) and "on" in choices:  # YAML reads on and off so
        value = "on" if value else "off"
    word = str(value).strip().lower()
    if word not in choices:
        source = name if given is not None else variable
        raise ConfigurationError(f"{source} is {value!r}; it is {choices[0]!r} or {choices[1]!r}")
    return word
