"""What can be set of a server. docs/serve.md explains each; m3rt.server.sources reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


def setting(default: Any, text: str, *, tei: str = "") -> Any:
    """Declare a setting.

    Args:
        default: its value where nothing is said.
        text: what it means.
        tei: the name that text-embeddings-inference has for it, as a flag and, in capitals, in
            the environment.
    """
    return field(default=default, metadata={"help": text, "tei": tei})


@dataclass(frozen=True, slots=True)
class Settings:
    """All that ``m3rt serve`` can be told, besides where from."""

    model: Path = field(
        metadata={"help": "Model directory, as m3rt export wrote it.", "tei": "model_id"}
    )

    engine: str = setting("auto", "Engine and precision, such as cpu:int8.")
    streams: int = setting(1, "Batches that run at once, each on its share of the cores.")
    devices: str = setting("", "GPUs: numbers joined by commas, or all.")
    fallback: str = setting("", "Engine that computes texts again where the first gave NaN or Inf.")
    served_model_name: str = setting(
        "", "What clients call the model; the checkpoint's name.", tei="served_model_name"
    )

    host: str = setting("127.0.0.1", "Address to listen at; 0.0.0.0 is every one.", tei="hostname")
    port: int = setting(8000, "Port of HTTP; 0 takes a free one.", tei="port")
    grpc_port: int = setting(0, "Port of gRPC; 0 is none.")
    tls_cert: str = setting("", "File of the TLS certificate chain, PEM.")
    tls_key: str = setting("", "File of its private key, PEM.")
    api_key: str = setting("", "Keys that clients must send, joined by commas.", tei="api_key")
    api_key_file: str = setting(
        "", "File of keys, one a line: NAME=KEY or KEY. Read again by a reload."
    )
    cors_allow_origin: str = setting(
        "", "Origins whose pages may call, joined by commas; * is all.", tei="cors_allow_origin"
    )
    client_header: str = setting("", "Header that tells clients apart, where a proxy sets it.")

    auto_truncate: bool = setting(
        True, "Cut texts that are too long, where a request does not say.", tei="auto_truncate"
    )
    allow_token_ids: bool = setting(False, "Take token ids in OpenAI's requests.")
    weights: tuple[float, float, float] = setting(
        (0.4, 0.2, 0.4), "Of dense, sparse and ColBERT, in scores."
    )
    max_client_batch_size: int = setting(
        2048, "Most texts of a request.", tei="max_client_batch_size"
    )
    max_request_tokens: int = setting(1_000_000, "Most tokens of a request.")
    max_body_bytes: int = setting(8 << 20, "Most bytes of a request's body.", tei="payload_limit")
    max_memory: int = setting(2 << 30, "Most bytes of answers held at once.")
    max_concurrent_requests: int = setting(
        2048, "Most requests at once.", tei="max_concurrent_requests"
    )
    max_connections: int = setting(8192, "Most connections at once.")
    max_queue_tokens: int = setting(4_000_000, "Most tokens that wait for the engine.")
    max_batch_tokens: int = setting(
        0, "Most tokens of a batch; 0 is the engine's own choice.", tei="max_batch_tokens"
    )

    request_timeout: float = setting(600.0, "Seconds for a request; it may ask for less.")
    max_wait: float = setting(2.0, "Seconds an interactive text may wait for the engine.")
    max_wait_bulk: float = setting(60.0, "Seconds a bulk text may.")
    interactive_texts: int = setting(16, "A request of more texts is bulk, unless it says.")
    ageing: float = setting(5.0, "Seconds after which bulk texts get a share in any case.")
    bulk_share: float = setting(0.25, "Of the engine, for aged bulk texts.")
    quantum: float = setting(0.05, "Seconds of a batch with bulk texts, beside interactive ones.")
    cache_bytes: int = setting(0, "Bytes of results of short texts to keep; 0 keeps none.")

    header_timeout: float = setting(10.0, "Seconds for a request's headers.")
    body_timeout: float = setting(30.0, "Seconds for its body.")
    write_timeout: float = setting(60.0, "Seconds without a byte taken of an answer.")
    keep_alive: float = setting(75.0, "Seconds that an idle connection stays open.")
    engine_timeout: float = setting(120.0, "Seconds after which a batch counts as hanging.")
    drain_grace: float = setting(0.0, "Seconds between SIGTERM and refusing new requests.")
    drain_timeout: float = setting(30.0, "Seconds then for what was begun.")

    metrics_compat: Literal["", "tei"] = setting("", "tei: its names, too, at /metrics.")
    otlp_endpoint: str = setting(
        "", "Where to send traces, by OTLP over HTTP.", tei="otlp_endpoint"
    )
    log_format: Literal["text", "json"] = setting("text", "Of the log, on stderr.")
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "Least level logged.")
    log_texts: bool = setting(False, "Log the texts of requests, too. They may be private.")
    admin: bool = setting(False, "Answer POST /admin/reload; it needs an API key.")
