"""What a decision costs: as much as it forgets, however much a stranger had the service keep."""

from __future__ import annotations

from typing import cast

import pytest

from proxy.errors import BlobNotFound
from proxy.model.identifiers import Cid, Did
from proxy.model.keys import BlobKey, ImageKey
from proxy.model.selection import Selection
from proxy.service import Service, _Making
from proxy.shared.single_flight import Flight
from tests.cache import entry
from tests.fakes.parts import FakeCache, FakeFetcher, FakeProcessor, FakeResolver
from tests.fakes.world import World
from tests.shared.test_expiring_map import Counted


def fill(service: Service, keys: list[ImageKey]) -> None:
    """Have each part of the service keep something of every key."""
    for each in keys:
        service._fetch_failures.failed(each.blob, BlobNotFound(), 0)
        service._image_failures.failed(each.blob, BlobNotFound(), 0)
        service._memory.put(each, entry(), 0)
        service._writer.offer(each, entry())
        making = _Making(each.blob)
        service._under_way.add(making)
        service._under_way_by_tag.add(making)
        service._images._flights[each] = Flight()
        service._images._by_tag.add(each)
        service._blobs._flights[each.blob] = Flight()
        service._blobs._by_tag.add(each.blob)


@pytest.mark.parametrize("kept", [50, 2000])
async def test_forgetting_one_owner_looks_at_nothing_of_the_others(world: World, kept: int) -> None:
    """Catches a scan in any part: 78 ms a decision with 100,000 failures in each of two caches."""
    keys = [
        ImageKey(
            "avatar",
            BlobKey(cast("Did", Counted(f"did:{number}")), cast("Cid", Counted(f"cid:{number}"))),
            None,
            "0",
        )
        for number in range(kept)
    ]
    cache = FakeCache()
    cache.put_gate.close()
    config = world.config(cache={"write_queue": kept, "memory_mb": 64})
    async with world.service(
        config,
        cache=cache,
        resolver=FakeResolver(),
        fetcher=FakeFetcher(),
        processor=FakeProcessor(),
    ) as service:
        fill(service, keys)
        Counted.looks = 0
        service.forget(Selection(did=keys[7].blob.did))
        assert Counted.looks < 100
        gone = [each for each in keys if service._writer.pending(each) is None]
        assert gone == [keys[7]]
        assert [each for each in keys if service._memory.get(each, 0) is None] == gone
        assert [each.blob for each in service._under_way if each.is_forgotten] == [gone[0].blob]
        assert len(service._images) == len(service._blobs) == kept - 1
        assert len(service._fetch_failures) == len(service._image_failures) == kept - 1
        cache.put_gate.open()
