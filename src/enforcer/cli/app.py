"""The command `metergate`: what it consists of, and how it ends.

Whatever goes wrong is told in one line on stderr; its kind is the exit status (`exits`).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from enforcer.cli.exits import CommandError, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

COMMANDS = {
    "up": "up.up",
    "apply": "catalog.apply",
    "check": "checks.check",
    "balance": "checks.balance",
    "reserve": "checks.reserve",
    "commit": "checks.commit",
    "release": "checks.release",
    "allowance": "allowances.app",
    "lease": "leases.app",
    "usage": "usage.usage",
    "seats": "series.seats",
    "denials": "series.denials",
    "replay": "replay.replay",
    "audit": "audit.audit",
    "void": "corrections.void",
    "amend": "corrections.amend",
    "backfill": "corrections.backfill",
    "corrections": "corrections.corrections",
    "seal": "corrections.seal",
    "review": "corrections.review",
    "reconcile": "repair.reconcile",
    "gap": "repair.gap_app",
    "kafka": "kafka.app",
    "log-level": "loglevel.log_level",
    "backup": "backup.backup",
    "restore": "backup.restore",
    "config": "config.app",
    "migrate": "stores.migrate",
    "key": "stores.key_app",
    "health": "health.health",
}
"""Where each is found. Only the one that is asked for is imported: most need no more than a connection."""


def _version(wanted: bool) -> None:  # noqa: FBT001 - a typer callback takes the value alone
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - only here

        typer.echo(f"metergate {version('metergate')}")
        raise typer.Exit


def _metergate(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """May this customer use this now? Metergate decides, records and reports.

    `metergate up` runs a gateway in this terminal. The other commands ask it; they find its address
    and an API key in its data folder, or in METERGATE_ENDPOINT and METERGATE_API_KEY.
    """


def _app(arguments: Sequence[str]) -> typer.Typer:
    """With the command that is asked for; with all of them when help is, or nothing that there is."""
    app = typer.Typer(
        name="metergate",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_metergate)
    asked = next(iter(arguments), "")
    for name in [asked] if asked in COMMANDS else COMMANDS:
        place, _, what = COMMANDS[name].partition(".")
        found = getattr(import_module(f"enforcer.cli.{place}"), what)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    return app


def _run(arguments: list[str] | None) -> int:
    """Run one command; return its exit status. What it has to say about failing is printed."""
    try:
        given = sys.argv[1:] if arguments is None else arguments
        outcome = _app(given)(args=given, prog_name="metergate", standalone_mode=False)
        sys.stdout.flush()
    except CommandError as error:
        return _complain(error.message, error.status)
    except typer.TyperException as error:
        # Options and arguments: typer's own words name the allowed values.
        return _complain(error.format_message() or "incomplete command: see --help")
    except (KeyboardInterrupt, typer.Abort):
        return Status.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; Python's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Status.OK
    except Exception as error:  # The last line of defence keeps errors to one line.
        if os.environ.get("METERGATE_DEBUG"):
            raise
        text = f"{type(error).__name__}: {error}"
        return _complain(
            f"{text} (a fault of metergate: METERGATE_DEBUG=1 shows where)", Status.INTERNAL
        )
    return outcome if isinstance(outcome, int) else Status.OK


def _complain(message: str, status: Status = Status.BAD_INPUT) -> int:
    typer.echo(f"metergate: {' '.join(message.split())}", err=True)
    return status


def main(arguments: list[str] | None = None) -> None:
    """Run `metergate` with `arguments` (default: the process's own) and exit with its status."""
    sys.exit(int(_run(arguments)))
