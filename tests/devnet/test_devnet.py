"""``./run devnet``: what it tells people to type works."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
import trio

from tests.devnet import DevnetUnavailable, ensure_installed
from tests.processes import SERVE, run, serve
from tests.required import skip_unless_required

pytestmark = [pytest.mark.slow, pytest.mark.pds, pytest.mark.time_limit(600)]

DEVNET = ["-m", "tests.devnet"]


async def test_what_the_network_says_to_type_shows_its_pictures(tmp_path: Path) -> None:
    """Catches handles that nothing resolves, a variable that is missing, and URLs of yesterday."""
    try:
        await trio.to_thread.run_sync(ensure_installed)
    except DevnetUnavailable as error:
        skip_unless_required(str(error))
    async with run(DEVNET, {}) as network:
        await network.line_with("Ctrl-C")
        variables = dict(re.findall(r"^(IMAGE_PROXY_\w+)=(\S+) ", network.text, re.MULTILINE))
        targets = re.findall(r"^http://127\.0\.0\.1:8080(/\S+)$", network.text, re.MULTILINE)
        variables["IMAGE_PROXY_CACHE__PATH"] = str(tmp_path / "cache")
        async with serve(SERVE, variables) as proxy:
            statuses = {}
            for target in targets:
                # The page asks for what stands behind its "#".
                path = target.replace("/#q=", "/lookup?q=")
                statuses[target] = (await proxy.get(path)).status
            page = (await proxy.get("/")).body.decode()
            found = {}
            for query in re.findall(r'href="(\?q=[^"]+)"', page):
                found[query] = json.loads((await proxy.get(f"/lookup{query}")).body)["pictures"]
        assert len(statuses) == 10
        assert [len(pictures) for pictures in found.values()] == [2, 1, 2, 3]
        assert statuses == {
            target: 302 if target.startswith("/avatar/") else 200 for target in targets
        }
        network.send(signal.SIGINT)
        assert await network.exit_code() == 0
    assert "Traceback" not in network.text


@pytest.mark.parametrize("option", ["--plc-port", "--pds-port"])
async def test_a_port_that_is_taken_is_named_with_the_option_for_another(option: str) -> None:
    """Catches Node.js' stack trace, which names neither."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        async with run([*DEVNET, option, str(port)], {}) as network:
            assert await network.exit_code() == 1
            await network.line_with(".")
    assert network.text == f"devnet: port {port} is taken; {option} N chooses another"
