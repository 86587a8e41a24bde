"""What can be set of a server, and where each value came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """All that ``m3rt serve`` can be told; docs/serve.md explains each."""

    model: Path
    engine: str = "auto"
    served_model_name: str = ""  # that of the checkpoint, if empty
    max_client_batch_size: int = 2048  # texts of a request
    max_request_tokens: int = 1_000_000
    auto_truncate: bool = True  # where a request does not say
    allow_token_ids: bool = False  # in OpenAI's requests
    interactive_texts: int = 16  # a request of more is bulk, unless it says otherwise
    weights: tuple[float, float, float] = (0.4, 0.2, 0.4)  # dense, sparse, ColBERT
    request_timeout: float = 60.0  # seconds; a request may ask for less
    max_body_bytes: int = 32 << 20
    body_timeout: float = 30.0
    write_timeout: float = 60.0
    client_header: str = ""  # whose value tells clients apart, where a proxy sets it
    metrics_compat: str = ""  # "tei": its names, too
