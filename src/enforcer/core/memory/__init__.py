"""The counter store in memory: the executable specification of the Redis scripts.

What a script does in one atomic step, a method of `MemoryCounters` does here; a property test drives both with the same
commands on one clock and finds replies, counters, leases and records equal. Modules are named like the scripts that they
specify.
"""

from enforcer.core.memory.bucket import REAPED_AT_ONCE, Record
from enforcer.core.memory.repair import counted
from enforcer.core.memory.store import MemoryCounters

__all__ = ["REAPED_AT_ONCE", "MemoryCounters", "Record", "counted"]
