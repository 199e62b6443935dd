"""Chromium, and a page in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.page import PATIENCE, Look, NoBrowser, PageSite, chromium
from tests.required import skip_unless_required


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
