"""All routes, but those that belong to one application. A surface is a file with ROUTES."""

from __future__ import annotations

from m3rt.server.http import cohere, native, oip, openai, page, rerank, scoring, tei, vllm
from m3rt.server.http.routes import Route

ROUTES: tuple[Route, ...] = (
    *native.ROUTES,
    *scoring.ROUTES,
    *openai.ROUTES,
    *tei.ROUTES,
    *vllm.ROUTES,
    *rerank.ROUTES,
    *cohere.ROUTES,
    *oip.ROUTES,
    *page.ROUTES,
)
