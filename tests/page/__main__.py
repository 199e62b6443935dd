"""``python -m tests.page``: draw the page for the documents, docs/img/page.png."""

from __future__ import annotations

import io
import re
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, expect

from tests.devnet import DevnetUnavailable
from tests.page import HANDLE, NoBrowser, PageSite, chromium, page_site
from tests.processes import ROOT, in_background

TARGET = ROOT / "docs/img/page.png"
SIZE = {"width": 1200, "height": 1240}


def screenshot(browser: Browser, site: PageSite) -> bytes:
    """A PNG of the page with an account's pictures."""
    page = browser.new_page(viewport=SIZE, color_scheme="light")  # type: ignore[arg-type]
    page.goto(site.url)
    page.get_by_label("Account, post or picture").fill(HANDLE)
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("status")).to_have_text(re.compile("presets shown"))
    # What they would weigh as WebP comes last.
    expect(page.locator(".weight:empty")).to_have_count(0)
    return page.screenshot()


def main() -> None:
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            in_background(lambda: page_site(Path(folder))) as background,
            chromium() as with_browser,
        ):
            site = background.value
            data = with_browser(lambda browser: screenshot(browser, site))
    except (DevnetUnavailable, NoBrowser) as error:
        sys.exit(str(error))
    TARGET.parent.mkdir(exist_ok=True)
    # A palette makes a third of it; with dithering it is hardly seen.
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    dithered = whole.quantize(palette=whole.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
    dithered.save(TARGET, optimize=True)
    print(f"{TARGET.relative_to(ROOT)}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
