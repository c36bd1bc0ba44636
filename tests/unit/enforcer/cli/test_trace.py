"""A trace is read row by row, and its first malformed row is known before anything is sent."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import pytest

from enforcer.cli.exits import CommandError
from enforcer.cli.trace import DEFAULT_COLUMNS, Trace, columns_from
from enforcer.core.model import MAX_QUANTITY

if TYPE_CHECKING:
    from pathlib import Path

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROW = "2023-11-16 18:17:03.9799600,4808,10\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "trace.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_row_is_one_request_with_its_tokens(tmp_path: Path) -> None:
    trace = Trace(write(tmp_path, HEADER + ROW))
    (row,) = trace.rows()
    assert (row.number, row.line, row.at) == (1, 2, 0.0)
    assert row.quantities == {
        "llm.requests": 1,
        "llm.input_tokens": 4808,
        "llm.output_tokens": 10,
    }


def test_the_survey_sums_what_the_file_asks_for(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + ROW + "2023-11-16 18:17:04.0319600,3180,8\n")
    summary = Trace(path).survey()
    assert summary.rows == 2
    assert summary.requested == {
        "llm.requests": 2,
        "llm.input_tokens": 7988,
        "llm.output_tokens": 18,
    }
    assert summary.digest == blake2b(path.read_bytes(), digest_size=16).hexdigest()


def test_zero_quantities_are_left_out(tmp_path: Path) -> None:
    trace = Trace(write(tmp_path, HEADER + "2023-11-16 18:17:03,5,0\n"))
    (row,) = trace.rows()
    assert "llm.output_tokens" not in row.quantities
    assert trace.survey().requested["llm.output_tokens"] == 0


@pytest.mark.parametrize(
    "text",
    [
        HEADER.replace("\n", "\r\n") + ROW.replace("\n", "\r\n"),
        "\ufeff" + HEADER + ROW,
        HEADER + ROW + "\n",
        HEADER + ROW + "   \n\n",
        HEADER + ROW.rstrip("\n"),
        "\n" + HEADER + ROW,
    ],
    ids=["crlf", "byte order mark", "empty last line", "blank lines", "no last newline", "first"],
)
def test_line_ends_marks_and_empty_lines_do_not_matter(tmp_path: Path, text: str) -> None:
    (row,) = Trace(write(tmp_path, text)).rows()
    assert row.number == 1
    assert row.quantities["llm.input_tokens"] == 4808


def test_times_are_seconds_since_the_first_row(tmp_path: Path) -> None:
    text = HEADER + "2024-05-10 00:00:00.5+00:00,1,1\n2024-05-10T00:01:00.75,1,1\n"
    assert [row.at for row in Trace(write(tmp_path, text)).rows()] == [0.0, 60.25]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("2023-11-16 18:17:03,x,1", "trace.csv:3: column ContextTokens is 'x'"),
        ("2023-11-16 18:17:03,1,-1", "trace.csv:3: column GeneratedTokens is '-1'"),
        ("2023-11-16 18:17:03,1,1.5", "column GeneratedTokens is '1.5'"),
        ("2023-11-16 18:17:03,1,1_000", "column GeneratedTokens is '1_000'"),
        ("2023-11-16 18:17:03,1,", "column GeneratedTokens is ''"),
        ("2023-11-16 18:17:03,1,\u0663", "column GeneratedTokens is"),
        (f"2023-11-16 18:17:03,1,{MAX_QUANTITY + 1}", f"from 0 to {MAX_QUANTITY} is expected"),
        ("2023-11-16 18:17:03,1," + "9" * 5000, "9..."),
        ("yesterday,1,1", "trace.csv:3: column TIMESTAMP is 'yesterday'"),
        ("2023-11-16 18:17:03,1", "trace.csv:3: 2 columns where 3 are expected"),
        (",,", "trace.csv:3: column TIMESTAMP is ''"),
        ('2023-11-16 18:17:03,"1,1', "trace.csv:3: unexpected end of data"),
    ],
)
def test_a_malformed_row_is_named_by_line_and_column(tmp_path: Path, row: str, fault: str) -> None:
    with pytest.raises(CommandError) as error:
        Trace(write(tmp_path, f"{HEADER}{ROW}{row}\n")).survey()
    assert fault in error.value.message
    assert "nothing was sent" in error.value.message


def test_the_largest_quantity_is_taken(tmp_path: Path) -> None:
    trace = Trace(write(tmp_path, f"{HEADER}2023-11-16 18:17:03,1,000{MAX_QUANTITY}\n"))
    assert trace.survey().requested["llm.output_tokens"] == MAX_QUANTITY


def test_malformed_rows_are_skipped_and_counted_on_demand(tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + ROW + "nonsense\n" + ROW)
    trace = Trace(path, skip_bad=True)
    summary = trace.survey()
    assert (summary.rows, summary.skipped) == (2, 1)
    assert [row.number for row in trace.rows()] == [1, 3], "a row's number is its place"


def test_a_file_that_changes_in_between_is_not_said_to_be_unsent(tmp_path: Path) -> None:
    trace = Trace(write(tmp_path, HEADER + "nonsense\n"))
    with pytest.raises(CommandError, match="has changed since"):
        list(trace.rows())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a,b\n1,2\n", "no column ContextTokens; the file has a, b"),
        (HEADER.replace("TIMESTAMP", "ContextTokens") + ROW, "more than one column ContextTokens"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_a_file_in_another_format_is_refused(tmp_path: Path, text: str | bytes, fault: str) -> None:
    with pytest.raises(CommandError, match=fault):
        Trace(write(tmp_path, text)).survey()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"missing\.csv"):
        Trace(tmp_path / "missing.csv").survey()
    with pytest.raises(CommandError, match="not a regular file"):
        Trace(tmp_path).survey()


def test_a_trace_without_times_can_be_sent_flat_out_only(tmp_path: Path) -> None:
    path = write(tmp_path, "ContextTokens,GeneratedTokens\n1,2\n")
    assert Trace(path).survey().rows == 1
    with pytest.raises(CommandError, match="no column TIMESTAMP"):
        Trace(path, needs_time=True).survey()


def test_columns_are_mapped_by_name(tmp_path: Path) -> None:
    columns = columns_from(["*=calls", "size = bytes"])
    (row,) = Trace(write(tmp_path, "size,other\n12,x\n"), columns).rows()
    assert row.quantities == {"calls": 1, "bytes": 12}


def test_without_a_mapping_the_shared_format_is_meant() -> None:
    assert columns_from([]) == DEFAULT_COLUMNS


@pytest.mark.parametrize("mapping", ["x", "=y", "x="])
def test_a_mapping_without_two_sides_is_refused(mapping: str) -> None:
    with pytest.raises(CommandError, match="COLUMN=FEATURE is expected"):
        columns_from([mapping])


def test_a_feature_has_one_column() -> None:
    with pytest.raises(CommandError, match="gives f two columns"):
        columns_from(["a=f", "b=f"])
