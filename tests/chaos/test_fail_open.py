"""Features that fail open, while everything is killed: no use is lost, none counts twice, and none is refused."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import pytest

from enforcer.v1 import enforcer_pb2 as pb
from enforcer.v1.enforcer_pb2_grpc import EnforcerServiceStub
from meter.crash import SETTING
from tests.chaos.test_kills import clean_audit
from tests.fixtures.valkey import ValkeyProcess
from tests.outpost import records_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fixtures.stack import Stack

ROOT = Path(__file__).parents[2]
KEYS: Final = 140
CATALOG: Final = """
version: 1
features:
  - {key: open, on_outage: fail_open, emergency: 1000000}
  - {key: shut}
accounts:
  - key: acme
    entitlements:
      - {feature: open, model: payg, per: month}
      - {feature: shut, model: payg, per: month}
"""


class Post:
    """An outpost process."""

    def __init__(self, server: ValkeyProcess, folder: Path, crash: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.outpost_process", server.url, str(folder)],
            cwd=ROOT,
            env={**os.environ, SETTING: crash},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._said() == "ready"

    def _said(self) -> str:
        """The next line that is an answer; nothing when it is dead."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.startswith("20"):  # a log line, with its time
                return line.strip()
        return ""

    def ask(self, *words: object) -> str:
        """The answer to a command; nothing when it died on it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(" ".join(map(str, words)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return ""
        return self._said()

    def disk_takes(self, most: int) -> None:
        """From now on no file of its may grow beyond so many bytes, as on a full disk; -1 = any number."""
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (most, -1))

    def end(self) -> int:
        """Let it end in order; return its status."""
        assert self._process.stdin is not None
        with self._process:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            return self._process.wait(30)


@contextmanager
def post(server: ValkeyProcess, folder: Path, crash: str = "") -> Iterator[Post]:
    made = Post(server, folder, crash)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyProcess]:
    process = ValkeyProcess(tmp_path / "valkey")
    process.start()
    yield process
    process.stop()


@pytest.mark.parametrize(
    "point", ["journal:100:kill", "journaled:100:kill", "count:2:kill", "discard:1:kill"]
)
def test_killed_just_before_a_step_every_key_counts_once(
    server: ValkeyProcess, tmp_path: Path, point: str
) -> None:
    told: dict[int, str] = {}
    with post(server, tmp_path, f"enforcer.{point}") as doomed:
        doomed.ask("serving")
        assert doomed.ask("check", "closed", 1, "warm") == "decided"
        assert doomed.ask("check", "open", 1, "before") == "decided"
        server.kill()
        for key in range(KEYS):
            told[key] = doomed.ask("check", "open", 1, key)
        server.start()
        doomed.ask("serving")
        assert doomed.ask("count") == "", f"{point} was never reached"
        assert doomed.end() == -signal.SIGKILL
    assert set(told.values()) <= {"degraded", ""}
    assert list(told.values()).count("degraded") >= 99
    with post(server, tmp_path) as successor:
        successor.ask("serving")
        for key, answer in told.items():
            if not answer:
                assert successor.ask("check", "open", 1, key) == "decided"
        successor.ask("count")
        assert successor.ask("count") == "0"
        assert successor.ask("used") == str(KEYS + 1)
    counted = sum(effects.granted for body, effects in records_of(server.url) if body.f == "open")
    assert counted == KEYS + 1
    assert not list((tmp_path / "journal").glob("*/*.journal"))


def test_a_journal_whose_disk_is_full_refuses_until_there_is_room_and_loses_nothing(
    server: ValkeyProcess, tmp_path: Path
) -> None:
    with post(server, tmp_path) as lasting:
        lasting.ask("serving")
        assert lasting.ask("check", "closed", 1, "warm") == "decided"
        assert lasting.ask("check", "open", 1, "before") == "decided"
        server.kill()
        assert [lasting.ask("check", "open", 1, key) for key in range(20)] == ["degraded"] * 20
        lasting.disk_takes(0)
        full = {lasting.ask("check", "open", 1, key) for key in range(20, 40)}
        assert full == {"JOURNAL_UNAVAILABLE"}
        lasting.disk_takes(-1)
        # Refused keys are free: each is used now, once.
        give_up = time.monotonic() + 30
        while lasting.ask("check", "open", 1, 20) != "degraded":
            assert time.monotonic() < give_up
        for key in range(21, 40):
            assert lasting.ask("check", "open", 1, key) == "degraded"
        server.start()
        lasting.ask("serving")
        while lasting.ask("used") != "41":
            lasting.ask("count")
            assert time.monotonic() < give_up + 30
        assert lasting.ask("count") == "0"
    counted = sum(effects.granted for body, effects in records_of(server.url) if body.f == "open")
    assert counted == 41


class Load:
    """A client that asks for the next key until it has an answer to this one."""

    def __init__(self, stack: Stack, name: str) -> None:
        self._stack, self._name = stack, name
        self.done = threading.Event()
        self.outcomes: Counter[str] = Counter()
        self.allowed = 0
        self.seconds: list[float] = []
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        metadata = (("authorization", f"Bearer {self._stack.api_key}"),)
        number = 0
        while not self.done.is_set():
            with grpc.insecure_channel(self._stack.endpoint) as channel:
                stub: Any = EnforcerServiceStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
                while not self.done.is_set():
                    request = pb.CheckRequest(
                        customer="acme", feature="open", idempotency_key=f"{self._name}-{number}"
                    )
                    begun = time.perf_counter()
                    try:
                        answer = stub.Check(request, metadata=metadata, timeout=10)
                    except grpc.RpcError as error:
                        failed: Any = error
                        self.outcomes[f"{failed.code().name} {failed.details()}"] += 1
                        time.sleep(0.05)
                        break
                    self.seconds.append(time.perf_counter() - begun)
                    self.outcomes["degraded" if answer.degraded else "decided"] += 1
                    assert answer.allowed
                    self.allowed += 1
                    number += 1


def shut(stack: Stack) -> str:
    done = stack.run("check", "acme", "shut", "--key", f"shut-{time.time_ns()}")
    return "decided" if done.returncode == 0 else done.stderr


@pytest.mark.timeout(300)
def test_under_load_nothing_is_refused_and_everything_counts_once(
    new_stack: Callable[..., Stack], capsys: pytest.CaptureFixture[str]
) -> None:
    stack = new_stack("data", "--workers", "2").start()
    stack.apply(CATALOG)
    loads = [Load(stack, str(number)) for number in range(6)]
    for load in loads:
        load.thread.start()
    try:
        time.sleep(1)
        (valkey,) = stack.pids("valkey")
        os.kill(valkey, signal.SIGSTOP)
        time.sleep(1.5)
        assert "STORE_UNAVAILABLE" in shut(stack)
        os.kill(stack.pids("enforcer")[0], signal.SIGKILL)
        time.sleep(1.5)
        os.kill(valkey, signal.SIGCONT)
        time.sleep(2)
        os.kill(valkey, signal.SIGKILL)
        time.sleep(3)
    finally:
        for load in loads:
            load.done.set()
        for load in loads:
            load.thread.join()
    outcomes = sum((load.outcomes for load in loads), Counter[str]())
    faults = {
        name: count for name, count in outcomes.items() if name not in ("decided", "degraded")
    }
    with capsys.disabled():
        times = sorted(second for load in loads for second in load.seconds)
        at = times[int(len(times) * 0.99)] * 1_000
        print(f"\n{dict(outcomes)}, p99 {at:.1f} ms")  # noqa: T201 - a measurement
    assert outcomes["degraded"] > 100
    assert not [name for name in faults if "STORE" in name or "DEADLINE" in name]
    give_up = time.monotonic() + 60
    journals = stack.folder / "journal"
    while [one for one in journals.glob("*/*.journal") if one.stat().st_size > 100]:
        assert time.monotonic() < give_up, "journals are left"
        time.sleep(0.2)
    (limit,) = stack.json("balance", "acme", "open")["limits"]
    used = int(limit["used"])
    report = stack.json("usage", "--meter", "open")["total"]
    allowed = sum(load.allowed for load in loads)
    # A call that a client gave up at the very end may have counted without its answer.
    assert used == report
    assert allowed <= used <= allowed + len(loads) + sum(faults.values())
    clean_audit(stack)
