"""Makes a data folder with an earlier version of this repository: `python -m tests.older.make COMMIT`.

The version is taken from git's history and run with the present environment's packages. It is fed, stopped in order, and its
folder is packed into `<commit>.tar.xz` beside this file, with what it told its clients in `<commit>.json`. The API key and
the internal token in it were made for this and open nothing else.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Final

import grpc

from enforcer.v1 import catalog_pb2, catalog_pb2_grpc, enforcer_pb2_grpc
from enforcer.v1 import enforcer_pb2 as pb
from meter.v1 import report_pb2, report_pb2_grpc, usage_pb2, usage_pb2_grpc

HERE: Final = Path(__file__).parent
OPTIONS: Final = ("--port", "0", "--http-port", "0", "--workers", "1", "--json")
CATALOG: Final = """
version: 1
features:
  - {key: calls}
  - {key: capped}
  - {key: peak, meter: max}
  - {key: held}
  - {key: changed}
plans:
  - key: all
    items:
      - {feature: calls, model: payg, per: month}
      - {feature: peak, model: payg, per: month}
      - {feature: capped, model: quota, limit: 100, per: total}
      - {feature: held, model: quota, limit: 100, per: total}
accounts:
  - key: ada
    subscriptions: [{plan: all}]
    entitlements: [{feature: changed, model: quota, limit: 10, per: total}]
  - key: bob
    subscriptions: [{plan: all}]
"""


class Version:
    """A version at `source`, on a data folder. What it is asked by gRPC has not changed since."""

    def __init__(self, source: Path, folder: Path) -> None:
        kept = {key: text for key, text in os.environ.items() if not key.startswith("METERGATE_")}
        code = "import sys; from enforcer.cli import main; sys.exit(main())"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "up", *OPTIONS],
            env={
                **kept,
                "PYTHONPATH": str(source / "src"),
                "METERGATE_DATA_DIR": str(folder),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if json.loads(line).get("event") == "ready":
                self._channel = grpc.insecure_channel(json.loads(line)["endpoint"])
                key = (folder / "api-key").read_text(encoding="utf-8").strip()
                self._metadata = (("authorization", f"Bearer {key}"),)
                return
        raise RuntimeError("it did not start")

    def call(self, stub: Any, method: str, request: Any) -> Any:
        """Call it."""
        return getattr(stub(self._channel), method)(request, metadata=self._metadata, timeout=60)

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        self._channel.close()
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=120)


def feed(version: Version) -> dict[str, Any]:
    """Let it decide something of everything; return what it told."""

    def check(customer: str, feature: str, quantity: int, key: str = "") -> pb.CheckResponse:
        asked = pb.CheckRequest(
            customer=customer, feature=feature, quantity=quantity, idempotency_key=key
        )
        found: pb.CheckResponse = version.call(stub, "Check", asked)
        return found

    def reserve(quantity: int) -> str:
        asked = pb.ReserveRequest(customer="ada", feature="held", quantity=quantity)
        asked.ttl.FromSeconds(86_400)
        found: str = version.call(stub, "Reserve", asked).reservation
        return found

    stub, reports = enforcer_pb2_grpc.EnforcerServiceStub, report_pb2_grpc.ReportServiceStub
    declared = catalog_pb2.ApplyRequest(document=CATALOG, file_name="catalog.yaml")
    version.call(catalog_pb2_grpc.CatalogServiceStub, "Apply", declared)
    records = [check("ada", "calls", place + 1, f"calls-{place}").record for place in range(12)]
    for quantity in (7, 3, 9):
        check("bob", "peak", quantity)
    granted = [check("ada", "capped", 60).allowed for _ in range(2)]
    check("ada", "changed", 4)
    reserved = reserve(20)
    settled = pb.CommitRequest(reservation=reserve(10), quantity=5)
    version.call(stub, "Commit", settled)
    void = usage_pb2.VoidRequest(reason="an example of a correction", idempotency_key="void")
    void.record.CopyFrom(
        usage_pb2.RecordPlace(
            bucket=records[0].bucket,
            generation=records[0].generation,
            sequence=records[0].sequence,
        )
    )
    version.call(usage_pb2_grpc.UsageServiceStub, "Void", void)
    audit = version.call(reports, "Audit", report_pb2.AuditRequest())
    usage = {}
    for meter in ("calls", "peak", "capped", "held", "changed"):
        asked = report_pb2.QueryUsageRequest(meter=meter)
        usage[meter] = version.call(reports, "QueryUsage", asked).total
    return {
        "granted": granted,
        "usage": usage,
        "records": audit.records,
        "reservation": reserved,
        "generation": records[-1].generation,
        "bucket": records[-1].bucket,
    }


def main(commit: str) -> None:
    """See the module."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        source, folder = Path(place) / "source", Path(place) / "data"
        source.mkdir()
        folder.mkdir(mode=0o700)
        packed = subprocess.run(
            ["git", "archive", commit], capture_output=True, check=True, cwd=HERE.parents[1]
        )
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(source, filter="data")
        version = Version(source, folder)
        try:
            told = feed(version)
        finally:
            version.stop()
        (HERE / f"{commit}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        with tarfile.open(HERE / f"{commit}.tar.xz", "w:xz", preset=9) as archive:
            archive.add(folder, "data")


if __name__ == "__main__":
    main(sys.argv[1])
