"""Worker processes of one server answer for all of them, also while some come and go."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from proxy.egress.known_hosts import HostPace, KnownHosts
from proxy.observability.metrics import Metrics
from proxy.observability.metrics_snapshot import merge, render
from proxy.observability.process_snapshot import ProcessSnapshot
from proxy.observability.state import state_of
from proxy.serving.multiprocess.peers import PATIENCE, WorkerPeers
from tests.fakes.world import tiny_jpeg
from tests.processes import SERVE, serve, upstream

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-the-operator"


def snapshot(pid: int, count: int) -> ProcessSnapshot:
    metrics = Metrics()
    metrics.coalesced.inc(count)
    host = HostPace(f"pds{pid}.example", "slow", float(count))
    return ProcessSnapshot(pid, metrics.snapshot(), KnownHosts((host,)))


async def coalesced(siblings: WorkerPeers) -> float:
    text = render(merge(each.metrics for each in await siblings.snapshots())).decode()
    (value,) = re.findall(r"^imageproxy_coalesced_total (\S+)$", text, re.MULTILINE)
    return float(value)


async def started(
    nursery: trio.Nursery, folder: Path, pid: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> WorkerPeers:
    """One of several processes; all of them are this one."""
    monkeypatch.setattr(os, "getpid", lambda: pid)
    siblings = WorkerPeers(folder, lambda: snapshot(pid, count))
    monkeypatch.undo()
    await nursery.start(siblings.run)
    return siblings


async def test_each_process_answers_for_all(
    tmp_path: Path,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    mock_clock: trio.testing.MockClock,
) -> None:
    """Catches one that counts itself twice, and one that forgets itself.

    The clock stands still: on a busy machine too, nobody is given up as silent.
    """
    counts = {1: 1, 2: 10, 3: 100}
    everybody = [
        await started(nursery, tmp_path, pid, count, monkeypatch) for pid, count in counts.items()
    ]
    for siblings in everybody:
        assert await coalesced(siblings) == 111
        state = state_of(await siblings.snapshots())
        assert [worker.pid for worker in state.workers] == [1, 2, 3]
        assert [pace.host for pace in state.hosts] == [
            "pds3.example",
            "pds2.example",
            "pds1.example",
        ]
    everybody[0].stop()
    await trio.testing.wait_all_tasks_blocked()
    assert await coalesced(everybody[1]) == 110
    assert sorted(os.listdir(tmp_path)) == ["2.sock", "3.sock"]


async def test_one_that_was_killed_costs_its_share_and_not_the_answer(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a scrape that fails as long as a socket lies around."""
    siblings = await started(nursery, tmp_path, 1, 1, monkeypatch)
    with trio.socket.socket(trio.socket.AF_UNIX) as dead:
        await dead.bind(str(tmp_path / "2.sock"))
    assert await coalesced(siblings) == 1


async def test_one_that_hangs_holds_an_answer_up_for_two_seconds_and_not_for_ever(
    tmp_path: Path,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    # The look into the folder is in a thread, for which this clock does not wait.
    monkeypatch.setattr(trio.to_thread, "run_sync", _here)
    siblings = await started(nursery, tmp_path, 1, 1, monkeypatch)
    with trio.socket.socket(trio.socket.AF_UNIX) as deaf:
        await deaf.bind(str(tmp_path / "2.sock"))
        deaf.listen()
        began = trio.current_time()
        assert await coalesced(siblings) == 1
        assert trio.current_time() - began == PATIENCE


async def _here(work: object, *arguments: object) -> object:
    assert callable(work)
    return work(*arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_each_of_two_workers_reports_the_requests_of_both(
    tmp_path: Path,
) -> None:
    """Catches ``/metrics`` of whichever worker took the connection: counters that jump."""
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        arguments = [*SERVE, "--workers", "2"]
        environment = internet.environment(tmp_path, SERVER__ADMIN_TOKEN=TOKEN)
        async with serve(arguments, environment, workers=2) as server:
            for _ in range(20):
                reply = await server.get(f"/img/avatar_thumbnail/plain/{did}/{cid}")
                assert reply.status == 200

            async def total() -> float:
                text = (await server.get("/metrics")).body.decode()
                return sum(
                    float(value)
                    for value in re.findall(r"^imageproxy_requests_total\S+ (\S+)$", text, re.M)
                )

            assert {await total() for _ in range(20)} == {20}
            reply = await server.get("/admin/state", ("Authorization", f"Bearer {TOKEN}"))
            state = json.loads(reply.body)
            assert {worker["pid"] for worker in state["workers"]} == server.workers
            assert sum(worker["requests"] for worker in state["workers"]) == 20
            assert state["memory_bytes"] > 2 * 10**7
            assert sum(state["requests"].values()) == 20
            folder = _folder_of(server.workers)
            assert folder.stat().st_mode & 0o777 == 0o700
            server.send(signal.SIGTERM)
            assert await server.exit_code() == 0
            assert not folder.exists()


def _folder_of(workers: set[int]) -> Path:
    """The folder of their sockets, by what Linux says of one's environment."""
    environment = Path(f"/proc/{min(workers)}/environ").read_bytes().split(b"\0")
    (folder,) = [
        each.partition(b"=")[2]
        for each in environment
        if each.startswith(b"IMAGEPROXY_WORKERS_FOLDER=")
    ]
    return Path(folder.decode())
