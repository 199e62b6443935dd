"""What honest clients notice while a stranger attacks: hits and misses beside quiet ones.

Each attack is one process, which sends at most 10 Mbit/s, against a server of its own with the
default configuration. Prints the table, and exits with 1 where a goal is missed, or where an
answer was given that no attacker may get. ``--quick`` judges times only where they are gross.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import trio
from rich.console import Console
from rich.progress import TaskID

from bench import report
from bench.hostile.attacker import OPEN_FILES, Report
from bench.hostile.attacks import ADMIN_TOKEN, ALL, BY_NAME, ESCAPE, Attack
from bench.hostile.ground import UPLINK, Target
from bench.hostile.honest import ACCOUNTS, Honest, Load, Rates
from bench.images import PRESET
from bench.pictures import Size
from bench.processes import (
    GRACE_SECONDS,
    ROOT,
    BenchError,
    Server,
    allow_open_files,
    proxy,
    resident_bytes,
    run,
    running,
    upstream,
)
from bench.upstream import LOOPBACK, Manifest
from proxy.config import Config
from proxy.shared.machine import cpus_of_this_process
from proxy.tools.doctor.memory_ceiling import ceiling

RATIO = 3.0
P99 = 0.05
"""Seconds. The p99 of hits is to be below it, and within ``RATIO`` of what it is without an
attack."""

ANSWERED = 0.9
"""The share of honest misses to be answered."""

GROSS = 2.0
"""Seconds; a p99 above it, and above twenty times the quiet one, is no noise of the machine."""

GROSS_RATIO = 20.0

GROSSLY_ANSWERED = 0.5

MOST_MEMORY = 8 << 30
"""Bytes; an attack ends when the server has more."""

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        quiet: seconds without an attack.
        lead: seconds of an attack before it is watched.
        seconds: of an attack that are watched.
        size: of the honest pictures.
        is_quick: judge only what no noise of the machine explains.
    """

    quiet: float = 5.0
    lead: float = 2.0
    seconds: float = 15.0
    rates: Rates = field(default_factory=Rates)
    size: Size = field(default_factory=lambda: Size(640, 480))
    is_quick: bool = False

    @property
    def blobs(self) -> int:
        """Honest pictures that an attack takes."""
        return ACCOUNTS + int((self.quiet + self.seconds) * self.rates.misses) + 1


FULL = Plan()
QUICK = Plan(quiet=1.0, lead=1.0, seconds=3.0, rates=Rates(patience=6.0), is_quick=True)


@dataclass(slots=True)
class Row:
    """What one attack did.

    Attributes:
        peak: bytes of resident memory of the server and its workers.
        log: of the server.
    """

    attack: Attack
    quiet: Load
    attacked: Load
    report: Report
    peak: int
    log: str

    def missed(self, plan: Plan) -> list[str]:
        """The goals that do not hold."""
        found = [f"{what} ({count} times)" for what, count in self.report.wrong.items()]
        if self.attack.is_timed:
            found += self._missed_by_clients(plan)
        if self.peak > (most := ceiling(Config(), cpus_of_this_process())):
            found.append(f"over the ceiling of {most // MIB} MiB")
        if "Traceback" in self.log:
            found.append("a traceback in the log")
        if ESCAPE in self.log:
            found.append("an escape sequence in the log")
        return found

    def _missed_by_clients(self, plan: Plan) -> list[str]:
        found = []
        hits, misses, quiet = self.attacked.hits, self.attacked.misses, self.quiet.hits.p99
        limit = max(GROSS, GROSS_RATIO * quiet) if plan.is_quick else min(P99, RATIO * quiet)
        if hits.p99 > limit:
            found.append(f"p99 of hits over {limit * 1000:.0f} ms")
        if hits.failed:
            found.append(f"hits failed: {dict(hits.failed)}")
        if misses.answered < (GROSSLY_ANSWERED if plan.is_quick else ANSWERED):
            found.append(f"misses failed: {dict(misses.failed)}")
        return found


async def _measure(plan: Plan, attacks: list[Attack], checkout: Path) -> list[Row]:
    rows = []
    with report.progress(len(attacks)) as bar, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with upstream(folder, blobs=plan.blobs, size=plan.size, latency=0.02) as manifest:
            for attack in attacks:
                bar.update(TaskID(0), description=attack.name)
                rows.append(await _attack(plan, attack, folder, manifest, checkout))
                bar.advance(TaskID(0))
    return rows


async def _attack(
    plan: Plan, attack: Attack, folder: Path, manifest: Manifest, checkout: Path
) -> Row:
    async with AsyncExitStack() as stack:
        attacker = await stack.enter_async_context(_attacker(attack.name, folder, manifest.port))
        port = await attacker.port()
        # No question of an attack leaves this machine.
        own = {"IMAGE_PROXY_IDENTITY__NAMESERVERS": f"{LOOPBACK}:{port}", **attack.environment}
        server = await stack.enter_async_context(proxy(folder, attack.name, port, checkout, **own))
        await server.ready()
        honest = Honest(server.port, manifest.cids, plan.rates)
        if failed := await honest.warm():
            raise BenchError(f"warming failed: {dict(failed)}")
        peak = _Peak()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, server, peak, attacker.end)
            quiet = await honest.ask(plan.quiet)
            token = attack.environment.get(ADMIN_TOKEN, "")
            await attacker.begin(Target(server.port, honest.hot[0], token, plan.seconds))
            await trio.sleep(plan.lead)
            attacked = await honest.ask(plan.seconds)
            nursery.cancel_scope.cancel()
        honest.close()
        done = await attacker.report()
    log = server.log.read_text(errors="replace")
    return Row(attack, quiet, attacked, done, peak.bytes, log)


class _Peak:
    bytes = 0


async def _watch(server: Server, peak: _Peak, stop: Callable[[], None]) -> None:
    """Note the most memory, and end the attack before the machine has none left."""
    while True:
        peak.bytes = max(peak.bytes, resident_bytes(server.process.pid))
        if peak.bytes > MOST_MEMORY:
            stop()
        await trio.sleep(0.05)


class _Attacker:
    """A ``bench.hostile.attacker`` that runs."""

    def __init__(self, process: trio.Process, log: Path) -> None:
        self._process = process
        self._log = log
        self._received = bytearray()

    async def port(self) -> int:
        """Of its directory and name server."""
        return int(await self._line())

    async def begin(self, target: Target) -> None:
        """Let it attack."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps(asdict(target)).encode() + b"\n")

    def end(self) -> None:
        """End the attack."""
        assert isinstance(self._process.stdin, trio.lowlevel.FdStream)
        self._process.stdin.close()

    async def report(self) -> Report:
        """End the attack, and say what it did."""
        self.end()
        return Report.parse(await self._line())

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        with trio.move_on_after(GRACE_SECONDS):
            while b"\n" not in self._received:
                received = await self._process.stdout.receive_some()
                if not received:
                    break
                self._received += received
            line, newline, self._received = self._received.partition(b"\n")
            if newline:
                return bytes(line)
        raise BenchError(f"the attacker says nothing\n{self._log.read_text()[-2000:]}")


@asynccontextmanager
async def _attacker(name: str, folder: Path, honest_port: int) -> AsyncIterator[_Attacker]:
    log = folder / f"{name}-attacker.log"
    arguments = (name, "--honest-port", str(honest_port))
    async with running(
        "bench.hostile.attacker", *arguments, log=log, stdout=subprocess.PIPE
    ) as process:
        yield _Attacker(process, log)


def _settings(plan: Plan, checkout: Path) -> dict[str, object]:
    rates = plan.rates
    return {
        "honest": f"open loop: {rates.hits:g} hits and {rates.misses:g} misses a second, each miss "
        f"another JPEG of {plan.size} of {ACCOUNTS} resolved accounts, preset {PRESET}",
        "phases": f"{plan.quiet:g} s quiet, {plan.lead:g} s of attack, and then {plan.seconds:g} s "
        f"that are watched; a request is given up after {rates.patience:g} s",
        "attacker": f"{UPLINK * 8 / 1e6:g} Mbit/s for all its clients and PDSes; large blobs of "
        "others are not counted",
        "server": "default configuration, a new one for each attack"
        + ("" if checkout == ROOT else f"; of {checkout}"),
        "goal": f"p99 of hits under {GROSS:g} s, or {GROSS_RATIO:g} times that of quiet; misses "
        f"answered: {GROSSLY_ANSWERED:.0%} (beyond that is no noise of the machine)"
        if plan.is_quick
        else f"p99 of hits within {RATIO:g} of quiet and under {P99 * 1000:g} ms; misses "
        f"answered: {ANSWERED:.0%}",
    }


def _print(console: Console, plan: Plan, rows: list[Row], checkout: Path) -> None:
    report.print_settings(console, _settings(plan, checkout))
    columns = (
        "",
        "quiet ms",
        "attacked ms",
        "misses",
        "miss p50 ms",
        "peak MiB",
        "sent MB",
        "goal",
    )
    table = report.table("Hits, p50 / p99; misses answered, and their p50; memory", columns)
    for row in rows:
        quiet, hits, misses = row.quiet.hits, row.attacked.hits, row.attacked.misses
        table.add_row(
            row.attack.name,
            f"{quiet.p50 * 1000:.1f} / {quiet.p99 * 1000:.1f}",
            f"{hits.p50 * 1000:.1f} / {hits.p99 * 1000:.1f}",
            f"{misses.answered:.0%}",
            f"{misses.p50 * 1000:.0f}",
            f"{row.peak / MIB:.0f}",
            f"{row.report.sent / 1e6:.1f}",
            "missed" if row.missed(plan) else "holds",
        )
    console.print(table)
    for row in rows:
        console.print(f"{row.attack.name}: {row.attack.what}; answers {row.report.asked}")


def _arguments() -> tuple[Plan, list[Attack], Path]:
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__)
    names = ", ".join(BY_NAME)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default all: {names}")
    parser.add_argument("--quick", action="store_true", help="a small version, for CI")
    parser.add_argument("--seconds", type=float, help="of each attack that are watched")
    parser.add_argument(
        "--of", type=Path, default=ROOT, metavar="FOLDER", help="attack another checkout's server"
    )
    given = parser.parse_args()
    for name in given.names:
        if name not in BY_NAME:
            parser.error(f"no attack {name}; there are {names}")
    plan = QUICK if given.quick else FULL
    attacks = [BY_NAME[name] for name in given.names] or list(ALL)
    return replace(plan, seconds=given.seconds or plan.seconds), attacks, given.of.resolve()


async def _main() -> int:
    plan, attacks, checkout = _arguments()
    allow_open_files(OPEN_FILES)
    rows = await _measure(plan, attacks, checkout)
    console = report.output()
    _print(console, plan, rows, checkout)
    missed = [(row.attack.name, each) for row in rows for each in row.missed(plan)]
    for name, each in missed:
        console.print(f"FAILED {name}: {each}", style="red", markup=False)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(run(_main))
