"""What `up` prints: its own lines and those of its parts, each with its part's name in front.

Written by a thread of its own: a terminal that is held with Ctrl-S, or a pipe that nobody reads,
must not hold up the gateway. What does not fit in the queue is dropped, and said so.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from typing import Any, Final

__all__ = ["Terminal"]

QUEUE_LINES: Final = 10_000
FLUSH_SECONDS: Final = 2.0
_COLOURS: Final = (36, 32, 35, 33, 34, 96, 92, 95, 93, 94)
_WIDTH: Final = 11


class Terminal:
    """Prints to stdout, as text or as JSON objects, one on a line."""

    def __init__(self, *, as_json: bool = False, colour: bool | None = None) -> None:
        self._as_json = as_json
        self._colour = sys.stdout.isatty() if colour is None else colour
        self._colours: dict[str, int] = {}
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUE_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="terminal", daemon=True)
        self._thread.start()

    def log(self, part: str, line: str) -> None:
        """A line that a part has written."""
        if self._as_json:
            self._put(json.dumps({"event": "log", "part": part, "line": line}))
            return
        prefix = f"{part:<{_WIDTH}} |"
        if self._colour:
            code = self._colours.setdefault(part, _COLOURS[len(self._colours) % len(_COLOURS)])
            prefix = f"\x1b[{code}m{prefix}\x1b[0m"
        self._put(f"{prefix} {line}")

    def say(self, text: str, event: str = "note", **facts: Any) -> None:
        """A line of `up` itself; with `--json` an event with its facts."""
        if self._as_json:
            self._put(json.dumps({"event": event, "text": text, **facts}))
        else:
            self._put(text)

    def close(self) -> None:
        """Write what waits, for a bounded time."""
        try:
            self._lines.put(None, timeout=FLUSH_SECONDS)
        except queue.Full:
            return
        self._thread.join(FLUSH_SECONDS)

    def _put(self, line: str) -> None:
        try:
            if self._dropped:
                self._lines.put_nowait(f"[{self._dropped} lines dropped: the terminal was held]")
                self._dropped = 0
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def _write(self) -> None:
        broken = False
        while (line := self._lines.get()) is not None:
            if broken:
                continue  # Nobody reads any more; the gateway goes on.
            try:
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
            except (OSError, ValueError):
                broken = True
