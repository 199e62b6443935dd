"""The servers of an atproto network, in the words of the real ones.

Statuses, headers and bodies are those of Bluesky's PDS and PLC directory (``tests.devnet`` runs
them), without what their web framework adds.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, field
from typing import Any, Literal

from libipld import encode_cid

from proxy.model.identifiers import Cid, Did, did_web_authority
from tests.fakes.network import Request, Response, Site

GET_BLOB = "/xrpc/com.atproto.sync.getBlob"
GET_RECORD = "/xrpc/com.atproto.repo.getRecord"
LIST_RECORDS = "/xrpc/com.atproto.repo.listRecords"
LIST_BLOBS = "/xrpc/com.atproto.sync.listBlobs"
GET_REPO_STATUS = "/xrpc/com.atproto.sync.getRepoStatus"
DESCRIBE_REPO = "/xrpc/com.atproto.repo.describeRepo"
JSON = "application/json; charset=utf-8"

Status = Literal["active", "takendown", "deactivated"]


def new_plc_did() -> Did:
    """A did:plc that no other test has."""
    return Did("did:plc:" + "".join(random.choices("abcdefghijklmnopqrstuvwxyz234567", k=24)))


def cid_of(data: bytes) -> Cid:
    """CIDv1, raw, sha2-256: what a PDS names a blob."""
    return Cid(encode_cid(b"\x01\x55\x12\x20" + hashlib.sha256(data).digest()))


def record_cid(value: Any) -> str:
    """A CID for a record: as long as the real one, but of its JSON."""
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    return str(encode_cid(b"\x01\x71\x12\x20" + digest))


def document(did: str, *services: Any, **more: Any) -> dict[str, Any]:
    """A DID document as the directory writes them."""
    return {
        "@context": [
            "https://www.w3.org/ns/did/v1",
            "https://w3id.org/security/multikey/v1",
        ],
        "id": did,
        "alsoKnownAs": ["at://someone.test"],
        "verificationMethod": [],
        "service": list(services),
        **more,
    }


def pds_service(url: Any, *, id: Any = "#atproto_pds", **more: Any) -> dict[str, Any]:
    """The service entry that names a PDS."""
    return {
        "id": id,
        "type": "AtprotoPersonalDataServer",
        "serviceEndpoint": url,
        **more,
    }


def _json(status: int, value: Any) -> Response:
    body = json.dumps(value, separators=(",", ":")).encode()
    return Response(status, body, (("Content-Type", JSON),))


@dataclass
class Blob:
    """A blob of an account."""

    data: bytes
    mime: str = "image/png"
    takendown: bool = False


@dataclass
class Account:
    """An account of a PDS."""

    did: Did
    status: Status = "active"
    blobs: dict[Cid, Blob] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)
    """By ``collection/key``."""


class FakePds(Site):
    """A PDS as far as ``com.atproto.sync.getBlob`` and ``com.atproto.repo.getRecord`` go."""

    def __init__(
        self, host: str = "pds.example", *, port: int = 443, scheme: str = "https"
    ) -> None:
        super().__init__(host, port=port, scheme=scheme)
        self.accounts: dict[str, Account] = {}

    def add_account(self, did: Did) -> Account:
        account = self.accounts[did] = Account(did)
        return account

    def add_blob(self, did: Did, data: bytes, mime: str = "image/png") -> Cid:
        cid = cid_of(data)
        self.accounts[did].blobs[cid] = Blob(data, mime)
        return cid

    @property
    def blob_requests(self) -> int:
        """How often getBlob was asked for."""
        return self.requests_by_path[GET_BLOB]

    def add_record(self, did: Did, path: str, value: Any) -> str:
        """Put a record at ``collection/key``; its at:// URI."""
        self.accounts[did].records[path] = value
        return f"at://{did}/{path}"

    def answer(self, request: Request) -> Response:
        """See ``Site.answer``."""
        if request.path == GET_RECORD:
            query = request.query
            path = f"{query.get('collection')}/{query.get('rkey')}"
            return self._get_record(query.get("repo", ""), path)
        if request.path == LIST_RECORDS:
            return self._list_records(request.query)
        if request.path == LIST_BLOBS:
            return self._list_blobs(request.query)
        if request.path in (GET_REPO_STATUS, DESCRIBE_REPO):
            return self._get_account(request)
        if request.path != GET_BLOB:
            return super().answer(request)
        response = self._get_blob(request.query.get("did", ""), request.query.get("cid", ""))
        headers = (("Cache-Control", "private"), *response.headers)
        return Response(response.status, response.body, headers)

    def _get_record(self, did: str, path: str) -> Response:
        account = self.accounts.get(did)
        if account is None or account.status != "active":
            return _refusal("InvalidRequest", "Could not locate record")
        uri = f"at://{did}/{path}"
        if path not in account.records:
            return _refusal("RecordNotFound", f"Could not locate record: {uri}")
        value = account.records[path]
        return _json(200, {"uri": uri, "cid": record_cid(value), "value": value})

    def _get_account(self, request: Request) -> Response:
        is_status = request.path == GET_REPO_STATUS
        did = request.query["did" if is_status else "repo"]
        account = self.accounts.get(did)
        if account is None:
            return _refusal("RepoNotFound", f"Could not find repo for DID: {did}")
        if account.status == "active":
            collections = sorted({path.partition("/")[0] for path in account.records})
            more = {"active": True} if is_status else {"collections": collections}
            return _json(200, {"did": did} | more)
        if is_status:
            return _json(200, {"did": did, "active": False, "status": account.status})
        return _refusal(f"Repo{account.status.capitalize()}", f"Repo is {account.status}: {did}")

    def _list_records(self, query: dict[str, str]) -> Response:
        account = self.accounts.get(query["repo"])
        if account is None or account.status != "active":
            return _refusal("InvalidRequest", f"Could not find repo: {query['repo']}")
        within = f"{query['collection']}/"
        after = query.get("cursor", "\U0010ffff")
        keys = [path.removeprefix(within) for path in account.records if path.startswith(within)]
        keys = sorted((key for key in keys if key < after), reverse=True)
        keys = keys[: int(query.get("limit", "50"))]
        records = []
        for key in keys:
            value = account.records[within + key]
            uri = f"at://{account.did}/{within}{key}"
            records.append({"uri": uri, "cid": record_cid(value), "value": value})
        return _json(200, {"records": records} | ({"cursor": keys[-1]} if keys else {}))

    def _list_blobs(self, query: dict[str, str]) -> Response:
        account = self.accounts.get(query["did"])
        if account is None or account.status != "active":
            return _refusal("RepoNotFound", f"Could not find repo for DID: {query['did']}")
        after = sorted(cid for cid in account.blobs if cid > query.get("cursor", ""))
        cids = after[: int(query.get("limit", "500"))]
        return _json(200, {"cids": cids} | ({"cursor": cids[-1]} if cids else {}))

    def _get_blob(self, did: str, cid: str) -> Response:
        account = self.accounts.get(did)
        if account is None:
            return _refusal("RepoNotFound", f"Could not find repo for DID: {did}")
        if account.status == "takendown":
            return _refusal("RepoTakendown", f"Repo has been takendown: {did}")
        if account.status == "deactivated":
            return _refusal("RepoDeactivated", f"Repo has been deactivated: {did}")
        blob = account.blobs.get(Cid(cid))
        if blob is None or blob.takendown:
            return _refusal("InvalidRequest", "Blob not found")
        return Response(
            200,
            blob.data,
            (
                ("X-Content-Type-Options", "nosniff"),
                ("Content-Disposition", f'attachment; filename="{cid}"'),
                ("Content-Security-Policy", "default-src 'none'; sandbox"),
                ("Content-Type", blob.mime),
            ),
        )


def _refusal(error: str, message: str) -> Response:
    return _json(400, {"error": error, "message": message})


class FakePlc(Site):
    """The PLC directory.

    Attributes:
        documents: by DID; a string or bytes are sent as they are.
    """

    def __init__(
        self, host: str = "plc.example", *, port: int = 443, scheme: str = "https"
    ) -> None:
        super().__init__(host, port=port, scheme=scheme)
        self.documents: dict[str, Any] = {}

    def answer(self, request: Request) -> Response:
        """See ``Site.answer``."""
        if not request.path.startswith("/did:"):
            return super().answer(request)
        did = request.path[1:]
        if did not in self.documents:
            return _json(404, {"message": f"DID not registered: {did}"})
        return self.answer_of(self.documents[did])

    @staticmethod
    def answer_of(value: Any) -> Response:
        """The answer that holds a document."""
        return _document_response(value, "application/did+ld+json; charset=utf-8")


class FakeWeb(Site):
    """A domain with a did:web.

    Attributes:
        document: None answers 404; a string or bytes are sent as they are.
    """

    def __init__(self, did: Did) -> None:
        authority = did_web_authority(did)
        assert authority is not None
        host, _, port = authority.partition(":")
        scheme = "http" if host == "localhost" else "https"
        default = 80 if host == "localhost" else 443
        super().__init__(host, port=int(port or default), scheme=scheme)
        self.document: Any = None

    def answer(self, request: Request) -> Response:
        """See ``Site.answer``."""
        if request.target != "/.well-known/did.json" or self.document is None:
            return super().answer(request)
        return _document_response(self.document, "application/json")


def _document_response(value: Any, content_type: str) -> Response:
    if isinstance(value, str):
        value = value.encode()
    body = value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()
    return Response(200, body, (("Content-Type", content_type),))
