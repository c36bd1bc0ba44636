"""The command `metergate`: what it consists of, and how it ends.

Whatever goes wrong is told in one line on stderr; its kind is the exit status (`exits`).
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from enforcer.cli import (
    audit,
    catalog,
    checks,
    corrections,
    kafka,
    leases,
    repair,
    replay,
    series,
    up,
    usage,
)
from enforcer.cli.exits import CommandError, Status

__all__ = ["app", "main"]

app = typer.Typer(
    name="metergate",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:  # noqa: FBT001 - a typer callback takes the value alone
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - only here

        typer.echo(f"metergate {version('metergate')}")
        raise typer.Exit


@app.callback()
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


app.command("up")(up.up)
app.command("apply")(catalog.apply)
app.command("check")(checks.check)
app.command("balance")(checks.balance)
app.command("reserve")(checks.reserve)
app.command("commit")(checks.commit)
app.command("release")(checks.release)
app.add_typer(leases.app, name="lease")
app.command("usage")(usage.usage)
app.command("seats")(series.seats)
app.command("denials")(series.denials)
app.command("replay")(replay.replay)
app.command("audit")(audit.audit)
app.command("void")(corrections.void)
app.command("amend")(corrections.amend)
app.command("backfill")(corrections.backfill)
app.command("corrections")(corrections.corrections)
app.command("seal")(corrections.seal)
app.add_typer(corrections.review, name="review")
app.command("reconcile")(repair.reconcile)
app.add_typer(repair.gap_app)
app.add_typer(kafka.app)


def _run(arguments: list[str] | None) -> int:
    """Run one command; return its exit status. What it has to say about failing is printed."""
    try:
        outcome = app(args=arguments, prog_name="metergate", standalone_mode=False)
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
