"""libFuzzer on the requests of every method: `make fuzz SECONDS=60`, or `python -m tests.fuzz.requests -max_total_time=60`.

Needs atheris, which the lock does not have: it is for looking, not for tests. The first byte of an input chooses the
method, the rest is its message. What breaks is written to `crash-…` and found again by naming that file.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["enforcer", "meter"]):
    from tests.fixtures.fuzzed import Fuzzed

MANY = 256


def main() -> None:
    """Until something breaks, or libFuzzer's own bounds end it."""
    with tempfile.TemporaryDirectory() as folder:
        fuzzed = Fuzzed(Path(folder))
        methods = [one for one in fuzzed.methods if not one.stream]

        def one(data: bytes) -> None:
            if data:
                fuzzed.ask(methods[data[0] % len(methods)], data[1:])

        assert len(methods) < MANY
        atheris.Setup(sys.argv, one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
