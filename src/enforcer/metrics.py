"""Every metric of the enforcer, and with `meter.metrics` the whole catalogue, from which docs/metrics.md is made.

No label is a customer. Accounts are named up to a bound that a setting has, all others are counted together.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from enforcer.core.breaker import BreakerState
from enforcer.core.program import Model, Reason
from enforcer.core.rules import Mode
from meter.exposition import BUILD, Catalogue, Label, built, exposition
from meter.metrics import ABOUT_DEPENDENCY, BUCKET, CODE, METER, RELAY

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from enforcer.core.commands import Decision, Stock
    from enforcer.core.program import Program

__all__ = ["CATALOGUE", "ENFORCER", "WEIGH_SECONDS", "Accounts", "Metrics"]

SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WEIGH_SECONDS: Final = 10.0
"""So often accounts are looked for that deserve a name."""
_OTHER: Final = "other"
"""All accounts without a name of their own, each of which has a slash."""

_METHOD = Label("method", "service and method; of events over HTTP, their path", 64)
_MODE = Label.of("mode", "how was asked: see modes.md", (mode.name for mode in Mode))
_REASON = Label.of("reason", "why it was decided so", (reason.name for reason in Reason))
_MODEL = Label.of(
    "model",
    "the licence model that is drawn from first, or that gives; `none` where nothing entitles",
    (model.name.lower() for model in Model),
)
_OUTCOME = Label.of(
    "outcome",
    "what the failure policy made of it",
    (
        *("allowed", "repeated", "denied", "exhausted", "check_only"),
        *("fail_closed", "in_doubt", "no_journal", "journal_failed"),
    ),
)
_ACCOUNT = Label(
    "account",
    "`tenant/account` of up to `METERGATE_METRICS_ACCOUNTS` accounts and of those in `METERGATE_METRICS_NAMED`, or `other`",
    1101,
)

ENFORCER: Final = Catalogue("enforcer", "Enforcers, workers of one address together.")
RPCS = ENFORCER.counter("rpcs", "Calls by method and gRPC status.", _METHOD, CODE)
RPC_SECONDS = ENFORCER.histogram(
    "rpc_seconds",
    "Time from a call's arrival to its answer; of a stream, to its end.",
    _METHOD,
    bounds=SECONDS,
)
DECISIONS = ENFORCER.counter(
    "decisions", "Decisions by mode, reason and licence model.", _MODE, _REASON, _MODEL
)
FAULTS = ENFORCER.counter(
    "check_faults",
    "Checks in batches and streams that failed by themselves: a unary call would have had this status.",
    CODE,
)
ACCOUNT_DECISIONS = ENFORCER.counter(
    "account_decisions",
    "Decisions by account, for those that have a name here.",
    _ACCOUNT,
    Label.of("outcome", "whether anything was granted", ("allowed", "denied")),
)
OVER_USE = ENFORCER.counter(
    "over_use_units",
    "Units granted past what was included: sold overage and overdraft, and what `RECORD_ONLY` recorded past a limit.",
    _MODE,
)
DESCRIPTORS = ENFORCER.counter(
    "ratelimit_descriptors",
    "Descriptors that Envoys sent.",
    Label.of(
        "outcome",
        "what became of it: see envoy.md",
        ("decided", "unmapped", "unknown", "unusable"),
    ),
)
OVER_SHARE = ENFORCER.counter(
    "tenant_refusals",
    "Calls that were not taken as their tenant had its share.",
    Label.of("limit", "which share", ("concurrency", "rate")),
)
BATCH = ENFORCER.histogram(
    "batch_checks", "Checks that travelled to Redis in one script call.", bounds=SIZES
)
SCRIPT = ENFORCER.histogram(
    "script_seconds", "Time from sending a script call to its reply.", bounds=SECONDS
)
TICKED = ENFORCER.counter(
    "tick_records", "Records that the background tick wrote: expiries and merged denials."
)
TICK_ERRORS = ENFORCER.counter("tick_errors", "Ticks that failed; they are tried again.")
EMERGENCIES = ENFORCER.counter(
    "emergency_checks", "Checks that came while the counters were away, by outcome.", _OUTCOME
)
COUNTED = ENFORCER.counter(
    "emergency_counted", "Uses that were allowed without counters and are counted now."
)
EMERGENCY_OVER_USE = ENFORCER.counter(
    "emergency_over_use_units",
    "Units allowed without counters that went past a limit when they were counted.",
)
COUNTING_ERRORS = ENFORCER.counter(
    "emergency_counting_errors",
    "Times that the counting of journals had to stop; it is begun again.",
)
BREAKER = ENFORCER.gauge(
    "breaker_state",
    "Whether calls to Redis pass: 0 they do, 1 a probe has succeeded, 2 they are held back.",
)
TRANSITIONS = ENFORCER.counter(
    "breaker_transitions",
    "Changes of the breaker by the state that it turned to.",
    Label.of("state", "the new one", (state.name for state in BreakerState)),
)
READY = ENFORCER.gauge(
    "ready",
    "1 while this worker has a Redis connection with opened generations, and calls pass.",
    of="least",
)
DEPENDENCY = ENFORCER.gauge(
    "dependency_up",
    ABOUT_DEPENDENCY,
    Label.of("dependency", "as `/readyz` names it", ("kafka", "meter", "redis", "sql")),
    of="least",
)
OUTBOX = ENFORCER.gauge(
    "outbox_records",
    "Records in all outboxes, not yet taken and trimmed by relay or rollup. As the next four from the enforcer that audits.",
)
OUTBOX_OLDEST = ENFORCER.gauge(
    "outbox_oldest_timestamp_seconds",
    "When the oldest record in the outboxes was decided; the time of looking when they are empty; 0 until then.",
)
LEASES = ENFORCER.gauge("leases", "Live leases, of all customers.")
RESERVATIONS = ENFORCER.gauge(
    "reservations", "Reservations and allowances that are held, of all customers."
)
STOCK_TIME = ENFORCER.gauge(
    "stock_timestamp_seconds", "When these were looked at last; 0 until then."
)
DRIFT = ENFORCER.gauge(
    "audit_drift_counters",
    "Counters that differ from their records, at the last comparison of each bucket.",
    BUCKET,
)
GAPS = ENFORCER.gauge(
    "audit_gaps", "Open gaps in sequences, at the last comparison of each bucket.", BUCKET
)
AUDIT_AGE = ENFORCER.gauge(
    "audit_age_seconds",
    "How long ago the bucket was compared with its records that has waited longest.",
)
INFO = ENFORCER.gauge("build_info", "1 for the version that runs.", *BUILD)

CATALOGUE: Final = (ENFORCER, METER, RELAY)
"""Of both packages."""


class _Tally:
    """What was observed and is not in its histogram yet."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts, self.total = [0] * (len(bounds) + 1), 0.0

    def observe(self, amount: float) -> None:
        """One more."""
        self.counts[bisect_left(self._bounds, amount)] += 1
        self.total += amount

    def settle(self, histogram: Histogram) -> int:
        """Put all of it into the histogram; return how many there were."""
        found = sum(self.counts)
        if found:
            for bucket, count in zip(histogram._buckets, self.counts, strict=True):  # noqa: SLF001 - it takes only one at a time
                if count:
                    bucket.inc(count)
            histogram._sum.inc(self.total)  # noqa: SLF001
            self.counts, self.total = [0] * len(self.counts), 0.0
        return found


class Accounts:
    """Counts decisions by account under at most `most` names of its own choice, and those in `named`.

    An account gets a name when for some seconds it made a good part of all decisions, and keeps it for the life of the
    process: a series that comes and goes would count nothing right. So names run out, and never grow.
    """

    def __init__(self, counter: Counter, most: int, named: Collection[str]) -> None:
        self._counter, self._left = counter, most
        self._share = 1 / (2 * most) if most else 1.0
        self._named = frozenset(named)
        self._names: dict[int, str] = {}
        self._weights: dict[int, int] = {}
        self._programs: dict[int, Program] = {}
        for outcome in ("allowed", "denied"):
            counter.labels(_OTHER, outcome)

    def add(
        self, decisions: Mapping[tuple[int, bool], int], programs: Mapping[int, Program]
    ) -> None:
        """So many decisions by account and by whether something was granted; a program of each account."""
        sums: dict[tuple[str, str], int] = {}
        for (account, granted), count in decisions.items():
            name = self._names.get(account)
            if name is None and self._named:
                name = self._by_setting(programs[account])
            if name is None:
                name = _OTHER
                self._programs[account] = programs[account]
            self._weights[account] = self._weights.get(account, 0) + count
            series = name, "allowed" if granted else "denied"
            sums[series] = sums.get(series, 0) + count
        for series, count in sums.items():
            self._counter.labels(*series).inc(count)

    def _by_setting(self, program: Program) -> str | None:
        name = _name(program)
        if name not in self._named:
            return None
        self._names[program.account_id] = name
        return name

    def weigh(self) -> None:
        """Give names to those that made a good part of what was counted since the last time."""
        least = self._share * sum(self._weights.values())
        heavy = sorted(self._programs, key=self._weights.__getitem__, reverse=True)[: self._left]
        for account in heavy:
            if self._weights[account] >= least:
                self._names[account] = _name(self._programs[account])
                self._left -= 1
        self._weights.clear()
        self._programs.clear()


def _name(program: Program) -> str:
    return f"{program.tenant}/{program.account_key}"


class Metrics:
    """What an enforcer counts. What every call changes is tallied, and put into the registry by `settle`.

    There one number costs as much as the rest of a call's way through the transport.
    """

    def __init__(self, accounts: int = 0, named: Collection[str] = ()) -> None:
        self.registry = registry = CollectorRegistry()
        self._calls = RPCS.on(registry)
        self._seconds = RPC_SECONDS.on(registry)
        self._decisions = DECISIONS.on(registry)
        self._faults = FAULTS.on(registry)
        self._accounts = Accounts(ACCOUNT_DECISIONS.on(registry), accounts, named)
        self._over = OVER_USE.on(registry)
        self._descriptors = DESCRIPTORS.on(registry)
        self._over_share = OVER_SHARE.on(registry)
        self.batch = BATCH.on(registry)
        self.script = SCRIPT.on(registry)
        self.ended = TICKED.on(registry)
        self.tick_errors = TICK_ERRORS.on(registry)
        self._emergencies = EMERGENCIES.on(registry)
        self._counted = COUNTED.on(registry)
        self._over_use = EMERGENCY_OVER_USE.on(registry)
        self.counting_errors = COUNTING_ERRORS.on(registry)
        self._breaker = BREAKER.on(registry)
        self._transitions = TRANSITIONS.on(registry)
        self.ready = READY.on(registry)
        self._up = DEPENDENCY.on(registry)
        self._outbox, self._oldest = OUTBOX.on(registry), OUTBOX_OLDEST.on(registry)
        self._leases, self._reservations = LEASES.on(registry), RESERVATIONS.on(registry)
        self._looked = STOCK_TIME.on(registry)
        self._drift = DRIFT.on(registry)
        self._gaps = GAPS.on(registry)
        self.audit_age = AUDIT_AGE.on(registry)
        built(INFO.on(registry))
        self._finished: dict[tuple[str, str], _Tally] = {}
        self._decided: dict[int, int] = {}
        self._whose: dict[int, Program] = {}
        self._past: dict[Mode, int] = {}
        self._mapped: dict[str, int] = {}
        self._batches, self._scripts = _Tally(SIZES), _Tally(SECONDS)

    def call(self, method: str, code: str, seconds: float) -> None:
        """One finished call."""
        tally = self._finished.get((method, code))
        if tally is None:
            tally = self._finished[method, code] = _Tally(SECONDS)
        tally.observe(seconds)

    def decision(self, program: Program, mode: Mode, decision: Decision) -> None:
        """One decision."""
        # One number, as the hash of an enum is a call; the account, model, mode and reason are in it.
        numbers = decision.numbers
        key = program.under << 16 | mode << 8 | int(numbers[0])
        try:
            self._decided[key] += 1
        except KeyError:
            self._decided[key] = 1
            self._whose[key >> 24] = program
        if numbers[2]:
            self._past[mode] = self._past.get(mode, 0) + decision.overage

    def fault(self, code: str) -> None:
        """One check of many that failed by itself."""
        self._faults.labels(code).inc()

    def descriptor(self, outcome: str) -> None:
        """One descriptor of an Envoy."""
        self._mapped[outcome] = self._mapped.get(outcome, 0) + 1

    def over_share(self, limit: str) -> None:
        """One call beyond its tenant's share."""
        self._over_share.labels(limit).inc()

    def depends(self, name: str, up: bool) -> None:  # noqa: FBT001 - told so by `Health`
        """How a server was found."""
        self._up.labels(name).set(up)

    def audited(self, bucket: int, drift: int, gaps: int) -> None:
        """One bucket was held against its records."""
        self._drift.labels(str(bucket)).set(drift)
        self._gaps.labels(str(bucket)).set(gaps)

    def batched(self, checks: int, seconds: float) -> None:
        """One script call."""
        self._batches.observe(checks)
        self._scripts.observe(seconds)

    def emergency(self, outcome: str) -> None:
        """One check without counters."""
        self._emergencies.labels(outcome).inc()

    def counted(self, uses: int, overage: int) -> None:
        """Uses of a journal."""
        self._counted.inc(uses)
        self._over_use.inc(overage)

    def breaker(self, state: str, number: int) -> None:
        """The breaker has turned."""
        self._breaker.set(number)
        self._transitions.labels(state).inc()

    def settle(self) -> None:
        """Bring the registry up to date: before it is read, and now and then where other workers read it."""
        for (method, code), tally in self._finished.items():
            if count := tally.settle(self._seconds.labels(method)):
                self._calls.labels(method, code).inc(count)
        self._settle_decisions()
        for mode, units in self._past.items():
            self._over.labels(mode.name).inc(units)
        self._past.clear()
        for outcome, count in self._mapped.items():
            self._descriptors.labels(outcome).inc(count)
        self._mapped.clear()
        self._batches.settle(self.batch)
        self._scripts.settle(self.script)

    def _settle_decisions(self) -> None:
        """Of all accounts first, as there may be thousands, and then into the registry."""
        kinds: dict[int, int] = {}
        accounts: dict[tuple[int, bool], int] = {}
        for key, count in self._decided.items():
            kind, account = key & 0xFFFFFF, (key >> 24, key & 0xFF == Reason.ALLOWED)
            kinds[kind] = kinds.get(kind, 0) + count
            accounts[account] = accounts.get(account, 0) + count
        self._decided.clear()
        for kind, count in kinds.items():
            mode, reason = Mode(kind >> 8 & 0xFF), Reason(kind & 0xFF)
            model = Model(kind >> 16).name.lower()
            self._decisions.labels(mode.name, reason.name, model).inc(count)
        self._accounts.add(accounts, self._whose)
        self._whose.clear()

    def weigh(self) -> None:
        """Name accounts that made much of what was decided since the last time: every `WEIGH_SECONDS`."""
        self.settle()
        self._accounts.weigh()

    def taken_stock(self, stock: Stock, now: float) -> None:
        """What lies in the store, and when, in seconds since 1970, that was looked up."""
        self._outbox.set(stock.outbox)
        self._oldest.set(now if stock.oldest_ms is None else stock.oldest_ms / 1000)
        self._leases.set(stock.leases)
        self._reservations.set(stock.reservations)
        self._looked.set(now)

    async def text(self) -> bytes:
        """The exposition, of all processes if they share a folder: then it takes some ms, in which checks go on."""
        self.settle()
        return await asyncio.to_thread(exposition, self.registry)
