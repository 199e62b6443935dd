"""Signatures of AWS, held to its own test suite (``aws-sig-v4-test-suite``)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import SecretStr

from proxy.moderation.cdn.sigv4 import Credentials, signed_headers

# The access key of the suite's examples.
EXAMPLE = Credentials(
    "AKIDEXAMPLE", SecretStr("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"), "us-east-1", "service"
)
AT = datetime(2015, 8, 30, 12, 36, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("headers", "body", "signed", "signature"),
    [
        (  # post-vanilla
            {},
            b"",
            "host;x-amz-date",
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
        ),
        (  # post-x-www-form-urlencoded
            {"Content-Type": "application/x-www-form-urlencoded"},
            b"Param1=value1",
            "content-type;host;x-amz-date",
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
    ],
)
def test_the_published_examples_are_signed_as_published(
    headers: dict[str, str], body: bytes, signed: str, signature: str
) -> None:
    """Catches a header out of order, a scope in the wrong time zone, a body that is not hashed."""
    found = signed_headers(EXAMPLE, "example.amazonaws.com", "/", headers, body, AT)
    assert found == {
        **headers,
        "X-Amz-Date": "20150830T123600Z",
        "Authorization": "AWS4-HMAC-SHA256"
        " Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request,"
        f" SignedHeaders={signed}, Signature={signature}",
    }


def test_the_secret_is_in_no_representation() -> None:
    assert "wJalr" not in repr(EXAMPLE)
