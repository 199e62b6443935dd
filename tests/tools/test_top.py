"""What ``imageproxy top`` makes of what a server tells."""

from __future__ import annotations

import json
import math
import os
import select
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from rich.console import Console

from proxy.egress.known_hosts import HostPace, OpenCircuit
from proxy.observability.metrics import Metrics
from proxy.observability.metrics_snapshot import render
from proxy.observability.state import (
    CacheState,
    RequestsState,
    State,
    WaitingState,
    WorkerState,
)
from proxy.tools.top import words
from proxy.tools.top.figures import Figures, Scrape, figures_of
from proxy.tools.top.screen import keys_at_once, screen_of, until_q
from proxy.tools.top.server import NoAnswer, Refused, asked_server, checked_place

LONG = "a-host-with-a-name-that-is-longer-than-any-terminal-is-wide." * 3 + "example"


def scrape(metrics: Metrics, at: float) -> Scrape:
    return Scrape.of(render(metrics.snapshot()).decode(), at)


def state(*hosts: HostPace, circuits: tuple[OpenCircuit, ...] = ()) -> State:
    return State(
        workers=(WorkerState(7, 1.0, 50 * 2**20, 3), WorkerState(8, 1.0, 50 * 2**20, 3)),
        requests=RequestsState(hit=1, miss=1, coalesced=0, none=0),
        waiting=WaitingState(fetches=0, transforms=0, cdn=0),
        refused=0,
        memory_bytes=100 * 2**20,
        cache=CacheState(entries=1, bytes=1),
        blocks=0,
        hosts=hosts,
        circuits=circuits,
    )


def busy(told: State | None = None) -> Figures:
    """The figures of ten seconds: 80 hits, 15 misses, 5 that shared, 10 wrong ones, 2 refused."""
    metrics = Metrics()
    for name, value in {"blocks": 3.0, "cache_entries": 1234.0, "cache_bytes": 5.5 * 2**30}.items():
        metrics.gauge(name, lambda value=value: value)  # type: ignore[misc]
    metrics.answered("avatar", 200, "hit", 7)
    before = scrape(metrics, 100)
    for cache, count, seconds in (
        ("hit", 80, 0.002),
        ("miss", 15, 0.4),
        ("coalesced", 5, 0.4),
        ("none", 10, 0.002),
    ):
        for _ in range(count):
            metrics.answered("avatar", 200, cache, seconds)
    metrics.rejected.labels("fetch").inc(2)
    metrics.tell_not_ready("draining", lambda: True)
    return figures_of(before, scrape(metrics, 110), told)


def test_rates_are_of_the_time_between_two_scrapes() -> None:
    """Catches totals since the start, and requests that no cache is for among the misses."""
    figures = busy()
    rates = figures.rates
    assert rates is not None
    assert (rates.hits, rates.misses, rates.others, rates.refused) == (8, 2, 1, 0.2)
    assert rates.hit_share == 0.8
    assert (rates.median, rates.most) == (0.0025, 0.5)
    assert (figures.blocks, figures.entries, figures.fetches) == (3, 1234, 0)
    assert figures.problems == ("not ready: draining",)


def test_there_are_no_rates_at_first_and_none_when_a_worker_took_its_counts_along() -> None:
    """Catches a thousand requests a second, or fewer than none, when a worker was replaced."""
    both, one = Metrics(), Metrics()
    both.answered("avatar", 200, "hit", 0.1)
    both.answered("avatar", 200, "miss", 0.1)
    one.answered("avatar", 200, "miss", 0.1)
    assert figures_of(None, scrape(both, 1), None).rates is None
    assert figures_of(scrape(both, 1), scrape(one, 2), None).rates is None
    assert figures_of(scrape(one, 1), scrape(one, 1), None).rates is None
    idle = figures_of(scrape(both, 1), scrape(both, 2), None).rates
    assert idle is not None
    assert (idle.hits, idle.hit_share, idle.median) == (0, None, None)


def test_an_answer_beyond_the_last_bucket_has_no_bound() -> None:
    """Catches "within inf s", and JSON that no program reads."""
    metrics = Metrics()
    before = scrape(metrics, 1)
    metrics.answered("avatar", 200, "miss", 100)
    figures = figures_of(before, scrape(metrics, 2), None)
    assert figures.rates is not None
    assert figures.rates.most == math.inf
    assert "95% within over 30 s" in words.line(figures)
    assert json.loads(json.dumps(words.document(figures, 0), allow_nan=False))["most"] is None


@pytest.mark.parametrize("text", ["", "ok\n", "<!doctype html>", "up 1\n", "imageproxy{ 1\n"])
def test_what_is_no_metrics_of_an_image_proxy_is_refused(text: str) -> None:
    """Catches zeros that are shown of somebody else's server."""
    with pytest.raises(ValueError):  # noqa: PT011 (the parser's own is one)
        Scrape.of(text, 0)


def test_a_line_has_everything_that_a_screen_has_and_names_a_host() -> None:
    """Catches a log of lines in which the slow host cannot be found."""
    down = OpenCircuit("down.example", "TimedOut", 12.4)
    slow = HostPace("slow.example", "slow", 9.5)
    prompt = HostPace("prompt.example", "prompt", 0.2)
    assert words.line(busy(state(slow, prompt, circuits=(down,)))) == (
        "requests 11.0/s hits 80.0% misses 2.0/s others 1.0/s refused 0.2/s;"
        " answers half within 2.5 ms 95% within 500 ms; waiting 0 fetches 0 transforms;"
        " cache 1,234 entries 5.50 GiB; memory - in 2 workers; blocks 3;"
        " state not ready: draining; slow 1 (slow.example); left alone 1 (down.example)"
    )


def drawn(figures: Figures, *, width: int = 80, height: int = 24, problem: str = "") -> list[str]:
    console = Console(width=width, height=height, color_system=None)
    with console.capture() as captured:
        console.print(
            screen_of(figures, "http://127.0.0.1:8080", "12:00:00", console.size, problem)
        )
    return captured.get().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 16), (200, 60)])
@pytest.mark.parametrize(("slow", "open_"), [(0, 0), (20, 0), (0, 20), (20, 20), (1, 20)])
def test_a_screen_fits_its_terminal_whatever_strangers_hosts_are_called(
    width: int, height: int, slow: int, open_: int
) -> None:
    """Catches a screen that scrolls, and a name that pushes the figures out of it."""
    hosts = [HostPace(f"{n}.{LONG}", "slow", 30.0 - n) for n in range(slow)]
    circuits = tuple(OpenCircuit(f"{n}.{LONG}", "AskedToWait", 300.0 - n) for n in range(open_))
    lines = drawn(busy(state(*hosts, circuits=circuits)), width=width, height=height, problem="x")
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert ("30.00 s" in text) == bool(slow)
    assert ("300 s more" in text) == bool(open_)
    assert "hits 80.0%" in text


def test_a_screen_draws_what_hosts_are_called_and_acts_on_none_of_it() -> None:
    """Catches markup, and control characters that take the terminal over."""
    text = "\n".join(drawn(busy(state(HostPace("[red]a\x1b]0;x\x07[/red]", "slow", 1.0)))))
    assert r"[red]a\x1b]0;x\x07[/red]" in text


def test_a_screen_without_a_token_says_what_it_lacks() -> None:
    """Catches an empty list of hosts that passes for good news."""
    text = "\n".join(drawn(busy()))
    assert "server.admin_token" in text
    assert "none" not in text


@pytest.mark.parametrize(
    "text", ["", "127.0.0.1:8080", "ftp://a", "http://", "http://a:x", "http://a/?b", "unix:a"]
)
def test_what_is_no_address_of_a_server_is_refused(text: str) -> None:
    """Catches a mistake that is told as a server that is not there."""
    with pytest.raises(ValueError, match="must "):
        checked_place(text)


Answers = Callable[[str], bytes]


async def served(path: Path, nursery: trio.Nursery, answer: Answers) -> str:
    """A server on a socket in the file system; what ``RunningServer`` calls it."""

    async def converse(stream: trio.SocketStream) -> None:
        async with stream:
            target = (await stream.receive_some()).split()[1].decode()
            await stream.send_all(answer(target))

    socket = trio.socket.socket(trio.socket.AF_UNIX)
    await socket.bind(str(path))
    socket.listen()
    nursery.start_soon(trio.serve_listeners, converse, [trio.SocketListener(socket)])
    return f"unix:{path}"


def http(status: int, body: bytes = b"") -> bytes:
    head = f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


async def test_a_server_on_a_socket_in_the_file_system_is_asked(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    """Catches an address that ``serve`` takes and ``top`` does not."""
    text = render(Metrics().snapshot())
    place = await served(tmp_path / "a", nursery, lambda _: http(200, text))
    async with asked_server(place, "") as server:
        assert (await server.scrape()).total("imageproxy_coalesced_total") == 0
        assert await server.state() is None


@pytest.mark.parametrize(
    ("answer", "error", "told"),
    [
        (http(401), Refused, "does not know this token"),
        (http(404), Refused, r"no server\.admin_token"),
        (http(429), Refused, "wait"),
        (http(503), NoAnswer, "503"),
        (http(200, b"{}"), Refused, "cannot read"),
        (b"nonsense\r\n\r\n", NoAnswer, "does not answer"),
        (b"", NoAnswer, "does not answer"),
    ],
)
async def test_what_is_wrong_is_told_in_words(
    tmp_path: Path, nursery: trio.Nursery, answer: bytes, error: type[Exception], told: str
) -> None:
    """Catches a traceback, and a wrong token that is tried for ever."""
    place = await served(tmp_path / "a", nursery, lambda _: answer)
    async with asked_server(place, "a-token-of-somebody") as server:
        with pytest.raises(error, match=told):
            await server.state()


def test_a_wake_without_a_key_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a read that waits for a key, and Ctrl-C with it: keys are flushed at the start."""
    ours, theirs = os.openpty()
    wakes = 0

    async def woken(_: int) -> None:
        nonlocal wakes
        wakes += 1
        if wakes == 2:
            os.write(ours, b"q")
            select.select([theirs], [], [])

    monkeypatch.setattr(trio.lowlevel, "wait_readable", woken)
    with os.fdopen(ours, "wb"), os.fdopen(theirs, "rb", buffering=0) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        with keys_at_once():
            trio.run(until_q)
    assert wakes == 2
