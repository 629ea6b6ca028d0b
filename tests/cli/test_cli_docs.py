"""Every command and option has help and stands in docs/cli.md."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent.parent / "docs"


def making() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "make_cli.py"))


def test_the_page_is_up_to_date() -> None:
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == making()["page"](), "run python docs/make_cli.py"


def test_every_command_and_option_has_help() -> None:
    make = making()
    for name, command in make["commands"]().items():
        assert command.help, name
        assert "``" not in command.help, name
        for param in make["options"](command):
            assert getattr(param, "help", None), f"{name} {param.name}"
