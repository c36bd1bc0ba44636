"""What a full check costs beside a handler that does nothing, in one run on this machine.

    python -m loadtests.checks --yardstick DIR [--python PYTHON] [--fsync always|everysec|no] [--up OPTIONS] [--json]

Starts a gateway of its own (one enforcer worker, a fresh data folder), writes distinct requests with a new idempotency
key each, and lets the yardstick drive it in turn with empty servers: machines differ and are shared, so only the ratios
of one run count. A check is full: quota and rate of `acme`'s `api.calls`, key, epoch, period, record in the outbox.

PYTHON needs grpcio-tools, pyvoy, uvloop and hiredis, for the empty servers. DIR holds `yardstick` and `drive.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import psutil
import redis

from enforcer.v1 import enforcer_pb2 as pb
from loadtests.gateway import Target, started

SERVICE = "/enforcer.v1.EnforcerService"
BATCH = 100
Rows = dict[str, dict[str, float]]


def frame(message: bytes) -> bytes:
    """A message as gRPC sends it."""
    return b"\0" + struct.pack(">I", len(message)) + message


def check(number: int) -> pb.CheckRequest:
    return pb.CheckRequest(
        customer="acme", feature="api.calls", quantity=1, idempotency_key=f"bench-{number:09}"
    )


def write_unary(path: Path, count: int) -> None:
    with path.open("wb") as file:
        file.writelines(frame(check(number).SerializeToString()) for number in range(count))


def write_batches(path: Path, count: int) -> None:
    with path.open("wb") as file:
        for number in range(count):
            first = 10**8 + number * BATCH
            items = [check(first + place) for place in range(BATCH)]
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


def drive(args: argparse.Namespace, target: str, key: str, requests: int) -> Rows:
    command = [args.python, str(args.yardstick / "yardstick"), "--python", args.python, "--json"]
    command += ["--requests", str(requests), "--rounds", str(args.rounds), "--target", target]
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
    parser.add_argument("--store", help="a valkey-server, to run the yardstick's sketch on")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--batches", type=int, default=1_500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fsync", choices=["always", "everysec", "no"], default="always")
    parser.add_argument("--up", default="", help="further options of `metergate up`")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not (args.yardstick / "yardstick").exists():
        sys.exit(f"no yardstick in {args.yardstick}: name its folder with --yardstick")
    rows: Rows = {}
    scratch = tempfile.TemporaryDirectory(prefix="metergate-bench-")
    with scratch as work, started(["--workers", "1", *args.up.split()]) as target:
        set_fsync(target, args.fsync)
        servers = f"{pids(target, 'enforcer')}/{pids(target, 'valkey')}"
        port = target.gateway.endpoint.rpartition(":")[2]
        for name, path, write, requests in (
            ("unary", "Check", write_unary, args.requests),
            ("batch", "CheckBatch", write_batches, args.batches),
        ):
            bodies = Path(work) / name
            write(bodies, requests * (args.rounds + 1))
            asked = f"metergate {name},{port},{SERVICE}/{path},{bodies},{servers}"
            measured = drive(args, asked, target.gateway.api_key, requests)
            rows |= {f"{row} ({name} run)": figures for row, figures in measured.items()}
    report(rows, args)


def report(rows: Rows, args: argparse.Namespace) -> None:
    machine = {
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "cores": os.cpu_count(),
        "requests": args.requests,
        "fsync": args.fsync,
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
            f"{row['rate_ratio'] * per:>12.2f}{row['cpu_ratio'] / per:>11.2f}{row['p99_ms']:>9}{row['failed']:>8}"
        )


if __name__ == "__main__":
    main()
