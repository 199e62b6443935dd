"""The page as a person uses it: in Chromium, against the real PDS."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Error, Page, Route, expect

from proxy import errors
from proxy.config import Config
from proxy.model.presets import DEFAULT_PRESETS, Size, place, with_variants
from tests.devnet import DevnetUnavailable
from tests.page import HANDLE, OTHER_HANDLE, Look, PageSite, page_site
from tests.page.checks import CUT, FAINT, SMALL, UNNAMED
from tests.processes import ROOT, in_background
from tests.required import skip_unless_required
from tests.test_errors import FAMILY

pytestmark = [pytest.mark.pds, pytest.mark.browser, pytest.mark.time_limit(600)]

PRESETS = with_variants(
    DEFAULT_PRESETS
    | {"avatar": DEFAULT_PRESETS["avatar"].model_copy(update={"variants": (72, 144)})}
)

ABSENT = "bafkreibnoelefnzgwbcacyt4vh52ymxvzbjq7mmqhtcnwarfq4lzegsiqe"
"""A CID that nobody has."""

NOBODY = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"

UNREACHABLE = (
    "This server could not reach the directory, or the account’s server."  # noqa: RUF001
    " Its log, and imageproxy doctor, say why."
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageSite]:
    folder: Path = tmp_path_factory.mktemp("page")
    try:
        with in_background(
            lambda: page_site(folder, PRESETS__AVATAR__VARIANTS="72,144")
        ) as background:
            yield background.value
    except DevnetUnavailable as error:
        skip_unless_required(f"no PDS here: {error}")


def submit(page: Page, text: str, cid: str = "", format: str = "") -> None:
    page.get_by_label("Account, post or picture").fill(text)
    page.get_by_label("CID of a blob").fill(cid)
    page.get_by_label("Format").select_option(format)
    page.get_by_role("button", name="Show").click()


def wait_for_all(page: Page) -> None:
    expect(page.get_by_role("status")).to_have_text(f"{len(PRESETS)} presets shown.")


def fact(page: Page, preset: str, name: str) -> str:
    card = page.locator("li.card", has=page.get_by_role("heading", name=preset, exact=True))
    return card.locator("dl div", has_text=name).locator("dd").inner_text()


def states(page: Page) -> set[str]:
    return {fact(page, preset, "Cache") for preset in PRESETS}


def copied(page: Page) -> str:
    """What a button has just copied."""
    status = page.get_by_role("status")
    expect(status).to_contain_text("Copied: ")
    text: str = page.evaluate("navigator.clipboard.readText()")
    expect(status).to_have_text(f"Copied: {text}")
    return text


def shown_blob(page: Page) -> str:
    return page.locator("#what code").first.inner_text()


def test_a_handle_shows_every_preset_of_its_avatar(site: PageSite, look: Look) -> None:
    """Catches a page that needs to be told a DID and a CID, and sizes that are only claimed."""

    def check(page: Page) -> None:
        submit(page, HANDLE)
        wait_for_all(page)
        assert shown_blob(page) == site.avatar
        assert page.get_by_role("radio").count() == 2
        for name, preset in PRESETS.items():
            width, height = place(preset, Size(1200, 1200)).size
            assert fact(page, name, "Pixels") == f"{width} × {height}", name  # noqa: RUF001
            assert re.fullmatch(r"\d+(\.\d)? k?B jpeg", fact(page, name, "Bytes")), name

    look(check)


def test_a_second_look_comes_from_the_cache_and_shows_it(site: PageSite, look: Look) -> None:
    """Catches a browser's own cache shown as the server's, and timings of another answer."""

    def check(page: Page) -> None:
        submit(page, site.did, site.banner, "webp")
        wait_for_all(page)
        assert states(page) == {"miss"}
        card = page.locator("li.card").first
        for part in ("resolve", "fetch", "queue", "process"):
            expect(card.locator(f".time li.{part}")).to_have_text(
                re.compile(rf"^{part} [\d.]+ ms$")
            )
            assert card.locator(f".bar i.{part}").bounding_box() is not None
        assert "webp" in fact(page, "banner", "Bytes")
        # Emptied here: hits may be shown again before anybody sees that it was.
        page.get_by_role("status").evaluate("it => { it.textContent = '' }")
        page.get_by_role("button", name="Show").click()
        wait_for_all(page)
        assert states(page) == {"hit"}
        expect(card.locator(".time li")).to_have_text(re.compile(r"^answered in [\d.]+ ms$"))

    look(check)


def test_the_page_says_what_the_picture_is(site: PageSite, look: Look) -> None:
    """Catches the size of a preset under the name of the picture, and a colour of another one."""

    def check(page: Page) -> None:
        submit(page, site.did, site.banner)
        wait_for_all(page)
        info = page.request.get(f"{site.url}/info/{site.did}/{site.banner}").json()
        size: int = info["bytes"]
        told = page.locator("#what .told")
        expect(told).to_contain_text("1500 × 500")  # noqa: RUF001
        expect(told).to_contain_text(f"jpeg, {size / 1000:.{1 if size < 100_000 else 0}f} kB")
        expect(told).to_contain_text(f"average {info['color']}")
        red, green, blue = (int(info["color"][at : at + 2], 16) for at in (1, 3, 5))
        expect(told.locator("i")).to_have_css("background-color", f"rgb({red}, {green}, {blue})")

    look(check)


def test_a_placeholder_stands_where_the_picture_will(site: PageSite, look: Look) -> None:
    """Catches a card that jumps when its picture comes, and an empty frame until then."""
    boxes = """(name) => [...document.querySelectorAll(`.frame ${name}`)]
        .map((each) => { const { x, y, width, height } = each.getBoundingClientRect();
            const frame = each.parentElement.getBoundingClientRect();
            return [x - frame.x, y - frame.y, width, height]; })"""
    colors = """() => [...document.querySelectorAll(".frame canvas")].map((canvas) => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return [0, 1, 2].map((band) => data.filter((_, at) => at % 4 === band)
            .reduce((sum, value) => sum + value, 0) / (data.length / 4)); })"""

    def check(page: Page) -> None:
        waiting: list[Route] = []
        page.route("**/img/**", lambda route: waiting.append(route))
        submit(page, site.did, site.photos[0])
        expect(page.locator(".frame canvas")).to_have_count(len(PRESETS))
        color: str = page.locator("#what .told code").inner_text()
        expected = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
        for found in page.evaluate(colors):
            assert found == pytest.approx(expected, abs=12)
        before = page.evaluate(boxes, "canvas")
        for route in waiting:
            route.continue_()
        wait_for_all(page)
        assert page.locator(".frame canvas").count() == 0
        for placeholder, picture in zip(before, page.evaluate(boxes, "img"), strict=True):
            assert placeholder == pytest.approx(picture, abs=1.5)

    look(check)


def test_the_example_of_the_documents_fades_into_the_picture(
    site: PageSite,
    with_browser: Callable[[Callable[[Browser], None]], None],
    tmp_path: Path,
) -> None:
    """Catches an example that asks third parties, one that jumps, and one that stays blurred."""
    text = (ROOT / "docs/placeholder.html").read_text(encoding="utf-8")
    text = text.replace("http://127.0.0.1:8080", site.url)
    text, count = re.subn(
        r'show\("did:\S+", "baf\w+"', f'show("{site.did}", "{site.photos[0]}"', text
    )
    assert count == 1
    example = tmp_path / "example.html"
    example.write_text(text, encoding="utf-8")

    def check(browser: Browser) -> None:
        context = browser.new_context()
        try:
            page = context.new_page()
            asked: list[str] = []
            waiting: list[Route] = []
            page.on("request", lambda request: asked.append(request.url))
            page.route("**/img/**", lambda route: waiting.append(route))
            page.goto(example.as_uri())
            box = page.locator(".picture")
            expect(box).to_have_css("background-image", re.compile("^url"))
            before = box.bounding_box()
            assert before is not None
            assert before["width"] / before["height"] == pytest.approx(2400 / 1600, abs=0.01)
            blurred = np.asarray(Image.open(io.BytesIO(box.screenshot())).convert("L"), float)
            waiting[0].continue_()
            expect(box.locator("img")).to_have_css("opacity", "1")
            sharp = np.asarray(Image.open(io.BytesIO(box.screenshot())).convert("L"), float)
            assert box.bounding_box() == before
            # The same picture, in another sharpness.
            assert np.corrcoef(blurred.ravel(), sharp.ravel())[0, 1] > 0.7
            assert blurred.std() > 10
            assert np.abs(np.diff(sharp)).max() > 4 * np.abs(np.diff(blurred)).max()
            allowed = (site.url, example.as_uri(), "data:")
            assert [url for url in asked if not url.startswith(allowed)] == []
        finally:
            context.close()

    with_browser(check)


def test_the_bars_of_all_presets_have_one_scale(site: PageSite, look: Look) -> None:
    """Catches bars that are each as long as the other, whatever they took."""

    def check(page: Page) -> None:
        submit(page, site.did, site.photos[0], "png")
        wait_for_all(page)
        lengths: list[float] = page.evaluate(
            """() => [...document.querySelectorAll(".bar")].map((bar) =>
                [...bar.children].reduce((sum, part) => sum + part.clientWidth, 0)
                / bar.clientWidth)"""
        )
        assert len(lengths) == len(PRESETS)
        assert max(lengths) == pytest.approx(1, abs=0.1)
        assert min(lengths) < 0.9

    look(check)


@pytest.mark.parametrize("shape", ["at", "bsky", "bsky by handle"])
def test_a_link_to_a_post_shows_its_pictures(site: PageSite, look: Look, shape: str) -> None:
    """Catches a reader of one spelling."""
    key = site.post.rpartition("/")[2]
    text = {
        "at": site.post,
        "bsky": f"https://bsky.app/profile/{site.did}/post/{key}",
        "bsky by handle": f"https://bsky.app/profile/{HANDLE}/post/{key}?ref=x",
    }[shape]

    def check(page: Page) -> None:
        submit(page, text)
        wait_for_all(page)
        assert page.get_by_role("radio").count() == 2
        assert shown_blob(page) == site.photos[0]

    look(check)


def test_a_gallery_and_the_post_it_quotes_show_their_pictures(site: PageSite, look: Look) -> None:
    """Catches a quoted picture that is asked of the account that quotes it."""

    def check(page: Page) -> None:
        submit(page, site.quoting)
        wait_for_all(page)
        captions = page.locator(".choice").all_inner_texts()
        assert [" ".join(each.split()) for each in captions] == [
            "1. image",
            "2. image",
            "3. image quoted post",
        ]
        expect(page.get_by_role("img", name="Hills 0").first).to_be_visible()
        page.get_by_role("radio").nth(2).check()
        wait_for_all(page)
        assert page.locator("#what code").all_inner_texts()[:2] == [site.quoted, site.other_did]

    look(check)


def test_what_is_quoted_and_gone_is_said(site: PageSite, look: Look) -> None:
    """Catches a post without pictures whose quoted one has been deleted, without a word of it."""

    def check(page: Page) -> None:
        submit(page, site.quoting_nothing)
        expect(page.get_by_role("status")).to_have_text("There are no pictures there.")
        expect(page.locator("#problems li")).to_have_text(
            f"Not shown, quoted post: at://{site.other_did}/app.bsky.feed.post/3k"
            " There is no such post or record. It may have been deleted."
        )
        assert page.locator("#examples").is_visible()
        submit(page, site.post)
        wait_for_all(page)
        assert page.locator("#problems li").count() == 0

    look(check)


def test_a_video_shows_its_poster_or_why_there_is_none(site: PageSite, look: Look) -> None:
    """Catches a video that is asked for as an image, and one of which nothing is said."""

    def check(page: Page) -> None:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        submit(page, site.damaged_film)
        expect(page.get_by_role("status")).to_have_text(
            "This is no video of which this server makes a poster: an MP4, MOV or WebM.",
        )
        assert any(url.endswith("/thumbnail.jpg") for url in asked)
        without = """() => { document.querySelector("main").dataset.video = "";
            return explained(400, "unsupported image format", { medium: "video" }); }"""
        assert "no posters of videos: they need its extra" in page.evaluate(without)
        assert not [url for url in asked if "/img/" in url or "/info/" in url]

        submit(page, site.film)
        wait_for_all(page)
        assert page.get_by_role("img", name="A film").count() == len(PRESETS)
        assert fact(page, "banner", "Pixels") == "640 × 300"  # noqa: RUF001
        assert page.get_by_role("button", name="Compare").count() == 0

    look(check)


def test_an_account_shows_its_pictures_in_other_apps(site: PageSite, look: Look) -> None:
    """Catches an account that is empty because it is not on Bluesky."""

    def check(page: Page) -> None:
        submit(page, OTHER_HANDLE)
        wait_for_all(page)
        assert shown_blob(page) == site.quoted
        # Its /avatar is that of the configured collections.
        assert page.locator("#always").inner_text() == ""

    look(check)


def test_the_keyboard_alone_is_enough(site: PageSite, look: Look) -> None:
    """Catches a field, a choice or a button that only a mouse reaches."""

    def check(page: Page) -> None:
        expect(page.get_by_label("Account, post or picture")).to_be_focused()
        page.keyboard.type(site.post)
        page.keyboard.press("Enter")
        wait_for_all(page)
        for _ in range(4):
            page.keyboard.press("Tab")
        expect(page.get_by_role("radio").first).to_be_focused()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#what code").first).to_have_text(site.photos[1])
        wait_for_all(page)
        expect(page.get_by_role("radio").nth(1)).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.locator("#builder summary")).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Open avatar", exact=True)).to_be_focused()
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Copy URL of avatar", exact=True)).to_be_focused()
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_contain_text("Copied: ")

    look(check)


def test_what_is_copied_is_what_a_page_needs(site: PageSite, look: Look) -> None:
    """Catches URLs that are refused, and a srcset whose widths are not those of its files."""

    def check(page: Page) -> None:
        submit(page, site.did, site.avatar)
        wait_for_all(page)
        page.get_by_role("button", name="Copy URL of banner", exact=True).click()
        expect(page.get_by_role("status")).to_contain_text("Copied: ")
        url = page.evaluate("navigator.clipboard.readText()")
        assert url == f"{site.url}/img/banner/plain/{site.did}/{site.avatar}"
        page.get_by_role("button", name="Copy <img srcset> of avatar_w72", exact=True).click()
        tag = copied(page)
        found = re.fullmatch(
            r'<img src="(\S+)" srcset="([^"]+)" sizes="72px"'
            r' width="72" height="72" alt="" loading="lazy">',
            tag,
        )
        assert found is not None, tag
        assert found[1] == f"{site.url}/img/avatar_w72/plain/{site.did}/{site.avatar}"
        widths = {}
        for candidate in found[2].split(", "):
            source, width = candidate.split(" ")
            assert source.startswith(f"{site.url}/")
            widths[width] = page.evaluate(
                """async (source) => {
                    const image = new Image();
                    image.src = source;
                    await image.decode();
                    return `${image.naturalWidth}w`;
                }""",
                source,
            )
        squares = (72, 128, 144, 360, 1000)
        assert widths == {f"{width}w": f"{width}w" for width in squares}

    look(check)


@pytest.mark.parametrize(
    ("preset", "size", "widths"),
    [
        ("feed_thumbnail", (800, 1000), [800, 1600]),  # a portrait in a square box
        ("banner", (640, 300), []),  # no other box has its shape
        ("avatar", (1000, 1000), []),  # nor is one wider
        ("content_preview", (800, 1000), []),  # content_full moves
    ],
)
def test_an_img_has_the_size_that_it_will_have(
    site: PageSite, look: Look, preset: str, size: tuple[int, int], widths: list[int]
) -> None:
    """Catches a layout that jumps, and candidates that show another part of the picture."""

    def check(page: Page) -> None:
        submit(page, site.did, site.photos[1])
        wait_for_all(page)
        card = page.locator("li.card", has=page.get_by_role("heading", name=preset, exact=True))
        card.get_by_role("button", name="Copy <img").click()
        tag = copied(page)
        assert f'width="{size[0]}" height="{size[1]}" alt="" loading="lazy">' in tag
        assert [int(width) for width in re.findall(r" (\d+)w", tag)] == widths

    look(check)


def test_a_link_to_the_page_shows_what_it_is_about(site: PageSite, look: Look) -> None:
    """Catches a page that forgets on reload, and the links of an earlier release."""

    def check(page: Page) -> None:
        wait_for_all(page)
        assert shown_blob(page) == site.photos[1]
        expect(page.get_by_label("Format")).to_have_value("jpeg")
        page.reload()
        wait_for_all(page)
        assert shown_blob(page) == site.photos[1]

    look(check, f"#q={quote(site.did)}&cid={site.photos[1]}&format=jpeg")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hello", "“hello” is no handle (alice.example.com), DID or link."),
        ("x" * 200, f"“{'x' * 80}…” is no handle (alice.example.com), DID or link."),
        (ABSENT, "A CID needs its account before it: a handle or a DID."),
        ("did:plc:short", "There is no valid DID (did:plc:… or did:web:…) in “did:plc:short”."),
        (f"{NOBODY} bafk", f"There is no valid CID (bafkrei…) in “{NOBODY} bafk”."),
        ("https://example.com/x", "“https://example.com/x” leads to no account, post or picture."),
        (NOBODY, f"There is no such account: “{NOBODY}”."),
        ("did:web:localhost%3A1", UNREACHABLE),
        (
            "<script>alert(1)</script>",
            "“<script>alert(1)</script>” is no handle (alice.example.com), DID or link.",
        ),
    ],
)
def test_a_mistake_is_said_aloud_and_leaves_nothing_of_the_last_look(
    site: PageSite, look: Look, text: str, said: str
) -> None:
    """Catches pictures of one account under the name of another."""

    def check(page: Page) -> None:
        submit(page, site.did, site.avatar)
        wait_for_all(page)
        submit(page, text)
        expect(page.get_by_role("status")).to_have_text(said)
        expect(page.get_by_role("status")).to_have_class(re.compile("bad"))
        assert page.locator("li.card img").count() == 0
        assert page.locator("#what").inner_text() == ""

    look(check)


def test_what_fails_alike_in_every_preset_is_said_once(site: PageSite, look: Look) -> None:
    """Catches nine red cards about one absent blob."""

    def check(page: Page) -> None:
        submit(page, site.did, ABSENT)
        expect(page.get_by_role("status")).to_have_text("There is no such picture.")
        expect(page.get_by_role("status")).to_have_class(re.compile("bad"))
        assert page.locator("li.card .frame").all_inner_texts() == ["There is no such picture."]
        expect(page.locator(".advice")).to_contain_text("Look up its account")
        assert shown_blob(page) == ABSENT
        assert page.locator("#note").inner_text() == ""

    look(check)


@pytest.mark.parametrize("width", [320, 1440])
def test_what_fails_in_every_preset_is_asked_for_again_from_one_card(
    site: PageSite, look: Look, width: int
) -> None:
    """Catches cards that vanish with all that could be done, and one of another layout."""
    box = """() => {
        const [card, frame] = ["li.card", "li.card .frame"]
            .map((each) => document.querySelector(each).getBoundingClientRect());
        return [card.x, card.width, card.height, frame.y - card.y, frame.height];
    }"""

    def check(page: Page) -> None:
        held: list[Route] = []
        page.route("**/img/*/plain/**", lambda route: held.append(route))
        submit(page, site.did, site.avatar)
        expect(page.locator(".waiting")).to_have_count(len(PRESETS))
        waiting: list[float] = page.evaluate(box)
        for route in held:
            route.fulfill(status=502, body="failed to fetch blob from PDS")
        expect(page.get_by_role("status")).to_have_text(UNREACHABLE)
        assert page.locator("li.card .frame").all_inner_texts() == [UNREACHABLE]
        expect(page.locator(".advice")).to_contain_text("Retry in a moment.")
        assert page.evaluate(box) == pytest.approx(waiting, abs=0.5)
        assert page.locator("#examples").is_visible()
        page.unroute("**/img/*/plain/**")
        page.get_by_role("button", name="Retry every preset", exact=True).click()
        expect(page.get_by_role("status")).to_be_focused()
        wait_for_all(page)
        assert page.locator(".advice").count() == 0
        assert page.locator("#examples").is_hidden()

    look(check, viewport={"width": width, "height": 900})


def test_a_search_that_nobody_answered_is_sent_again_as_it_was(site: PageSite, look: Look) -> None:
    """Catches a dead end at a dead server, and a retry of what is being typed."""

    def check(page: Page) -> None:
        page.route("**/lookup*", lambda route: route.fulfill(status=504, body="request timed out"))
        submit(page, site.did, site.avatar)
        expect(page.locator("li.card .frame")).to_contain_text("took too long to answer.")
        page.unroute("**/lookup*")
        page.get_by_label("Account, post or picture").fill("something else")
        page.get_by_role("button", name="Retry the search", exact=True).click()
        wait_for_all(page)
        assert shown_blob(page) == site.avatar

    look(check)


def test_what_fails_in_some_presets_is_said_in_their_cards(site: PageSite, look: Look) -> None:
    """Catches a card that waits for ever, and one failure that hides what did not fail."""

    def check(page: Page) -> None:
        page.route("**/img/banner/**", lambda route: route.abort())
        submit(page, site.did, site.avatar)
        count = len(PRESETS)
        expect(page.get_by_role("status")).to_have_text(f"{count - 1} of {count} presets shown.")
        expect(page.locator(".frame p")).to_have_text(["The server does not answer."])
        assert page.locator(".waiting").count() == 0
        page.unroute("**/img/banner/**")
        heights = "[...document.querySelectorAll('li.card')].map((card) => card.offsetHeight)"
        before: list[int] = page.evaluate(heights)
        page.get_by_role("button", name="Retry banner", exact=True).click()
        expect(page.get_by_role("status")).to_have_text("banner shown.")
        assert page.locator(".frame p, .waiting").count() == 0
        assert page.evaluate(heights) == before
        card = page.locator("li.card", has=page.get_by_role("heading", name="banner", exact=True))
        expect(card.locator(".weight")).to_contain_text("as WebP")
        assert page.locator("#shape option").all_text_contents().count("cropped to 32 : 15") == 1

    look(check)


@pytest.mark.parametrize("width", [320, 1440])
def test_cards_keep_their_size_while_they_load_and_fill(
    site: PageSite, look: Look, width: int
) -> None:
    """Catches a page that jumps when pictures come, and again when WebP has been weighed."""
    heights = "[...document.querySelectorAll('li.card')].map((card) => card.offsetHeight)"

    def check(page: Page) -> None:
        held: list[Route] = []
        is_held = True

        def hold(route: Route) -> None:
            if is_held:
                held.append(route)
            else:
                route.continue_()

        page.route("**/img/*/plain/**", hold)
        submit(page, HANDLE)
        expect(page.locator(".waiting")).to_have_count(len(PRESETS))
        waiting: list[int] = page.evaluate(heights)
        is_held = False
        for route in held:
            route.continue_()
        wait_for_all(page)
        expect(page.locator(".weight:empty")).to_have_count(0)
        assert page.evaluate(heights) == waiting

    look(check, viewport={"width": width, "height": 900})


def test_every_search_is_in_the_history(site: PageSite, look: Look) -> None:
    """Catches a second search that is written over the first, and one that is kept twice."""

    def check(page: Page) -> None:
        for cid in (site.avatar, site.banner, site.banner):
            submit(page, site.did, cid)
            wait_for_all(page)
            expect(page.locator("#what code").first).to_have_text(cid)
        page.go_back()
        expect(page.locator("#what code").first).to_have_text(site.avatar)
        wait_for_all(page)
        page.go_forward()
        expect(page.locator("#what code").first).to_have_text(site.banner)

    look(check)


def test_the_chosen_picture_and_the_comparison_are_in_the_address(
    site: PageSite, look: Look
) -> None:
    """Catches a link that shows others the first picture, and Back that leaves the account."""

    def check(page: Page) -> None:
        def shows(cid: str, address: str) -> None:
            expect(page.locator("#what code").first).to_have_text(cid)
            expect(page.get_by_role("radio", checked=True)).to_have_count(1)
            expect(page).to_have_url(f"{site.url}/#q={HANDLE}{address}")
            wait_for_all(page)

        banner, compared = f"&picture={site.banner}", f"&picture={site.banner}&compare=avatar"
        dialog = page.get_by_role("dialog", name="avatar and its source", exact=True)
        button = page.get_by_role("button", name="Compare avatar with its source", exact=True)
        submit(page, HANDLE)
        shows(site.avatar, "")
        page.get_by_role("radio").nth(1).check()
        shows(site.banner, banner)
        button.click()
        expect(dialog).to_be_visible()
        shows(site.banner, compared)
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        shows(site.banner, banner)
        assert page.get_by_role("radio").nth(1).is_checked()
        page.go_back()
        shows(site.avatar, "")
        assert page.get_by_role("radio").nth(0).is_checked()
        page.go_forward()
        shows(site.banner, banner)
        page.go_forward()
        expect(dialog).to_be_visible()
        page.reload()
        shows(site.banner, compared)
        expect(dialog).to_be_visible()
        page.go_back()
        expect(dialog).to_be_hidden()
        shows(site.banner, banner)
        submit(page, HANDLE)
        shows(site.avatar, "")

    look(check)


@pytest.mark.parametrize("after", ["?", "#"])
def test_a_shared_link_opens_the_comparison_that_was_shared(
    after: str, site: PageSite, look: Look
) -> None:
    """Catches a link that leads its reader to the account, and a close that leaves the page."""

    def check(page: Page) -> None:
        dialog = page.get_by_role("dialog", name="banner and its source", exact=True)
        expect(dialog).to_be_visible()
        assert shown_blob(page) == site.banner
        page.get_by_role("button", name="Close").click()
        expect(dialog).to_be_hidden()
        expect(page).to_have_url(f"{site.url}/#q={HANDLE}&picture={site.banner}")

    look(check, f"{after}q={HANDLE}&picture={site.banner}&compare=banner")


def test_what_an_address_names_and_is_not_there_is_left_out(site: PageSite, look: Look) -> None:
    """Catches a page that fails on an old link, or goes on telling what it does not show."""

    def check(page: Page) -> None:
        wait_for_all(page)
        assert shown_blob(page) == site.avatar
        expect(page).to_have_url(f"{site.url}/#q={HANDLE}")

    look(check, f'#q={HANDLE}&picture={ABSENT}&compare=x"]')


def test_an_account_whose_server_is_silent_is_said_in_time(site: PageSite, look: Look) -> None:
    """Catches a page that waits as long as the server does."""

    def check(page: Page) -> None:
        page.route("**/lookup*", lambda _: None)
        page.evaluate("() => { AbortSignal.timeout = () => AbortSignal.abort() }")
        submit(page, site.did)
        expect(page.get_by_role("status")).to_contain_text("Nobody has answered for 10 seconds.")
        assert page.locator("#examples").is_visible()

    look(check)


def test_a_server_that_is_gone_is_told_from_one_that_refuses(site: PageSite, look: Look) -> None:
    """Catches "Failed to fetch", and the words of what stands before a server that is gone."""

    def check(page: Page) -> None:
        page.context.set_offline(True)
        submit(page, site.did)
        expect(page.get_by_role("status")).to_have_text("The server does not answer.")
        page.context.set_offline(False)
        page.route("**/lookup*", lambda route: route.fulfill(status=502, body="<h1>Bad Gateway"))
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_role("status")).to_have_text("The server does not answer.")
        page.route("**/lookup*", lambda route: route.fulfill(status=429, body="<html>" * 99))
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_role("status")).to_have_text(
            "What stands before this server refused it, with status 429."
        )
        expect(page.locator(".advice")).to_have_text(re.compile("^Retry in a moment"))

    look(check)


def test_there_is_a_sentence_for_all_that_the_server_says(look: Look) -> None:
    """Catches an error that is new, or worded anew, and comes to people as it is."""
    others = {errors.InvalidPreset, errors.InvalidFormat, errors.TrailingSlash}
    others |= {errors.NoAvatar, errors.NoBanner}
    family = [error for error in FAMILY if error not in others]

    def check(page: Page) -> None:
        for error in family:
            said: str = page.evaluate(
                "([status, text]) => explained(status, text, { q: 'asked' })",
                [error.status, error.message],
            )
            assert said.endswith("."), error
            assert said != "The server does not answer.", error
        assert page.evaluate("explained(405, 'method not allowed', {})").startswith("405: ")

    look(check)


def test_an_empty_page_offers_examples_of_its_network(site: PageSite, look: Look) -> None:
    """Catches accounts of another network, and a chosen example that leaves no focus."""

    def check(page: Page) -> None:
        links = page.get_by_role("region", name="For example").get_by_role("link")
        assert links.count() == 4
        link = page.get_by_role("link", name=HANDLE, exact=True)
        link.focus()
        page.keyboard.press("Enter")
        wait_for_all(page)
        assert shown_blob(page) == site.avatar
        expect(page.get_by_role("status")).to_be_focused()
        expect(page.get_by_label("Account, post or picture")).to_have_value(HANDLE)
        expect(links).to_have_count(0)
        page.go_back()
        expect(links).to_have_count(4)
        expect(page.get_by_role("status")).to_have_text("")
        expect(page.get_by_label("Account, post or picture")).to_have_value("")
        submit(page, NOBODY)
        expect(page.get_by_role("status")).to_have_class(re.compile("bad"))
        expect(links).to_have_count(4)

    look(check)


def test_a_link_of_the_form_without_a_script_works_with_one(site: PageSite, look: Look) -> None:
    """Catches a link that somebody without JavaScript sent, and that shows an empty page."""

    def check(page: Page) -> None:
        wait_for_all(page)
        assert shown_blob(page) == site.photos[1]
        assert page.url == f"{site.url}/#q={quote(site.did, safe='')}&cid={site.photos[1]}"
        assert page.locator("#plain").count() == 0

    look(check, f"?q={quote(site.did)}&cid={site.photos[1]}&format=")


def test_what_the_server_has_looked_up_is_not_looked_up_again(site: PageSite, look: Look) -> None:
    """Catches a script that asks for what its page has already."""

    def check(page: Page) -> None:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.reload()
        expect(page.locator(".plain > li h2")).to_have_text(["1. blob"])
        expect(page.get_by_label("CID of a blob")).to_have_value(site.photos[1])
        assert not [url for url in asked if "/lookup" in url]
        page.get_by_role("button", name="Show").click()
        wait_for_all(page)
        assert page.locator("#plain").count() == 0
        assert len([url for url in asked if "/lookup" in url]) == 1

    look(check, f"?q={quote(site.did)}&cid={site.photos[1]}&format=&list=1")


def test_a_link_with_a_question_leads_to_its_list_without_javascript(
    site: PageSite, look: Look
) -> None:
    """Catches a link sent by somebody with JavaScript, or an example, that shows an empty form."""

    def check(page: Page) -> None:
        page.wait_for_url(re.compile("&list=1$"))
        expect(page.locator(".plain > li h2")).to_have_text(["1. image", "2. image", "3. image"])

    look(check, f"?q={quote(site.quoting)}", java_script_enabled=False)


def test_without_javascript_the_form_answers_with_a_list(site: PageSite, look: Look) -> None:
    """Catches a page that says only that it needs JavaScript."""

    def check(page: Page) -> None:
        expect(
            page.get_by_text("Without JavaScript, the form answers with a list.")
        ).to_be_visible()
        submit(page, site.quoting, format="webp")
        titles = page.locator(".plain > li h2")
        expect(titles).to_have_text(["1. image", "2. image", "3. image"])
        thumb = page.get_by_role("img", name="Hills 0")
        assert thumb.evaluate("async (image) => { await image.decode(); return image.width }") > 0
        link = page.locator(".plain > li").nth(2).get_by_role("link", name="banner", exact=True)
        url = link.evaluate("(link) => link.href")
        assert url == f"{site.url}/img/banner/plain/{site.other_did}/{site.quoted}@webp"
        assert page.request.get(url).headers["content-type"] == "image/webp"
        submit(page, "nonsense")
        expect(page.get_by_text("nonsense: invalid handle format.")).to_be_visible()
        assert page.locator("#examples").is_visible()

    look(check, java_script_enabled=False)


def test_a_pasted_image_keeps_its_format(site: PageSite, look: Look) -> None:
    """Catches a JPEG's URL that shows something else, and a choice that cannot be undone."""
    url = f"https://cdn.example/img/feed_fullsize/plain/{site.did}/{site.avatar}@webp"
    named = f"https://cdn.example/avatar/avatar_small/{HANDLE}@png"

    def check(page: Page) -> None:
        field, choice = page.get_by_label("Account, post or picture"), page.get_by_label("Format")
        expect(choice.locator("option:checked")).to_have_text("as the source")
        for text, format_ in ((url, "webp"), (named, "png"), (site.did, "png"), (url, "webp")):
            field.fill(text)
            expect(choice).to_have_value(format_)
        page.get_by_role("button", name="Show").click()
        wait_for_all(page)
        assert "webp" in fact(page, "banner", "Bytes")
        page.reload()
        expect(choice).to_have_value("webp")
        choice.select_option("")
        page.get_by_role("button", name="Show").click()
        wait_for_all(page)
        assert "jpeg" in fact(page, "banner", "Bytes")
        page.reload()
        expect(choice).to_have_value("")

    look(check)


def test_thumbnails_have_pixels_enough_for_a_dense_screen(site: PageSite, look: Look) -> None:
    """Catches the smallest of presets shown at three times its size."""

    def check(page: Page) -> None:
        submit(page, site.post, format="webp")
        wait_for_all(page)
        thumbs: list[tuple[str, int, int]] = page.evaluate(
            """() => [...document.querySelectorAll(".choice img")].map((image) =>
                [new URL(image.src).pathname, image.naturalWidth, image.clientWidth])"""
        )
        assert [width >= 2 * shown for _, width, shown in thumbs] == [True, True]
        # The smallest that has; a larger one would be a waste.
        assert [path.split("/")[2] for path, _, _ in thumbs] == ["avatar_small"] * 2

    look(check)


def test_an_accounts_current_picture_can_be_copied_in_every_preset(
    site: PageSite, look: Look
) -> None:
    """Catches URLs that show yesterday's avatar, and a name for a picture of no profile."""

    def check(page: Page) -> None:
        submit(page, f"@{HANDLE}", format="webp")
        wait_for_all(page)
        link = page.locator("#always").get_by_role("link")
        expect(link).to_have_text(f"{site.url}/avatar/{HANDLE}@webp")
        page.get_by_role("button", name="Copy the URL that follows the account").click()
        assert copied(page) == f"{site.url}/avatar/{HANDLE}@webp"
        name = "Copy /avatar URL of avatar_w72"
        page.get_by_role("button", name=name, exact=True).click()
        url = copied(page)
        assert url == f"{site.url}/avatar/avatar_w72/{HANDLE}@webp"
        assert page.request.get(url).headers["content-type"] == "image/webp"
        page.get_by_role("radio").nth(1).check()
        expect(link).to_have_text(f"{site.url}/banner/{HANDLE}@webp")
        wait_for_all(page)
        assert page.get_by_role("button", name="Copy /banner URL of banner").count() == 1
        submit(page, site.post)
        wait_for_all(page)
        assert page.locator("#always").inner_text() == ""
        assert page.get_by_role("button", name="/avatar URL").count() == 0

    look(check)


def test_a_source_lies_under_its_preset_and_a_line_tells_them_apart(
    site: PageSite, look: Look
) -> None:
    """Catches pictures that do not lie on one another, bytes of another one, and a mouse's toy."""

    def check(page: Page) -> None:
        submit(page, site.did, site.photos[0])
        wait_for_all(page)
        button = page.get_by_role("button", name="Compare banner with its source", exact=True)
        button.focus()
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog", name="banner and its source")
        blob = page.request.get(f"{site.url}/blob/{site.did}/{site.photos[0]}").body()
        kb = f"{len(blob) / 1000:.0f} kB"
        expect(page.locator("#before")).to_have_text(f"Source: 2400 × 1600, {kb} jpeg")  # noqa: RUF001
        after = r"banner: 640 × 300, [\d.]+ kB jpeg, \d\d% less"  # noqa: RUF001
        expect(page.locator("#after")).to_have_text(re.compile(after))
        boxes = [image.bounding_box() for image in page.locator("#stack img").all()]
        assert boxes[0] == boxes[1]
        line = page.get_by_label("Line between source and preset")
        line.focus()
        page.keyboard.press("End")
        clip = "getComputedStyle(document.querySelector('#stack .result')).clipPath"
        assert page.evaluate(clip) == "inset(0px 0px 0px 100%)"
        box = boxes[0]
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 9)
        assert float(line.input_value()) == pytest.approx(25, abs=0.5)
        page.get_by_label("Zoom").select_option("4")
        assert page.locator("#stack").evaluate("(it) => it.clientWidth") == 4 * 640
        view = "(it) => it.scrollLeft / (it.scrollWidth - it.clientWidth)"
        assert dialog.locator(".view").evaluate(view) == pytest.approx(0.5, abs=0.01)
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        expect(button).to_be_focused()

    look(check)


def test_a_source_that_does_not_come_is_said_and_asked_for_again(
    site: PageSite, look: Look
) -> None:
    """Catches a failure that is kept, and a dialog that waits for ever."""

    def check(page: Page) -> None:
        submit(page, site.did, site.avatar)
        wait_for_all(page)
        page.route("**/blob/**", lambda route: route.abort())
        button = page.get_by_role("button", name="Compare avatar_small with its source")
        button.click()
        expect(page.locator("#before")).to_have_text("Source: The server does not answer.")
        page.get_by_role("button", name="Close").click()
        page.unroute("**/blob/**")
        button.click()
        expect(page.locator("#before")).to_contain_text("Source: 1200 × 1200")  # noqa: RUF001

    look(check)


def test_a_picture_is_built_for_the_width_that_is_typed(site: PageSite, look: Look) -> None:
    """Catches widths that are not those of the files, shapes that are mixed, and URLs refused."""

    def check(page: Page) -> None:
        submit(page, site.did, site.photos[0])
        wait_for_all(page)
        page.get_by_text("Build an <img> or <picture> for a page").click()
        page.get_by_label("Width on the page, in pixels").fill("600")
        page.get_by_role("button", name="Copy the built <picture>").click()
        tag = copied(page)
        types = re.findall(r'<source type="image/(\w+)" srcset="([^"]+)"', tag)
        assert [type_ for type_, _ in types] == ["avif", "webp"]
        assert 'sizes="(max-width: 600px) 100vw, 600px"' in tag
        assert 'width="600" height="400" alt="" loading="lazy">' in tag
        for type_, srcset in types:
            rungs = [rung.split(" ") for rung in srcset.split(", ")]
            assert [width for _, width in rungs] == ["800w", "1000w", "1600w"]
            assert all(url.endswith(f"@{type_}") for url, _ in rungs)
        measure = """async (source) => {
            const image = new Image();
            image.src = source;
            await image.decode();
            return `${image.naturalWidth}w`;
        }"""
        plain = re.findall(r"(\S+)@webp (\d+w)", types[1][1])
        assert [page.evaluate(measure, url.strip('"')) for url, _ in plain] == [
            width for _, width in plain
        ]
        page.get_by_label("Shape").select_option("cropped to 1 : 1")
        page.get_by_label("Width on the page, in pixels").fill("700")
        expect(page.locator("#built-note")).to_have_text(
            "The widest of these is 1000 pixels wide: sharp on usual screens,"
            " softer on denser ones."
        )
        page.get_by_role("button", name="Copy the built <img>").click()
        square = copied(page)
        assert re.findall(r" (\d+)w", square) == ["72", "128", "144", "360", "1000"]
        assert 'width="700" height="700"' in square
        for wrong in ("", "0", "-5", "99999"):
            page.get_by_label("Width on the page, in pixels").fill(wrong)
            expect(page.locator("#built-note")).to_have_text("A width is a number of 1 to 10000.")
            assert page.locator("#built pre").count() == 0

    look(check)


def test_of_what_moves_only_presets_that_move_are_built(look: Look) -> None:
    """Catches a still picture in a srcset of moving ones."""
    made = """[["still", 800, "False"], ["moves", 1600, "True"], ["wider", 2000, "False"]]
        .map(([name, width, animated]) =>
            ({ preset: { name, kind: `contain ${animated}` }, width, height: width }))"""
    names = "(isMoving) => ladder(MADE, 'the whole picture', isMoving).map((it) => it.preset.name)"

    def check(page: Page) -> None:
        rungs = names.replace("MADE", made)
        assert page.evaluate(rungs, True) == ["moves"]
        assert page.evaluate(rungs, False) == ["still", "moves", "wider"]

    look(check)


def test_a_crop_to_its_own_shape_is_the_whole_picture(look: Look) -> None:
    """Catches an avatar of 800 pixels for a place of 36, beside one of 128 that shows as much; a
    result that is enlarged; and one that is cropped."""
    names = """([width, height]) => ladder(
        [["small", 128, 128], ["large", 1000, 1000], ["wide", 720, 360]].map(
            ([name, width, height]) =>
                ({ preset: { name, width, height, kind: "cover False" }, width, height })
        ).concat({ preset: { name: "all", kind: "contain False" }, width, height }),
        "the whole picture", false).map((it) => it.preset.name)"""

    def check(page: Page) -> None:
        assert page.evaluate(names, [1200, 1200]) == ["small", "large", "all"]
        assert page.evaluate(names, [400, 400]) == ["small", "all"]
        assert page.evaluate(names, [1200, 800]) == ["all"]
        assert page.evaluate(names, [1200, 600]) == ["wide", "all"]

    look(check)


def test_the_bytes_as_webp_stand_beside_each_picture(site: PageSite, look: Look) -> None:
    """Catches a figure of another preset, and WebP compared with itself."""

    def check(page: Page) -> None:
        submit(page, site.did, site.photos[0], "png")
        wait_for_all(page)
        card = page.locator("li.card", has=page.get_by_role("heading", name="banner", exact=True))
        expect(card.locator(".weight")).to_contain_text("as WebP")
        url = f"{site.url}/img/banner/plain/{site.did}/{site.photos[0]}"
        png, webp = (
            page.request.get(f"{url}@{type_}").headers["content-length"]
            for type_ in ("png", "webp")
        )
        said = (
            f"As PNG {int(png) / 1000:.1f} kB, as WebP {int(webp) / 1000:.1f} kB,"
            f" {round((1 - int(webp) / int(png)) * 100)}% less"
        )
        assert card.locator(".weight").inner_text() == said
        submit(page, site.did, site.photos[0], "webp")
        wait_for_all(page)
        assert page.locator(".weight").all_inner_texts() == [""] * len(PRESETS)

    look(check)


def test_a_picture_that_nobody_sends_is_given_up_in_time(site: PageSite, look: Look) -> None:
    """Catches cards that wait as long as the server does for a PDS that is dead."""

    def check(page: Page) -> None:
        page.clock.install()
        held: list[Route] = []
        page.route("**/img/**", lambda route: held.append(route))
        page.route("**/info/**", lambda route: held.append(route))
        submit(page, site.did, site.avatar)
        expect(page.locator(".waiting")).to_have_count(len(PRESETS))
        page.clock.fast_forward(9_000)
        assert page.locator(".waiting").count() == len(PRESETS)
        page.clock.fast_forward(2_000)
        expect(page.get_by_role("status")).to_contain_text("Nobody has answered for 10 seconds.")
        assert page.locator("#examples").is_visible()
        for route in held:
            with suppress(Error):  # the browser has given it up
                route.abort()

    look(check)


def test_a_picture_from_the_cache_is_no_word_of_a_server_that_is_dead(
    site: PageSite, look: Look
) -> None:
    """Catches cards that wait for as long as the server does, because one was there already."""

    def check(page: Page) -> None:
        page.request.get(f"{site.url}/img/banner/plain/{site.did}/{site.avatar}")
        page.clock.install()
        held: list[Route] = []

        def hold(route: Route) -> None:
            if "/img/banner/" in route.request.url:
                route.continue_()
            else:
                held.append(route)

        page.route("**/img/**", hold)
        page.route("**/info/**", hold)
        submit(page, site.did, site.avatar)
        shown = page.locator("li.card", has=page.get_by_text("hit", exact=True))
        expect(shown).to_have_count(1)
        expect(page.locator(".waiting")).to_have_count(len(PRESETS) - 1)
        page.clock.fast_forward(11_000)
        silent = page.locator(".frame p", has_text="Nobody has answered for 10 seconds.")
        expect(silent).to_have_count(len(PRESETS) - 1)
        expect(shown).to_have_count(1)
        for route in held:
            with suppress(Error):  # the browser has given it up
                route.abort()

    look(check)


def test_text_of_twice_the_size_still_fits(site: PageSite, look: Look) -> None:
    """Catches words that are cut off for those who enlarge them (WCAG 2.2, 1.4.4)."""

    def check(page: Page) -> None:
        page.evaluate("() => { document.documentElement.style.fontSize = '200%' }")
        submit(page, site.quoting)
        wait_for_all(page)
        page.get_by_text("Build an <img> or <picture> for a page").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        assert page.evaluate(CUT) == []
        page.get_by_role("button", name="Compare banner with its source", exact=True).click()
        expect(page.get_by_role("button", name="Close")).to_be_in_viewport()
        assert page.evaluate(CUT) == []

    look(check, viewport={"width": 1280, "height": 900})


def test_the_time_in_the_queue_is_explained_where_there_is_any(site: PageSite, look: Look) -> None:
    """Catches a page that makes a preset look slow that waited for the other ones."""

    def check(page: Page) -> None:
        submit(page, site.did, site.photos[1], "avif")
        wait_for_all(page)
        expect(page.locator("#note")).to_contain_text(
            f"All {len(PRESETS)} presets are asked for at once"
        )
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#note")).to_have_text("")
        wait_for_all(page)
        assert page.locator("#note").inner_text() == ""

    look(check)


def test_the_icon_is_one_that_the_policy_lets_through(look: Look) -> None:
    """Catches a browser that asks for /favicon.ico, and complains."""

    def check(page: Page) -> None:
        width = page.evaluate(
            """async () => {
                const image = new Image();
                image.src = document.querySelector("link[rel=icon]").href;
                await image.decode();
                return image.naturalWidth;
            }"""
        )
        assert width > 0

    look(check)


@pytest.mark.parametrize("width", [320, 768, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_any_screen_and_can_be_read_there(
    site: PageSite, look: Look, width: int, scheme: str
) -> None:
    """Catches what sticks out on a phone, and grey on grey (WCAG 2.2, 1.4.3 and 1.4.10)."""

    def check(page: Page) -> None:
        for is_empty in (True, False):
            if not is_empty:
                submit(page, HANDLE)
                wait_for_all(page)
            assert page.locator("#examples").is_visible() == is_empty
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(FAINT) == []
            assert page.evaluate(CUT) == []
        page.get_by_text("Build an <img> or <picture> for a page").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.get_by_role("button", name="Compare banner with its source", exact=True).click()
        expect(page.locator("#before")).to_contain_text("kB jpeg")
        assert page.locator("#compare").evaluate("(it) => it.scrollWidth <= it.clientWidth")
        assert page.evaluate(FAINT.replace("main *", "main *, dialog *")) == []
        assert page.evaluate(SMALL) == []

    look(check, viewport={"width": width, "height": 800}, color_scheme=scheme)


def test_a_screen_reader_hears_what_the_bars_and_pictures_are(site: PageSite, look: Look) -> None:
    """Catches a bar that only eyes can read, pictures without words, and nameless controls."""

    def check(page: Page) -> None:
        submit(page, site.did, site.avatar)
        wait_for_all(page)
        assert page.get_by_role("list", name="Presets").count() == 1
        assert page.get_by_role("heading", level=1).count() == 1
        assert page.get_by_role("heading", level=2).count() == len(PRESETS)
        assert page.locator("main .frame img:not([alt])").count() == 0
        assert page.get_by_role("img", name="The picture as banner", exact=True).count() == 1
        assert page.locator(".bar:not([aria-hidden=true])").count() == 0
        assert page.evaluate(UNNAMED) == []

    look(check)


def test_the_presets_that_the_page_shows_are_the_configured_ones() -> None:
    """Catches these tests looking at other presets than the server's."""
    config = Config.model_validate(
        {"presets": DEFAULT_PRESETS | {"avatar": PRESETS["avatar"].model_dump()}}
    )
    assert config.presets == PRESETS
