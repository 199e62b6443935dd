"""The operator's own hosts, as an attacker sees them: what is listed is reached, no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from proxy.egress.endpoint import Origin, parse_origin, redirect_target
from proxy.egress.errors import Forbidden
from proxy.egress.guard import GuardedNetwork
from proxy.egress.own_hosts import own_host
from tests.egress.destinations import Trap
from tests.egress.test_guard import resolving_to

OWN = ("pds.home.arpa", "pds.example", "pds", "127.0.0.0/8", "fd00::/64", "fd01::5")


@pytest.fixture
def trap() -> Iterator[Trap]:
    with Trap() as trap:
        yield trap


@pytest.mark.parametrize("host", ["pds.home.arpa", "pds.example", "pds", "127.0.0.1"])
async def test_what_is_listed_is_reached_at_a_private_address(host: str, trap: Trap) -> None:
    """Catches: a list that is read as false."""
    origin = parse_origin(f"https://{host}:{trap.port}", allow_http=False, allow_private_hosts=OWN)
    network = GuardedNetwork(allow_private_hosts=OWN, lookup=resolving_to("127.0.0.1"))
    await (await network.connect(origin.host, origin.port)).aclose()
    assert trap.arrivals() == 1


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "a.pds.example",
        "xpds.example",
        "pds.example.evil.example",
        "arpa",
        "home.arpa",
    ],
)
async def test_a_name_that_is_not_listed_reaches_no_listed_network(host: str, trap: Trap) -> None:
    """Catches: a DNS answer of a stranger leads into a listed network, and suffixes count."""
    network = GuardedNetwork(allow_private_hosts=OWN, lookup=resolving_to("127.0.0.1"))
    with pytest.raises(Forbidden):
        await network.connect(host, trap.port)
    assert trap.arrivals() == 0


@pytest.mark.parametrize(
    "host",
    ["10.0.0.1", "169.254.169.254", "[fd00:0:0:1::1]", "[::ffff:127.0.0.1]", "[fd01::6]",
     "128.0.0.1.", "localhost", "other.home.arpa", "127.1", "0x7f.0.0.1", "[::1]",
     "x.pds.home.arpa"],
)  # fmt: skip
def test_a_private_host_that_is_not_listed_is_refused(host: str) -> None:
    """Catches: a list that opens more than it names."""
    with pytest.raises(Forbidden):
        parse_origin(f"https://{host}:8443", allow_http=False, allow_private_hosts=OWN)


@pytest.mark.parametrize("host", ["[fd00::1]", "[FD01:0::5]", "127.9.9.9", "PDS.Home.Arpa"])
def test_every_spelling_of_a_listed_host_is_accepted(host: str) -> None:
    """Catches: addresses that are compared as text."""
    assert parse_origin(f"https://{host}", allow_http=False, allow_private_hosts=OWN)


@pytest.mark.parametrize("port", [22, 25, 80, 143])
def test_a_listed_host_is_asked_at_the_usual_ports_alone(port: int) -> None:
    """Catches: a list that also opens the ports, as true does."""
    with pytest.raises(Forbidden, match="port"):
        parse_origin(f"https://pds.home.arpa:{port}", allow_http=False, allow_private_hosts=OWN)


@pytest.mark.parametrize("host", ["pds.home.arpa", "pds.example", "127.0.0.1", "[fd00::1]"])
def test_no_stranger_redirects_to_a_listed_host(host: str) -> None:
    """Catches: a stranger's redirect chooses the path of a request to a listed host."""
    for scheme in ("https:", ""):
        location = f"{scheme}//{host}:8443/admin?delete=all"
        with pytest.raises(Forbidden, match="redirect to a private host"):
            redirected("evil.example", location)
        assert redirected("pds", location).port == 8443


def redirected(host: str, location: str) -> Origin:
    base = Origin("https", host, 443)
    return redirect_target(base, "/", location, allow_http=False, allow_private_hosts=OWN)[0]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("PDS.Example", "pds.example"), ("[FD00:0::1]", "fd00::1"), ("10.0.0.0/8", "10.0.0.0/8"),
     ("10.1.2.3/32", "10.1.2.3"), ("FD00:0::/64", "fd00::/64")],
)  # fmt: skip
def test_an_entry_has_one_form(text: str, canonical: str) -> None:
    """Catches: an entry that no host is ever equal to."""
    assert own_host(text) == canonical
