"""All routes. A surface is a file with ROUTES."""

from __future__ import annotations

from m3rt.server.http import cohere, native, openapi, page, rerank, scoring, vllm
from m3rt.server.http.routes import Route

SURFACES: tuple[Route, ...] = (
    *native.ROUTES,
    *scoring.ROUTES,
    *vllm.ROUTES,
    *rerank.ROUTES,
    *cohere.ROUTES,
    *page.ROUTES,
)
ROUTES: tuple[Route, ...] = (*SURFACES, *openapi.routes(SURFACES))
