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
    _open_streams()
    try:
        from step_exporter.cli.app import run

        code = run(arguments)
        sys.stdout.flush()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in CLI_EXTRA:
            raise
        return _fail("the command line needs more packages: pip install 'step_exporter[cli]'", FAILED)
    except (InputError, ConfigurationError) as error:
        return _fail(str(error), USAGE)
    except StepExporterError as error:
        return _fail(str(error), FAILED)
    except BrokenPipeError:  # whoever read us has left (`| head`)
        _drop_output()
        return FAILED
    except OSError as error:
        _drop_output()
        what = "write the output" if error.filename is None else f"use {error.filename}"
        return _fail(f"cannot {what}: {error.strerror or error}", FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _open_streams() -> None:
    """A stream that the shell closed (``>&-``) is None: opened as one that fails when it is written to, it does so only
    in commands that print, and no file gets its descriptor."""
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character gets its escape
        with contextlib.suppress(AttributeError):  # not a file, as under a test
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore


def _drop_output() -> None:
    """Python flushes stdout once more at exit: into nothing, then."""
    with contextlib.suppress(OSError):  # no file, as under a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    print(f"error: {line}", file=sys.stderr)
    return code
