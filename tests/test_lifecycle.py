"""The lifetime diagram of docs/architecture.md is that of a running service."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from proxy.imaging.recipes import Outcome
from proxy.imaging.workers.batch import Job
from proxy.imaging.workers.client import ImageWorker
from proxy.service import Service
from tests.fakes.world import World

ROOT = Path(__file__).parent.parent

NURSERIES = ("exporting", "following", "sharing", "writing", "nursery")
"""Those of ``open_service``, from the outermost in, under the names that it gives them."""


def drawn() -> set[tuple[str, ...]]:
    """Every name of the diagram, with the names above it."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    section = text.partition("\n## Who owns which task\n")[2].partition("\n## ")[0]
    found: set[tuple[str, ...]] = set()
    above: list[str] = []
    for indent, name in re.findall(r"^ {4}([│├└─ ]*)(\w+) ", section, re.MULTILINE):
        above[len(indent) // 4 :] = [name]
        found.add(tuple(above))
    return found


def running() -> Iterator[tuple[str, ...]]:
    """Every nursery and task of the service that this task has opened, as ``drawn`` gives them."""
    nurseries = trio.lowlevel.current_task().child_nurseries[-len(NURSERIES) :]
    above: tuple[str, ...] = ()
    for name, nursery in zip(NURSERIES, nurseries, strict=True):
        above = (*above, name)
        yield above
        for task in nursery.child_tasks:
            yield from below(task, above)


def below(task: trio.lowlevel.Task, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """A task and those that it owns."""
    above = (*above, task.name)
    yield above
    if above[-2] == "chores" or above[-1] == "policy_gateway":  # drawn as one
        return
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from below(child, above)


def everything(world: World) -> dict[str, dict[str, object]]:
    """A configuration with which every task runs."""
    return {
        "server": {"base_url": "https://img.test"},
        "process": {"isolation": "sandbox", "threads": 1},
        "cache": {"path": world.cache_path, "revalidate_days": 7},
        "store": {"url": (world.cache_path.parent / "store").as_uri()},
        "policy": {"url": "http://policy.test", "fail_open": True},
        "cdn": {"kind": "bunny", "zone": "1", "token": "secret"},
        "labels": {"subscribe": ["did:plc:" + "a" * 24]},
        "trace": {"endpoint": "http://127.0.0.1:9/v1/traces"},
    }


async def test_the_tree_of_tasks_is_the_one_that_the_document_draws(
    world: World, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a task that nobody drew, one in another nursery, and one that is gone."""
    did, cid = world.add_blob()
    rendering, answered, release = trio.Event(), trio.Event(), trio.Event()
    run = ImageWorker.run

    async def run_when_released(
        worker: ImageWorker, job: Job, tell: Callable[[Outcome], object]
    ) -> Outcome:
        rendering.set()
        await release.wait()
        return await run(worker, job, tell)

    monkeypatch.setattr(ImageWorker, "run", run_when_released)

    async def ask(service: Service) -> None:
        await service.get_image("avatar", did, cid)
        answered.set()

    async with world.service(world.config(**everything(world))) as service:
        nursery.start_soon(ask, service)
        await rendering.wait()
        try:
            found = set(running())
        finally:
            release.set()
        await answered.wait()
    assert sorted(found) == sorted(drawn())


class CancelAtSpawn(trio.abc.Instrument):
    """Cancels a scope when a task of a name is spawned.

    Attributes:
        names: of all tasks that were spawned.
    """

    def __init__(self, scope: trio.CancelScope, name: str = "") -> None:
        self._scope = scope
        self._name = name
        self.names: set[str] = set()

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.names.add(task.name)
        if task.name == self._name:
            self._scope.cancel()


async def test_a_start_that_is_cancelled_ends_whichever_task_has_just_begun(world: World) -> None:
    """Catches a task that is shielded before it has started: the stop would wait for ever."""
    config = world.config(process={"isolation": "thread"})

    async def start(name: str = "") -> set[str]:
        with trio.CancelScope() as scope:
            watch = CancelAtSpawn(scope, name)
            trio.lowlevel.add_instrument(watch)
            try:
                async with world.service(config):
                    pass
            finally:
                trio.lowlevel.remove_instrument(watch)
        return watch.names

    names = await start()
    assert "blocks_follower" in names
    for name in sorted(names):
        await start(name)
