"""Signs requests to AWS: version 4 of its signatures, in headers. Pure.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import SecretStr

ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key, and the region and the service that it is used for."""

    key_id: str
    secret: SecretStr
    region: str
    service: str


def signed_headers(
    credentials: Credentials,
    host: str,
    target: str,
    headers: Mapping[str, str],
    content: bytes,
    wall_clock: float,
) -> dict[str, str]:
    """Return ``headers`` with the signature of a POST request; AWS accepts it for five minutes.

    Args:
        target: an absolute path of unreserved characters and slashes, without a query.
        wall_clock: seconds since the epoch.
    """
    now = datetime.fromtimestamp(wall_clock, UTC)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    sent = {**headers, "X-Amz-Date": stamp}
    canonical = {name.lower(): value.strip() for name, value in {**sent, "Host": host}.items()}
    names = ";".join(sorted(canonical))
    request = "\n".join(
        (
            "POST",
            target,
            "",  # no query
            *(f"{name}:{canonical[name]}" for name in sorted(canonical)),
            "",
            names,
            hashlib.sha256(content).hexdigest(),
        )
    )
    scope = f"{day}/{credentials.region}/{credentials.service}/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    key = f"AWS4{credentials.secret.get_secret_value()}".encode()
    for part in scope.split("/"):
        key = _hmac(key, part)
    signature = _hmac(key, f"{ALGORITHM}\n{stamp}\n{scope}\n{digest}").hex()
    sent["Authorization"] = (
        f"{ALGORITHM} Credential={credentials.key_id}/{scope},"
        f" SignedHeaders={names}, Signature={signature}"
    )
    return sent


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
