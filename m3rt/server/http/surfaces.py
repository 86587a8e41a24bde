"""All routes. A surface is a file with ROUTES."""

from __future__ import annotations

from m3rt.server.http import native, oip, openai, tei
from m3rt.server.http.routes import Route

ROUTES: tuple[Route, ...] = (*native.ROUTES, *openai.ROUTES, *tei.ROUTES, *oip.ROUTES)
