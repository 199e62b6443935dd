"""``imageproxy blocks check``: what stands between a picture and those who ask for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest
import trio

from proxy.config import Config
from proxy.model.selection import Selection
from proxy.moderation.cdn.queue import CdnQueue
from proxy.moderation.configured_store import folder_store_of, moderation_database_of
from proxy.wiring import coordination_of
from tests.cache import blob_cid, key, owner
from tests.cli import Run, put
from tests.fakes.network import Request, Response, Site
from tests.processes import Upstream, in_background

PAIR = f"{owner(1)}/{blob_cid(1)}"


def check(run: Run, *arguments: str) -> dict[str, Any]:
    """What is said about one selection, to a program."""
    result = run("blocks", "check", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def block(settings: Config, *selections: Selection, by: str = "admin") -> None:
    with closing(folder_store_of(settings)) as store:
        store.record("block", [(each, "a reason") for each in selections], by=by, owner="test")


def test_what_is_not_blocked_is_where_it_is_and_gets_what_it_gets(
    run: Run, settings: Config
) -> None:
    """Catches a "no" that only means that nobody looked, and copies of somebody else's."""
    put(settings, key(1), key(1, preset="banner"), key(2))
    found = check(run, PAIR)
    assert (found["blocked"], found["blocks"], found["within"]) == (False, [], 0)
    assert found["folder"] == str(settings.cache.path)
    assert found["disk"] == [
        {"preset": each.preset, "fingerprint": each.fingerprint, "entries": 1, "bytes": 1000}
        for each in (key(1), key(1, preset="banner"))
    ]
    assert (found["processes"], found["memory"]) == (0, "none")
    assert (found["status"], found["policy"], found["pending"]) == (200, None, [])
    assert check(run, f"{owner(1)}/{blob_cid(9)}")["status"] is None


@pytest.mark.parametrize(
    "by", [Selection(owner(1)), Selection(cid=blob_cid(1)), Selection(owner(1), blob_cid(1))]
)
def test_a_block_of_the_owner_the_blob_or_the_pair_is_told_with_who_and_why(
    run: Run, settings: Config, by: Selection
) -> None:
    """Catches a look at one of the three alone, after which a moderator blocks again."""
    block(settings, by, by="alice")
    block(settings, Selection(owner(2)), Selection(cid=blob_cid(2)))
    found = check(run, f"https://cdn.example/img/avatar/plain/{owner(1)}/{blob_cid(1)}@webp")
    (told,) = found["blocks"]
    assert (told["did"], told["cid"], told["by"]) == (by.did, by.cid, "alice")
    assert (told["reason"], found["blocked"]) == ("a reason", True)
    assert (found["status"], found["because"]) == (404, "blocked by alice")


def test_blocks_of_single_pictures_are_no_block_of_their_account(
    run: Run, settings: Config
) -> None:
    """Catches "blocked" of an account with one blocked picture, and one that nobody tells of."""
    block(settings, Selection(owner(1), blob_cid(1)), Selection(owner(1), blob_cid(2)))
    found = check(run, owner(1))
    assert (found["blocked"], found["within"], found["status"]) == (False, 2, None)
    assert check(run, blob_cid(2))["within"] == 1
    assert check(run, owner(2))["within"] == 0
    block(settings, Selection(owner(3)), Selection(cid=blob_cid(3)))
    assert check(run, owner(3))["within"] == check(run, blob_cid(3))["within"] == 0


def test_what_a_cdn_has_yet_to_forget_is_told_of_what_is_asked_for_alone(
    run: Run, settings: Config
) -> None:
    """Catches a picture whose owner is about to be purged, of which "nothing waits"."""
    with closing(CdnQueue(moderation_database_of(settings))) as queue:
        queue.add([Selection(owner(1)), Selection(owner(2), blob_cid(2))])
        queue.add([Selection(cid=blob_cid(3)), Selection(owner(3), blob_cid(9))])

    def pending(what: str) -> set[tuple[str | None, str | None]]:
        return {(each["did"], each["cid"]) for each in check(run, what)["pending"]}

    assert pending(PAIR) == {(owner(1), None)}
    assert pending(owner(2)) == {(owner(2), blob_cid(2))}
    assert pending(f"{owner(2)}/{blob_cid(1)}") == set()
    assert pending(f"{owner(2)}/{blob_cid(3)}") == {(None, blob_cid(3))}
    assert pending(blob_cid(9)) == {(owner(3), blob_cid(9))}
    assert pending(owner(3)) == {(owner(3), blob_cid(9))}


def test_the_memory_of_a_process_is_known_only_once_it_follows_a_block(
    run: Run, settings: Config
) -> None:
    """Catches "nothing" about a process that goes on serving from its memory."""
    replicas = coordination_of(settings).replicas()
    replicas.enter()
    replicas.note(0)
    try:
        assert check(run, PAIR)["memory"] == "unknown"
        block(settings, Selection(owner(1)))
        assert check(run, PAIR)["memory"] == "unknown"
        replicas.note(2**40)
        found = check(run, PAIR)
        assert (found["memory"], found["processes"]) == ("none", 1)
    finally:
        replicas.leave()


def test_people_read_it_line_by_line(run: Run, settings: Config) -> None:
    """Catches a reason that acts on the terminal, and facts without their names."""
    put(settings, key(1))
    with closing(folder_store_of(settings)) as store:
        store.record("block", [(Selection(owner(1)), "a\n\x1bb")], by="alice", owner="test")
    result = run("blocks", "check", PAIR)
    assert result.exit_code == 0
    first, *lines = result.stdout.splitlines()
    assert first == f"{owner(1)} {blob_cid(1)}"
    facts = {each[:11].strip(): each[13:] for each in lines}
    assert facts["folder"] == f"{settings.cache.path}, 0 processes serve from it"
    assert facts["blocked"].startswith(f"{owner(1)} * by alice since ")
    assert facts["blocked"].endswith("Z: a  b")
    assert facts["disk"] == "1 entries, 1,000 bytes: avatar"
    assert facts["memory"] == "nothing"
    assert facts["CDN"] == "none is configured"
    assert facts["a request"] == "404, blocked by alice"
    free = run("blocks", "check", owner(2)).stdout.splitlines()
    assert free[-1].startswith("  a request  not blocked: ")


def test_a_look_changes_nothing(run: Run, settings: Config) -> None:
    """Catches a look that is a decision, or an audit full of looks."""
    put(settings, key(1))
    check(run, PAIR)
    with closing(folder_store_of(settings)) as store:
        assert store.audit(10) == []
    assert check(run, PAIR)["disk"]


# The policy service


class PolicyService(Site):
    """Answers each question with one status."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1", scheme="http")
        self.status = 200
        self.asked: list[str] = []

    def answer(self, request: Request) -> Response:
        self.asked.append(request.target)
        return Response(self.status)


@asynccontextmanager
async def policy_on_loopback() -> AsyncIterator[PolicyService]:
    async with trio.open_nursery() as nursery:
        service = PolicyService()
        await Upstream().serve(service, nursery)
        yield service
        nursery.cancel_scope.cancel()


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> Iterator[PolicyService]:
    with in_background(policy_on_loopback) as background:
        monkeypatch.setenv("IMAGE_PROXY_POLICY__URL", background.value.url)
        yield background.value


@pytest.mark.parametrize(
    ("status", "answer", "gets"),
    [(200, "permitted", 200), (410, "taken_down", 404), (500, "no answer", 503)],
)
def test_the_policy_service_is_asked_and_what_it_takes_down_stays_where_it_is(
    run: Run, settings: Config, policy: PolicyService, status: int, answer: str, gets: int
) -> None:
    """Catches a picture that is "not blocked" and yet not served, and a look that purges."""
    put(settings, key(1))
    policy.status = status
    found = check(run, PAIR)
    assert (found["policy"], found["status"]) == (answer, gets)
    assert found["disk"]
    assert policy.asked == [f"/{owner(1)}/{blob_cid(1)}"]


def test_the_policy_service_is_not_asked_about_what_is_blocked_or_no_single_picture(
    run: Run, settings: Config, policy: PolicyService
) -> None:
    """Catches a question that no request would ask."""
    block(settings, Selection(owner(2)))
    for what in (owner(1), blob_cid(1), f"{owner(2)}/{blob_cid(1)}"):
        assert check(run, what)["policy"] is None
    assert policy.asked == []


def test_silence_of_a_policy_service_that_may_be_silent_stops_nothing(
    run: Run, settings: Config, policy: PolicyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a 503 that is foretold and does not come."""
    monkeypatch.setenv("IMAGE_PROXY_POLICY__FAIL_OPEN", "true")
    policy.status = 500
    found = check(run, PAIR)
    assert (found["policy"], found["status"]) == ("no answer", None)
