"""The name of the served files: whatever happens between two steps of who makes it, it is not there
while a process of the machine does not serve."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.coordination.cluster.lease import Lease, boot_clock
from proxy.coordination.cluster.served_name import ServedName
from proxy.coordination.liveness import Liveness


@dataclass
class Machine:
    """Two processes that serve, one that comes, and what the name leads through."""

    mine: ServedName
    other: ServedName
    third: ServedName


def the_other_withdraws(machine: Machine) -> None:
    machine.other.withdraw()


def a_third_enters(machine: Machine) -> None:
    machine.third.enter()


def the_other_leaves_and_a_third_enters(machine: Machine) -> None:
    machine.other.leave()
    machine.third.enter()


def machine_at(folder: Path) -> Machine:
    machine = Machine(*(ServedName(folder, "images") for _ in range(3)))
    for each in (machine.mine, machine.other):
        each.is_watched = True
        each.enter()
    machine.other.extend(boot_clock() + 100)
    return machine


@pytest.mark.parametrize(
    "second",
    [
        the_other_withdraws,
        a_third_enters,
        the_other_leaves_and_a_third_enters,
    ],
    ids=lambda each: each.__name__.replace("_", " "),
)
def test_nobody_makes_the_name_for_one_that_has_just_withdrawn(
    tmp_path: Path, second: Callable[[Machine], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a look at the others before the name is made, and none after it."""
    left = 0

    def stepping(work: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                second(machine)
            return work(*arguments)

        return step

    for name in ("note", "living", "noted"):
        monkeypatch.setattr(Liveness, name, stepping(getattr(Liveness, name)))
    monkeypatch.setattr(os, "symlink", stepping(os.symlink))
    for number in itertools.count(1):
        machine = machine_at(tmp_path / str(number))
        left = number
        machine.mine.extend(boot_clock() + 100)
        if left > 0:
            break
        assert not machine.mine.path.is_symlink(), number
    assert number > 6
    assert machine.mine.path.is_symlink()


def test_a_lease_that_has_been_ended_leaves_no_name_and_is_no_defect(tmp_path: Path) -> None:
    """Catches a time before the start of the machine, which no mark can have."""
    name = ServedName(tmp_path, "images")
    name.enter()
    name.is_watched = True
    lease = Lease(60)
    lease.granted(boot_clock())
    name.extend(lease.files_deadline)
    assert name.path.is_symlink()
    name.withdraw()
    lease.end()
    name.extend(lease.files_deadline)
    assert not name.path.is_symlink()
