"""The page of moderators as they use it: in Chromium, against the real PDS."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from proxy.web.failed_tokens import MAX_FAILURES
from tests.devnet import DevnetUnavailable
from tests.page import HANDLE, Look, PageSite, page_site
from tests.page.checks import FAINT, SMALL, UNNAMED
from tests.processes import in_background
from tests.required import skip_unless_required

pytestmark = [pytest.mark.pds, pytest.mark.browser, pytest.mark.time_limit(600)]

TOKEN = "a-token-of-the-moderators"

NOBODY = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"
LONE_CID = "bafkreibnoelefnzgwbcacyt4vh52ymxvzbjq7mmqhtcnwarfq4lzegsiqe"
MARKUP = "<img src=x onerror=document.title='taken'> <b>spam</b> & \"more\""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageSite]:
    folder: Path = tmp_path_factory.mktemp("admin")
    try:
        with in_background(
            lambda: page_site(folder, SERVER__ADMIN_TOKENS__ALICE=TOKEN)
        ) as background:
            yield background.value
    except DevnetUnavailable as error:
        skip_unless_required(f"no PDS here: {error}")


def sign_in(page: Page, token: str = TOKEN) -> None:
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Open").click()


def entered(page: Page) -> None:
    sign_in(page)
    expect(page.get_by_label("Account, post or picture")).to_be_focused()


def look_up(page: Page, text: str) -> None:
    page.get_by_label("Account, post or picture").fill(text)
    page.get_by_role("button", name="Look up", exact=True).click()


def said(page: Page, text: str | re.Pattern[str]) -> None:
    expect(page.get_by_role("status")).to_have_text(text)


def card(page: Page, number: int = 1) -> Locator:
    return (
        page.get_by_role("list", name="Pictures")
        .get_by_role("listitem")
        .filter(has=page.get_by_role("heading", name=re.compile(rf"^{number}\. ")))
    )


def decide(page: Page, within: Locator, button: str, reason: str = "") -> None:
    within.get_by_role("button", name=button).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("Reason")).to_be_focused()
    page.keyboard.type(reason)
    dialog.get_by_role("button", name="Cancel").locator("xpath=following-sibling::button").click()
    expect(dialog).to_be_hidden()


def status_of(page: Page, url: str) -> int:
    return page.request.get(url).status


def image(site: PageSite, cid: str) -> str:
    return f"{site.url}/img/avatar_thumbnail/plain/{site.did}/{cid}"


def newest_decision(page: Page) -> Locator:
    return page.get_by_role("region", name="Decisions").get_by_role("listitem").first


def test_a_token_opens_the_page_and_a_reload_forgets_it(site: PageSite, look: Look) -> None:
    """Catches a page that shows something before the token, or keeps it where others find it."""

    def check(page: Page) -> None:
        expect(page.get_by_label("Token")).to_be_focused()
        assert page.get_by_role("button", name="Look up").count() == 0
        assert page.get_by_role("region").count() == 0
        entered(page)
        expect(page.get_by_label("Token")).to_be_hidden()
        kept = page.evaluate(
            "[document.cookie, localStorage.length, sessionStorage.length, location.href,"
            " document.body.outerHTML]"
        )
        assert kept[:4] == ["", 0, 0, f"{site.url}/admin"]
        assert TOKEN not in kept[4]
        assert page.get_by_label("Token").input_value() == ""
        page.reload()
        expect(page.get_by_label("Token")).to_be_focused()
        assert page.get_by_label("Token").input_value() == ""
        assert page.get_by_role("button", name="Look up").count() == 0
        entered(page)
        look_up(page, HANDLE)
        said(page, re.compile("found"))
        page.get_by_role("button", name="Forget the token").click()
        expect(page.get_by_label("Token")).to_be_focused()
        assert page.get_by_role("listitem").count() == 0
        assert site.did not in page.locator("main").inner_text()

    look(check, "admin")


def test_going_back_finds_no_token(site: PageSite, look: Look) -> None:
    """Catches a page that the browser keeps as it was, with the token in it."""

    def check(page: Page) -> None:
        entered(page)
        page.goto(f"{site.url}/")
        page.go_back()
        expect(page.get_by_label("Token")).to_be_visible()
        assert page.evaluate("token") == ""

    look(check, "admin")


@pytest.mark.parametrize("wrong", ["wrong", "ключ", "two words"])
def test_a_wrong_token_is_said_in_words(look: Look, wrong: str) -> None:
    """Catches a number where a person reads, and a character that no header can have."""

    def check(page: Page) -> None:
        sign_in(page, wrong)
        said(page, "This is no token of this server.")
        expect(page.get_by_label("Token")).to_be_focused()
        entered(page)

    look(check, "admin")


def test_an_account_is_blocked_and_its_block_lifted(site: PageSite, look: Look) -> None:
    """Catches "blocked" said of what is served, and a state that is yesterday's."""
    avatar, banner = image(site, site.avatar), image(site, site.banner)

    def check(page: Page) -> None:
        entered(page)
        look_up(page, f"@{HANDLE}")
        said(page, "2 pictures found, blurred until you choose to see them.")
        account = page.get_by_role("region", name=f"@{HANDLE}")
        expect(account).to_contain_text(site.did)
        expect(account).to_contain_text("Not blocked")
        assert [status_of(page, url) for url in (avatar, banner)] == [200, 200]
        decide(page, account, "Block the account", MARKUP)
        said(page, re.compile(r"^Blocked: [1-9]\d* cached entries removed\.$"))
        expect(page.get_by_role("status")).to_be_focused()
        assert [status_of(page, url) for url in (avatar, banner)] == [404, 404]
        for number in (1, 2):
            expect(card(page, number)).to_contain_text("not served, not even here")
            expect(card(page, number)).to_contain_text("The account is blocked")
            assert card(page, number).get_by_role("button", name="Lift").count() == 0
        # What it says is text: nothing of it has run, or is an element.
        expect(account.locator(".said")).to_have_text(MARKUP)
        expect(account).to_contain_text("by alice")
        decided = newest_decision(page)
        expect(decided).to_contain_text(re.compile("Blocked.*account.*by alice", re.DOTALL))
        expect(decided.locator(".said")).to_have_text(MARKUP)
        assert page.title().startswith("Moderation")
        assert page.locator("main img[src=x], main .said b").count() == 0
        account.get_by_role("button", name="Lift").click()
        dialog = page.get_by_role("dialog", name="Lift the block of the account?")
        expect(dialog).to_contain_text("asked for by alice.")
        dialog.get_by_role("button", name="Lift").click()
        said(page, "The block is lifted.")
        expect(account).to_contain_text("Not blocked")
        expect(newest_decision(page)).to_contain_text("Lifted")
        assert [status_of(page, url) for url in (avatar, banner)] == [200, 200]
        expect(card(page).get_by_role("button", name="Show picture 1")).to_be_visible()

    look(check, "admin")


def test_a_picture_is_blocked_for_one_account_or_everywhere(site: PageSite, look: Look) -> None:
    """Catches the one taken for the other, and a lifting of both."""
    first, second = (image(site, cid) for cid in site.photos)

    def check(page: Page) -> None:
        entered(page)
        look_up(page, site.post)
        said(page, re.compile("^2 pictures found"))
        decide(page, card(page, 1), "Block for this account", "here")
        said(page, re.compile("^Blocked: "))
        decide(page, card(page, 1), "Block everywhere", "all")
        expect(card(page, 1)).to_contain_text("Blocked for this account")
        expect(card(page, 1)).to_contain_text("Blocked everywhere")
        assert card(page, 1).get_by_role("button", name="Block").count() == 0
        expect(card(page, 2)).to_contain_text("Not blocked")
        assert [status_of(page, url) for url in (first, second)] == [404, 200]
        # A picture that is blocked is found by its CID, by its URL, and from the decisions.
        for text in (site.photos[0], first):
            look_up(page, text)
            expect(card(page, 1)).to_contain_text("Blocked everywhere")
        newest_decision(page).get_by_role("button", name="Look up").click()
        said(page, re.compile("^1 picture found"))
        decide(page, card(page), "Lift: picture 1 of 1, blob, everywhere")
        said(page, "The block is lifted.")
        assert status_of(page, first) == 404
        look_up(page, first)
        expect(card(page)).not_to_contain_text("Blocked everywhere")
        decide(page, card(page), "Lift: picture 1 of 1, blob, for this account")
        expect(card(page)).to_contain_text("Not blocked")
        assert status_of(page, first) == 200

    look(check, "admin")


def test_a_picture_is_blurred_until_it_is_chosen_by_mouse_or_keyboard(
    site: PageSite, look: Look
) -> None:
    """Catches a picture that one sees before one wants to, and one that only a mouse shows."""

    def blur(page: Page) -> str:
        found: str = page.evaluate(
            "getComputedStyle(document.querySelector('button.frame img')).filter"
        )
        return found

    def check(page: Page) -> None:
        entered(page)
        page.keyboard.type(site.post)
        page.keyboard.press("Enter")
        veil = card(page).get_by_role("button", name=re.compile("^(Show|Blur) picture 1 of 2"))
        expect(veil).to_have_accessible_name(re.compile("^Show picture 1 of 2, "))
        assert "blur(" in blur(page)
        assert page.evaluate("document.querySelector('button.frame img').naturalWidth") >= 600
        veil.click()
        expect(veil).to_have_accessible_name(re.compile("^Blur picture 1 of 2, "))
        assert blur(page) == "none"
        veil.press("Enter")
        assert "blur(" in blur(page)
        veil.press("Space")
        assert blur(page) == "none"
        # Another decision shows or hides no picture.
        decide(page, card(page, 2), "Block for this account")
        said(page, re.compile("^Blocked: "))
        assert blur(page) == "none"
        decide(page, card(page, 2), "Lift")
        look_up(page, site.post)
        expect(veil).to_have_accessible_name(re.compile("^Show "))
        assert "blur(" in blur(page)

    look(check, "admin")


def test_what_cannot_be_shown_can_be_decided_about(site: PageSite, look: Look) -> None:
    """Catches an account that is gone, and so cannot be blocked before it is back."""

    def check(page: Page) -> None:
        entered(page)
        look_up(page, NOBODY)
        said(page, f"There is no such account: “{NOBODY}”.")
        account = page.get_by_role("region", name="An account without a confirmed handle")
        decide(page, account, "Block the account", "in advance")
        said(page, "Blocked: 0 cached entries removed.")
        expect(account).to_contain_text("in advance")
        decide(page, account, "Lift")
        look_up(page, LONE_CID)
        expect(card(page)).to_contain_text("A CID alone does not say which account")
        assert card(page).get_by_role("button", name="Block").count() == 1
        look_up(page, f"{site.did} {LONE_CID}")
        expect(card(page)).to_contain_text("There is nothing to show")
        look_up(page, "nobody at all")
        said(page, re.compile("^There is no valid CID|is no handle"))
        assert page.get_by_role("list", name="Pictures").get_by_role("listitem").count() == 0

    look(check, "admin")


def test_a_decision_that_fails_keeps_its_reason_and_is_not_claimed(
    site: PageSite, look: Look
) -> None:
    """Catches "blocked" said of a 503, a reason typed twice, and a dialog one cannot leave."""

    def check(page: Page) -> None:
        entered(page)
        look_up(page, site.did)
        account = page.get_by_role("region", name=f"@{HANDLE}")
        late = '{"error": "kept, but running processes that do not follow yet: 2"}'
        page.route(
            "**/admin/blocks",
            lambda route: route.fulfill(status=503, body=late, content_type="application/json"),
        )
        opener = account.get_by_role("button", name="Block the account")
        opener.click()
        dialog = page.get_by_role("dialog")
        page.keyboard.type("a long reason")
        dialog.get_by_role("button", name="Block", exact=True).click()
        expect(dialog.get_by_role("alert")).to_have_text(
            "This is kept, but is not in force everywhere: 2 processes do not follow yet."
            " Send it again in a moment."
        )
        expect(dialog.get_by_label("Reason")).to_have_value("a long reason")
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        expect(opener).to_be_focused()
        page.unroute("**/admin/blocks")
        # What is done stays done, though it cannot be shown.
        page.route("**/admin/check*", lambda route: route.abort())
        decide(page, account, "Block the account")
        said(page, re.compile(r"^Blocked: \d+ cached .* The server does not answer\.$"))
        page.unroute("**/admin/check*")
        look_up(page, site.did)
        decide(page, account, "Lift")
        said(page, "The block is lifted.")
        page.context.set_offline(True)
        look_up(page, site.did)
        said(page, "The server does not answer.")
        page.context.set_offline(False)

    look(check, "admin")


def test_the_decisions_are_shown_by_pages(site: PageSite, look: Look) -> None:
    """Catches an audit that is loaded whole, and a page that comes twice."""

    def check(page: Page) -> None:
        for number in range(25):
            reply = page.request.post(
                f"{site.url}/admin/blocks",
                headers={"Authorization": f"Bearer {TOKEN}"},
                data={"did": NOBODY, "reason": f"number {number}"},
            )
            assert reply.ok
        entered(page)
        rows = page.get_by_role("region", name="Decisions").get_by_role("listitem")
        expect(rows).to_have_count(20)
        expect(rows.first).to_contain_text("number 24")
        expect(page.get_by_role("button", name="Newest")).to_be_disabled()
        page.get_by_role("button", name="Older").click()
        said(page, "Older decisions shown.")
        expect(rows.first).to_contain_text("number 4")
        page.get_by_role("button", name="Newest").click()
        expect(rows.first).to_contain_text("number 24")

    look(check, "admin")


@pytest.mark.parametrize("width", [320, 390, 768, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_any_screen_and_can_be_read_there(
    site: PageSite, look: Look, width: int, scheme: str
) -> None:
    """Catches what sticks out on a phone or at 200%, grey on grey, and controls without names."""

    def check(page: Page) -> None:
        def holds() -> None:
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert [page.evaluate(each) for each in (FAINT, SMALL, UNNAMED)] == [[], [], []]

        holds()
        entered(page)
        title = page.get_by_role("heading", level=1).bounding_box()
        beside = page.get_by_role("button", name="Forget the token").bounding_box()
        assert title is not None
        assert beside is not None
        assert (
            title["x"] + title["width"] <= beside["x"]
            or title["y"] + title["height"] <= beside["y"]
        )
        look_up(page, site.did)
        account = page.get_by_role("region", name=f"@{HANDLE}")
        decide(page, card(page), "Block for this account", "x" * 300)
        expect(card(page)).to_contain_text("x" * 300)
        holds()
        account.get_by_role("button", name="Block the account").click()
        holds()
        box = page.get_by_role("dialog").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        page.keyboard.press("Escape")
        decide(page, card(page), "Lift")
        said(page, "The block is lifted.")

    look(check, "admin", viewport={"width": width, "height": 700}, color_scheme=scheme)


def test_too_many_wrong_tokens_are_told_how_long_to_wait(look: Look) -> None:
    """Catches "wrong" said of the right token. The last test here: the address has to wait."""

    def check(page: Page) -> None:
        wait = r"Too many wrong tokens came from your address\. Try again in \d+ seconds?, also"
        for number in range(MAX_FAILURES):
            sign_in(page, f"wrong {number}")
            # Some were tried in the tests before.
            said(page, re.compile(f"^This is no token|^{wait}"))
            expect(page.get_by_label("Token")).to_be_focused()
        sign_in(page)
        said(page, re.compile(f"^{wait}"))
        expect(page.get_by_label("Token")).to_be_visible()

    look(check, "admin")
