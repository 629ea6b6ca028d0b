"""The command line, ``step-exporter``. Typer and Rich are imported only when it runs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from step_exporter.errors import ConfigurationError, InputError, StepExporterError

FAILED = 1
"""Nothing there, or it could not be done."""
USAGE = 2
"""Asked wrongly: an unknown option, a malformed id, a setting that cannot be used."""
INTERRUPTED = 130

CLI_EXTRA = frozenset({"typer", "rich"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with the arguments (default: the process's own) and return the exit code.

    Errors are one line on stderr, ``error: …``; exit code 0 is success, 1 failure, 2 wrong usage.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character gets its escape
        with contextlib.suppress(AttributeError):  # not a file, as under a test
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore
    try:
        from step_exporter.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in CLI_EXTRA:
            raise
        return _fail("the command line needs more packages: pip install 'step_exporter[cli]'", FAILED)
    try:
        code = run(arguments)
        sys.stdout.flush()
    except (InputError, ConfigurationError) as error:
        return _fail(str(error), USAGE)
    except StepExporterError as error:
        return _fail(str(error), FAILED)
    except BrokenPipeError:
        # Whoever read us has left (`| head`). Python flushes stdout once more at exit: into nothing, then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _fail(message: str, code: int) -> int:
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    print(f"error: {line}", file=sys.stderr)
    return code
