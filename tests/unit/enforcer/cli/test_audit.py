"""Every way in which an audit can fail is a finding."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from enforcer.cli import audit as module
from enforcer.cli.audit import _audited, findings
from enforcer.cli.connection import Gateway
from enforcer.errors import CountersRebuildingError, MetergateError, StoreUnavailableError
from enforcer.transport.errors import status_of
from meter.v1 import report_pb2

GATEWAY = Gateway("h:1", "key", "file")


def test_agreement_is_no_finding() -> None:
    assert not list(findings(report_pb2.AuditResponse(records=9, counters=4)))


def test_records_that_came_again_and_were_counted_once_are_no_finding() -> None:
    assert not list(findings(report_pb2.AuditResponse(records=9, repeats=3)))


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (
            report_pb2.AuditResponse(gaps=[report_pb2.SequenceGap(bucket=1, first=5, last=9)]),
            "records 5 to 8 are missing",
        ),
        (
            report_pb2.AuditResponse(drift=[report_pb2.Drift(counter_used=5, ledger_used=4)]),
            "used 5 in the counter and 4 in the ledger",
        ),
        (report_pb2.AuditResponse(rollup_difference=2), "differ from the raw records by 2"),
    ],
)
def test_each_kind_of_finding(response: report_pb2.AuditResponse, words: str) -> None:
    (found,) = findings(response)
    assert words in found


def failed(error: MetergateError) -> AioRpcError:
    """A call that has failed with `error`."""
    status = status_of(error)
    trailing = Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return AioRpcError(grpc.StatusCode[error.code.name], Metadata(), trailing, status.message, "")


class Stub:
    """Raises the `errors`, then answers."""

    def __init__(self, *errors: MetergateError) -> None:
        self.errors = list(errors)

    def Audit(self, *_: object, **__: object) -> report_pb2.AuditResponse:  # noqa: N802 - as generated
        if self.errors:
            raise failed(self.errors.pop(0))
        return report_pb2.AuditResponse(records=9)


def test_an_audit_waits_for_counters_that_are_being_rebuilt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    stub: Any = Stub(
        CountersRebuildingError(4, "its data are missing"), CountersRebuildingError(5, "")
    )
    assert _audited(stub, GATEWAY, 60).records == 9


def test_an_audit_does_not_wait_for_ever_nor_for_anything_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rebuilding: Any = Stub(CountersRebuildingError(4, ""))
    monkeypatch.setattr(module, "PAUSE_SECONDS", 9.0)
    with pytest.raises(grpc.RpcError):
        _audited(rebuilding, GATEWAY, 1)
    away: Any = Stub(StoreUnavailableError("no reply"))
    with pytest.raises(grpc.RpcError):
        _audited(away, GATEWAY, 60)
