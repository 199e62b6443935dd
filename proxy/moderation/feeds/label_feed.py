"""One labeler: found by its DID, followed by ``com.atproto.label.subscribeLabels``."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from proxy.accounts.did_documents import entries, parse_document, service_endpoint
from proxy.config import Config
from proxy.egress.endpoint import Origin, parse_origin
from proxy.egress.errors import Forbidden
from proxy.egress.network import Network
from proxy.errors import ImageProxyError
from proxy.model.identifiers import Did
from proxy.moderation.feeds.event_frames import BadFrame, decode_frame, is_gap, seq_of
from proxy.moderation.feeds.label_enforcer import LabelEnforcer
from proxy.moderation.feeds.labels import BadLabel, Label, parse_label
from proxy.moderation.feeds.signatures import BadKey, PublicKey, parse_key
from proxy.moderation.feeds.websocket import Server, SocketFailed
from proxy.observability.metrics import Metrics

NSID = "com.atproto.label.subscribeLabels"

MAX_MESSAGE = 1024 * 1024
"""Bytes; a label has about 300, and decoding can take seventy times as much memory."""

KEY_SECONDS = 5.0
"""How often at most a bad signature makes a labeler's key be looked up again."""

WAIT_SECONDS = 60.0
"""How often at most a bad signature is waited with until the key may be looked up: the key may have
been rotated since, but a stream may also be full of labels of a key that nobody has any more."""

log = structlog.get_logger(__name__)


class DocumentSource(Protocol):
    """Where DID documents come from."""

    async def document(self, did: Did) -> bytes:
        """The DID document as its source has it now.

        Raises:
            ImageProxyError: there is no document, or it cannot be fetched now.
        """
        ...


@dataclass(frozen=True, slots=True)
class LabelerIdentity:
    """What a labeler's DID document says.

    Attributes:
        key: None if it has no usable key: then none of its labels is valid.
    """

    endpoint: str
    key: PublicKey | None


def labeler_of(did: Did, document: bytes) -> LabelerIdentity:
    """The labeler that a DID document describes (Label specification, "Labeler Service Identity").

    Pure, total.

    Raises:
        DidUnresolvable: not a document of this DID.
        BadKey: the document names no labeler service.
    """
    parsed = parse_document(did, document)
    endpoint = service_endpoint(did, parsed, "#atproto_labeler", "AtprotoLabeler")
    if endpoint is None:
        raise BadKey(f"{did}: the document names no labeler")
    for method in entries(did, parsed, "verificationMethod", "#atproto_label"):
        kind, text = method.get("type"), method.get("publicKeyMultibase")
        if isinstance(kind, str) and isinstance(text, str):
            with suppress(BadKey):
                return LabelerIdentity(endpoint, parse_key(kind, text))
    return LabelerIdentity(endpoint, None)


class LabelerFeed:
    """A labeler's stream; see ``Feed``.

    Args:
        stream: the cursor's name.
    """

    name = "labels"
    first_cursor = 0  # All labels that stand: a labeler keeps them in its stream.
    max_message = MAX_MESSAGE

    def __init__(
        self,
        did: Did,
        stream: str,
        config: Config,
        *,
        network: Network,
        documents: DocumentSource,
        enforcer: LabelEnforcer,
        metrics: Metrics,
    ) -> None:
        self.stream = stream
        self._did = did
        self._fetch = config.fetch
        self._values = frozenset(config.labels.values)
        self._network = network
        self._documents = documents
        self._enforcer = enforcer
        self._metrics = metrics
        self._key: PublicKey | None = None
        self._key_at = -math.inf
        self._waited_at = -math.inf

    async def locate(self) -> Server:
        """See ``Feed.locate``."""
        return Server(self._network, await self._look_up())

    def target(self, cursor: int | None) -> str:
        """See ``Feed.target``."""
        return f"/xrpc/{NSID}?cursor={cursor or 0}"

    async def take(self, message: str | bytes) -> int | None:
        """See ``Feed.take``."""
        frame = decode_frame(message)
        if frame is None:
            return None
        if is_gap(frame):
            # What was negated or made in between, and is not in the stream any more, is lost.
            self._count("gap")
            log.error("labeler does not go back as far as it was followed", labeler=self._did)
        if frame.type != "#labels":
            return None
        seq = seq_of(frame.body)
        labels = frame.body.get("labels")
        if not isinstance(labels, list):
            raise BadFrame("a message without labels")
        for raw in labels:
            await self._take_label(raw)
        return seq

    async def _take_label(self, raw: object) -> None:
        try:
            label = parse_label(raw)
        except BadLabel as error:
            self._refuse("malformed", str(error))
            return
        if label.val not in self._values:
            return
        if label.src != self._did:
            self._refuse("foreign", f"it is of {label.src[:100]!a}")
            return
        if not await self._is_genuine(label):
            self._refuse("bad signature", f"{label.val} on {label.uri[:200]!a}")
            return
        try:
            await self._enforcer.put(label)
        except BadLabel as error:
            self._refuse("not served", str(error))

    async def _is_genuine(self, label: Label) -> bool:
        # The check takes less than handing it to a thread would.
        if self._key is not None and self._key.has_signed(label.signed, label.sig):
            return True
        # Label specification, "Signature Lifecycle": the key may have been rotated.
        now = trio.current_time()
        if now - self._key_at < KEY_SECONDS:
            if now - self._waited_at < WAIT_SECONDS:
                return False
            self._waited_at = now
            await trio.sleep_until(self._key_at + KEY_SECONDS)
        await self._look_up()
        return self._key is not None and self._key.has_signed(label.signed, label.sig)

    async def _look_up(self) -> Origin:
        """Take over the key, and tell the origin of the stream.

        Raises:
            SocketFailed: the document cannot be had, or names no labeler that may be asked.
        """
        try:
            identity = labeler_of(self._did, await self._documents.document(self._did))
            origin = parse_origin(
                identity.endpoint,
                allow_http=self._fetch.allow_http,
                allow_private_hosts=self._fetch.allow_private_hosts,
            )
        except (ImageProxyError, BadKey, Forbidden) as error:
            raise SocketFailed("no labeler", str(error)) from error
        if identity.key is None:
            log.error("labeler has no key: its labels are dropped", labeler=self._did)
        self._key = identity.key
        self._key_at = trio.current_time()
        return origin

    def _refuse(self, outcome: str, cause: str) -> None:
        self._count(outcome)
        log.warning("label dropped", labeler=self._did, reason=outcome, error=cause)

    def _count(self, outcome: str) -> None:
        self._metrics.feed_events.labels(self.name, outcome).inc()
