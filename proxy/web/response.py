"""Answers as those of the framework, for the routes that it serves."""

from __future__ import annotations

from quart import Response

from proxy.web.answers import Answer


def as_response(answer: Answer) -> Response:
    """An answer as Quart's."""
    return Response(answer.body, status=answer.status, headers=dict(answer.headers))
