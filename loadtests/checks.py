"""What a full check costs beside a handler that does nothing, in one run on this machine.

    python -m loadtests.checks --yardstick DIR [--python PYTHON] [--fsync always|everysec|no] [--up OPTIONS]
                               [--pipeline runs|paused] [--grpcio] [--json]

Starts a gateway of its own (one enforcer worker, a fresh data folder), writes distinct requests with a new idempotency
key each, and lets the yardstick drive it in turn with empty servers: machines differ and are shared, so only the ratios
of one run count. A check is full: quota and rate of `acme`'s `api.calls`, key, epoch, period, record in the outbox.

With `--pipeline paused` the records wait in the outbox until the end: a rate then is that of checks alone, as of limiters
that record nothing, while otherwise the meter takes its part of the same processors. `--grpcio` adds the same gateway on
the other transport to the run.

PYTHON needs grpcio-tools, pyvoy, uvloop and hiredis, for the empty servers. DIR holds `yardstick` and `drive.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import redis

from enforcer.ratelimit import rls_pb2 as rls
from enforcer.v1 import enforcer_pb2 as pb
from loadtests.gateway import Target, guarded, started

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

READY_SECONDS = 30
SERVICE = "/enforcer.v1.EnforcerService"
RATE_LIMITS = "/envoy.service.ratelimit.v3.RateLimitService"
MAPPING = """
version: 1
domains:
  - domain: bench
    tenant: demo
    rules:
      - match: {customer: "*", request: "*"}
        customer: "{customer}"
        feature: api.calls
        idempotency_key: "{request}"
"""
BATCH = 100
Rows = dict[str, dict[str, float]]


def frame(message: bytes) -> bytes:
    """A message as gRPC sends it."""
    return b"\0" + struct.pack(">I", len(message)) + message


def check(number: int) -> pb.CheckRequest:
    return pb.CheckRequest(
        customer="acme", feature="api.calls", quantity=1, idempotency_key=f"bench-{number:09}"
    )


def write_unary(path: Path, count: int, first: int = 0) -> None:
    with path.open("wb") as file:
        numbers = range(first, first + count)
        file.writelines(frame(check(number).SerializeToString()) for number in numbers)


def write_ratelimits(path: Path, count: int, first: int = 2 * 10**8) -> None:
    """The same checks as an Envoy asks for them, answered with headers for its client."""
    with path.open("wb") as file:
        for number in range(first, first + count):
            asked = rls.RateLimitRequest(domain="bench")
            entries = asked.descriptors.add().entries
            entries.add(key="customer", value="acme")
            entries.add(key="request", value=f"bench-{number:09}")
            file.write(frame(asked.SerializeToString()))


def write_batches(path: Path, count: int, first: int = 10**8) -> None:
    with path.open("wb") as file:
        for start in range(first, first + count * BATCH, BATCH):
            items = [check(start + place) for place in range(BATCH)]
            file.write(frame(pb.CheckBatchRequest(items=items).SerializeToString()))


def pids(target: Target, part: str) -> str:
    """Ids of the gateway's processes whose name begins so, and of what they started."""
    found = []
    for name, pid in target.pids().items():
        if name.startswith(part):
            process = psutil.Process(pid)
            found += [process.pid, *(child.pid for child in process.children(recursive=True))]
    return "+".join(str(one) for one in found)


def set_fsync(target: Target, when: str) -> None:
    """When the gateway's Valkey brings what it wrote to the disk."""
    title = Path(f"/proc/{target.pids()['valkey']}/cmdline").read_text().rstrip("\0 ")
    with redis.Redis(unix_socket_path=title.partition("unixsocket:")[2]) as server:
        server.config_set("appendfsync", when)


@contextmanager
def paused(target: Target) -> Iterator[None]:
    """The meter stands still: records wait where they were written."""
    meter = psutil.Process(target.pids()["meter"])
    meter.suspend()
    try:
        yield
    finally:
        meter.resume()


@contextmanager
def over_grpcio(target: Target, work: Path) -> Iterator[tuple[int, int]]:
    """Another enforcer of the same gateway, on the other transport: its port and process."""
    enforcer = psutil.Process(target.pids()["enforcer-1"])
    port, http = free_port(), free_port()
    settings = {
        "METERGATE_LISTEN": f"127.0.0.1:{port}",
        "METERGATE_HTTP_LISTEN": f"127.0.0.1:{http}",
        "METERGATE_TRANSPORT": "grpcio",
        "METERGATE_JOURNAL_DIR": str(work / "journal"),
        "METERGATE_LOG_LEVEL": "error",
        # The driver connects once.
        "METERGATE_CONNECTION_AGE_SECONDS": "600",
    }
    command = guarded(*enforcer.cmdline())
    process = subprocess.Popen(command, env=enforcer.environ() | settings)  # noqa: S603 - as it runs
    try:
        wait_until_ready(http, process)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1),
        ):
            return
        time.sleep(0.05)
    sys.exit("the enforcer on grpcio did not start")


def drive(args: argparse.Namespace, targets: Sequence[str], key: str, requests: int) -> Rows:
    command = [args.python, str(args.yardstick / "yardstick"), "--python", args.python, "--json"]
    command += ["--requests", str(requests), "--rounds", str(args.rounds)]
    command += [part for target in targets for part in ("--target", target)]
    command += ["--header", f"authorization: Bearer {key}"]
    if args.store:
        command += ["--store", args.store]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    measured: Rows = json.loads(run.stdout)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    default = Path(__file__).resolve().parents[2] / "shared" / "yardstick"
    parser.add_argument("--yardstick", type=Path, default=default)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument(
        "--store", type=os.path.abspath, help="a valkey-server, to run the yardstick's sketch on"
    )
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--batches", type=int, default=1_500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fsync", choices=["always", "everysec", "no"], default="always")
    parser.add_argument("--pipeline", choices=["runs", "paused"], default="runs")
    parser.add_argument("--grpcio", action="store_true")
    parser.add_argument("--up", default="", help="further options of `metergate up`")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not (args.yardstick / "yardstick").exists():
        sys.exit(f"no yardstick in {args.yardstick}: name its folder with --yardstick")
    rows: Rows = {}
    with ExitStack() as held:
        work = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="metergate-bench-")))
        (mapping := work / "ratelimit.yaml").write_text(MAPPING)
        options = ["--workers", "1", "--ratelimit", str(mapping), *args.up.split()]
        target = held.enter_context(started(options))
        set_fsync(target, args.fsync)
        store = pids(target, "valkey")
        ports = {"": (target.gateway.endpoint.rpartition(":")[2], pids(target, "enforcer"))}
        if args.grpcio:
            other, pid = held.enter_context(over_grpcio(target, work))
            ports[" on grpcio"] = str(other), str(pid)
        if args.pipeline == "paused":
            held.enter_context(paused(target))
        unary = [
            ("unary", f"{SERVICE}/Check", write_unary, 0),
            ("rate limit", f"{RATE_LIMITS}/ShouldRateLimit", write_ratelimits, 2 * 10**8),
        ]
        batches = [("batch", f"{SERVICE}/CheckBatch", write_batches, 10**8)]
        for run, kinds, requests in (
            ("unary", unary, args.requests),
            ("batch", batches, args.batches),
        ):
            count, targets = requests * (args.rounds + 1), []
            for kind, call, write, first in kinds:
                for place, (where, (port, servers)) in enumerate(ports.items()):
                    bodies = work / f"{kind[:4]}-{place}"
                    write(bodies, count, first + place * 4 * 10**8)
                    served = f"{port},{call},{bodies},{servers}/{store}"
                    targets.append(f"metergate {kind}{where},{served}")
            measured = drive(args, targets, target.gateway.api_key, requests)
            rows |= {f"{row} ({run} run)": figures for row, figures in measured.items()}
    report(rows, args)


def report(rows: Rows, args: argparse.Namespace) -> None:
    machine = {
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "cores": os.cpu_count(),
        "requests": args.requests,
        "fsync": args.fsync,
        "pipeline": args.pipeline,
        "up": args.up or "-",
        "rounds": args.rounds,
    }
    if args.json:
        print(json.dumps({"machine": machine, "rows": rows}))
        return
    print(" ".join(f"{key}={value}" for key, value in machine.items()))
    print(
        f"{'server':<34}{'checks/s':>10}{'CPU us':>9}{'store us':>10}{'rate ratio':>12}{'CPU ratio':>11}{'p99 ms':>9}{'failed':>8}"
    )
    for name, row in rows.items():
        per = BATCH if name.startswith("metergate batch") else 1
        print(
            f"{name:<34}{row['rate'] * per:>10,}{row['cpu_us'] / per:>9.1f}{row['store_us'] / per:>10.1f}"
            f"{row['rate_ratio'] * per:>12.2f}{row['cpu_ratio'] / per:>11.2f}{row['p99_ms']:>9.1f}{row['failed']:>8}"
        )


if __name__ == "__main__":
    main()
