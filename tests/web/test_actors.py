"""``/avatar``, ``/banner``, and what the page looks up."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from io import BytesIO
from string import ascii_lowercase, digits
from typing import Any

import pytest
import trio
import trio.testing
from PIL import Image

import proxy.web.responder
from proxy.accounts.profiles import Profiles
from proxy.config import Config
from proxy.imaging.drawn import draw
from proxy.model.identifiers import Cid, Did
from proxy.model.presets import DEFAULT_PRESETS
from proxy.model.selection import Selection
from tests.fakes import faults
from tests.fakes.dns import FakeDns, serving_dns
from tests.fakes.sites import GET_RECORD, cid_of, document, pds_service
from tests.fakes.world import World, tiny_png
from tests.logs import logged_by
from tests.web import PATIENCE, SECURITY, serving

PROFILE = "app.bsky.actor.profile"
OTHER = "social.example.actor.profile"
ALICE = "alice.community"
WITH_VARIANTS = DEFAULT_PRESETS["avatar"].model_dump() | {"variants": [72]}


def blob(cid: str) -> dict[str, Any]:
    return {"$type": "blob", "ref": {"$link": cid}, "mimeType": "image/png", "size": 1}


def told(did: str, cid: str, name: str, **more: str) -> dict[str, str]:
    """A picture as a look-up tells of it."""
    known = {"did": did, "cid": cid, "name": name, "alt": "", "medium": "image", "source": ""}
    return known | more


def profile(world: World, collection: str = PROFILE, **pictures: bytes) -> tuple[Did, list[Cid]]:
    """A new account with a profile of these pictures."""
    did = world.make_account()
    return did, set_profile(world, did, collection, **pictures)


def set_profile(world: World, did: Did, collection: str = PROFILE, **pictures: bytes) -> list[Cid]:
    cids = {name: world.pds.add_blob(did, data) for name, data in pictures.items()}
    record = {"$type": collection} | {name: blob(cid) for name, cid in cids.items()}
    world.pds.add_record(did, f"{collection}/self", record)
    return list(cids.values())


@pytest.fixture
async def dns() -> AsyncIterator[FakeDns]:
    async with serving_dns() as dns:
        yield dns


def named(world: World, dns: FakeDns, did: Did, handle: str = ALICE, **sections: Any) -> Config:
    """Give an account a handle; the configuration that resolves it."""
    dns.records[f"_atproto.{handle}"] = [f"did={did}"]
    world.plc.documents[did] = document(
        did, pds_service(world.pds.url), alsoKnownAs=[f"at://{handle}"]
    )
    return world.config(identity={"nameservers": [dns.address]}, **sections)


async def test_an_avatar_and_a_banner_lead_to_their_images(world: World) -> None:
    did, (avatar, banner) = profile(world, avatar=b"1", banner=b"2")
    async with serving(world) as client:
        reply = await client.get(f"/avatar/{did}")
        assert (reply.status, reply.body) == (302, b"")
        assert reply.headers["location"] == f"/img/avatar/plain/{did}/{avatar}"
        assert reply.headers["cache-control"] == "public, max-age=300"
        assert SECURITY.items() <= reply.headers.items()
        reply = await client.get(f"/banner/{did}")
        assert reply.headers["location"] == f"/img/banner/plain/{did}/{banner}"


async def test_a_handle_leads_where_its_did_does(world: World, dns: FakeDns) -> None:
    did, (avatar,) = profile(world, avatar=b"1")
    config = named(world, dns, did)
    async with serving(world, config) as client:
        for actor in (
            ALICE,
            f"@{ALICE}",
            ALICE.upper(),
            "did%3Aplc%3A" + did[8:],
            f"%E2%80%AA@{ALICE}%E2%80%AC",
        ):
            reply = await client.get(f"/avatar/{actor}")
            assert reply.headers["location"] == f"/img/avatar/plain/{did}/{avatar}", actor
    assert dns.asked == [f"_atproto.{ALICE}"]


@pytest.mark.parametrize("handle", ["alice.pds.home.arpa", "alice.test"])
async def test_an_account_of_a_listed_host_has_its_pictures_by_name(
    handle: str, world: World, dns: FakeDns
) -> None:
    """Catches a host of the operator's own whose handle is a 400, or unconfirmed by its document;
    and one that is open to others of its network."""
    did, (avatar,) = profile(world, avatar=b"1")
    for allowed, status in ([handle], 302), (["pds.home.arpa", "test"], 400):
        config = named(world, dns, did, handle, fetch={"allow_private_hosts": allowed})
        async with serving(world, config) as client:
            assert (await client.get(f"/avatar/{handle}")).status == status
            found = await client.get(f"/lookup?q=https://bsky.app/profile/{handle}")
            assert found.status == (200 if status == 302 else 400)
            assert (str(avatar) in found.text) == (status == 302)


@pytest.mark.parametrize("sign", ["", "@"])
async def test_a_redirect_goes_to_the_preset_and_format_that_are_asked_for(
    world: World, dns: FakeDns, sign: str
) -> None:
    """Catches a list of small faces that gets large ones, and a handle cut at its own sign."""
    did, (avatar, banner) = profile(world, avatar=b"1", banner=b"2")
    config = named(world, dns, did, presets={"avatar": WITH_VARIANTS})
    image = f"plain/{did}/{avatar}"
    async with serving(world, config) as client:
        for path, location in (
            (f"/avatar/{sign}{ALICE}@webp", f"/img/avatar/{image}@webp"),
            (f"/avatar/avatar_w72/{sign}{ALICE}", f"/img/avatar_w72/{image}"),
            (f"/avatar/avatar_w72/{sign}{ALICE}@avif", f"/img/avatar_w72/{image}@avif"),
            (f"/avatar/avatar/{did}@png", f"/img/avatar/{image}@png"),
            (f"/banner/avatar_w72/{sign}{ALICE}", f"/img/avatar_w72/plain/{did}/{banner}"),
        ):
            reply = await client.get(path)
            assert (reply.status, reply.headers.get("location")) == (302, location), path
            assert reply.headers["cache-control"] == "public, max-age=300"


async def test_of_a_wrong_url_the_first_part_that_is_wrong_is_said(world: World) -> None:
    """Catches questions to the network about what cannot be answered."""
    did, _ = profile(world, avatar=b"1")
    async with serving(world) as client:
        for path, said in (
            (f"nosuch/{did}", "invalid preset: nosuch"),
            ("nosuch/alice@gif", "invalid preset: nosuch"),
            (f"Avatar/{did}", "invalid preset: Avatar"),
            (f"{did}/avatar", f"invalid preset: {did}"),
            ("avatar/alice@gif", "invalid handle format"),
            ("avatar/@", "invalid handle format"),
            (f"@{did}", "invalid handle format"),
            (f"@@{ALICE}", "invalid handle format"),
            ("avatar/did:plc:short@gif", "invalid DID format"),
            (f"avatar/{did}@gif", "invalid format: gif"),
            (f"{did}@", "invalid format:"),
            (f"{did}@webp@webp", "invalid format: webp@webp"),
            (f"avatar/{did}/webp", "invalid request"),
            (f"{did}/", "invalid request: a trailing slash"),
            (f"avatar/{did}@webp/", "invalid request: a trailing slash"),
            (f"/{did}", "invalid preset:"),
        ):
            for kind in ("avatar", "banner"):
                reply = await client.get(f"/{kind}/{path}")
                assert reply.status == 400
                assert reply.text.partition(" (")[0].strip() == said, path
    assert world.pds.requests == []


async def test_requests_by_name_are_counted_by_what_came_of_them(world: World) -> None:
    """Catches avatars that fail unseen, and names of accounts in the metrics."""
    did, _ = profile(world, avatar=b"1")
    async with serving(world) as client:

        async def counts(kind: str) -> dict[str, float]:
            name = "imageproxy_actor_requests_total"
            return {
                outcome: await client.metric(f'{name}{{kind="{kind}",outcome="{outcome}"}}')
                for outcome in ("found", "absent", "invalid", "failed")
            }

        assert 'kind="banner",outcome="busy"} 0.0' in (await client.get("/metrics")).text
        for path in (did, f"avatar/{did}@webp", "nosuch/x", "did:web:nowhere.example"):
            await client.get(f"/avatar/{path}")
        await client.get(f"/banner/{did}")
        assert await counts("avatar") == {"found": 2, "absent": 0, "invalid": 1, "failed": 1}
        assert await counts("banner") == {"found": 0, "absent": 1, "invalid": 0, "failed": 0}


async def test_a_redirect_leads_to_an_image(world: World) -> None:
    """Catches a location that this very server refuses."""
    did, _ = profile(world, avatar=tiny_png())
    async with serving(world) as client:
        location = (await client.get(f"/avatar/{did}")).headers["location"]
        assert (await client.get(location)).headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("server", "start"),
    [
        ({}, "/img/"),
        ({"base_url": "https://img.example"}, "https://img.example/img/"),
        ({"base_url": "https://a.example", "cdn_url": "https://cdn.example/below"},
         "https://cdn.example/below/img/"),
    ],
)  # fmt: skip
async def test_a_redirect_goes_where_images_are_public(
    world: World, server: dict[str, str], start: str
) -> None:
    """Catches browsers that are sent around the CDN."""
    did, _ = profile(world, avatar=b"1")
    async with serving(world, world.config(server=server)) as client:
        assert (await client.get(f"/avatar/{did}")).headers["location"].startswith(start)


async def test_presets_and_time_are_those_of_the_configuration(world: World) -> None:
    did, (avatar, banner) = profile(world, avatar=b"1", banner=b"2")
    config = world.config(
        actors={"avatar_preset": "avatar_small", "banner_preset": "content_full", "ttl": 7},
    )
    async with serving(world, config) as client:
        reply = await client.get(f"/avatar/{did}")
        assert reply.headers["location"] == f"/img/avatar_small/plain/{did}/{avatar}"
        assert reply.headers["cache-control"] == "public, max-age=7"
        reply = await client.get(f"/banner/{did}")
        assert reply.headers["location"] == f"/img/content_full/plain/{did}/{banner}"


async def test_collections_are_asked_in_turn_for_what_is_missing(world: World) -> None:
    """Catches a second app's profile that is never looked at, and one that wins over the first."""
    did, (avatar,) = profile(world, avatar=b"1")
    _, banner = set_profile(world, did, OTHER, avatar=b"2", banner=b"3")
    only_other, (other_avatar,) = profile(world, OTHER, avatar=b"4")
    async with serving(world, world.config(actors={"collections": [PROFILE, OTHER]})) as client:
        for actor, kind, cid in (
            (did, "avatar", avatar),
            (did, "banner", banner),
            (only_other, "avatar", other_avatar),
        ):
            reply = await client.get(f"/{kind}/{actor}")
            assert reply.headers["location"] == f"/img/{kind}/plain/{actor}/{cid}"


async def test_a_profile_is_asked_for_once_and_again_after_its_time(
    world: World, mock_clock: trio.testing.MockClock
) -> None:
    """Catches a PDS that is asked for every visitor, and an avatar that never changes."""
    did, (first,) = profile(world, avatar=b"1")
    async with serving(world) as client:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(client.get, f"/avatar/{did}")
        (second,) = set_profile(world, did, avatar=b"2")
        mock_clock.jump(299)
        assert first in (await client.get(f"/avatar/{did}")).headers["location"]
        assert world.pds.requests_by_path[GET_RECORD] == 1
        mock_clock.jump(2)
        assert second in (await client.get(f"/avatar/{did}")).headers["location"]


async def test_what_is_blocked_looks_like_what_is_not_there(world: World) -> None:
    """Catches an avatar that goes on being announced, and a list of what is blocked."""
    did, (avatar, banner) = profile(world, avatar=b"1", banner=b"2")
    nobody, _ = profile(world)
    async with serving(world) as client:
        assert (await client.get(f"/avatar/{did}")).status == 302
        absent = await client.get(f"/avatar/{nobody}")
        await client.service.moderator.block(Selection(did, avatar), by="test")
        refused = await client.get(f"/avatar/{did}")
        assert (refused.status, refused.headers, refused.body) == (
            404, absent.headers, absent.body,
        )  # fmt: skip
        assert (await client.get(f"/banner/{did}")).status == 302
        pictures = json.loads((await client.get(f"/lookup?q={did}")).text)["pictures"]
        assert [picture["cid"] for picture in pictures] == [banner]
        await client.service.moderator.block(Selection(did), by="test")
        assert (await client.get(f"/banner/{did}")).status == 404
        assert json.loads((await client.get(f"/lookup?q={did}")).text)["pictures"] == []


@pytest.mark.parametrize(
    ("actor", "status", "text"),
    [
        ("alice", 400, "invalid handle format"),
        ("alice.test", 400, "invalid handle format"),
        ("someone.local", 400, "invalid handle format"),
        ("alice%0A.example.com", 400, "invalid handle format"),
        ("did:plc:short", 400, "invalid DID format"),
        ("did:web:localhost:2583", 400, "invalid DID format"),
        ("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa", 404, "no such account"),
        ("did:web:nowhere.example", 502, "failed to resolve DID"),
    ],
)
async def test_errors_are_those_of_images(world: World, actor: str, status: int, text: str) -> None:
    async with serving(world) as client:
        for kind in ("avatar", "banner"):
            reply = await client.get(f"/{kind}/{actor}")
            assert (reply.status, reply.text) == (status, f"{text}\n")
            assert reply.headers["content-type"] == "text/plain; charset=utf-8"
            cached = "public, max-age=60" if status == 404 else "no-store"
            assert reply.headers["cache-control"] == cached


async def test_a_profile_without_the_picture_says_what_it_lacks(world: World) -> None:
    """Catches an account that is told for a missing one, and the other way round."""
    did, _ = profile(world, avatar=b"1")
    bare = world.make_account()
    async with serving(world) as client:
        assert (await client.get(f"/avatar/{did}")).status == 302
        for actor, kind in ((did, "banner"), (bare, "avatar"), (bare, "banner")):
            reply = await client.get(f"/{kind}/{actor}")
            assert (reply.status, reply.text) == (404, f"profile names no {kind}\n")
        assert json.loads((await client.get(f"/lookup?q={bare}")).text)["pictures"] == []


@pytest.mark.parametrize("error", ["RepoNotFound", "RepoDeactivated"])
async def test_an_account_that_its_pds_does_not_have_is_not_found(world: World, error: str) -> None:
    did, _ = profile(world, avatar=b"1")
    body = b'{"error":"%s","message":"gone"}' % error.encode()
    world.pds.faults.append(faults.answers(400, body))
    async with serving(world) as client:
        for path in (f"/avatar/{did}", f"/lookup?q={did}"):
            reply = await client.get(path)
            assert (reply.status, reply.text) == (404, "no such account\n")


async def test_a_record_that_is_not_there_has_no_blob(world: World) -> None:
    did, _ = profile(world, avatar=b"1")
    async with serving(world) as client:
        reply = await client.get(f"/lookup?q=at://{did}/app.bsky.feed.post/3k")
    assert (reply.status, reply.text) == (404, "no such record\n")


async def test_a_pds_that_is_not_there_is_a_502(world: World) -> None:
    did, _ = profile(world, avatar=b"1")
    world.pds.refuses = -1
    async with serving(world) as client:
        reply = await client.get(f"/avatar/{did}")
    assert (reply.status, reply.text) == (502, "failed to fetch blob from PDS\n")


async def test_a_failure_has_a_line_with_its_cause_and_a_defect_one_of_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a crawler that fills a log at ``warning``, and a defect that nobody hears of."""
    did = world.make_account()
    async with serving(world) as client:
        with logged_by(proxy.web.responder, monkeypatch) as lines:
            assert (await client.get(f"/avatar/{did}")).status == 404
        (line,) = lines
        assert (line["log_level"], line["error"]) == ("info", "NoAvatar")
        assert line["cause"]
        monkeypatch.setattr(Profiles, "picture", None)
        with logged_by(proxy.web.responder, monkeypatch) as lines:
            assert (await client.get(f"/avatar/{did}")).status == 500
        assert [each["event"] for each in lines] == ["defect", "request"]


async def test_head_is_answered_and_other_methods_are_not(world: World) -> None:
    did, _ = profile(world, avatar=b"1")
    async with serving(world) as client:
        got, head = await client.get(f"/avatar/{did}"), await client.head(f"/avatar/{did}")
        assert (head.status, head.headers, head.body) == (302, got.headers, b"")
        assert (await client.ask(f"/avatar/{did}", method="POST")).status == 405
        assert (await client.get("/avatar/")).status == 404


async def test_where_the_proxy_is_off_there_are_no_avatars(world: World) -> None:
    """Catches a proxy that is off and goes on asking PDSes."""
    did, _ = profile(world, avatar=b"1")
    async with serving(world, world.config(server={"enabled": False})) as client:
        for path in (f"/avatar/{did}", f"/lookup?q={did}"):
            assert (await client.get(path)).status == 404
    assert world.pds.requests == []


async def test_the_pictures_of_a_post_are_looked_up(world: World, dns: FakeDns) -> None:
    did, _ = profile(world)
    cids = [world.pds.add_blob(did, data) for data in (b"1", b"2")]
    images = [{"alt": f"Picture <{cid[-3:]}>", "image": blob(cid)} for cid in cids]
    world.pds.add_record(did, "app.bsky.feed.post/3k", {"embed": {"images": images}})
    async with serving(world, named(world, dns, did)) as client:
        reply = await client.get(f"/lookup?q=https://bsky.app/profile/{ALICE}/post/3k")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert reply.headers["cache-control"] == "no-store"
    # For this origin's own page.
    assert "access-control-allow-origin" not in reply.headers
    assert json.loads(reply.text) == {
        "did": did,
        "profile_of": None,
        "pictures": [
            told(did, cid, "image", alt=f"Picture <{cid[-3:]}>", source="") for cid in cids
        ],
        "problems": [],
    }


async def test_a_look_up_shows_what_is_quoted_and_says_what_it_cannot(world: World) -> None:
    """Catches a quoted picture under the wrong account, one that is blocked, and a silent gap."""
    did, other = world.make_account(), world.make_account()
    own, quoted, refused = (cid_of(data) for data in (b"1", b"2", b"3"))
    images = {"images": [{"image": blob(quoted)}, {"image": blob(refused)}]}
    there = world.pds.add_record(other, "app.bsky.feed.post/1", {"embed": images})
    gone = f"at://{other}/app.bsky.feed.post/2"
    embeds = [{"$type": "app.bsky.embed.record", "record": {"uri": uri}} for uri in (there, gone)]
    record = {"embed": [*embeds, {"image": blob(own)}]}
    post = world.pds.add_record(did, "app.bsky.feed.post/3k", record)
    async with serving(world) as client:
        await client.service.moderator.block(Selection(other, refused), by="test")
        found = json.loads((await client.get(f"/lookup?q={post}")).text)
    assert found["pictures"] == [
        told(did, own, "image"),
        told(other, quoted, "image", source=there),
    ]
    assert found["problems"] == [{"source": gone, "problem": "no such record"}]


async def test_a_look_up_says_whose_profile_it_shows(world: World, dns: FakeDns) -> None:
    """Catches a feed's or a list's avatar under the name of an account."""
    did, (avatar,) = profile(world, avatar=b"1")
    feed = "app.bsky.feed.generator"
    world.pds.add_record(did, f"{feed}/3k", {"avatar": blob(avatar)})
    async with serving(world, named(world, dns, did)) as client:

        async def profile_of(text: str) -> object:
            return json.loads((await client.get(f"/lookup?q={text}")).text)["profile_of"]

        for text in (ALICE, f"@{ALICE}", f"https://bsky.app/profile/{ALICE}"):
            assert await profile_of(text) == ALICE
        assert await profile_of(did) == did
        assert await profile_of(f"at://{did}/{feed}/3k") is None


async def test_a_blob_is_looked_up_without_asking_its_pds(world: World) -> None:
    did, (avatar,) = profile(world, avatar=b"1")
    async with serving(world) as client:
        found = json.loads((await client.get(f"/lookup?q={did}%20{avatar}")).text)
    assert found == {
        "did": did,
        "profile_of": None,
        "pictures": [told(did, avatar, "blob")],
        "problems": [],
    }
    assert world.pds.requests == []


async def test_a_poster_is_looked_up_as_the_video_that_it_is_of(world: World) -> None:
    """Catches the page that asks for a video as if it were a picture."""
    did, (film,) = profile(world, avatar=b"1")
    async with serving(world) as client:
        reply = await client.get(f"/lookup?q=/vid/{did}/{film}/thumbnail.jpg")
    (picture,) = json.loads(reply.text)["pictures"]
    assert (picture["cid"], picture["medium"]) == (film, "video")


@pytest.mark.parametrize("query", ["", "?q=", "?q=%00", "?q=a&q=b", "?x=1"])
async def test_an_invalid_reference_is_a_bad_request(world: World, query: str) -> None:
    async with serving(world) as client:
        reply = await client.get(f"/lookup{query}")
    assert (reply.status, reply.text) == (400, "invalid handle format\n")


async def test_a_client_that_leaves_ends_the_question(world: World) -> None:
    """Catches questions that go on for nobody."""
    did, _ = profile(world, avatar=b"1")
    world.pds.answers_connections = False
    async with serving(world) as client:
        exchange = client.exchange(f"/avatar/{did}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(exchange.run)
            with trio.fail_after(PATIENCE):
                while ("pds.example", 443) not in world.network.asked:
                    await trio.lowlevel.checkpoint()
                exchange.leave()
        assert await client.metric("imageproxy_fetch_queue_depth") == 0


@pytest.mark.parametrize("fallback", ["initials", "shapes"])
async def test_an_account_without_an_avatar_gets_a_picture_of_its_own(
    world: World, dns: FakeDns, fallback: str
) -> None:
    """Catches a picture that changes, that is kept for long, and that is the same for everybody;
    and a 304 by which a cache takes it for an empty text."""
    did, _ = profile(world, banner=b"1")
    other, _ = profile(world, banner=b"2")
    config = named(world, dns, did, actors={"fallback": fallback, "ttl": 60})
    async with serving(world, config) as client:
        reply = await client.get(f"/avatar/{did}@png")
        assert (reply.status, reply.headers["content-type"]) == (200, "image/png")
        assert reply.headers["cache-control"] == "public, max-age=60"
        assert SECURITY.items() <= reply.headers.items()
        assert Image.open(BytesIO(reply.body)).size == (1000, 1000)
        by_handle = await client.get(f"/avatar/{ALICE}@png")
        assert (by_handle.body, by_handle.headers["etag"]) == (reply.body, reply.headers["etag"])
        assert (await client.get(f"/avatar/{other}@png")).body != reply.body
        known = ("If-None-Match", reply.headers["etag"])
        same = await client.get(f"/avatar/{did}@png", known)
        assert same.status == 304
        assert not {"content-type", "content-length"} & same.headers.keys()
        small = await client.get(f"/avatar/avatar_small/{did}@webp")
        assert small.headers["content-type"] == "image/webp"
        assert small.headers["etag"] != reply.headers["etag"]
        head = await client.head(f"/avatar/{did}@png")
        assert (head.status, head.headers["etag"]) == (200, reply.headers["etag"])
        drawn = 'imageproxy_actor_requests_total{kind="avatar",outcome="drawn"}'
        assert await client.metric(drawn) == 6


@pytest.mark.parametrize("is_drawn", [False, True])
async def test_a_blocked_account_gets_a_picture_only_by_setting(
    world: World, is_drawn: bool
) -> None:
    """Catches a blocked account without an avatar that is told apart from one with it."""
    having, _ = profile(world, avatar=b"1")
    without, _ = profile(world, banner=b"1")
    config = world.config(actors={"fallback": "shapes", "fallback_blocked": is_drawn})
    async with serving(world, config) as client:
        for did in (having, without):
            await client.service.moderator.block(Selection(did=did), by="test")
            assert (await client.get(f"/avatar/{did}")).status == (200 if is_drawn else 404)


def test_every_letter_of_a_handle_has_a_picture() -> None:
    """Catches two letters that look the same, and a picture whose bits run over its side."""
    pictures = {draw("did:web:alice.example", letter) for letter in ascii_lowercase + digits}
    assert len(pictures) == 36
    assert draw("did:web:alice.example", "A") in pictures
    assert draw("did:web:alice.example", "é") == draw("did:web:alice.example")
    for picture in pictures | {draw("did:web:alice.example")}:
        shown = Image.open(BytesIO(picture))
        shown.load()
        assert len(shown.convert("RGB").getcolors() or []) == 2
