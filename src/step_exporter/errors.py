"""Every exception that the package raises on purpose. A docstring is the default message."""

from __future__ import annotations


class StepExporterError(Exception):
    """step_exporter could not do what was asked."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class ConfigurationError(StepExporterError):
    """A setting has a value that cannot be used."""


class DatabaseError(StepExporterError):
    """The database cannot be opened or used."""


class EncryptionError(ConfigurationError, DatabaseError):
    """The database is encrypted, and the key at hand is not the one."""


class SchemaError(DatabaseError):
    """The database was not made by step_exporter, or by a newer version of it."""


class NotFoundError(StepExporterError):
    """There is nothing under that id."""


class AmbiguousIdError(StepExporterError):
    """The id names something in several traces; give the trace id as well."""


class InputError(StepExporterError):
    """The input cannot be read."""
