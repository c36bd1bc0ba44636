"""A process on grpcio ends, whatever gRPC's own threads do."""

from __future__ import annotations

import subprocess
import sys

STAYS = """
import threading
from enforcer.transport.grpcio import end_for_sure
threading.Thread(target=threading.Event().wait).start()
end_for_sure(0.1)
"""


def test_a_process_ends_although_a_thread_of_it_does_not() -> None:
    done = subprocess.run([sys.executable, "-c", STAYS], timeout=60, check=False)
    assert done.returncode == 0
