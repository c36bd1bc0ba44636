"""What a full check costs beside a handler that does nothing, in one run on this machine.

    python loadtests/checks.py --yardstick DIR [--python PYTHON] [--fsync always|everysec|no] [--json]

Starts a gateway of its own (one enforcer worker, a fresh data folder), writes distinct requests with a new idempotency
key each, and lets the yardstick drive it in turn with empty servers: machines differ and are shared, so only the ratios
of one run count. A check is full: quota and rate of `acme`'s `api.calls`, key, epoch, period, record in the outbox.

PYTHON needs grpcio-tools, pyvoy, uvloop and hiredis, for the empty servers. DIR holds `yardstick` and `drive.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil

from enforcer.v1 import enforcer_pb2 as pb

SERVICE = "/enforcer.v1.EnforcerService"
BATCH = 100
READY_SECONDS = 60


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


class Gateway:
    """`metergate up` in a folder of its own, with one worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [str(Path(sys.executable).with_name("metergate")), "up"]
        command += ["--data-dir", str(folder), "--port", "0", "--http-port", "0", "--workers", "1"]
        self.log = (folder.parent / "up.log").open("wb")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)  # noqa: S603
        deadline = time.monotonic() + READY_SECONDS
        while not (folder / "endpoint").exists() or b"ready" not in self.output():
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the gateway did not start:\n{self.output().decode()}")
            time.sleep(0.1)
        self.port = int((folder / "endpoint").read_text().strip().rpartition(":")[2])
        self.key = (folder / "api-key").read_text().strip()

    def output(self) -> bytes:
        return (self.folder.parent / "up.log").read_bytes()

    def pids(self, part: str) -> str:
        """Ids of the child processes whose command line has `part` in it."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(part in word for word in child.cmdline()):
                    found.append(str(child.pid))
        return "+".join(found)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


def drive(
    args: argparse.Namespace, target: str, key: str, requests: int
) -> dict[str, dict[str, float]]:
    command = [args.python, str(args.yardstick / "yardstick"), "--python", args.python, "--json"]
    command += ["--requests", str(requests), "--rounds", str(args.rounds), "--target", target]
    command += ["--header", f"authorization: Bearer {key}"]
    if args.store:
        command += ["--store", args.store]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    measured: dict[str, dict[str, float]] = json.loads(run.stdout)
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
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not (args.yardstick / "yardstick").exists():
        sys.exit(f"no yardstick in {args.yardstick}: name its folder with --yardstick")
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="metergate-bench-") as work:
        gateway = Gateway(Path(work) / "data")
        try:
            pids = f"{gateway.pids('enforcer.')}/{gateway.pids('valkey-server')}"
            for name, path, write, requests in (
                ("unary", "Check", write_unary, args.requests),
                ("batch", "CheckBatch", write_batches, args.batches),
            ):
                bodies = Path(work) / name
                write(bodies, requests * (args.rounds + 1))
                target = f"metergate {name},{gateway.port},{SERVICE}/{path},{bodies},{pids}"
                measured = drive(args, target, gateway.key, requests)
                rows |= {f"{row} ({name} run)": figures for row, figures in measured.items()}
        finally:
            gateway.stop()
    report(rows, args)


def report(rows: dict[str, dict[str, float]], args: argparse.Namespace) -> None:
    machine = {
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "cores": os.cpu_count(),
        "requests": args.requests,
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
