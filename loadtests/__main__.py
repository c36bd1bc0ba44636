"""`python -m loadtests`: run a load test, compare two, draw a page again."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path  # noqa: TC003 - typer reads annotations at run time
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from enforcer.cli.exits import CommandError, Status
from loadtests import agreement, compare, gateway, page, result
from loadtests.arrivals import Spacing
from loadtests.run import Run, Settings, Tool, new_run
from loadtests.scenarios import SCENARIOS, Options

if TYPE_CHECKING:
    from loadtests.result import Result

MOST_RATE = 200_000
MOST_SECONDS = 3600
MOST_CALLS = 100_000_000

ONLY = {
    Tool.OPEN: ("spacing", "seed", "generators", "most_in_flight"),
    Tool.LOCUST: ("users", "ui"),
}
"""Options that one tool heeds and the other does not."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def run(
    context: typer.Context,
    scenario: Annotated[str, typer.Argument(help=f"One of {', '.join(SCENARIOS)}.")] = "",
    *,
    tool: Annotated[Tool, typer.Option(help="The open loop, or Locust.")] = Tool.OPEN,
    rate: Annotated[float, typer.Option(min=0.1, max=MOST_RATE, help="Arrivals a second.")] = 200,
    seconds: Annotated[float, typer.Option(min=1, max=MOST_SECONDS, help="How long.")] = 30,
    customers: Annotated[int, typer.Option(min=1, max=2000, help="Accounts.")] = 100,
    connections: Annotated[
        int, typer.Option(min=1, max=1000, help="Connections of each generator.")
    ] = 8,
    users: Annotated[
        int, typer.Option(min=1, max=2000, help="locust: users that share the rate.")
    ] = 20,
    ui: Annotated[
        int | None,
        typer.Option(min=1024, max=65535, metavar="PORT", help="locust: a port for its own page."),
    ] = None,
    generators: Annotated[int, typer.Option(min=1, max=64, help="Processes that send.")] = 1,
    spacing: Annotated[
        Spacing, typer.Option(help="How arrivals lie in a second.")
    ] = Spacing.POISSON,
    seed: Annotated[int, typer.Option(help="Of the arrivals.")] = 1,
    batch: Annotated[
        int | None, typer.Option(min=1, max=256, help="batch: checks in a call (100).")
    ] = None,
    factor: Annotated[
        float | None,
        typer.Option(min=1, max=100, help="spike: times the rate in its middle (5)."),
    ] = None,
    hold: Annotated[
        float | None,
        typer.Option(min=0.1, max=600, help="seats: how long one is held, seconds (2)."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="trace: a CSV file as of `metergate replay`; else one is made."),
    ] = None,
    deadline: Annotated[float, typer.Option(min=0.05, max=60, help="Of a call, seconds.")] = 10,
    most_in_flight: Annotated[
        int,
        typer.Option(
            min=1, max=100_000, help="Unanswered calls of a generator; more are not sent."
        ),
    ] = 10_000,
    up: Annotated[str, typer.Option(help="Further options of `metergate up`.")] = "",
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A running gateway; its key in METERGATE_API_KEY."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="The data folder of a running `metergate up`.")
    ] = None,
    elsewhere: Annotated[
        bool, typer.Option(help="The address may be beyond this machine.")
    ] = False,
    results: Annotated[Path, typer.Option(help="Where results are kept.")] = result.RESULTS,
) -> None:
    """Send load, check the sums at the end, leave JSON and a page. Exit status 1 when anything differs."""
    if scenario not in SCENARIOS:
        wrong = f"scenario {scenario!r} is unknown." if scenario else "which SCENARIO?"
        raise CommandError(f"{wrong} There are {', '.join(SCENARIOS)}")
    if rate * seconds > MOST_CALLS:
        raise CommandError(
            f"{rate:g} a second for {seconds:g} s are more than {MOST_CALLS:,} calls"
        )
    for name in ONLY[Tool.LOCUST if tool is Tool.OPEN else Tool.OPEN]:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise CommandError(f"--tool {tool} does not heed --{name.replace('_', '-')}")
    own = {"batch": batch, "factor": factor, "hold": hold, "trace": trace and str(trace.absolute())}
    given = {name: value for name, value in own.items() if value is not None}
    for name in given.keys() - SCENARIOS[scenario].heeds:
        others = ", ".join(key for key, one in SCENARIOS.items() if name in one.heeds)
        raise CommandError(f"{scenario} does not heed --{name}; {others} does")
    options = msgspec.convert(
        {
            "run": new_run(),
            "rate": rate,
            "seconds": seconds,
            "customers": customers,
            "spacing": spacing,
            "seed": seed,
            **given,
        },
        Options,
    )
    settings = Settings(
        scenario,
        options,
        tool=tool,
        users=users,
        ui=ui,
        generators=generators,
        connections=connections,
        deadline=deadline,
        most_in_flight=most_in_flight,
        up=tuple(shlex.split(up)),
    )
    target = None
    if endpoint or data_dir:
        if up:
            raise CommandError(
                "--up starts a gateway; --endpoint and --data-dir name a running one"
            )
        target = gateway.named(endpoint, data_dir, elsewhere=elsewhere)
    prepared = Run(settings)
    folder = result.folder_for(scenario, results)
    made = prepared.run(target, folder)
    _tell(made, folder)
    raise typer.Exit(Status.OK if made.agrees else Status.REFUSED)


@app.command("compare")
def compared(
    before: Annotated[Path, typer.Argument(help="The folder of a result.")],
    after: Annotated[Path, typer.Argument(help="Another.")],
) -> None:
    """What changed from one result to the other, as a table."""
    print(compare.table(result.load(before), result.load(after)))


@app.command("page")
def draw(folders: Annotated[list[Path], typer.Argument(help="Folders of results.")]) -> None:
    """Draw the page of results again, from their JSON."""
    for folder in folders:
        page.save(result.load(folder), folder)


def _tell(made: Result, folder: Path) -> None:
    latency = made.latency_ms
    print(
        f"{made.calls:,} calls in {made.seconds:g} s: {made.calls_a_second:,.0f}/s, "
        f"{made.allowed:,} allowed, {made.denied:,} denied, {sum(made.errors.values()):,} errors"
    )
    if latency:
        print(
            f"latency p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f}, p99.9 {latency['p999']:.2f}, "
            f"greatest {latency['max']:.2f}"
        )
    for one in page.warnings(made):
        print(f"note: {one}")
    checked = made.agreement
    print(agreement.summary(checked))
    print("all agree" if made.agrees else f"{checked.findings_in_all} findings:")
    for finding in checked.findings:
        print(f"  {finding}")
    print(folder / page.FILE)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; what is wrong with it is one line on stderr."""
    try:
        return int(app(arguments, standalone_mode=False, prog_name="loadtests") or 0)
    except CommandError as error:
        message, status = error.message, int(error.status)
    except typer.TyperException as error:
        message, status = error.format_message(), int(Status.BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        return int(Status.INTERRUPTED)
    print(f"loadtests: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    # As Ctrl-C: what was started is ended in order.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
