"""The page of a result: whole without a network, and true to what was found."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import msgspec
import pytest

from loadtests import page
from loadtests.agreement import compare
from loadtests.plot import Line, lines, ticks
from loadtests.result import Machine, folder_for, load, save
from tests.unit.loadtests.made import outcome, result, sides

if TYPE_CHECKING:
    from pathlib import Path


def test_a_page_is_one_file_that_asks_for_nothing() -> None:
    text = page.render(result())
    assert not re.findall(r"(?:src|href|url\(|@import|<script|<link)", text)
    assert text.count("<svg") == 4  # no errors: nothing to draw of them
    for drawn in re.findall(r"<svg.*?</svg>", text):
        ET.fromstring(drawn)  # noqa: S314 - our own text
    assert "prefers-color-scheme: dark" in text


def test_a_page_says_first_whether_the_sums_agree() -> None:
    assert "All agree" in page.render(result())
    bad = compare(outcome(in_doubt=1), sides())
    text = page.render(result(agreement=bad))
    assert "All agree" not in text
    assert "1 calls got no answer" in text


def test_text_from_elsewhere_is_escaped() -> None:
    text = page.render(result(errors={"<b>&": 1}, about="<script>"))
    assert "<script>" not in text
    assert "&lt;b&gt;&amp;" in text


def test_a_run_without_answers_has_a_page_too() -> None:
    text = page.render(
        result(calls=0, allowed=0, denied=0, latency_ms={}, delay_ms={}, moments=[], processes={})
    )
    assert text.count('<p class="none">') == 5


def test_a_generator_that_is_late_and_a_busy_machine_are_said() -> None:
    late = result(delay_ms={**result().delay_ms, "p99": 80.0})
    assert "sent late" in page.warnings(late)[0]
    busy = result(machine=Machine("Linux", 2, 1, "3.11", {}, 7.0))
    assert "load of 7 on 2 cores" in page.warnings(busy)[0]
    assert page.warnings(result()) == []


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    save(result(), tmp_path)
    assert load(tmp_path) == load(tmp_path / "result.json") == result()


def test_what_is_no_result_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"cannot read .*result\.json: No such file"):
        load(tmp_path)
    (tmp_path / "result.json").write_text('{"version": "1"}')
    with pytest.raises(Exception, match=r"result\.json is no result of a load test: .*version"):
        load(tmp_path)
    save(msgspec.structs.replace(result(), version=99), tmp_path)
    with pytest.raises(Exception, match="version 99; this program reads 1"):
        load(tmp_path)


def test_runs_of_a_day_have_folders_of_their_own(tmp_path: Path) -> None:
    first, second = folder_for("steady", tmp_path), folder_for("steady", tmp_path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-steady", first.name)
    assert second.name == f"{first.name}-2"


@pytest.mark.parametrize("most", [0.003, 0.9, 1, 7, 99, 12_345])
def test_an_axis_ends_at_a_round_number_beyond_the_values(most: float) -> None:
    marks = ticks(most)
    assert marks[0] == 0
    assert most <= marks[-1] * 1.001
    assert marks[-1] <= most * 1.6
    assert 3 <= len(marks) <= 7


def test_a_line_is_broken_where_nothing_was_measured() -> None:
    drawn = lines("x", "ms", [Line("p50", [(0, 1.0), (1, None), (2, 3.0), (3, 4.0)])], 3)
    path = re.search(r' d="(.*?)"', drawn)
    assert path is not None
    assert re.sub(r"[\d.,]+", "", path[1]) == "MML"
    assert drawn.count("<circle") == 3
