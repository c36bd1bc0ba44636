"""One run from the beginning to the end: a gateway, accounts, load, the final check, what is written."""

from __future__ import annotations

import math
import time
import uuid
from contextlib import ExitStack
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

from enforcer.cli.connection import calling
from enforcer.v1 import catalog_pb2
from enforcer.v1.catalog_pb2_grpc import CatalogServiceStub
from loadtests import agreement, gateway, page, result
from loadtests.latencies import merged, percentiles_ms
from loadtests.outcome import Interval, Outcome, summed
from loadtests.processes import Job, Sender
from loadtests.result import Moment, Result
from loadtests.scenarios import NOT_ALL_HEED, Options, make
from loadtests.watch import Watch

if TYPE_CHECKING:
    from pathlib import Path

    from loadtests.agreement import Agreement
    from loadtests.gateway import Target

__all__ = ["Run", "Settings", "Tool", "new_run"]

LEAD_SECONDS: Final = 0.2
"""From when all are ready to the first moment of the plan."""
MOST_MOMENTS: Final = 300
END_SECONDS: Final = 180.0
"""How long after the plan a generator may still wait for answers, and ask again."""


class Tool(StrEnum):
    """What sends."""

    OPEN = "open"
    LOCUST = "locust"


MODULES: Final = {Tool.OPEN: "loadtests.open_loop", Tool.LOCUST: "loadtests.locust_process"}


class Settings(msgspec.Struct, frozen=True):
    """What was asked for on the command line."""

    scenario: str
    options: Options
    tool: Tool = Tool.OPEN
    generators: int = 1
    connections: int = 8
    deadline: float = 10.0
    most_in_flight: int = 10_000
    users: int = 20
    ui: int | None = None
    up: tuple[str, ...] = ()


def new_run() -> str:
    """A name that no earlier run has."""
    return uuid.uuid4().hex[:8]


class Run:
    """One run, prepared: what is wrong with its settings shows before anything is started."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._scenario = make(settings.scenario, settings.options)
        self._seconds = self._scenario.seconds
        self._interval = max(1.0, math.ceil(self._seconds / MOST_MOMENTS))
        self._machine, self._started_at = result.machine(), datetime.now(UTC)

    def run(self, target: Target | None, folder: Path) -> Result:
        """Do it all, without a target with a gateway of its own. Leaves JSON and a page in the folder."""
        with ExitStack() as stack:
            if target is None:
                print(" ".join(("starting a gateway", *self._settings.up)), flush=True)
                target = stack.enter_context(gateway.started(self._settings.up))
            self._declare(target)
            print(f"{self._settings.scenario}: {self._scenario.about}", flush=True)
            outcome, watch = self._load(target)
            print("checking: answers = counters = reports, and the audit", flush=True)
            sides = agreement.ask(target.gateway, self._scenario.pairs())
        made = self._made(outcome, watch, agreement.compare(outcome, sides))
        result.save(made, folder)
        page.save(made, folder)
        return made

    def _declare(self, target: Target) -> None:
        with calling(target.gateway) as channel:
            CatalogServiceStub(channel).Apply(
                catalog_pb2.ApplyRequest(
                    document=self._scenario.catalog(), file_name="loadtest.yaml"
                ),
                metadata=target.gateway.metadata,
                timeout=60,
            )

    def _load(self, target: Target) -> tuple[Outcome, Watch]:
        settings = self._settings
        senders: list[Sender] = []

        def pids() -> dict[str, int]:
            return target.pids() | {one.name: one.pid for one in senders}

        with ExitStack() as stack:
            for share in range(settings.generators):
                job = Job(
                    endpoint=target.gateway.endpoint,
                    api_key=target.gateway.api_key,
                    scenario=settings.scenario,
                    options=settings.options,
                    share=share,
                    shares=settings.generators,
                    connections=settings.connections,
                    deadline=settings.deadline,
                    most_in_flight=settings.most_in_flight,
                    interval=self._interval,
                    users=settings.users,
                    ui=settings.ui,
                )
                name = "generator" if settings.generators == 1 else f"generator-{share + 1}"
                senders.append(stack.enter_context(Sender(name, MODULES[settings.tool], job)))
            for one in senders:
                one.until_ready()
            if settings.ui:
                print(f"Locust's page: http://127.0.0.1:{settings.ui}", flush=True)
            begin = time.monotonic() + LEAD_SECONDS
            for one in senders:
                one.begin(begin)
            with Watch(pids, self._interval, begin) as watch:
                outcomes = [one.outcome(self._seconds + END_SECONDS) for one in senders]
        return summed(outcomes), watch

    def _made(self, outcome: Outcome, watch: Watch, checked: Agreement) -> Result:
        settings, whole = self._settings, outcome.intervals.values()
        not_sent = {"NOT_SENT": outcome.left_out} if outcome.left_out else {}
        return Result(
            version=result.VERSION,
            scenario=settings.scenario,
            tool=settings.tool,
            about=self._scenario.about,
            started_at=self._started_at,
            parameters=self._parameters(),
            machine=self._machine,
            seconds=self._seconds,
            calls=sum(one.answered for one in whole),
            allowed=sum(one.allowed for one in whole),
            denied=sum(one.denied for one in whole),
            errors=outcome.codes | not_sent,
            latency_ms=percentiles_ms(merged([outcome.latency])),
            delay_ms=percentiles_ms(merged([outcome.delay])),
            latency=outcome.latency,
            interval=self._interval,
            moments=self._moments(outcome),
            processes=watch.series,
            agreement=checked,
        )

    def _moments(self, outcome: Outcome) -> list[Moment]:
        """From the beginning to the last answer; what nobody answered in is there too."""
        interval = self._interval
        parts = {
            place: percentiles_ms(merged([one])) for place, one in outcome.latency_parts.items()
        }
        found = []
        for place in range(max([*outcome.intervals, *parts], default=-1) + 1):
            one = outcome.intervals.get(place, Interval())
            found.append(
                Moment(
                    place * interval,
                    round(one.answered / interval, 2),
                    round(one.allowed / interval, 2),
                    round(one.denied / interval, 2),
                    round(one.errors / interval, 2),
                    parts.get(place, {}),
                )
            )
        return found

    def _parameters(self) -> dict[str, str | int | float]:
        settings = self._settings
        own = msgspec.structs.asdict(settings.options)
        del own["run"]  # told apart from others, but no condition of the run
        ignored = NOT_ALL_HEED - self._scenario.heeds
        for name in ignored | {"spacing", "seed"} if settings.tool is Tool.LOCUST else ignored:
            del own[name]
        shown = ["connections", "deadline"]
        shown += ["generators"] if settings.tool is Tool.OPEN else ["users"]
        return own | {
            **{name: getattr(settings, name) for name in shown},
            "up": " ".join(settings.up),
        }
