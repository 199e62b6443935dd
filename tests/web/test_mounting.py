"""A service that a front has mounted below a path (``server.root_path``)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.config import Config
from proxy.web.mounting import NOWHERE, mounted
from tests.fakes.world import World, tiny_jpeg
from tests.web import Client, Way, img, serving
from tests.web.test_actors import profile

TOKEN = "a-token-of-the-operator"
BEARER = ("Authorization", f"Bearer {TOKEN}")


def below(world: World, root: str = "/pics", **sections: Any) -> Config:
    server = {"root_path": root, "admin_token": TOKEN, **sections.pop("server", {})}
    return world.config(server=server, **sections)


@pytest.fixture
async def client(world: World) -> AsyncIterator[Client]:
    async with serving(world, below(world)) as client:
        yield client


PUBLIC = ("/", "/icon.svg", "/lookup?q=nobody", "/avatar/x", "/banner/x", "/healthz", "/readyz")


@pytest.mark.parametrize("target", PUBLIC)
async def test_what_is_public_answers_below_the_path(target: str, client: Client) -> None:
    """Catches a route that the framework serves and the path was not taken from."""
    reply = await client.get(f"/pics{target}")
    assert reply.status in (200, 400), reply.text


@pytest.mark.parametrize(
    "target", ["/", "/icon.svg", "/lookup?q=nobody", "/avatar/x", "/pic", "/picsel/"]
)
async def test_what_is_public_is_nowhere_else(target: str, client: Client) -> None:
    """Catches two URLs for one thing, of which a CDN would keep both, and a front hides neither."""
    for spelled in (target, f"/other{target}", f"/PICS{target}", f"/x/pics{target}"):
        assert (await client.get(spelled)).status == 404, spelled


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("root", ["/pics", "/img", "/a.b/c"])
async def test_pictures_answer_below_the_path_and_nowhere_else(root: str, world: World) -> None:
    """Catches a door that knows /img/ alone, and a dot that stands for any character."""
    did, cid = world.add_blob(tiny_jpeg())
    async with serving(world, below(world, root)) as client:
        for path in (img(did, cid), f"/blob/{did}/{cid}", f"/info/{did}/{cid}"):
            made = await client.get(f"{root}{path}")
            assert made.status == 200
            again = await client.get(f"{root}{path}")
            assert (again.status, again.body) == (200, made.body)
            assert (await client.get(path)).status in (400, 404)
            assert (await client.get(f"{root.replace('.', 'x')}x{path}")).status == 404
        opened = Way.opened
        await client.get(f"{root}{img(did, cid)}")
        assert Way.opened - opened == (1 if Way.name == "door" else 0)


@pytest.mark.parametrize("target", ["/metrics", "/admin", "/admin/blocks"])
async def test_operations_answer_at_the_root_and_not_below_the_path(
    target: str, client: Client
) -> None:
    """Catches metrics that a front shows which passes on what is below the path."""
    assert (await client.get(target, BEARER)).status == 200
    for spelled in (f"/pics{target}", f"/pics/{target}", f"/pics/.{target}", f"/pics{target}/"):
        assert (await client.get(spelled, BEARER)).status in (400, 404), spelled
    for probe in ("/healthz", "/readyz"):
        assert (await client.get(probe)).status == 200


async def test_a_picture_by_name_leads_below_the_path(world: World) -> None:
    """Catches a redirect to where nothing is."""
    did, (cid,) = profile(world, avatar=tiny_jpeg())
    for server, base in (
        ({}, "/pics"),
        ({"base_url": "https://img.test/pics"}, "https://img.test/pics"),
        ({"cdn_url": "https://cdn.test"}, "https://cdn.test"),
    ):
        async with serving(world, below(world, server=dict(server))) as client:
            reply = await client.get(f"/pics/avatar/{did}")
            assert reply.status == 302
            assert reply.headers["location"] == f"{base}{img(did, cid, 'avatar')}"


@pytest.mark.parametrize("target", ["/avatar//x", "/avatar/", "//avatar//x", "/lookup//x"])
async def test_two_slashes_lead_nowhere(target: str, client: Client) -> None:
    """Catches the framework's redirect to one slash, out of the path and back to plain HTTP."""
    reply = await client.get(f"/pics{target}")
    assert reply.status in (400, 404)
    assert "location" not in reply.headers


@pytest.mark.parametrize("query", ["", "?q=alice.test&format=webp", "?q=%40a%3Fb"])
async def test_the_path_alone_leads_to_the_page(query: str, client: Client) -> None:
    """Catches a page whose own requests miss the path, because its URL has no slash at its end,
    and one that has lost what was looked up."""
    reply = await client.get(f"/pics{query}")
    assert (reply.status, reply.headers["location"]) == (308, f"/pics/{query}")


async def test_the_page_of_moderators_finds_pictures_and_icon_below_the_path(
    client: Client,
) -> None:
    """Catches previews that are asked for at the root, where the page is."""
    page = (await client.get("/admin")).text
    assert 'data-below="/pics"' in page
    assert 'href="./pics/icon.svg"' in page


async def test_a_url_that_no_purge_names_is_private_below_a_path_too(world: World) -> None:
    """Catches a copy in a CDN that no purge by URL reaches, and one that none keeps."""
    did, cid = world.add_blob(tiny_jpeg())
    cdn = {"kind": "bunny", "token": "secret", "purge": "urls"}
    config = below(world, server={"base_url": "https://img.test/pics"}, cdn=cdn)
    async with serving(world, config) as client:
        named = await client.get(f"/pics{img(did, cid)}")
        assert named.headers["cache-control"].startswith("public")
        for other in (f"/pics{img(did, cid)}?x", f"/%70ics{img(did, cid)}"):
            reply = await client.get(other)
            assert (reply.status, reply.headers["cache-control"][:7]) == (200, "private"), other


@pytest.mark.parametrize(
    ("raw", "path", "expected"),
    [
        ("/pics/img/a", "/pics/img/a", ("/img/a", "/img/a")),
        ("/%70ics/img/a", "/pics/img/a", ("/img/a", "/%70ics/img/a")),
        ("/pics%2Fimg/a", "/pics/img/a", ("/img/a", "%2Fimg/a")),
        ("/pics/readyz", "/pics/readyz", ("/readyz", "/readyz")),
        ("/pics/metrics", "/pics/metrics", (NOWHERE, "/metrics")),
        ("/metrics", "/metrics", ("/metrics", "/metrics")),
        ("/metricsx", "/metricsx", (NOWHERE, "/metricsx")),
        ("/img/a", "/img/a", (NOWHERE, "/img/a")),
    ],
)
def test_the_path_is_taken_away(raw: str, path: str, expected: tuple[str, str]) -> None:
    """Catches another spelling of the path that passes for the canonical one."""
    scope = mounted("/pics", {"path": path, "raw_path": raw.encode()})
    assert (scope["path"], scope["raw_path"].decode()) == expected
