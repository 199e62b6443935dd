"""The page as a person uses it: in Chromium, against the real PDS."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote

import pytest
from playwright.sync_api import Browser, Page, expect

from proxy import errors
from proxy.config import Config
from proxy.model.presets import DEFAULT_PRESETS, Size, place, with_variants
from proxy.model.references import parse_reference
from tests.devnet import DevnetUnavailable
from tests.page import HANDLE, NoBrowser, PageSite, chromium, page_site
from tests.processes import in_background
from tests.required import skip_unless_required
from tests.test_errors import FAMILY

pytestmark = [pytest.mark.pds, pytest.mark.browser, pytest.mark.time_limit(600)]

PATIENCE = 60_000
"""Milliseconds; an AVIF of 2000 pixels takes a second."""

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

Look = Callable[..., None]


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


@pytest.fixture(scope="module")
def with_browser() -> Iterator[Callable[[Callable[[Browser], None]], None]]:
    try:
        with chromium() as with_browser:
            yield with_browser
    except NoBrowser as error:
        skip_unless_required(str(error))


@pytest.fixture
def look(site: PageSite, with_browser: Callable[[Callable[[Browser], None]], None]) -> Look:
    """Opens the page for a function, and fails on what the browser complains of."""

    def look(check: Callable[[Page], None], fragment: str = "", **options: object) -> None:
        def work(browser: Browser) -> None:
            context = browser.new_context(**options)  # type: ignore[arg-type]
            context.set_default_timeout(PATIENCE)
            context.grant_permissions(["clipboard-read", "clipboard-write"])
            page = context.new_page()
            complaints: list[str] = []
            outside: list[str] = []
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "console",
                lambda message: (
                    complaints.append(message.text)
                    # A browser logs every answer that is an error.
                    if message.type == "error" and "Failed to load resource" not in message.text
                    else None
                ),
            )
            page.on(
                "request",
                lambda request: (
                    outside.append(request.url)
                    if not request.url.startswith((site.url, "blob:"))
                    else None
                ),
            )
            try:
                page.goto(f"{site.url}/{fragment}")
                check(page)
                assert (complaints, outside) == ([], [])
            finally:
                context.close()

        with_browser(work)

    return look


def submit(page: Page, text: str, cid: str = "", format: str = "") -> None:
    page.get_by_label("Account, post or picture").fill(text)
    page.get_by_label("CID of a blob").fill(cid)
    page.get_by_label("Format").select_option(format)
    page.get_by_role("button", name="Show").click()


def wait_for_all(page: Page) -> None:
    expect(page.get_by_role("status")).to_have_text(
        f"{len(PRESETS)} presets shown.", timeout=PATIENCE
    )


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
        page.get_by_role("button", name="Show").click()
        expect(page.get_by_role("status")).not_to_have_text(re.compile("shown"))
        wait_for_all(page)
        assert states(page) == {"hit"}
        expect(card.locator(".time li")).to_have_text(re.compile(r"^answered in [\d.]+ ms$"))

    look(check)


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
        assert page.locator("li.card").count() == 0
        assert page.locator("#what").inner_text() == ""

    look(check)


def test_what_fails_alike_in_every_preset_is_said_once(site: PageSite, look: Look) -> None:
    """Catches nine red cards about one absent blob."""

    def check(page: Page) -> None:
        submit(page, site.did, ABSENT)
        expect(page.get_by_role("status")).to_have_text("There is no such picture.")
        expect(page.get_by_role("status")).to_have_class(re.compile("bad"))
        assert page.locator("li.card").count() == 0
        assert shown_blob(page) == ABSENT
        assert page.locator("#note").inner_text() == ""

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

    look(check)


def test_there_is_a_sentence_for_all_that_the_server_says(look: Look) -> None:
    """Catches an error that is new, or worded anew, and comes to people as it is."""
    others = {errors.InvalidPreset, errors.InvalidFormat, errors.NoAvatar, errors.NoBanner}
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


def test_an_empty_page_offers_examples(look: Look) -> None:
    """Catches a blank page, and an example that leads nowhere or leaves the focus in nothing."""

    def check(page: Page) -> None:
        links = page.get_by_role("region", name="For example").get_by_role("link")
        assert links.count() == 5
        # The others would ask servers that are not here.
        link = page.get_by_role("link", name="did:plc:z72i7hdynmk6r22z27h6tvur", exact=True)
        link.focus()
        page.keyboard.press("Enter")
        did = "did:plc:z72i7hdynmk6r22z27h6tvur"
        expect(page.get_by_role("status")).to_have_text(f"There is no such account: “{did}”.")
        expect(page.get_by_role("status")).to_be_focused()
        expect(page.get_by_label("Account, post or picture")).to_have_value(did)
        assert links.count() == 0
        page.go_back()
        expect(links).to_have_count(5)
        expect(page.get_by_role("status")).to_have_text("")
        expect(page.get_by_label("Account, post or picture")).to_have_value("")

    look(check)


def test_every_example_is_a_reference(look: Look) -> None:
    """Catches an example that the server does not understand."""

    def check(page: Page) -> None:
        hashes: list[str] = page.evaluate(
            "[...document.querySelectorAll('#examples a')].map((link) => link.hash.slice(1))"
        )
        for text in hashes:
            (query,) = parse_qs(text)["q"]
            parse_reference(query)

    look(check)


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


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
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
            faint = page.evaluate(CONTRASTS)
            assert faint == []
        small = page.evaluate(
            """() => [...document.querySelectorAll("button, input:not([type=radio]), select")]
                .filter((each) => each.getBoundingClientRect().height < 44)
                .map((each) => each.outerHTML)"""
        )
        assert small == []

    look(check, viewport={"width": width, "height": 800}, color_scheme=scheme)


CONTRASTS = """() => {
    const canvas = document.createElement("canvas").getContext("2d");
    const rgb = (color) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const ground = (each) => {
        for (; each; each = each.parentElement) {
            const color = rgb(getComputedStyle(each).backgroundColor);
            if (color[3] === 255) return color;
        }
        return [255, 255, 255];
    };
    return [...document.querySelectorAll("main *")]
        .filter((each) => [...each.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
        .filter((each) => each.getClientRects().length && each.localName !== "option")
        .map((each) => {
            const [a, b] = [light(rgb(getComputedStyle(each).color)), light(ground(each))];
            const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            return [contrast, each.outerHTML.slice(0, 120)];
        })
        .filter(([contrast]) => contrast < 4.5);
}"""


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
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll("button, input, select, a")]
                .filter((each) => !(each.labels?.[0]?.textContent.trim()
                    || each.getAttribute("aria-label") || each.textContent.trim()))
                .map((each) => each.outerHTML)"""
        )
        assert unnamed == []

    look(check)


def test_the_presets_that_the_page_shows_are_the_configured_ones() -> None:
    """Catches these tests looking at other presets than the server's."""
    config = Config.model_validate(
        {"presets": DEFAULT_PRESETS | {"avatar": PRESETS["avatar"].model_dump()}}
    )
    assert config.presets == PRESETS
