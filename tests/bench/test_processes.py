"""What the benches read of the processes that they measure."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from bench.processes import cpu_seconds

PARENT = """
import os, time
worker = os.fork()
if worker == 0:
    while time.process_time() < 0.3:
        pass
    print("busy", flush=True)
    time.sleep(600)
input()
os.kill(worker, 9)
os.waitpid(worker, 0)
print("ended", flush=True)
input()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_the_time_of_a_worker_that_has_ended_still_counts() -> None:
    """Catches CPU time that becomes less, and a miss that costs less than nothing."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stdout.readline() == "busy\n"
        during = cpu_seconds(parent.pid)
        print(file=parent.stdin, flush=True)
        assert parent.stdout.readline() == "ended\n"
        after = cpu_seconds(parent.pid)
        print(file=parent.stdin, flush=True)
    assert 0.25 < during <= after


def test_a_process_that_is_gone_has_no_time() -> None:
    """Catches a server that died counted as one that cost nothing."""
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    assert math.isnan(cpu_seconds(gone.pid))
