"""Every error of the meter has one gRPC status, one HTTP status, and a reason for machines."""

from __future__ import annotations

import re

import grpc

from meter import errors
from meter.errors import Code, MeterError, UnavailableError


def _tree(root: type[MeterError]) -> list[type[MeterError]]:
    return [root, *(deeper for child in root.__subclasses__() for deeper in _tree(child))]


def test_each_error_maps_to_statuses_and_is_public() -> None:
    for error in _tree(MeterError):
        assert re.fullmatch(r"[A-Z][A-Z_]+", error.reason)
        assert error.code.name in grpc.StatusCode.__members__
        assert grpc.StatusCode[error.code.name].value[0] == error.code
        assert 400 <= error.http <= 599
        assert error.__name__ in errors.__all__


def test_what_may_succeed_later_says_so() -> None:
    assert all(error.retryable for error in _tree(UnavailableError))
    assert all(error.code is Code.UNAVAILABLE for error in _tree(UnavailableError))


def test_the_docstring_prints_the_whole_tree() -> None:
    assert errors.__doc__ is not None
    for error in _tree(MeterError):
        assert error.__name__ in errors.__doc__
