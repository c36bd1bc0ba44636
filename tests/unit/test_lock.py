"""The lock names every package with its version and the hashes of its files, and nowhere an address."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"([a-z0-9][a-z0-9._-]*)==([A-Za-z0-9.+!-]+)( ; [^\\]+)?( \\)?", re.IGNORECASE)
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


def faults(lock: str) -> list[str]:
    """What is wrong with the lines of a lock."""
    found, name, hashes = [], "", 1
    for number, line in enumerate(lock.splitlines(), start=1):
        if line.startswith("#") or not line.strip():
            continue
        if HASH.fullmatch(line):
            hashes += 1
        elif named := NAMED.fullmatch(line):
            if not hashes:
                found.append(f"{name} has no hash")
            name, hashes = named[1], 0
        else:
            found.append(f"line {number}: {line}")
    return found if hashes else [*found, f"{name} has no hash"]


def pins(text: str) -> set[tuple[str, str]]:
    return {(match[1].lower(), match[2]) for match in map(NAMED.match, text.splitlines()) if match}


def test_every_package_has_a_version_and_hashes_and_no_address() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert faults(lock) == []
    assert pins(lock) == pins((ROOT / "constraints.txt").read_text())
    assert len(pins(lock)) > 50
    for name in ("requirements.lock", "constraints.txt"):
        assert "://" not in (ROOT / name).read_text()


@pytest.mark.parametrize(
    "line",
    [
        "package>=1",
        "package",
        "package @ https://elsewhere/package.whl",
        "git+https://elsewhere/package",
        "--index-url https://elsewhere",
        "--extra-index-url https://elsewhere",
        "    --hash=md5:" + "0" * 64,
        "package==1.0",
    ],
)
def test_what_would_let_other_code_in_is_seen(line: str) -> None:
    sound = f"sound==1.0 \\\n    --hash=sha256:{'0' * 64}\n"
    assert faults(sound) == []
    assert faults(f"{line}\n{sound}")
    assert faults(f"{sound}{line}\n")


def test_setting_up_checks_the_hashes() -> None:
    assert "--require-hashes -r requirements.lock" in (ROOT / "Makefile").read_text()
