"""Which gateway is asked, and what its faults mean for a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc.aio import AioRpcError, Metadata

from enforcer.cli.connection import API_KEY, ENDPOINT, Gateway, failure, find_gateway, reason_of
from enforcer.cli.exits import CommandError, Status
from enforcer.cli.folder import DATA_DIR, DataFolder

if TYPE_CHECKING:
    from pathlib import Path

GATEWAY = Gateway("h:1", "secret-key", "/data/api-key")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    for name in (ENDPOINT, API_KEY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(DATA_DIR, str(tmp_path))
    found = DataFolder(tmp_path)
    found.write_secret(found.endpoint, "127.0.0.1:50051")
    found.write_secret(found.api_key, "from-file")
    return found


def test_the_data_folder_needs_no_arguments() -> None:
    found = find_gateway(None)
    assert (found.endpoint, found.api_key) == ("127.0.0.1:50051", "from-file")
    assert found.metadata == (("authorization", "Bearer from-file"),)


def test_the_environment_comes_before_the_folder(
    folder: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT, "gateway.example:443")
    monkeypatch.setenv(API_KEY, "from-environment")
    found = find_gateway(None)
    assert (found.endpoint, found.api_key) == ("gateway.example:443", "from-environment")
    assert find_gateway(folder.path).api_key == "from-file", "a named folder comes first"


def test_a_missing_endpoint_says_what_to_do(folder: DataFolder) -> None:
    folder.endpoint.unlink()
    with pytest.raises(CommandError, match=r"metergate up.*METERGATE_ENDPOINT") as error:
        find_gateway(None)
    assert error.value.status is Status.UNAVAILABLE


def test_a_missing_key_says_what_to_do(folder: DataFolder) -> None:
    folder.api_key.unlink()
    with pytest.raises(CommandError, match=r"no API key.*METERGATE_API_KEY") as error:
        find_gateway(None)
    assert error.value.status is Status.NO_ACCESS


@pytest.mark.parametrize("endpoint", ["localhost", "http://h:1", "h:0", "h:70000", "h:x", ":1"])
def test_an_endpoint_is_host_and_port(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv(ENDPOINT, endpoint)
    with pytest.raises(CommandError, match=r"METERGATE_ENDPOINT is .*HOST:PORT"):
        find_gateway(None)


def test_an_endpoint_over_tls_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not find_gateway(None).tls
    monkeypatch.setenv(ENDPOINT, "grpcs://gateway.example:443")
    found = find_gateway(None)
    assert (found.endpoint, found.tls) == ("gateway.example:443", True)


def test_an_ipv6_endpoint_has_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "[::1]:50051")
    assert find_gateway(None).endpoint == "[::1]:50051"


def test_a_key_that_no_header_can_carry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, "a\nb")
    with pytest.raises(CommandError, match="characters that no key has") as error:
        find_gateway(None)
    assert "a b" not in error.value.message


def fault(code: grpc.StatusCode, message: str, reason: str = "") -> AioRpcError:
    trailing = Metadata()
    if reason:
        detail = AnyMessage()
        detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="metergate"))
        status = status_pb2.Status(code=code.value[0], message=message, details=[detail])
        trailing = Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return AioRpcError(code, Metadata(), trailing, message, "")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("INVALID_ARGUMENT", Status.BAD_INPUT),
        ("NOT_FOUND", Status.BAD_INPUT),
        ("FAILED_PRECONDITION", Status.BAD_INPUT),
        ("UNAVAILABLE", Status.UNAVAILABLE),
        ("DEADLINE_EXCEEDED", Status.UNAVAILABLE),
        ("UNAUTHENTICATED", Status.NO_ACCESS),
        ("PERMISSION_DENIED", Status.NO_ACCESS),
        ("INTERNAL", Status.INTERNAL),
        ("UNKNOWN", Status.INTERNAL),
    ],
)
def test_each_kind_of_fault_has_its_status(code: str, status: Status) -> None:
    assert failure(fault(grpc.StatusCode[code], "text"), GATEWAY).status is status


def test_a_fault_shows_text_and_reason_in_one_line() -> None:
    error = fault(grpc.StatusCode.NOT_FOUND, "unknown customer\n'x'", "UNKNOWN_CUSTOMER")
    assert reason_of(error) == "UNKNOWN_CUSTOMER"
    assert failure(error, GATEWAY).message == "unknown customer 'x' [UNKNOWN_CUSTOMER]"


def test_a_refused_key_is_named_by_its_place_never_shown() -> None:
    error = fault(grpc.StatusCode.UNAUTHENTICATED, "unknown API key", "UNAUTHENTICATED")
    message = failure(error, GATEWAY).message
    assert "/data/api-key" in message
    assert "secret-key" not in message
