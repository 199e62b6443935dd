"""Against Bluesky's own PLC directory and PDS: what the fakes cannot prove.

Skipped where these cannot run, unless ``tests.required`` says that they must.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
import trio
from PIL import Image

from proxy.accounts import records
from proxy.accounts.availability import gone_by_description, gone_by_status
from proxy.accounts.blob_fetcher import PdsFetcher
from proxy.accounts.did_documents import DidResolver
from proxy.accounts.pds_answers import Verdict, verdict_of
from proxy.accounts.related_records import GALLERY_ITEM, PHOTO
from proxy.config import Config
from proxy.egress.gateway import standalone_gateway
from proxy.egress.guard import GuardedNetwork
from proxy.errors import BlobNotFound
from proxy.lifecycle import open_service
from proxy.model.identifiers import Cid, Did
from proxy.model.keys import image_key
from proxy.model.presets import DEFAULT_PRESETS
from proxy.model.references import GALLERY
from proxy.model.selection import Selection
from proxy.moderation.revalidate import Revalidator
from proxy.web.app import create_app
from tests import devnet as real
from tests.devnet import Account, Devnet, DevnetUnavailable, blob_cid
from tests.fakes.dns import serving_dns
from tests.fakes.network import Request
from tests.fakes.sites import (
    DESCRIBE_REPO,
    GET_BLOB,
    GET_REPO_STATUS,
    FakePds,
    FakePlc,
    cid_of,
    new_plc_did,
)
from tests.fakes.world import tiny_png
from tests.imaging.videos import video
from tests.moderation.fakes import FakeCheckTimes, FakeDecisions
from tests.processes import in_background
from tests.required import skip_unless_required
from tests.web import Client, running

pytestmark = [pytest.mark.pds, pytest.mark.time_limit(600)]

SIZES = {
    "avatar": (1000, 1000),
    "avatar_small": (360, 360),
    "banner": (640, 300),
    "content_preview": (800, 533),
    "content_full": (1200, 800),
    "embed_thumbnail": (720, 360),
    "avatar_thumbnail": (128, 128),
    "feed_thumbnail": (1000, 667),
    "feed_fullsize": (1200, 800),
}
"""What each preset makes of 1200 x 800."""


@pytest.fixture(scope="module")
def devnet() -> Iterator[Devnet]:
    """One network for all tests of this file."""
    try:
        with in_background(real.run_devnet) as background:
            yield background.value
    except DevnetUnavailable as error:
        skip_unless_required(f"no PDS here: {error}")


_handles = itertools.count(1)


@dataclass
class Owner:
    """An account with blobs that a record each refers to, the last one by the CID."""

    devnet: Devnet
    account: Account
    records: dict[str, str] = field(default_factory=dict)

    @property
    def did(self) -> Did:
        return Did(self.account.did)

    async def publish(self, data: bytes, mime: str) -> str:
        """Upload, refer to it in a post, and return the CID."""
        blob = await real.upload_blob(self.devnet, self.account, data, mime)
        uri = await real.create_post(self.devnet, self.account, [blob])
        self.records[blob_cid(blob)] = uri
        return blob_cid(blob)


@pytest.fixture
async def owner(devnet: Devnet) -> Owner:
    account = await real.create_account(devnet, f"owner{next(_handles)}.test")
    return Owner(devnet, account)


@asynccontextmanager
async def proxy_of(
    devnet: Devnet, folder: Path, **sections: dict[str, Any]
) -> AsyncIterator[Client]:
    """The application with guarded networks, and nothing cached."""
    own: dict[str, dict[str, Any]] = {
        "identity": {"plc_url": devnet.plc_url},
        "fetch": {"allow_http": True, "allow_private_hosts": True},
        "cache": {"path": folder / "cache"},
    }
    for name, keys in sections.items():
        own[name] = own.get(name, {}) | keys
    async with running(create_app(Config.model_validate(own))) as client:
        yield client


def picture(width: int, height: int) -> Image.Image:
    ramp = Image.linear_gradient("L")
    bands = (ramp, ramp.rotate(90), Image.radial_gradient("L"))
    return Image.merge("RGB", bands).resize((width, height))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def moving_gif() -> bytes:
    first = picture(200, 150).quantize(64)
    rest = [first.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    return encoded(first, "GIF", save_all=True, append_images=rest, duration=80)


def img(did: str, cid: str, preset: str = "avatar_thumbnail", suffix: str = "") -> str:
    return f"/img/{preset}/plain/{did}/{cid}{suffix}"


async def test_every_preset_of_an_uploaded_photo_has_its_size(owner: Owner, tmp_path: Path) -> None:
    assert SIZES.keys() == DEFAULT_PRESETS.keys()
    cid = await owner.publish(encoded(picture(1200, 800), "JPEG", quality=90), "image/jpeg")
    async with proxy_of(owner.devnet, tmp_path) as client:
        for preset, size in SIZES.items():
            reply = await client.get(img(owner.did, cid, preset))
            assert (reply.status, reply.headers["content-type"]) == (200, "image/jpeg"), preset
            assert Image.open(BytesIO(reply.body)).size == size, preset


SOURCES: dict[str, tuple[Callable[[], bytes], str, str, str]] = {
    # source, its type, the type by default, the type of content_full
    "jpeg": (lambda: encoded(picture(300, 200), "JPEG"), "image/jpeg", "image/jpeg", "image/jpeg"),
    "png": (lambda: encoded(picture(300, 200), "PNG"), "image/png", "image/png", "image/png"),
    "gif": (moving_gif, "image/gif", "image/jpeg", "image/gif"),
    "webp": (lambda: encoded(picture(300, 200), "WEBP"), "image/webp", "image/jpeg", "image/jpeg"),
}


@pytest.mark.parametrize("name", SOURCES)
async def test_the_type_follows_the_bytes_that_the_pds_gives_and_a_format_overrides_it(
    name: str, owner: Owner, tmp_path: Path
) -> None:
    make, mime, usual, full = SOURCES[name]
    data = make()
    cid = await owner.publish(data, mime)
    assert cid == cid_of(data)
    async with proxy_of(owner.devnet, tmp_path) as client:
        for preset, suffix, expected in (
            ("avatar_thumbnail", "", usual),
            ("content_full", "", full),
            ("avatar_thumbnail", "@webp", "image/webp"),
        ):
            reply = await client.get(img(owner.did, cid, preset, suffix))
            assert (reply.status, reply.headers["content-type"]) == (200, expected)
            image = Image.open(BytesIO(reply.body))
            assert f"image/{(image.format or '').lower()}" == expected
        if name == "gif":
            assert (await client.get(img(owner.did, cid, "content_full"))).body == data


async def test_the_second_request_is_a_hit_with_the_same_bytes(
    owner: Owner, tmp_path: Path
) -> None:
    cid = await owner.publish(encoded(picture(300, 200), "JPEG"), "image/jpeg")
    async with proxy_of(owner.devnet, tmp_path) as client:
        first = await client.get(img(owner.did, cid))
        second = await client.get(img(owner.did, cid))
    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("miss", "hit")
    assert first.body == second.body
    assert re_timings(first.headers["server-timing"]) == ["resolve", "fetch", "queue", "process"]
    # From the disk too, by another process that asks nobody.
    nowhere = Devnet("http://127.0.0.1:1", owner.devnet.pds_url, "")
    async with proxy_of(nowhere, tmp_path) as client:
        third = await client.get(img(owner.did, cid))
    assert (third.headers["x-cache"], third.body) == ("hit", first.body)


def re_timings(header: str) -> list[str]:
    return [part.partition(";")[0].strip() for part in header.split(",")]


async def test_the_original_comes_as_uploaded(owner: Owner, tmp_path: Path) -> None:
    data = encoded(picture(300, 200), "PNG")
    cid = await owner.publish(data, "image/png")
    async with proxy_of(owner.devnet, tmp_path) as client:
        reply = await client.get(f"/blob/{owner.did}/{cid}")
    assert (reply.status, reply.headers["content-type"], reply.body) == (200, "image/png", data)


async def test_a_video_of_a_record_has_a_poster(owner: Owner, tmp_path: Path) -> None:
    """Catches a lane for videos that Bluesky's PDS does not answer as it answers for pictures."""
    cid = await owner.publish(video(size=(160, 96)), "video/mp4")
    async with proxy_of(owner.devnet, tmp_path) as client:
        reply = await client.get(f"/vid/{owner.did}/{cid}/thumbnail.jpg")
        assert (reply.status, reply.headers["content-type"]) == (200, "image/jpeg")
        assert Image.open(BytesIO(reply.body)).size == (160, 96)
        assert re_timings(reply.headers["server-timing"]) == [
            "resolve", "fetch", "queue", "process",
        ]  # fmt: skip
        again = await client.get(f"/vid/content_preview/{owner.did}/{cid}/thumbnail.jpg")
        assert (again.headers["x-cache"], again.body) == ("hit", reply.body)
        absent = await client.get(f"/vid/{owner.did}/{cid_of(b'nothing')}/thumbnail.jpg")
    assert (absent.status, absent.body) == (404, b"blob not found\n")


async def test_an_avatar_that_a_profile_refers_to_is_served(owner: Owner, tmp_path: Path) -> None:
    blob = await real.upload_blob(
        owner.devnet, owner.account, encoded(picture(400, 600), "PNG"), "image/png"
    )
    async with proxy_of(owner.devnet, tmp_path) as client:
        # Nobody can fetch a blob before a record refers to it.
        assert (await client.get(img(owner.did, blob_cid(blob)))).status == 404
    await real.set_profile(owner.devnet, owner.account, avatar=blob)
    async with proxy_of(owner.devnet, tmp_path) as client:
        reply = await client.get(img(owner.did, blob_cid(blob), "avatar"))
        assert (reply.status, reply.headers["content-type"]) == (200, "image/png")
        assert Image.open(BytesIO(reply.body)).size == (1000, 1000)


async def test_a_blob_that_the_pds_does_not_have_is_a_404_not_a_502(
    owner: Owner, tmp_path: Path
) -> None:
    async with proxy_of(owner.devnet, tmp_path) as client:
        reply = await client.get(img(owner.did, cid_of(b"never uploaded")))
    assert (reply.status, reply.body) == (404, b"blob not found\n")


async def test_a_did_that_does_not_exist_is_a_404_not_a_502(devnet: Devnet, tmp_path: Path) -> None:
    async with proxy_of(devnet, tmp_path) as client:
        reply = await client.get(img(new_plc_did(), cid_of(b"anything")))
    assert (reply.status, reply.body) == (404, b"blob not found\n")


async def test_another_account_does_not_lend_its_blobs(owner: Owner, tmp_path: Path) -> None:
    cid = await owner.publish(encoded(picture(300, 200), "JPEG"), "image/jpeg")
    other = await real.create_account(owner.devnet, f"owner{next(_handles)}.test")
    async with proxy_of(owner.devnet, tmp_path) as client:
        assert (await client.get(img(owner.did, cid))).status == 200
        assert (await client.get(img(other.did, cid))).status == 404


async def take_account_down(owner: Owner, cid: str) -> None:
    await real.takedown_account(owner.devnet, owner.did)


async def take_blob_down(owner: Owner, cid: str) -> None:
    await real.takedown_blob(owner.devnet, owner.did, cid)


async def deactivate(owner: Owner, cid: str) -> None:
    await real.deactivate_account(owner.devnet, owner.account)


async def delete(owner: Owner, cid: str) -> None:
    await real.delete_account(owner.devnet, owner.did)


ENDS = [take_account_down, take_blob_down, deactivate, delete]


@pytest.mark.parametrize("end", ENDS)
async def test_what_its_pds_took_down_is_a_404_not_a_502(
    end: Callable[[Owner, str], Any], owner: Owner, tmp_path: Path
) -> None:
    cid = await owner.publish(encoded(picture(300, 200), "JPEG"), "image/jpeg")
    async with proxy_of(owner.devnet, tmp_path / "before") as client:
        assert (await client.get(img(owner.did, cid))).status == 200
    await end(owner, cid)
    async with proxy_of(owner.devnet, tmp_path / "after") as client:
        for target in (img(owner.did, cid), f"/blob/{owner.did}/{cid}"):
            reply = await client.get(target)
            assert (reply.status, reply.body) == (404, b"blob not found\n")


async def test_a_blob_that_is_restored_is_served_again(owner: Owner, tmp_path: Path) -> None:
    cid = await owner.publish(encoded(picture(300, 200), "JPEG"), "image/jpeg")
    await real.takedown_blob(owner.devnet, owner.did, cid)
    await real.takedown_blob(owner.devnet, owner.did, cid, applied=False)
    async with proxy_of(owner.devnet, tmp_path) as client:
        assert (await client.get(img(owner.did, cid))).status == 200


class Wiretap:
    """The network, and every byte that came over it."""

    def __init__(self) -> None:
        self._network = GuardedNetwork(allow_private_hosts=True)
        self.received = bytearray()

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        return _Tapped(await self._network.connect(host, port), self.received)

    async def start_tls(self, stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
        raise NotImplementedError


class _Tapped(trio.abc.Stream):
    def __init__(self, stream: trio.abc.Stream, received: bytearray) -> None:
        self._stream = stream
        self._received = received

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        self._received += data
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


async def nothing(owner: Owner, cid: str) -> None:
    await trio.lowlevel.checkpoint()


async def delete_the_record(owner: Owner, cid: str) -> None:
    await real.delete_record(owner.devnet, owner.account, owner.records[cid])


@pytest.mark.parametrize("end", [*ENDS, delete_the_record, nothing])
async def test_what_its_pds_took_down_is_noticed_without_a_byte_of_it(
    end: Callable[[Owner, str], Any], owner: Owner, tmp_path: Path, client_name: str
) -> None:
    """And is not served again; whatever is still there stays, and is due no more."""
    data = encoded(picture(300, 200), "PNG")
    did, cid = owner.did, Cid(await owner.publish(data, "image/png"))
    config = Config.model_validate(
        {
            "identity": {"plc_url": owner.devnet.plc_url},
            "fetch": {"allow_http": True, "allow_private_hosts": True, "client": client_name},
            "process": {"isolation": "thread"},
            "cache": {"path": tmp_path / "cache"},
        }
    )
    wiretap = Wiretap()
    async with open_service(config, networks=(wiretap, wiretap)) as service:
        key = image_key(config.presets, "avatar_thumbnail", did, cid)
        assert (await service.get_image("avatar_thumbnail", did, cid)).cache == "miss"
        assert (await service.get_image("avatar_thumbnail", did, cid)).cache == "hit"
        await end(owner, cid)
        assert (await service.get_image("avatar_thumbnail", did, cid)).cache == "hit"
        wiretap.received.clear()

        times = FakeCheckTimes(time.time)
        times.times[key.blob] = time.time() - 7 * 86400

        async def purge(selection: Selection) -> int:
            return await service.moderator.purge(selection, by="test")

        decisions = FakeDecisions(purge)
        async with trio.open_nursery() as nursery:
            gateway = standalone_gateway(config.fetch, wiretap, wiretap)
            nursery.start_soon(gateway.run)
            revalidator = Revalidator(
                timeout=30,
                unconfirmed_age=0,
                age=7 * 86400,
                times=times,
                resolver=DidResolver(config, gateway, nursery),
                exists=PdsFetcher(config, gateway).exists,
                decisions=decisions,
            )
            await revalidator.sweep()
            nursery.cancel_scope.cancel()
        assert data[:8] not in wiretap.received
        assert len(wiretap.received) < len(data)

        if end is nothing:
            assert decisions.purged == []
            assert times.times[key.blob] == pytest.approx(time.time(), abs=60)
            assert (await service.get_image("avatar_thumbnail", did, cid)).cache == "hit"
        else:
            assert [selection for selection, _ in decisions.purged] == [Selection(did, cid)]
            with pytest.raises(BlobNotFound):
                await service.get_image("avatar_thumbnail", did, cid)


async def test_a_blob_of_text_is_a_400_whatever_type_its_owner_claims(
    owner: Owner, tmp_path: Path
) -> None:
    cid = await owner.publish(b"this is no picture", "image/jpeg")
    async with proxy_of(owner.devnet, tmp_path) as client:
        for target in (img(owner.did, cid), f"/blob/{owner.did}/{cid}"):
            reply = await client.get(target)
            assert (reply.status, reply.body) == (400, b"unsupported image format\n")


async def test_a_blob_over_the_limit_is_a_400_and_one_at_the_limit_is_served(
    owner: Owner, tmp_path: Path
) -> None:
    data = encoded(picture(300, 200), "PNG")
    cid = await owner.publish(data, "image/png")
    for limit, status in ((len(data), 200), (len(data) - 1, 400)):
        megabytes = {"max_source_mb": limit / 1024**2}
        async with proxy_of(owner.devnet, tmp_path / str(limit), fetch=megabytes) as client:
            reply = await client.get(img(owner.did, cid))
            assert reply.status == status
    assert reply.body == b"image too large\n"


async def test_a_jpeg_that_ends_too_early_is_a_422_not_a_500(owner: Owner, tmp_path: Path) -> None:
    data = encoded(picture(600, 400), "JPEG")
    cid = await owner.publish(data[: len(data) // 2], "image/jpeg")
    async with proxy_of(owner.devnet, tmp_path) as client:
        reply = await client.get(img(owner.did, cid))
    assert (reply.status, reply.body) == (422, b"image could not be decoded\n")


async def test_the_fake_pds_answers_as_the_real_one(owner: Owner) -> None:
    """Or every test over the fakes proves nothing about the world."""
    fake = FakePds()
    data = tiny_png()
    missing = cid_of(b"never uploaded")

    async def published(account: Owner) -> str:
        fake.add_account(account.did)
        fake.add_blob(account.did, data, "image/png")
        return await account.publish(data, "image/png")

    async def another() -> Owner:
        account = await real.create_account(owner.devnet, f"owner{next(_handles)}.test")
        return Owner(owner.devnet, account)

    cid = await published(owner)
    unknown = new_plc_did()
    await compare_pds(owner.devnet, fake, owner.did, cid)
    await compare_pds(owner.devnet, fake, unknown, cid)
    await compare_pds(owner.devnet, fake, owner.did, missing)

    await take_blob_down(owner, cid)
    fake.accounts[owner.did].blobs[cid_of(data)].takendown = True
    await compare_pds(owner.devnet, fake, owner.did, cid)

    down = await another()
    await published(down)
    await take_account_down(down, cid)
    fake.accounts[down.did].status = "takendown"
    await compare_pds(owner.devnet, fake, down.did, cid)

    inactive = await another()
    await published(inactive)
    await deactivate(inactive, cid)
    fake.accounts[inactive.did].status = "deactivated"
    await compare_pds(owner.devnet, fake, inactive.did, cid)

    gone = await another()
    await published(gone)
    await delete(gone, cid)
    del fake.accounts[gone.did]
    await compare_pds(owner.devnet, fake, gone.did, cid)


async def compare_account(devnet: Devnet, fake: FakePds, did: str) -> None:
    """The account alone: what follows an unclear answer, and what is read of its answers."""
    for path, parameter, judge in (
        (GET_REPO_STATUS, "did", gone_by_status),
        (DESCRIBE_REPO, "repo", gone_by_description),
    ):
        target = f"{path}?{parameter}={quote(did, safe=':')}"
        expected = await asked(devnet.pds_url + target)
        response = fake.answer(Request(target, {}))
        assert response.status == expected.status_code
        answer = json.loads(response.body)
        more = expected.json()
        names = ("did", "active", "status", "error")
        assert {name: answer.get(name) for name in names} == {
            name: more.get(name) for name in names
        }
        is_gone = did not in fake.accounts or fake.accounts[did].status != "active"
        assert judge(Did(did), expected.status_code, expected.content) is is_gone


async def compare_pds(devnet: Devnet, fake: FakePds, did: str, cid: str) -> None:
    await compare_account(devnet, fake, did)
    target = f"{GET_BLOB}?did={quote(did, safe=':')}&cid={cid}"
    expected = await asked(devnet.pds_url + target)
    response = fake.answer(Request(target, {}))
    headers = {name.lower(): value for name, value in response.headers}
    assert response.status == expected.status_code
    if expected.status_code != 200:
        assert verdict_of(expected.status_code, expected.content) is Verdict.ABSENT
    # Security headers differ by what stands before a PDS; these are its own words.
    for name in ("content-type", "content-disposition", "cache-control"):
        assert headers.get(name) == expected.headers.get(name), (target, name)
    if response.status == 200:
        assert response.body == expected.content
    else:
        assert json.loads(response.body) == expected.json()
    # The fake sends the same head, without the body.
    head = await asked(devnet.pds_url + target, "HEAD")
    assert (head.status_code, head.content) == (expected.status_code, b"")
    for name in ("content-type", "content-length"):
        assert head.headers.get(name) == expected.headers.get(name), (target, name)


async def test_the_fake_directory_answers_as_the_real_one(owner: Owner) -> None:
    unknown = new_plc_did()
    fake = FakePlc()
    expected = await asked(f"{owner.devnet.plc_url}/{unknown}")
    response = fake.answer(Request(f"/{unknown}", {}))
    assert response.status == expected.status_code == 404
    assert dict(response.headers)["Content-Type"] == expected.headers["content-type"]
    assert json.loads(response.body) == expected.json()

    expected = await asked(f"{owner.devnet.plc_url}/{owner.did}")
    document = expected.json()
    fake.documents[owner.did] = document
    response = fake.answer(Request(f"/{owner.did}", {}))
    assert response.status == expected.status_code == 200
    assert dict(response.headers)["Content-Type"] == expected.headers["content-type"]
    assert document["id"] == owner.did
    (service,) = document["service"]
    assert service == {
        "id": "#atproto_pds",
        "type": "AtprotoPersonalDataServer",
        "serviceEndpoint": owner.devnet.pds_url,
    }


async def asked(url: str, method: str = "GET") -> httpx2.Response:
    async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
        with trio.fail_after(30):
            return await client.request(method, url)


# Accounts and their records.


async def test_an_account_leads_to_what_its_profile_names(owner: Owner, tmp_path: Path) -> None:
    """Catches a reader of profiles as the fakes write them."""
    avatar, banner = [
        await real.upload_blob(
            owner.devnet, owner.account, encoded(picture(*size), "PNG"), "image/png"
        )
        for size in ((300, 300), (600, 200))
    ]
    await real.set_profile(owner.devnet, owner.account, avatar, banner)
    handle = owner.account.handle
    async with serving_dns() as dns:
        dns.records[f"_atproto.{handle}"] = [f"did={owner.did}"]
        identity = {"nameservers": [dns.address]}
        async with proxy_of(owner.devnet, tmp_path, identity=identity) as client:
            for actor in (owner.did, handle, f"@{handle.upper()}"):
                for kind, blob in (("avatar", avatar), ("banner", banner)):
                    reply = await client.get(f"/{kind}/{actor}")
                    expected = f"/img/{kind}/plain/{owner.did}/{blob_cid(blob)}"
                    assert (reply.status, reply.headers["location"]) == (302, expected)
            assert (await client.get(reply.headers["location"])).status == 200


async def test_an_account_without_a_profile_has_no_avatar(owner: Owner, tmp_path: Path) -> None:
    """Catches the PDS's words for an absent record taken for a failure."""
    async with proxy_of(owner.devnet, tmp_path) as client:
        reply = await client.get(f"/avatar/{owner.did}")
        assert (reply.status, reply.text) == (404, "profile names no avatar\n")
        reply = await client.get(f"/lookup?q=at://{owner.did}/app.bsky.feed.post/nosuch")
        assert (reply.status, reply.text) == (404, "no such record\n")


@pytest.mark.parametrize("how", ["deactivated", "taken down", "deleted"])
async def test_an_account_that_is_gone_has_no_avatar(
    owner: Owner, tmp_path: Path, how: str
) -> None:
    """Catches an avatar of somebody who has left."""
    blob = await real.upload_blob(
        owner.devnet, owner.account, encoded(picture(300, 300), "PNG"), "image/png"
    )
    await real.set_profile(owner.devnet, owner.account, blob)
    if how == "deactivated":
        await real.deactivate_account(owner.devnet, owner.account)
    elif how == "deleted":
        await real.delete_account(owner.devnet, owner.did)
    else:
        await real.takedown_account(owner.devnet, owner.did)
    async with proxy_of(owner.devnet, tmp_path) as client:
        reply = await client.get(f"/avatar/{owner.did}")
    # A PDS asks its AppView about accounts that are not active here; this one's is not there.
    assert (reply.status, reply.text) == (502, "failed to fetch blob from PDS\n")


async def test_a_posts_pictures_are_looked_up_in_their_order(owner: Owner, tmp_path: Path) -> None:
    blobs = [
        await real.upload_blob(
            owner.devnet, owner.account, encoded(picture(20, side), "PNG"), "image/png"
        )
        for side in (10, 11, 12)
    ]
    uri = await real.create_post(owner.devnet, owner.account, blobs)
    async with proxy_of(owner.devnet, tmp_path) as client:
        found = json.loads((await client.get(f"/lookup?q={quote(uri, safe='')}")).text)
    assert found["did"] == owner.did
    assert [each["cid"] for each in found["pictures"]] == [blob_cid(blob) for blob in blobs]


async def test_every_blob_of_an_account_is_listed_page_by_page(
    owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches pages of a PDS that end, or go on, in another way than the fake's."""
    monkeypatch.setattr(records, "PAGE", 2)
    published = {
        await owner.publish(encoded(picture(20, side), "PNG"), "image/png") for side in range(5, 10)
    }
    found: list[str] = []
    pages = 0
    async with proxy_of(owner.devnet, tmp_path) as client:
        cursor = ""
        while pages == 0 or cursor:
            cids, cursor = await client.service.actors.records.blobs(owner.did, cursor)
            found += cids
            pages += 1
    assert sorted(found) == sorted(published)
    assert 3 <= pages <= 4


async def test_a_gallery_of_grain_is_read_as_a_pds_lists_it(owner: Owner, tmp_path: Path) -> None:
    """Catches parameters that a PDS does not know, and an order that only the fake has."""
    devnet, account = owner.devnet, owner.account
    made = await real.create_record(devnet, account, {"$type": GALLERY, "title": "Hills"})
    cids: list[str] = []
    for position in (1, 0):
        data = tiny_png((position, 0, 0))
        photo = await real.upload_blob(devnet, account, data, "image/png")
        record = {"$type": PHOTO, "photo": photo, "alt": ""}
        item = await real.create_record(devnet, account, record)
        place = {"$type": GALLERY_ITEM, "gallery": made, "item": item, "position": position}
        await real.create_record(devnet, account, place)
        cids.insert(0, blob_cid(photo))
    async with proxy_of(owner.devnet, tmp_path) as client:
        found = json.loads((await client.get(f"/lookup?q={made}")).body)
        assert [each["cid"] for each in found["pictures"]] == cids
        found = json.loads((await client.get(f"/lookup?q={account.did}")).body)
        assert {each["cid"] for each in found["pictures"]} >= set(cids)
