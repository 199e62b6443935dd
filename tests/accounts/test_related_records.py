"""What is shown beside a record or a profile: what it quotes, its gallery, other apps' profiles."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from proxy.accounts import related_records as module
from proxy.accounts.profiles import Profiles
from proxy.accounts.record_contents import Picture
from proxy.accounts.related_records import GALLERY_ITEM, PHOTO, Related, RelatedRecords
from proxy.model.identifiers import Cid, Did
from proxy.model.references import GALLERY, Reference, parse_reference
from proxy.model.selection import Selection
from tests.accounts.test_records import reading
from tests.fakes import faults
from tests.fakes.sites import DESCRIBE_REPO, LIST_RECORDS, FakePds, cid_of
from tests.fakes.world import World

FIRST, SECOND, THIRD = (cid_of(data) for data in (b"1", b"2", b"3"))
POST = "app.bsky.feed.post"
PROFILE = "app.bsky.actor.profile"
TANGLED = "sh.tangled.actor.profile"


def blob(cid: str, mime: str = "image/png") -> dict[str, Any]:
    return {"$type": "blob", "ref": {"$link": cid}, "mimeType": mime, "size": 1}


def gallery(world: World, did: Did, *cids: Cid, key: str = "3k") -> str:
    """A gallery of Grain, whose items were added in the reverse order."""
    uri = world.pds.add_record(did, f"{GALLERY}/{key}", {"$type": GALLERY, "title": "Hills"})
    for position, cid in enumerate(cids):
        name = f"{key}{9 - position}"
        value = {"$type": PHOTO, "photo": blob(cid), "alt": f"no. {position}"}
        photo = world.pds.add_record(did, f"{PHOTO}/{name}", value)
        item = {"$type": GALLERY_ITEM, "gallery": uri, "item": photo, "position": position}
        world.pds.add_record(did, f"{GALLERY_ITEM}/{name}", item)
    return uri


async def test_a_gallery_has_its_photos_in_its_order_and_no_others(world: World) -> None:
    """Catches the newest photo first, and photos of another gallery of the account."""
    did = world.make_account()
    uri = gallery(world, did, FIRST, SECOND)
    gallery(world, did, THIRD, key="3z")
    async with reading(world) as records:
        found = await RelatedRecords(records).of_gallery(did, "3k")
    pictures = [Picture(FIRST, "photo", "no. 0"), Picture(SECOND, "photo", "no. 1")]
    assert found == Related(uri, did, pictures)


async def test_a_cursor_that_comes_again_ends_a_collection(world: World) -> None:
    """Catches a PDS that repeats itself and is asked for ever."""
    did = world.make_account()
    body = b'{"records":[{"uri":"at://x","value":{}}],"cursor":"more"}'
    world.pds.fault = faults.answers(200, body)
    async with reading(world) as records:
        assert (await RelatedRecords(records).of_gallery(did, "3k")).pictures == []
    assert world.pds.requests_by_path[LIST_RECORDS] == 2


async def test_a_collection_without_an_end_is_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a PDS whose pages never end."""
    monkeypatch.setattr(module, "MAX_PAGES", 3)
    did = world.make_account()
    for number in range(400):
        world.pds.add_record(did, f"{GALLERY_ITEM}/{number:04}", {"gallery": "another"})
    async with reading(world) as records:
        found = await RelatedRecords(records).of_gallery(did, "3k")
    assert (found.pictures, found.problem) == ([], "")
    assert world.pds.requests_by_path[LIST_RECORDS] == 3


async def test_what_a_gallery_selects_is_its_photos_and_what_a_quote_selects_is_not_the_quoted(
    world: World,
) -> None:
    """Catches a block of a gallery that leaves its photos, and one that blocks somebody else."""
    did, other = world.make_account(), world.make_account()
    uri = gallery(world, did, FIRST, SECOND)
    quoted = world.pds.add_record(other, f"{POST}/1", {"embed": {"image": blob(THIRD)}})
    embed = {"$type": "app.bsky.embed.record", "record": {"uri": quoted}}
    record = {"embed": [embed, {"video": blob(FIRST, "video/mp4")}]}
    quoting = world.pds.add_record(did, f"{POST}/2", record)
    nobody: Any = None  # a DID has no handle looked up
    async with reading(world) as records, trio.open_nursery() as nursery:
        profiles = Profiles(world.config(), nobody, records, nursery)
        selections = await profiles.selected_by(parse_reference(uri))
        assert selections == [Selection(did, FIRST), Selection(did, SECOND)]
        assert await profiles.selected_by(parse_reference(quoting)) == [Selection(did, FIRST)]
        found = await profiles.look_up(quoting)
        assert [each.cid for each in found.of_owner] == [FIRST]
        assert [each.did for each in found.shown] == [did, other]


async def test_quoted_posts_show_their_pictures_as_their_owners(world: World) -> None:
    """Catches a quoted picture that is asked of the account that quotes it."""
    did, other = world.make_account(), world.make_account()
    uri = world.pds.add_record(did, f"{POST}/1", {"embed": {"image": blob(FIRST)}})
    film = blob(SECOND, "video/mp4")
    second = world.pds.add_record(other, f"{POST}/2", {"embed": {"video": film}})
    async with reading(world) as records:
        related = RelatedRecords(records)
        found = await related.embedded([Reference(did, (POST, "1")), Reference(other, (POST, "2"))])
    assert found == [
        Related(uri, did, [Picture(FIRST, "image")]),
        Related(second, other, [Picture(SECOND, "video", medium="video")]),
    ]


async def test_what_is_gone_or_silent_says_so_and_holds_up_nothing_else(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a deleted quote that hides the post, and a dead PDS that is waited for."""
    did = world.make_account()
    uri = world.pds.add_record(did, f"{POST}/1", {"embed": {"image": blob(FIRST)}})
    silent = FakePds("silent.example")
    silent.fault = faults.hang
    world.network.add(silent)
    dead = world.make_account()
    world.move_account(dead, silent)
    quoted = [
        Reference(did, (POST, "1")),
        Reference(did, (POST, "2")),
        Reference(dead, (POST, "3")),
    ]
    began = trio.current_time()
    async with reading(world) as records:
        found = await RelatedRecords(records).embedded(quoted)
        assert trio.current_time() - began == pytest.approx(module.PATIENCE, abs=0.1)
    assert [each.problem for each in found] == ["", "no such record", "request timed out"]
    assert found[0] == Related(uri, did, [Picture(FIRST, "image")])


async def test_an_account_shows_the_pictures_of_other_apps_that_it_has(world: World) -> None:
    """Catches questions for collections that are not there, and a profile read twice."""
    did = world.make_account()
    world.pds.add_record(did, f"{PROFILE}/self", {"avatar": blob(FIRST)})
    world.pds.add_record(did, f"{TANGLED}/self", {"avatar": blob(SECOND)})
    for number in range(9):
        cid = cid_of(b"photo %d" % number)
        world.pds.add_record(did, f"{PHOTO}/{number}", {"photo": blob(cid)})
    async with reading(world) as records:
        found = await RelatedRecords(records).of_account(did, without=[PROFILE])
        assert world.pds.requests_by_path[LIST_RECORDS] == 2
        assert (
            await RelatedRecords(records).of_account(did, without=[PROFILE, TANGLED, PHOTO]) == []
        )
    tangled, photos = found
    assert tangled == Related(f"at://{did}/{TANGLED}", did, [Picture(SECOND, "avatar")])
    newest = [cid_of(b"photo %d" % number) for number in (8, 7, 6, 5, 4, 3)]
    assert [each.cid for each in photos.pictures] == newest


async def test_a_slow_pds_takes_no_more_than_one_patience(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a time limit for each question, which add up to more than a page waits."""
    did = world.make_account()
    world.pds.add_record(did, f"{TANGLED}/self", {"avatar": blob(FIRST)})
    async with reading(world) as records:
        began = trio.current_time()

        async def slowly(did: Did) -> frozenset[str]:
            await trio.sleep(module.PATIENCE - 1)
            world.pds.fault = faults.hang
            return frozenset({TANGLED})

        records.collections = slowly  # type: ignore[method-assign]
        (found,) = await RelatedRecords(records).of_account(did, without=[])
        assert trio.current_time() - began == pytest.approx(module.PATIENCE, abs=0.1)
    assert (found.pictures, found.problem) == ([], "request timed out")


@pytest.mark.parametrize(
    "answer",
    [
        faults.answers(404),
        faults.answers(501, b"{}"),
        faults.answers(200, b"{}"),
        faults.answers(200, b'{"collections":{}}'),
        faults.answers(200, b'{"collections":[7,[]]}'),
        faults.hang,
    ],
)
async def test_a_pds_need_not_list_its_collections(
    world: World, answer: Any, autojump_clock: trio.testing.MockClock
) -> None:
    """Catches a profile that is not shown for what is beside it."""
    did = world.make_account()
    world.pds.fault = answer
    async with reading(world) as records:
        assert await RelatedRecords(records).of_account(did, without=[]) == []
    assert world.pds.requests_by_path[DESCRIBE_REPO] >= 1
