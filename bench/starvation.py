"""How much a PDS that hangs slows down misses to one that does not.

Open loop on a service in this process: requests come when they are due, whether or not the ones
before were answered, as those of strangers do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from bench.client import percentile
from bench.pictures import Size, cid_of
from bench.processes import BenchError, counts, upstream
from bench.upstream import LOOPBACK, Manifest, account
from proxy.config import Config
from proxy.egress.guard import GuardedNetwork
from proxy.errors import ImageProxyError
from proxy.lifecycle import open_service
from proxy.service import Service

PRESET = "avatar_small"
HEALTHY_HOST = "healthy.example"
HANGING_HOST = "hanging.example"

PER_HEALTHY = 9
"""Requests to the hanging PDS for each one to the healthy PDS: 90 % of all."""

MAX_SECONDS = 120.0
"""For one phase, the burden before it included."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: each with and without the hanging PDS.
        requests: to the healthy PDS, in each of the two.
        rate: of those a second.
        accounts: at each PDS.
        latency: of the healthy PDS and of the directory, seconds an answer.
        size: of the source pictures.
    """

    rounds: int
    requests: int
    rate: float
    accounts: int
    latency: float
    size: Size


@dataclass(slots=True)
class Phase:
    """Requests to the healthy PDS, and what became of those to the other one.

    Attributes:
        latencies: seconds from when a request was due, so that one sent late counts as slow.
        failed: requests to the healthy PDS, by reason.
        hanging: requests to the other one that ended, by how.
    """

    latencies: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    hanging: Counter[str] = field(default_factory=Counter)

    @property
    def p50(self) -> float:
        """Seconds."""
        return percentile(self.latencies, 0.5)

    @property
    def p99(self) -> float:
        """Seconds."""
        return percentile(self.latencies, 0.99)


class Starvation:
    """The load, and the two phases of a round."""

    def __init__(self, plan: Plan, service: Service, manifest: Manifest) -> None:
        self._plan = plan
        self._service = service
        self._upstream = manifest.port
        self._cids = iter(manifest.cids)
        self._asked_in_vain = 0

    async def alone(self) -> Phase:
        """Requests to the healthy PDS only."""
        phase = Phase()
        with trio.fail_after(MAX_SECONDS):
            await self._ask_healthy_pds(phase)
        return phase

    async def beside_hanging(self) -> Phase:
        """The same while nine of ten requests go to the hanging PDS.

        Raises:
            BenchError: nothing reached the hanging PDS.
            trio.TooSlowError: it never became a burden, or the healthy PDS was starved.
        """
        phase = Phase()
        burden = trio.Event()
        with trio.fail_after(MAX_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ask_hanging_pds, phase, burden)
                # A refusal says that all that the service has for one host is taken.
                await burden.wait()
                await self._ask_healthy_pds(phase)
                nursery.cancel_scope.cancel()
        if (await counts(self._upstream)).hanging == 0:
            raise BenchError("nothing reached the hanging PDS")
        return phase

    async def _ask_healthy_pds(self, phase: Phase) -> None:
        async with trio.open_nursery() as nursery:
            start = trio.current_time()
            for number in range(self._plan.requests):
                due = start + number / self._plan.rate
                await trio.sleep_until(due)
                did = account(number % self._plan.accounts)
                nursery.start_soon(self._measure, phase, did, next(self._cids), due)

    async def _ask_hanging_pds(self, phase: Phase, burden: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            due = trio.current_time()
            while True:
                await trio.sleep_until(due)
                due += 1 / (self._plan.rate * PER_HEALTHY)
                self._asked_in_vain += 1
                did = account(self._asked_in_vain % self._plan.accounts, hanging=True)
                # The blob exists nowhere, and is another each time: none waits for another's fetch.
                cid = cid_of(str(self._asked_in_vain).encode())
                nursery.start_soon(self._ask_in_vain, phase, did, cid, burden)

    async def _measure(self, phase: Phase, did: str, cid: str, due: float) -> None:
        try:
            image = await self._service.get_image(PRESET, did, cid)
        except ImageProxyError as error:
            phase.failed[f"{type(error).__name__}: {error}"] += 1
            return
        if image.cache != "miss":
            phase.failed[f"{image.cache} instead of miss"] += 1
            return
        phase.latencies.append(trio.current_time() - due)

    async def _ask_in_vain(self, phase: Phase, did: str, cid: str, burden: trio.Event) -> None:
        try:
            await self._service.get_image(PRESET, did, cid)
        except ImageProxyError as error:
            phase.hanging[type(error).__name__] += 1
            burden.set()


@asynccontextmanager
async def starvation(plan: Plan, folder: Path) -> AsyncIterator[Starvation]:
    """An upstream and a service, warm, for the time of the block."""
    async with upstream(
        folder,
        # As many again to warm up with.
        blobs=(2 * plan.rounds + 1) * plan.requests,
        size=plan.size,
        latency=plan.latency,
        host=HEALTHY_HOST,
        hanging_host=HANGING_HOST,
    ) as manifest:
        config = configuration(manifest.port, folder)
        networks = (network_of_names(), network_of_names())
        async with open_service(config, networks=networks) as service:
            found = Starvation(plan, service, manifest)
            await found.alone()  # threads, imports and the accounts' documents
            yield found


def configuration(directory_port: int, folder: Path) -> Config:
    """The default one, but for what a loopback upstream needs."""
    return Config.model_validate(
        {
            "identity": {"plc_url": f"http://{LOOPBACK}:{directory_port}"},
            "fetch": {"allow_http": True, "allow_private_hosts": True},
            "cache": {"path": folder / "cache"},
        }
    )


def network_of_names() -> GuardedNetwork:
    """A network in which every name is this machine."""

    async def lookup(_host: str, _port: int) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return [LOOPBACK]

    return GuardedNetwork(allow_private_hosts=True, lookup=lookup)
