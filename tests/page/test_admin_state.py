"""The state of the server on the page of moderators, in Chromium: real processes, real figures."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.fakes.world import tiny_jpeg
from tests.page import Look
from tests.page.checks import FAINT, SMALL, UNNAMED
from tests.processes import SERVE, in_background, serve, upstream

pytestmark = [pytest.mark.browser, pytest.mark.time_limit(300)]

TOKEN = "a-token-of-the-moderators"

STRANGE = "<img src=x onerror=document.title='taken'>" + "a-long-name." * 12


@dataclass(frozen=True)
class Site:
    """A server, and the path of a picture that it has answered once."""

    url: str
    picture: str


@asynccontextmanager
async def _site(folder: Path) -> AsyncIterator[Site]:
    async with upstream() as internet:
        did, cid = internet.add_blob(tiny_jpeg())
        environment = internet.environment(folder, SERVER__ADMIN_TOKEN=TOKEN)
        async with serve([*SERVE, "--workers", "2"], environment, workers=2) as server:
            path = f"/img/avatar_thumbnail/plain/{did}/{cid}"
            assert (await server.get(path)).status == 200
            yield Site(f"http://127.0.0.1:{server.port}", path)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder: Path = tmp_path_factory.mktemp("state")
    with in_background(lambda: _site(folder)) as background:
        yield background.value


def see_state(page: Page) -> None:
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Open").click()
    page.get_by_role("button", name="State").click()
    expect(page.get_by_role("region", name="State of the server")).to_be_visible()


def figure(page: Page, name: str) -> str:
    return page.locator("#figures div").filter(has_text=name).locator("dd").inner_text()


def test_the_tab_shows_every_worker_and_goes_on_by_itself(site: Site, look: Look) -> None:
    """Catches figures of whichever worker was asked, and a page that has to be reloaded."""

    def check(page: Page) -> None:
        see_state(page)
        expect(page.locator("#workers tbody tr")).to_have_count(2)
        expect(page.locator("#hosts")).to_contain_text("127.0.0.1")
        expect(page.get_by_label("Account, post or picture")).to_be_hidden()
        expect(page.locator("#figures")).to_contain_text("0.0/s")
        assert figure(page, "Blocks") == "0"
        assert re.fullmatch(r"\d+ MiB", figure(page, "Memory"))
        page.request.get(site.url + site.picture)
        expect(page.locator("#figures div").filter(has_text="Hits").locator("dd")).to_have_text(
            "100.0 %"
        )
        page.get_by_role("button", name="Moderation").click()
        expect(page.get_by_label("Account, post or picture")).to_be_visible()
        expect(page.get_by_role("region", name="State of the server")).to_be_hidden()
        # Nobody asks for what nobody sees.
        assert page.evaluate("watching.signal.aborted")

    look(check, "admin")


def test_a_token_that_is_forgotten_takes_the_state_along(site: Site, look: Look) -> None:
    """Catches hosts that stay on the screen, or are asked for, when the moderator has left."""

    def check(page: Page) -> None:
        see_state(page)
        expect(page.locator("#hosts")).to_contain_text("127.0.0.1")
        page.get_by_role("button", name="Forget the token").click()
        expect(page.get_by_label("Token")).to_be_focused()
        assert page.get_by_role("button", name="State").count() == 0
        assert "127.0.0.1" not in page.content().replace(site.url, "")
        see_state(page)
        page.route("**/admin/state", lambda route: route.abort())
        expect(page.get_by_role("status")).to_have_text("The server does not answer.")
        page.unroute("**/admin/state")
        expect(page.get_by_role("status")).to_have_text("")
        page.route("**/admin/state", lambda route: route.fulfill(status=401))
        expect(page.get_by_label("Token")).to_be_focused()
        expect(page.get_by_role("status")).to_have_text("This is no token of this server.")

    look(check, "admin")


def told(route: Route) -> None:
    """Answer with more than a quiet server has to tell, the names as strangers may choose them."""
    state = json.loads(route.fetch().body())
    pace = {"standing": "slow", "seconds": 12.345}
    state["hosts"] = [{"host": STRANGE, **pace}] + [
        {"host": f"pds{n}.example", "standing": "prompt", "seconds": 0.1} for n in range(5)
    ]
    state["circuits"] = [
        {"host": f"operator {STRANGE}", "cause": "ConnectFailed", "seconds": 29.2},
        {"host": "probed.example", "cause": "TimedOut", "seconds": 0},
    ]
    route.fulfill(json=state)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_what_is_told_fits_the_screen_can_be_read_and_is_text(
    look: Look, width: int, scheme: str
) -> None:
    """Catches a name that widens the page or becomes markup, and text that is too faint."""

    def check(page: Page) -> None:
        page.route("**/admin/state", told)
        see_state(page)
        expect(page.locator("#circuits")).to_contain_text("in 30 s")
        expect(page.locator("#circuits tr").last).to_contain_text("now")
        expect(page.locator("#hosts .slow")).to_have_text("slow")
        expect(page.locator("#hosts tbody tr").first).to_contain_text(STRANGE)
        assert page.title() != "taken"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for wrong in (FAINT, SMALL, UNNAMED):
            assert page.evaluate(wrong) == []

    look(check, "admin", viewport={"width": width, "height": 900}, color_scheme=scheme)
