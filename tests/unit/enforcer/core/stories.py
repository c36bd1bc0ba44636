"""A shop floor for stories about counters: one account of up to four levels, one feature, a clock, a store."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from enforcer.core.commands import NO_KEY, Answer, Ask, Decision, SeatAsk, idempotency
from enforcer.core.compile import compile_program
from enforcer.core.memory import MemoryCounters
from enforcer.core.model import Customer, Entitlement, Feature, Node
from enforcer.core.rules import Mode

if TYPE_CHECKING:
    from enforcer.core.program import Program
    from meter.core.records import Effects

__all__ = ["NOW", "Story", "given"]

NOW = 1_795_514_400_000  # Tuesday 2026-11-24 10:00 UTC
FEATURE = Feature(1, "f", "f")
_numbers: dict[str, int] = {}


def given(key: str, terms: Any, **more: Any) -> Entitlement:
    """An entitlement; one key has one number in all stories."""
    return Entitlement(_numbers.setdefault(key, len(_numbers) + 1), key, "f", terms, **more)


class Story:
    """`levels` from the customer up to the root, each with its entitlements."""

    def __init__(self, *levels: list[Entitlement], window_ms: int = 86_400_000) -> None:
        self.now, self.epoch, self.levels = NOW, 1, levels
        self.store = MemoryCounters(lambda: self.now, window_ms)
        self.store.open(0, 1)
        self.store.project(0, 1, 1)

    def change(self, *levels: list[Entitlement]) -> None:
        """New terms, from the next command on."""
        self.epoch, self.levels = self.epoch + 1, levels
        self.store.project(0, 1, self.epoch)

    def program(self, level: int = 0) -> Program:
        path = tuple(
            Node(number + 1, f"n{number}", entitlements=tuple(found))
            for number, found in enumerate(self.levels)
        )
        customer = Customer("demo", 1, "root", 0, self.epoch, path[level:])
        return compile_program(customer, FEATURE, self.now)[0]

    def ask(
        self,
        quantity: int,
        mode: Mode = Mode.ENFORCE,
        *,
        key: str = "",
        level: int = 0,
        **more: Any,
    ) -> Ask:
        named = idempotency(1, 1, key, quantity, mode) if key else NO_KEY
        return Ask(self.program(level), quantity, mode, b"{}", named, **more)

    def group(self, *asks: Ask) -> list[Answer]:
        return self.store.decide(asks)

    def check(self, quantity: int, mode: Mode = Mode.ENFORCE, **more: Any) -> Decision:
        (answer,) = self.group(self.ask(quantity, mode, **more))
        assert isinstance(answer, Decision), answer
        return answer

    def reserve(
        self, quantity: int, name: str, ttl_ms: int = 60_000, mode: Mode = Mode.ENFORCE, **more: Any
    ) -> Decision:
        return self.check(quantity, mode, reservation=name, ttl_ms=ttl_ms, **more)

    def seat(self, lease: str, holder: str = "", ttl_ms: int = 60_000, **more: Any) -> Decision:
        return self.check(1, seat=SeatAsk(lease, holder or lease, ttl_ms), **more)

    def commit(self, name: str, quantity: int | None = None) -> Any:
        return self.store.commit(0, name, quantity)

    def renew(self, lease: str, ttl_ms: int = 60_000) -> Any:
        return self.store.renew(0, lease, ttl_ms, 1, self.epoch)

    def leave(self, lease: str, *, unbind: bool = False) -> Any:
        return self.store.release_lease(0, lease, unbind=unbind)

    def shown(self, level: int = 0) -> dict[str, tuple[int, int, int]]:
        """Used, held and remaining of each limit by its id in the catalog."""
        program = self.program(level)
        (answer,) = self.store.decide([Ask(program, 1, Mode.PEEK, b"{}")])
        assert isinstance(answer, Decision), answer
        found: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for entry in answer.entries:
            total = found[program.labels[entry.code & ~0xF].id]
            for place, value in enumerate((entry.used, entry.held, entry.remaining)):
                total[place] += value
        return {name: (used, held, left) for name, (used, held, left) in found.items()}

    def drawn(self, answer: Decision, level: int = 0) -> dict[str, int]:
        """What each limit gave, those that gave nothing left out."""
        labels = self.program(level).labels
        found: dict[str, int] = defaultdict(int)
        for entry in answer.entries:
            if entry.drawn:
                found[labels[entry.code & ~0xF].id] += entry.drawn
        return dict(found)

    def records(self) -> list[Effects]:
        """Without the generation's own."""
        return [record.effects for record in self.store.records(0)[1:]]
