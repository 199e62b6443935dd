"""The client of Google's store, on a stand-in for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cache.objects.conftest import Bucket
from tests.cache.objects.google import BUCKET, google


def test_objects_of_google_are_made_once_listed_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a write that replaces what another node wrote, a prefix that is lost, and a removal
    that fails where one of the objects is gone."""
    with google(tmp_path) as account:
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(account))
        bucket = Bucket({"url": f"gs://{BUCKET}/a prefix", "allow_http": True, "timeout": 4})
        objects = bucket.objects
        assert objects.get("v1/none", 9) is None
        assert objects.put("v1/a@b", b"first")
        assert not objects.put("v1/a@b", b"second")
        assert objects.get("v1/a@b", 9) == b"first"
        assert objects.put("v1/a@b", b"third", replaces=True)
        assert objects.get("v1/a@b", 9) == b"third"
        assert objects.put("v1/c/d", b"")
        assert bucket.paths() == ["v1/a@b", "v1/c/d"]
        assert list(objects.pages("v1/c")) == [["v1/c/d"]]
        objects.delete(["v1/a@b", "v1/none", "v1/c/d"])
        assert bucket.paths() == []
