"""The commands that correct usage: `void`, `amend`, `backfill`, `corrections`, `seal` and `review`."""

from __future__ import annotations

import re
import secrets
import sys
from collections import Counter
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from google.protobuf.json_format import Parse, ParseError

from enforcer.cli.connection import Gateway, calling, find_gateway
from enforcer.cli.exits import CommandError, Status
from enforcer.cli.options import (  # noqa: TC001 - typer reads annotations at run time
    DataDirOption,
    JsonOption,
    KeyOption,
    TimeoutOption,
)
from enforcer.cli.output import as_json, number, print_json, print_table, short_name, when
from enforcer.core.model import MAX_QUANTITY
from meter.v1 import report_pb2
from meter.v1 import usage_pb2 as pb
from meter.v1.report_pb2_grpc import ReportServiceStub
from meter.v1.usage_pb2_grpc import UsageServiceStub

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["amend", "backfill", "corrections", "place", "review", "seal", "void"]

AT_ONCE: Final = 500
PAGE: Final = 1_000
_PLACE: Final = re.compile(r"(\d{1,10})/(\d{1,19})-(\d{1,19})")
_LARGEST: Final = 2**63

RecordArgument = Annotated[
    str,
    typer.Argument(
        metavar="BUCKET/GENERATION-SEQUENCE", help="The record's place, as `check --json` shows it."
    ),
]
ReasonOption = Annotated[
    str, typer.Option("--reason", "-r", metavar="TEXT", help="Why, for the audit trail.")
]


def place(text: str) -> pb.RecordPlace:
    """`5/1-17` as the place of a record."""
    matched = _PLACE.fullmatch(text)
    numbers = [int(part) for part in matched.groups()] if matched else []
    if not numbers or numbers[0] >= 2**32 or max(numbers) >= _LARGEST:
        raise CommandError(
            f"{text!r} is no record: BUCKET/GENERATION-SEQUENCE is expected, such as 5/1-17"
        )
    return pb.RecordPlace(bucket=numbers[0], generation=numbers[1], sequence=numbers[2])


def void(
    record: RecordArgument,
    *,
    reason: ReasonOption,
    key: KeyOption = "",
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 60,
) -> None:
    """Let the usage of one record count no more. The history keeps both."""
    request = pb.VoidRequest(record=place(record), reason=reason, idempotency_key=_key(key))
    gateway = find_gateway(data_dir)
    with calling(gateway) as channel:
        done = UsageServiceStub(channel).Void(request, timeout=timeout, metadata=gateway.metadata)
    _tell(done, json=json)


def amend(
    record: RecordArgument,
    quantity: Annotated[
        int,
        typer.Argument(
            metavar="QUANTITY", min=0, max=MAX_QUANTITY, help="What it counts from now on."
        ),
    ],
    *,
    reason: ReasonOption,
    key: KeyOption = "",
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 60,
) -> None:
    """Let one record count with another quantity. The newest correction wins."""
    request = pb.AmendRequest(
        record=place(record), quantity=quantity, reason=reason, idempotency_key=_key(key)
    )
    gateway = find_gateway(data_dir)
    with calling(gateway) as channel:
        done = UsageServiceStub(channel).Amend(request, timeout=timeout, metadata=gateway.metadata)
    _tell(done, json=json)


def _key(key: str) -> str:
    return key or f"cli-{secrets.token_hex(12)}"


def _tell(done: pb.VoidResponse | pb.AmendResponse, *, json: bool) -> None:
    if json:
        print_json(as_json(done))
        return
    one = done.correction
    note = ", as an adjustment: its month is sealed" if one.adjustment else ""
    again = " (done before)" if done.replayed else ""
    typer.echo(
        f"{one.customer} {one.feature}: {number(one.previous_quantity)} -> {number(one.quantity)}"
        f", version {one.version}{note}{again}"
    )


def backfill(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.jsonl",
            help="One event a line; - reads standard input.",
        ),
    ],
    *,
    reason: ReasonOption = "",
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 120,
) -> None:
    """Record usage that is more than 24 hours old, each event at its own time and once.

    A line is a JSON object: customer, feature, quantity (default 1), idempotency_key, occurred_at
    (RFC 3339), dimensions. The whole file is checked before anything is sent. Sending a file again
    changes nothing. Exit status 1 when an event was not taken.
    """
    events = list(_events(file))
    gateway = find_gateway(data_dir)
    outcomes: list[tuple[int, pb.EventOutcome]] = []
    with calling(gateway) as channel:
        stub = UsageServiceStub(channel)
        for at in range(0, len(events), AT_ONCE):
            part = events[at : at + AT_ONCE]
            done = stub.Backfill(
                pb.BackfillRequest(events=[event for _, event in part], reason=reason),
                timeout=timeout,
                metadata=gateway.metadata,
            )
            outcomes += zip((line for line, _ in part), done.outcomes, strict=True)
    counts = Counter(_sort(outcome) for _, outcome in outcomes)
    if json:
        names = ("recorded", "replayed", "in_review", "refused")
        faults = [
            {"line": line, **as_json(one)} for line, one in outcomes if _sort(one) == "refused"
        ]
        print_json({**{name: counts[name] for name in names}, "faults": faults})
    else:
        for line, one in outcomes:
            if _sort(one) == "refused":
                typer.echo(f"line {line}: {one.message} [{one.reason}]", err=True)
        typer.echo(
            f"{number(counts['recorded'])} recorded, {number(counts['replayed'])} known before, "
            f"{number(counts['in_review'])} in review, {number(counts['refused'])} refused"
        )
    if counts["refused"] or counts["in_review"]:
        raise typer.Exit(Status.REFUSED)


def _sort(outcome: pb.EventOutcome) -> str:
    if outcome.in_review:
        return "in_review"
    if not outcome.accepted:
        return "refused"
    return "replayed" if outcome.replayed else "recorded"


def _events(file: Path) -> Iterator[tuple[int, pb.UsageEvent]]:
    """Every event with its line."""
    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from error
    for line, text in enumerate(data.split(b"\n"), 1):
        if not text.strip():
            continue
        try:
            yield line, Parse(text.decode("utf-8-sig"), pb.UsageEvent())
        except (ParseError, UnicodeDecodeError) as error:
            raise CommandError(f"{file}:{line}: {error}") from error


def corrections(
    *,
    customer: Annotated[
        str, typer.Option("--customer", "-c", metavar="CUSTOMER", help="Default: all.")
    ] = "",
    record: Annotated[
        str, typer.Option("--record", metavar="PLACE", help="Of this record, such as 5/1-17.")
    ] = "",
    most: Annotated[
        int, typer.Option("--most", "-n", min=1, metavar="NUMBER", help="The newest so many.")
    ] = 100,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 60,
) -> None:
    """Who corrected what, when and why: newest first."""
    request = pb.ListCorrectionsRequest(
        customer=customer, record=place(record) if record else None, page_size=min(most, PAGE)
    )
    gateway = find_gateway(data_dir)
    found: list[pb.Correction] = []
    with calling(gateway) as channel:
        stub = UsageServiceStub(channel)
        while True:
            page = stub.ListCorrections(request, timeout=timeout, metadata=gateway.metadata)
            found += page.corrections
            request.page_token = page.next_page_token
            if not page.next_page_token or len(found) >= most:
                break
    found = found[:most]
    if json:
        print_json({"corrections": [as_json(one) for one in found]})
        return
    print_table(
        ["when", "who", "what", "customer", "feature", "used at", "from", "to", "state", "why"],
        [
            [
                when(one.at),
                one.actor,
                short_name(pb.CorrectionKind.Name(one.kind), "CORRECTION_KIND_")
                + (" (adjustment)" if one.adjustment else ""),
                one.customer,
                one.feature,
                when(one.occurred_at),
                number(one.previous_quantity),
                number(one.quantity),
                short_name(pb.CorrectionState.Name(one.state), "CORRECTION_STATE_"),
                one.reason,
            ]
            for one in found
        ],
        "from to",
    )


def seal(
    month: Annotated[str, typer.Argument(metavar="YYYY-MM", help="A calendar month in UTC.")],
    *,
    account: Annotated[
        str, typer.Option("--account", metavar="ACCOUNT", help="Default: all accounts.")
    ] = "",
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 60,
) -> None:
    """Close a month: its usage never changes again, corrections become adjustments in the present."""
    request = pb.SealPeriodRequest(month=month, account=account)
    gateway = find_gateway(data_dir)
    with calling(gateway) as channel:
        done = UsageServiceStub(channel).SealPeriod(
            request, timeout=timeout, metadata=gateway.metadata
        )
    if json:
        print_json(as_json(done))
    else:
        typer.echo(f"{month} {'is sealed' if done.sealed else 'was sealed before'}")


review = typer.Typer(help="Events that were too old to be backfilled: list, accept or discard.")


@review.command("list")
def _list(
    *,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 60,
) -> None:
    """Show what waits, oldest first, and records that the rollup has put aside."""
    gateway = find_gateway(data_dir)
    request = pb.ListReviewRequest(page_size=PAGE)
    found: list[pb.ReviewItem] = []
    aside: list[report_pb2.SetAside] = []
    more = report_pb2.ListSetAsideRequest(page_size=PAGE)
    with calling(gateway) as channel:
        stub = UsageServiceStub(channel)
        while True:
            page = stub.ListReview(request, timeout=timeout, metadata=gateway.metadata)
            found += page.items
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        while True:
            part = ReportServiceStub(channel).ListSetAside(
                more, timeout=timeout, metadata=gateway.metadata
            )
            aside += part.records
            more.page_token = part.next_page_token
            if not part.next_page_token:
                break
    if json:
        print_json(
            {
                "items": [as_json(one) for one in found],
                "set_aside": [as_json(one) for one in aside],
            }
        )
        return
    print_table(
        ["id", "customer", "feature", "quantity", "used at", "why", "sent by"],
        [
            [
                str(one.id),
                one.event.customer,
                one.event.feature,
                number(one.event.quantity if one.event.HasField("quantity") else 1),
                when(one.event.occurred_at),
                one.why,
                one.actor,
            ]
            for one in found
        ],
        "id quantity",
    )
    if aside:
        print_table(
            ["record", "customer", "feature", "granted", "seen at", "put aside by the rollup"],
            [
                [
                    f"{one.bucket}/{one.generation}-{one.sequence}",
                    one.customer,
                    one.feature,
                    number(one.granted),
                    when(one.seen),
                    one.why,
                ]
                for one in aside
            ],
            "granted",
        )


ItemArgument = Annotated[int, typer.Argument(metavar="ID", min=1, help="As the list shows it.")]


@review.command("accept")
def _accept(
    item: ItemArgument,
    *,
    reason: ReasonOption,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 60,
) -> None:
    """Backfill an event, however old it is."""
    done = _resolve(find_gateway(data_dir), item, reason, timeout, accept=True)
    if json:
        print_json(as_json(done))
    elif done.outcome.accepted:
        typer.echo("recorded")
    else:
        typer.echo(f"{done.outcome.message} [{done.outcome.reason}]", err=True)
    if not done.outcome.accepted:
        raise typer.Exit(Status.REFUSED)


@review.command("discard")
def _discard(
    item: ItemArgument,
    *,
    reason: ReasonOption,
    json: JsonOption = False,
    data_dir: DataDirOption = None,
    timeout: TimeoutOption = 60,
) -> None:
    """Never count an event."""
    done = _resolve(find_gateway(data_dir), item, reason, timeout, accept=False)
    if json:
        print_json(as_json(done))
    else:
        typer.echo("discarded")


def _resolve(
    gateway: Gateway, item: int, reason: str, timeout: float, *, accept: bool
) -> pb.ResolveReviewResponse:
    request: Any = pb.ResolveReviewRequest(id=item, accept=accept, reason=reason)
    with calling(gateway) as channel:
        stub = UsageServiceStub(channel)
        return stub.ResolveReview(request, timeout=timeout, metadata=gateway.metadata)
