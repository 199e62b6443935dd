"""Each printed balancer, run for real: which node gets a request, and what follows a loss."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from proxy.config import Config
from proxy.tools.balancer.haproxy import haproxy_balancer
from proxy.tools.balancer.nginx import nginx_balancer
from proxy.tools.balancer.nodes import HOT_RATE, HOT_SECONDS, numbered, parse_nodes
from tests.balancers import BALANCERS, run_balancer
from tests.cache import blob_cid, owner
from tests.fakes.nodes import FakeNode, fake_nodes
from tests.processes import Background, Client, Server, in_background, until

pytestmark = [pytest.mark.slow, pytest.mark.nginx]

DID = owner(1)
CID = blob_cid(1)

NAMES = ("a", "b", "c")


class Site:
    """A balancer before three nodes."""

    def __init__(self, front: Server, nodes: list[FakeNode], nursery: trio.Nursery) -> None:
        self.front = front
        self.nodes = nodes
        self.nursery = nursery

    async def node_of(self, target: str) -> str:
        """The name of the node that answers."""
        reply = await self.front.get(target)
        assert reply.status == 200, target
        return reply.body.decode()

    async def nodes_of(self, targets: Sequence[str]) -> list[str]:
        return [await self.node_of(target) for target in targets]

    def named(self, name: str) -> FakeNode:
        return next(node for node in self.nodes if node.name == name)

    async def until_all_checked(self) -> None:
        """Wait until a balancer that asks nodes for their health knows that of each."""
        before = [node.checked for node in self.nodes]

        def asked() -> bool:
            return all(
                node.checked >= count + 3
                for node, count in zip(self.nodes, before, strict=True)
                if node.port
            )

        await until(asked)


@asynccontextmanager
async def open_site(name: str, folder: Path) -> AsyncIterator[Site]:
    async with (
        trio.open_nursery() as nursery,
        fake_nodes(nursery, NAMES) as nodes,
        run_balancer(name, folder, [node.address for node in nodes]) as front,
    ):
        yield Site(front, nodes, nursery)


@pytest.fixture(scope="module", params=BALANCERS)
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Background[Site]]:
    """One for all tests that leave the nodes as they are."""
    folder = tmp_path_factory.mktemp(request.param)
    with in_background(partial(open_site, request.param, folder)) as background:
        yield background


@pytest.fixture(params=BALANCERS)
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    """One for a test that stops nodes."""
    async with open_site(request.param, tmp_path) as opened:
        yield opened


def pictures(count: int) -> list[str]:
    return [f"/img/avatar/plain/{owner(n)}/{blob_cid(n)}" for n in range(count)]


def all_of(did: str, cid: str) -> list[str]:
    """What can be asked about a blob."""
    return [
        f"/img/avatar/plain/{did}/{cid}",
        f"/img/feed_fullsize/plain/{did}/{cid}",
        f"/img/avatar/plain/{did}/{cid}@webp",
        f"/img/avatar/plain/{did}/{cid}?any=query&/more",
        f"/blob/{did}/{cid}",
        f"/info/{did}/{cid}",
        f"/vid/{did}/{cid}/thumbnail.jpg",
        f"/vid/avatar/{did}/{cid}/thumbnail.jpg",
    ]


def test_whatever_is_asked_of_a_blob_comes_from_one_node(stage: Background[Site]) -> None:
    """Catches a hash over the whole path, by which each preset fetches and decodes again."""
    homes = set()
    for number in range(24):
        (home,) = set(stage.run(stage.value.nodes_of, all_of(owner(number), blob_cid(number))))
        homes.add(home)
    assert homes == set(NAMES)


def test_a_did_web_with_a_port_has_a_node_too(stage: Background[Site]) -> None:
    """Catches a path that is decoded twice, or not at all, on one of the ways."""
    for port in range(8):
        did = f"did:web:localhost%253A{2583 + port}"
        assert len(set(stage.run(stage.value.nodes_of, all_of(did, CID)))) == 1


SPELLINGS = [
    ("did:", "did%3A"),
    ("did:", "did%3a"),
    ("did:plc", "%64id:%70lc"),
    ("/img/", "/%69mg/"),
    ("/plain/", "%2Fplain%2F"),
    ("/bafkrei", "%2fbafkrei"),
]


@pytest.mark.parametrize(("plain", "escaped"), SPELLINGS)
def test_another_spelling_of_a_picture_has_the_same_node(
    plain: str, escaped: str, stage: Background[Site]
) -> None:
    """Catches a hash over the path as it was sent: by spellings one client could warm all nodes."""
    for picture in pictures(12):
        assert plain in picture
        nodes = stage.run(stage.value.nodes_of, [picture, picture.replace(plain, escaped)])
        assert len(set(nodes)) == 1


def test_an_avatar_has_the_node_of_its_actor(stage: Background[Site]) -> None:
    for number in range(12):
        actor = f"alice{number}.example.com"
        targets = [
            f"/avatar/{actor}",
            f"/avatar/@{actor}",
            f"/avatar/avatar_small/{actor}",
            f"/avatar/avatar_small/{actor}@webp",
            f"/banner/{actor}",
        ]
        assert len(set(stage.run(stage.value.nodes_of, targets))) == 1


def test_each_node_has_its_share(stage: Background[Site], request: pytest.FixtureRequest) -> None:
    """Catches a hash that most pictures share, and a ring with few places, where chance decides."""
    shares = Counter(stage.run(stage.value.nodes_of, pictures(600)))
    assert set(shares) == set(NAMES)
    # The ports are others each time, and nginx has a tenth of the places: a tenth is usual there.
    off = 0.45 if "nginx" in request.node.name else 0.3
    assert min(shares.values()) > (1 - off) * 200
    assert max(shares.values()) < (1 + off) * 200


def test_what_cannot_be_repeated_does_not_pass(stage: Background[Site]) -> None:
    """Catches a POST that two nodes carry out."""
    site = stage.value
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        reply = stage.run(partial(site.front.get, method=method), "/img/of/all")
        assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert {method for node in site.nodes for method, _ in node.asked} <= {"GET", "HEAD", "OPTIONS"}
    for method in ("HEAD", "OPTIONS"):
        assert stage.run(partial(site.front.get, method=method), "/img/of/all").status == 200


async def test_the_pictures_of_a_dead_node_are_served_by_the_next_and_come_back(
    site: Site,
) -> None:
    """Catches a share that fails until somebody acts, and a ring that moves what it need not."""
    targets = pictures(60)
    before = dict(zip(targets, await site.nodes_of(targets), strict=True))
    lost = site.nodes[1]
    await lost.stop()
    during = dict(zip(targets, await site.nodes_of(targets), strict=True))
    assert lost.name not in during.values()
    others = [target for target in targets if before[target] != lost.name]
    assert all(during[target] == before[target] for target in others)
    await lost.start(site.nursery)

    async def is_back() -> bool:
        after = dict(zip(targets, await site.nodes_of(targets), strict=True))
        # HAProxy gives the share back over half a minute, and no other picture moves for it.
        assert all(after[target] == before[target] for target in others)
        return lost.name in after.values()

    await until(is_back)


async def test_a_request_that_its_node_drops_is_answered_by_another(site: Site) -> None:
    """Catches an error for what was under way when a node was killed."""
    (target,) = pictures(1)
    home = site.named(await site.node_of(target))
    home.status = None
    assert await site.node_of(target) != home.name
    assert target in home.targets


async def test_what_a_node_answers_is_the_answer(site: Site) -> None:
    """Catches a dead link that is asked for at one node after the other."""
    (target,) = pictures(1)
    home = site.named(await site.node_of(target))
    for status in (400, 404, 422, 500, 502, 504):
        home.status = status
        reply = await site.front.get(target)
        assert (reply.status, reply.body.decode()) == (status, home.name)
    assert not any(node.asked for node in site.nodes if node is not home)


async def test_without_nodes_the_answer_is_that_of_a_busy_proxy(site: Site) -> None:
    for node in site.nodes:
        await node.stop()
    reply = await site.front.get(pictures(1)[0])
    assert reply.status in (502, 503)
    assert (reply.body, reply.headers["cache-control"]) == (b"busy\n", "no-store")
    assert int(reply.headers["retry-after"]) > 0


async def test_a_node_that_drains_gets_nothing_new_and_ends_what_it_has(tmp_path: Path) -> None:
    """Catches health that is guessed from answers, which a draining node gives as ever."""
    async with open_site("haproxy", tmp_path) as site:
        home = site.named(await site.node_of("/held-by"))
        async with Client(site.front.port) as client:
            for node in site.nodes:
                node.released = trio.Event()
            await client.send("/held")
            await until(lambda: any("/held" in node.targets for node in site.nodes))
            (home,) = (node for node in site.nodes if "/held" in node.targets)
            home.ready = False
            await site.until_all_checked()
            await site.until_all_checked()
            asked = len(home.asked)
            await site.nodes_of(pictures(60))
            assert len(home.asked) == asked
            home.released.set()
            assert (await client.reply()).body.decode() == home.name
        home.ready = True

        async def is_back() -> bool:
            await site.nodes_of(pictures(60))
            return len(home.asked) > asked

        await until(is_back)


async def test_with_nginx_a_node_that_serves_nothing_costs_no_picture(tmp_path: Path) -> None:
    """Catches 503s for the share of a node that lost its lease, and an attack by 503s.

    A node is asked again each time: marked as failed, a stranger's PDS could put it out of service.
    """
    async with open_site("nginx", tmp_path) as site:
        (target,) = pictures(1)
        home = site.named(await site.node_of(target))
        home.status = 503
        for _ in range(5):
            assert await site.node_of(target) != home.name
        home.status = 200
        assert await site.node_of(target) == home.name


async def test_a_hot_picture_is_served_by_every_node_and_the_others_stay(site: Site) -> None:
    """Catches a picture that melts its node, and help for it that moves what is not hot."""
    hot, *others = pictures(13)
    homes = await site.nodes_of(others)
    shares: Counter[str] = Counter()

    async def ask(client: Client) -> None:
        for _ in range(HOT_RATE * HOT_SECONDS // 4):
            await client.send(hot)
            shares[(await client.reply()).body.decode()] += 1

    async with trio.open_nursery() as nursery:
        clients = []
        for _ in range(8):
            clients.append(await Client(site.front.port).__aenter__())
            nursery.start_soon(ask, clients[-1])
    for client in clients:
        await trio.aclose_forcefully(client.stream)
    assert sum(shares.values()) == 2 * HOT_RATE * HOT_SECONDS
    assert set(shares) == set(NAMES)
    assert await site.nodes_of(others) == homes


async def test_nothing_is_kept_by_a_balancer(site: Site) -> None:
    """Catches a cache that would outlive a block."""
    (target,) = pictures(1)
    for _ in range(3):
        home = site.named(await site.node_of(target))
    assert home.targets.count(target) == 3
    home.status = 404
    assert (await site.front.get(target)).status == 404


async def test_two_balancers_of_a_kind_agree(tmp_path: Path) -> None:
    """Catches a ring that depends on the order of a list, or on chance at the start."""
    for name in BALANCERS:
        async with trio.open_nursery() as nursery, fake_nodes(nursery, NAMES) as nodes:
            addresses = [node.address for node in nodes]
            found = []
            for number, order in enumerate((addresses, addresses[::-1])):
                folder = tmp_path / f"{name}{number}"
                folder.mkdir()
                async with run_balancer(name, folder, order) as front:
                    site = Site(front, nodes, nursery)
                    found.append(await site.nodes_of(pictures(40)))
            assert found[0] == found[1]


async def test_a_node_that_is_taken_out_moves_no_picture_of_the_others(tmp_path: Path) -> None:
    """Catches places on the ring that are counted from the start of the list."""
    for name in BALANCERS:
        async with trio.open_nursery() as nursery, fake_nodes(nursery, NAMES) as nodes:
            found = []
            # The first as the list is written: those behind it move up.
            gone = min(nodes, key=lambda node: node.address)
            without = [node for node in nodes if node is not gone]
            for number, left in enumerate((nodes, without)):
                folder = tmp_path / f"{name}{number}"
                folder.mkdir()
                addresses = [node.address for node in left]
                async with run_balancer(name, folder, addresses) as front:
                    site = Site(front, nodes, nursery)
                    found.append(await site.nodes_of(pictures(60)))
            for before, after in zip(*found, strict=True):
                assert before in (after, gone.name)


@pytest.mark.parametrize(
    "text",
    ["", "a", "a:", ":8080", "a:0", "a:65536", "a:80,", "a:80,A:80", "a b:80", 'a";:80',
     "[::1:80", "[a]:80", "[1.2.3.4]:80", "[fe80::1%eth0]:80", "unix:/run/a", "http://a:80"],
)  # fmt: skip
def test_what_is_no_list_of_nodes_is_refused(text: str) -> None:
    """Catches a directive smuggled in, and a node that gets two shares."""
    with pytest.raises(ValueError, match=r"HOST:PORT|twice"):
        parse_nodes(text)


def test_nodes_may_be_names_and_addresses_of_both_kinds() -> None:
    text = "a.example.com:8080, 10.0.0.1:80,[2001:db8::1]:8080"
    assert parse_nodes(text) == ("a.example.com:8080", "10.0.0.1:80", "[2001:db8::1]:8080")


def test_the_number_of_a_node_follows_from_its_address_alone() -> None:
    nodes = [f"node-{number}:8080" for number in range(64)]
    numbers = {node: number for number, node in numbered(nodes)}
    for count in range(1, 64):
        for number, node in numbered(nodes[count:]):
            assert numbers[node] == number
    assert len(set(numbers.values())) == 64
    assert all(0 < number < 2**31 for number in numbers.values())


def test_both_wait_for_longer_than_the_slowest_answer() -> None:
    """Catches a balancer that gives up while a node works."""
    config = Config()
    for text in (haproxy_balancer(config, ("a:1",)), nginx_balancer(config, ("a:1",))):
        found = re.search(r"(?:timeout server|proxy_read_timeout) (\d+)s", text)
        assert found is not None
        assert int(found[1]) > 2 * config.fetch.timeout + config.process.queue_wait
