"""The second question: an unclear answer counts once the PDS says so of the account."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from proxy.accounts.availability import gone_by_description, gone_by_status
from proxy.errors import AccountNotFound, BlobNotFound, FetchFailed, ImageProxyError
from proxy.model.identifiers import Did
from proxy.model.keys import BlobKey
from tests.accounts.test_blob_fetcher import failure, fetching
from tests.accounts.test_records import reading
from tests.fakes import faults
from tests.fakes.network import Conversation, Fault, honest
from tests.fakes.sites import (
    DESCRIBE_REPO,
    GET_BLOB,
    GET_RECORD,
    GET_REPO_STATUS,
    cid_of,
    new_plc_did,
)
from tests.fakes.world import World

DID = Did("did:plc:ewvi7nxzyoun6zhxrhs64oiz")
OTHER = Did("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa")

COCOON = faults.answers(400, b'{"error":"InvalidRequest"}')
"""What cocoon says of an account that it does not have."""


def at(paths: dict[str, Fault]) -> Fault:
    """Other answers to some methods."""

    async def play(conversation: Conversation) -> None:
        await paths.get(conversation.request.path, honest)(conversation)

    return play


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'{"did":"DID","active":true}', False),
        (200, b'{"did":"DID","active":true,"status":"active"}', False),
        (200, b'{"did":"DID","active":false,"status":"takendown"}', True),
        (200, b'{"did":"DID","active":false,"status":"suspended"}', True),
        (200, b'{"did":"DID","active":false,"status":"deleted"}', True),
        (200, b'{"did":"DID","active":false,"status":"deactivated"}', True),
        (200, b'{"did":"DID","active":false,"status":"throttled"}', None),
        (200, b'{"did":"DID","active":false,"status":"desynchronized"}', None),
        (200, b'{"did":"DID","active":false}', None),
        (200, b'{"did":"DID","active":0}', None),
        (200, b'{"did":"DID"}', None),
        (200, b'{"did":"did:plc:x","active":false,"status":"deleted"}', None),
        (200, b"<html>", None),
        (400, b'{"error":"RepoNotFound"', None),
        (404, b'{"error":"RepoNotFound","message":"DID"}', True),
        (400, b'{"error":"RepoNotFound","message":"DID"}', True),
        (404, b"no such page", None),
        (404, b'{"error":"XRPCNotSupported","message":"XRPCNotSupported"}', None),
        (404, b'{"error":"MethodNotImplemented"}', None),
        (410, b"", True),
        (403, b"", None),
        (500, b"", None),
        (501, b"", None),
    ],
)
def test_a_status_says_gone_only_in_so_many_words(
    status: int, body: bytes, expected: bool | None
) -> None:
    """Catches a relay's state, another account or a missing method that counts as gone."""
    assert gone_by_status(DID, status, body.replace(b"DID", DID.encode())) is expected


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, f'{{"did":"{DID}"}}'.encode(), False),
        (200, f'{{"did":"{OTHER}"}}'.encode(), None),
        (200, b"{}", None),
        (404, b"", True),
        (400, b'{"error":"RepoTakendown"}', True),
        (400, b'{"error":"InvalidRequest"}', None),
        (403, b"", None),
        (500, b"", None),
    ],
)
def test_a_description_says_gone_only_in_so_many_words(
    status: int, body: bytes, expected: bool | None
) -> None:
    """Catches an unclear description that counts as gone."""
    assert gone_by_description(DID, status, body) is expected


UNCLEAR = [COCOON, faults.answers(403, b""), faults.answers(401, b""), faults.answers(400, b"")]


@pytest.mark.parametrize("fault", UNCLEAR)
@pytest.mark.parametrize("state", ["unknown", "takendown", "deactivated"])
async def test_what_is_unclear_is_gone_where_the_account_is(
    client_world: World, fault: Fault, state: str
) -> None:
    """Catches: cocoon's answer for an unknown account is a 502, and its pictures stay for ever."""
    world = client_world
    did = new_plc_did()
    if state in ("takendown", "deactivated"):
        world.pds.add_account(did).status = state  # type: ignore[assignment]
    blob = BlobKey(did, cid_of(b"data"))
    world.pds.fault = at({GET_BLOB: fault})
    async with fetching(world) as fetcher:
        assert type(await failure(fetcher, world.pds.url, blob)) is BlobNotFound
        assert not await fetcher.exists(world.pds.url, blob)


@pytest.mark.parametrize("fault", UNCLEAR)
async def test_what_is_unclear_has_failed_where_the_account_is_there(
    client_world: World, fault: Fault
) -> None:
    """Catches: a firewall's 403 empties the cache."""
    world = client_world
    blob = BlobKey(*world.add_blob(b"data"))
    world.pds.fault = at({GET_BLOB: fault})
    async with fetching(world) as fetcher:
        assert type(await failure(fetcher, world.pds.url, blob)) is FetchFailed
        with pytest.raises(FetchFailed):
            await fetcher.exists(world.pds.url, blob)
    assert world.pds.requests_by_path[DESCRIBE_REPO] == 0, "the first question was clear"


@pytest.mark.parametrize(
    ("status", "description", "expected"),
    [
        # cocoon has no answer of its own for the status of an unknown account.
        (faults.answers(500), faults.answers(400, b'{"error":"RepoNotFound"}'), BlobNotFound),
        (faults.answers(404), faults.answers(404), BlobNotFound),
        (faults.reset, faults.answers(400, b'{"error":"RepoDeactivated"}'), BlobNotFound),
        (faults.answers(404), honest, FetchFailed),
        (faults.answers(501), faults.answers(403), FetchFailed),
        (faults.answers(403), faults.reset, FetchFailed),
        (faults.answers(429), faults.answers(429), FetchFailed),
    ],
)
async def test_a_pds_without_a_clear_status_is_asked_for_a_description(
    client_world: World, status: Fault, description: Fault, expected: type[ImageProxyError]
) -> None:
    """Catches: a method that a PDS does not have decides."""
    world = client_world
    blob = BlobKey(*world.add_blob(b"data"))
    world.pds.fault = at({GET_BLOB: COCOON, GET_REPO_STATUS: status, DESCRIBE_REPO: description})
    async with fetching(world) as fetcher:
        assert type(await failure(fetcher, world.pds.url, blob)) is expected


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (lambda world, did: world.pds.accounts.pop(did), AccountNotFound),
        (lambda world, did: None, FetchFailed),
    ],
)
async def test_records_are_judged_by_the_same_table(
    client_world: World,
    prepare: Callable[[World, Did], object],
    expected: type[ImageProxyError],
) -> None:
    """Catches a second reading of errors, which knows fewer words."""
    world = client_world
    did = world.make_account()
    prepare(world, did)
    world.pds.fault = at({GET_RECORD: COCOON})
    async with reading(world) as records:
        with pytest.raises(ImageProxyError) as caught:
            await records.get(did, "app.bsky.actor.profile", "self")
    assert type(caught.value) is expected


async def test_the_second_question_has_what_the_first_one_left_of_the_time(
    client_world: World, autojump_clock: MockClock
) -> None:
    """Catches a PDS that is slow three times over: a client waits for three times fetch.timeout."""
    world = client_world
    blob = BlobKey(*world.add_blob(b"data"))
    slow = after(20, faults.answers(403, b""))
    world.pds.fault = at({GET_BLOB: slow, GET_REPO_STATUS: faults.hang, DESCRIBE_REPO: faults.hang})
    async with fetching(world) as fetcher:
        began = trio.current_time()
        assert type(await failure(fetcher, world.pds.url, blob)) is FetchFailed
        assert trio.current_time() - began == pytest.approx(world.config().fetch.timeout)


def after(seconds: float, fault: Fault) -> Fault:
    """A fault that takes its time."""

    async def play(conversation: Conversation) -> None:
        await trio.sleep(seconds)
        await fault(conversation)

    return play
