"""The command `replay`: send a trace to a gateway, each row as one request of a customer.

Everything about a row follows from the file: its customer from its number, its idempotency keys
from the file's content and its number. So a replay that was cut short is finished by another one,
and a second replay is answered from the first.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated, Any, Final

import grpc
import typer

from enforcer.cli.connection import failure, find_gateway
from enforcer.cli.exits import CommandError, Status
from enforcer.cli.options import (
    DataDirOption,
    DimensionOption,
    JsonOption,
    ModeName,
    dimensions,
    mode,
)
from enforcer.cli.output import number, print_json, print_table
from enforcer.cli.trace import Trace, columns_from
from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from enforcer.cli.connection import Gateway
    from enforcer.cli.trace import Row, Summary

__all__ = ["Replay", "ReplayMode", "Tally", "batch_for", "replay", "speed_factor"]

DEFAULT_CUSTOMERS: Final = "llm-a,llm-b,llm-c,llm-d"
ATTEMPT_SECONDS: Final = 5.0
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
MOST_ITEMS: Final = 256

_RETRYABLE: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
_RETRYABLE_NUMBERS: Final = frozenset(code.value[0] for code in _RETRYABLE)
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class ReplayMode(StrEnum):
    """How the rows treat limits."""

    ENFORCE = "enforce"
    BEST_EFFORT = "best_effort"
    RECORD_ONLY = "record_only"


@dataclass(slots=True)
class Tally:
    """What became of one meter's quantities. `replayed` is a part of `consumed`."""

    consumed: int = 0
    denied: int = 0
    replayed: int = 0


@dataclass(slots=True)
class Replay:
    """A replay of `rows` to one gateway, and how far it has come."""

    gateway: Gateway
    digest: str
    customers: Sequence[str]
    mode: ReplayMode
    dimensions: Mapping[str, str]
    concurrency: int
    retry_for: float
    factor: float | None = None
    rows: int = 0
    tallies: dict[str, Tally] = field(default_factory=dict)

    async def run(self, rows: Iterator[Row]) -> None:
        """Send all rows. Raise `CommandError` for the first that can not be decided."""
        async with self.gateway.aio_channel() as channel:
            stub = EnforcerServiceStub(channel)
            slots = asyncio.Semaphore(self.concurrency)
            started = time.monotonic()
            try:
                async with asyncio.TaskGroup() as group:
                    for row in rows:
                        if self.factor is not None and row.at is not None:
                            due = started + row.at / self.factor
                            await asyncio.sleep(max(due - time.monotonic(), 0))
                        await slots.acquire()
                        group.create_task(self._row(stub, row, slots))
            except* CommandError as errors:
                raise errors.exceptions[0] from None

    async def _row(self, stub: Any, row: Row, slots: asyncio.Semaphore) -> None:
        try:
            if row.quantities:
                request = batch_for(row, self.digest, self.customers, self.mode, self.dimensions)
                response, first_time = await self._decide(stub, request, row)
                self._count(request, response, first_time=first_time)
            self.rows += 1
        finally:
            slots.release()

    async def _decide(
        self, stub: Any, request: pb.CheckBatchRequest, row: Row
    ) -> tuple[pb.CheckBatchResponse, bool]:
        """The decision, and whether the first attempt gave it. Attempts share the idempotency keys."""
        pause, give_up, attempts = FIRST_PAUSE, 0.0, 0
        while True:
            attempts += 1
            try:
                response = await stub.CheckBatch(
                    request, timeout=ATTEMPT_SECONDS, metadata=self.gateway.metadata
                )
                fault = _fault(response)
                if fault is None:
                    return response, attempts == 1
                retryable = fault.code in _RETRYABLE_NUMBERS
                name = _CODES[fault.code].name if fault.code in _CODES else str(fault.code)
                error = CommandError(
                    f"{fault.message} [{fault.reason or name}]",
                    Status.UNAVAILABLE if retryable else Status.BAD_INPUT,
                )
            except grpc.aio.AioRpcError as call:
                retryable = call.code() in _RETRYABLE
                error = failure(call, self.gateway)
            now = time.monotonic()
            give_up = give_up or now + self.retry_for
            if not retryable or now >= give_up:
                raise CommandError(f"line {row.line}: {error.message}", error.status)
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - spreads retries
            pause = min(pause * 2, LONGEST_PAUSE)

    def _count(
        self, request: pb.CheckBatchRequest, response: pb.CheckBatchResponse, *, first_time: bool
    ) -> None:
        for asked, item in zip(request.items, response.items, strict=True):
            tally = self.tallies.setdefault(asked.feature, Tally())
            tally.consumed += item.response.granted
            tally.denied += asked.quantity - item.response.granted
            # After a retry nobody can tell an earlier run's answer from our own lost one.
            if item.response.replayed and first_time:
                tally.replayed += item.response.granted


def batch_for(
    row: Row,
    digest: str,
    customers: Sequence[str],
    replay_mode: ReplayMode,
    attributes: Mapping[str, str],
) -> pb.CheckBatchRequest:
    """What is sent for a row: all of its features or none, but for `best_effort`.

    Customers are dealt in turn: row n (from 1) goes to the ((n - 1) modulo count)-th.
    """
    customer = customers[(row.number - 1) % len(customers)]
    return pb.CheckBatchRequest(
        atomic=replay_mode is not ReplayMode.BEST_EFFORT,
        items=[
            pb.CheckRequest(
                customer=customer,
                feature=feature,
                quantity=quantity,
                idempotency_key=f"replay:{digest}:{row.number}:{feature}",
                dimensions=attributes,
                mode=mode(ModeName(replay_mode.value)),
            )
            for feature, quantity in row.quantities.items()
        ],
    )


def _fault(response: pb.CheckBatchResponse) -> pb.CheckFault | None:
    return next((item.fault for item in response.items if item.HasField("fault")), None)


def speed_factor(text: str) -> float | None:
    """How many times faster than the trace; None: as fast as it goes."""
    if text == "max":
        return None
    with suppress(ValueError):
        factor = 1.0 if text == "real" else float(text.removesuffix("x"))
        if 0 < factor < float("inf"):
            return factor
    raise CommandError(f"--speed {text!r}: real, max or a number above 0 is expected, such as 60")


def replay(  # noqa: PLR0913 - each is an option of the command
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE.csv", help="CSV with a line of column names.")
    ],
    *,
    map_: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="COLUMN=FEATURE",
            help="May be repeated; the column * says 1 in each row. Default: *=llm.requests, "
            "ContextTokens=llm.input_tokens, GeneratedTokens=llm.output_tokens.",
        ),
    ] = None,
    customers: Annotated[
        str,
        typer.Option("--customers", metavar="NAME,NAME", help="Rows are dealt to them in turn."),
    ] = DEFAULT_CUSTOMERS,
    replay_mode: Annotated[
        ReplayMode,
        typer.Option("--mode", help="How limits are treated. best_effort: rows are not atomic."),
    ] = ReplayMode.ENFORCE,
    dimension: DimensionOption = None,
    speed: Annotated[
        str,
        typer.Option(
            "--speed", metavar="real|N|max", help="As the trace says, N times faster, flat out."
        ),
    ] = "max",
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=10_000, help="Rows on their way at once.")
    ] = 32,
    retry_for: Annotated[
        float,
        typer.Option(
            "--retry-for",
            metavar="SECONDS",
            min=0,
            help="A row that fails for an outage is sent again for so long.",
        ),
    ] = 60,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave malformed rows out and count them.")
    ] = False,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Send a trace, each row as one atomic batch. Replaying the same file again changes nothing.

    The gateway knows a row again for its replay window, 24 hours by default.
    """
    factor = speed_factor(speed)
    columns = columns_from(map_ or [])
    if len(columns) > MOST_ITEMS:
        raise CommandError(f"--map names {len(columns)} features; a row has at most {MOST_ITEMS}")
    dealt = [name.strip() for name in customers.split(",") if name.strip()]
    if not dealt:
        raise CommandError("--customers is empty; names are expected, such as llm-a,llm-b")
    attributes = dimensions(dimension)
    gateway = find_gateway(data_dir)
    source = Trace(trace, columns, skip_bad=skip_bad, needs_time=factor is not None)
    summary = source.survey()
    sent = Replay(
        gateway,
        summary.digest,
        dealt,
        replay_mode,
        attributes,
        concurrency,
        retry_for,
        factor,
        tallies={feature: Tally() for feature in summary.requested},
    )
    started = time.monotonic()
    ended: BaseException | None = None
    try:
        asyncio.run(_watched(sent, source.rows(), summary, quiet=json))
    except (KeyboardInterrupt, CommandError) as error:
        ended = error
    _print_result(sent, summary, time.monotonic() - started, json=json)
    if isinstance(ended, KeyboardInterrupt):
        raise CommandError(
            f"interrupted after {sent.rows} of {summary.rows} rows; "
            "the same command again sends the rest",
            Status.INTERRUPTED,
        ) from ended
    if ended is not None:
        raise ended


async def _watched(sent: Replay, rows: Iterator[Row], summary: Summary, *, quiet: bool) -> None:
    """Run it, with a progress bar where somebody can see one."""
    if quiet or not sys.stderr.isatty():
        await sent.run(rows)
        return
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("replay", total=summary.rows)
        running = asyncio.create_task(sent.run(rows))
        while not running.done():
            await asyncio.wait([running], timeout=0.1)
            progress.update(task, completed=sent.rows)
        await running


def _print_result(sent: Replay, summary: Summary, elapsed: float, *, json: bool) -> None:
    """Per meter: what the file asks for, and what became of it."""
    if json:
        print_json(
            {
                feature: {
                    "requested": requested,
                    "consumed": sent.tallies[feature].consumed,
                    "denied": sent.tallies[feature].denied,
                    "replayed": sent.tallies[feature].replayed,
                }
                for feature, requested in summary.requested.items()
            }
        )
        if summary.skipped:
            typer.echo(f"metergate: {summary.skipped} malformed rows were left out", err=True)
        return
    print_table(
        ["meter", "requested", "consumed", "denied", "replayed"],
        [
            [
                feature,
                *(
                    number(value)
                    for value in (
                        requested,
                        sent.tallies[feature].consumed,
                        sent.tallies[feature].denied,
                        sent.tallies[feature].replayed,
                    )
                ),
            ]
            for feature, requested in summary.requested.items()
        ],
        "requested consumed denied replayed",
    )
    rate = sent.rows / elapsed if elapsed else 0
    skipped = f", {number(summary.skipped)} malformed rows left out" if summary.skipped else ""
    typer.echo(
        f"{number(sent.rows)} of {number(summary.rows)} rows in {elapsed:.1f} s "
        f"({rate:,.0f} a second){skipped}"
    )
