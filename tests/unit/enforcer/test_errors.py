"""docs/errors.md tells of every error as it is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from enforcer import errors

PAGE = Path(__file__).parents[3] / "docs" / "errors.md"
INTERNAL_ONLY = {errors.MetergateError, errors.RelayedError, errors.UnavailableError}


def raised() -> dict[str, type[errors.MetergateError]]:
    """Every reason that clients may see, with its class."""
    found = {reason: kind for reason, (kind, _) in errors.REASONS.items()}
    for _, kind in inspect.getmembers(errors, inspect.isclass):
        if not issubclass(kind, errors.MetergateError) or kind in INTERNAL_ONLY:
            continue
        if "reason" in vars(kind) and not issubclass(kind, errors.MisconfiguredError):
            found[kind.reason] = kind
    return found | {"INTERNAL": errors.InternalError}


def rows() -> dict[str, tuple[str, int, str]]:
    """Reason → gRPC code, HTTP status, whether a retry can help, as the page says."""
    lines = re.findall(
        r"^\| `([A-Z_]+)` \| ([A-Z_]+) \| (\d+) \| (yes|no) \|", PAGE.read_text(), re.MULTILINE
    )
    return {reason: (code, int(http), retry) for reason, code, http, retry in lines}


def test_the_page_lists_every_reason_with_its_statuses() -> None:
    expected = {
        reason: (kind.code.name, kind.http, "yes" if kind.retryable else "no")
        for reason, kind in raised().items()
    }
    assert rows() == expected


def test_an_error_keeps_its_message_and_details() -> None:
    error = errors.NotFoundError("UNKNOWN_FEATURE", "no feature 'x'", feature="x")
    assert (error.reason, error.message, error.metadata) == (
        "UNKNOWN_FEATURE",
        "no feature 'x'",
        {"feature": "x"},
    )


def test_each_class_has_one_grpc_and_one_http_status() -> None:
    statuses = {(kind.code, kind.http) for kind in raised().values()}
    assert len({code for code, _ in statuses}) == len(statuses)
