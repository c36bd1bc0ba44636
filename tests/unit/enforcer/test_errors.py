"""docs/errors.md tells of every error as it is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from enforcer import errors
from enforcer.gateway.replies import fault_of
from enforcer.transport.errors import status_of

PAGE = Path(__file__).parents[3] / "docs" / "errors.md"
ROOTS = {errors.MetergateError, errors.UnavailableError}
WITHOUT_REASON = {*ROOTS, errors.RelayedError, errors.MisconfiguredError}
CELLS = r"^\| `([A-Z_]+)` \| `(\w+)` \| ([A-Z_]+) \| (\d+) \| (yes|no) \| (.+) \|$"


class Row(NamedTuple):
    kind: str
    code: str
    http: int
    retryable: str


def classes() -> set[type[errors.MetergateError]]:
    """Every public class of the tree."""
    return {
        kind
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.MetergateError) and not name.startswith("_")
    }


def raised() -> dict[str, type[errors.MetergateError]]:
    """Every reason that clients may see, with its class."""
    found = {reason: kind for reason, (kind, _) in errors.REASONS.items()}
    for kind in classes() - WITHOUT_REASON:
        if "reason" in vars(kind):
            found[kind.reason] = kind
    return found | {"INTERNAL": errors.InternalError}


def page() -> list[tuple[str, Row, str]]:
    """The rows of the page: reason, facts, what a client does."""
    found = re.findall(CELLS, PAGE.read_text(), re.MULTILINE)
    return [
        (reason, Row(kind, code, int(http), retryable), advice)
        for reason, kind, code, http, retryable, advice in found
    ]


def test_the_page_lists_every_reason_once_and_as_it_is() -> None:
    expected = {
        reason: Row(kind.__name__, kind.code.name, kind.http, "yes" if kind.retryable else "no")
        for reason, kind in raised().items()
    }
    assert {reason: row for reason, row, _ in page()} == expected
    assert len(page()) == len(expected)


def test_the_page_gives_the_advice_of_the_code() -> None:
    for reason, _, advice in page():
        if reason in errors.REASONS:
            assert advice == errors.REASONS[reason][1]


def test_the_page_and_the_docstring_name_every_class() -> None:
    assert errors.__doc__ is not None
    text = PAGE.read_text()
    for kind in classes():
        assert f"`{kind.__name__}`" in text
        assert kind.__name__ in errors.__doc__
        assert kind.__name__ in errors.__all__


def test_every_row_of_the_table_is_a_row_of_the_page() -> None:
    """A row that does not parse would not be compared."""
    listed = re.findall(r"^\| `([A-Z_]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert listed == [reason for reason, _, _ in page()]


def test_an_error_keeps_its_message_and_details() -> None:
    error = errors.NotFoundError("UNKNOWN_FEATURE", "no feature 'x'", feature="x")
    assert (error.reason, error.message, error.metadata) == (
        "UNKNOWN_FEATURE",
        "no feature 'x'",
        {"feature": "x"},
    )
    with pytest.raises(AssertionError):
        errors.NotFoundError("BAD_BATCH", "a reason of another class")


def test_each_class_has_one_grpc_and_one_http_status() -> None:
    statuses = {(kind.code, kind.http) for kind in raised().values()}
    assert len({code for code, _ in statuses}) == len(statuses)


def headers(message: str) -> int:
    """Bytes of a status in HTTP/2 headers: `grpc-message` and `grpc-status-details-bin`."""
    status = status_of(errors.CatalogInvalidError(message))
    plain = {*range(0x20, 0x7F)} - {ord("%")}
    encoded = sum(1 if byte in plain else 3 for byte in status.message.encode())
    details: int = -(-status.ByteSize() * 4 // 3)
    return encoded + details


@pytest.mark.parametrize("letter", ["x", "\n", "%", "é", "字", "😀"])
def test_a_status_fits_into_the_headers_that_peers_take(letter: str) -> None:
    assert headers(letter * 100_000) < 8_000
    lines = f"{letter * 40}\n" * 1_000
    assert headers(lines) < 8_000
    message = status_of(errors.CatalogInvalidError(lines)).message
    assert message.endswith("\n…")
    assert lines.startswith(message[:-1])
    short = letter * 100
    assert status_of(errors.CatalogInvalidError(short)).message == short


def test_a_status_has_the_code_and_the_info() -> None:
    status = status_of(errors.ForbiddenError("needs admin", role="admin"))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, status.message) == (7, "needs admin")
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "ROLE_REQUIRED",
        "metergate",
        {"role": "admin"},
    )


def test_a_check_among_others_says_when_to_come_again_as_one_alone_does() -> None:
    full, away = errors.OverloadedError(10), errors.StoreUnavailableError("Redis is away")
    retry = error_details_pb2.RetryInfo()
    assert status_of(full).details[1].Unpack(retry)
    assert fault_of(full).retry_after == retry.retry_delay
    assert len(status_of(away).details) == 1
    assert not fault_of(away).HasField("retry_after")


def test_what_a_store_says_of_itself_reaches_no_client_with_its_password() -> None:
    said = "cannot reach redis://gateway:hunter2hunter2@store:6379/0"
    assert "hunter2" not in status_of(errors.StoreUnavailableError(said)).message
    mistaken = errors.InvalidRequestError("BAD_REASON", "password: x is what you sent")
    assert status_of(mistaken).message == "password: x is what you sent"
