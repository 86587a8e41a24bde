"""``m3rt serve``: its options are the settings of m3rt.server."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from m3rt import api, render
from m3rt.errors import missing
from m3rt.runtime import M3
from m3rt.server.settings import Settings

EXTRA = ("uvicorn", "msgspec", "orjson", "httptools", "prometheus_client", "uvloop")


def serve(
    config: Path | None = None,
    print_config: bool = False,
    as_json: bool = False,
    **flags: Any,
) -> None:
    """Serve all three heads from one pass, over HTTP and gRPC.

    In m3rt's own form, and in those of OpenAI, text-embeddings-inference, vLLM, Cohere and the
    Open Inference Protocol. See docs/serve.md.
    """
    try:
        from m3rt.server import host, logs, sources
    except ImportError as error:
        if error.name and error.name.partition(".")[0] in EXTRA:
            raise missing(error.name, "serve", "m3rt serve") from error
        raise
    values = sources.read(flags, file=config)
    if print_config:
        rows = sources.shown(values)
        if as_json:
            render.show_json({name: {"value": v, "source": s} for name, v, s in rows})
        else:
            width = max(len(name) for name, _, _ in rows)
            for name, value, source in rows:
                typer.echo(f"{name:{width}}  {value or '-'}  ({source})")
        return
    settings = sources.settings(values)
    logs.configure(settings.log_format, settings.log_level)
    host.serve(settings, lambda: opened(settings))


def opened(settings: Settings) -> M3:
    """Open the model that is to be served."""
    return api.load(
        settings.model,
        settings.engine,
        streams=settings.streams,
        fallback=settings.fallback or None,
        devices=settings.devices or None,
    )


def command() -> Callable[..., None]:
    """Return the command, with an option for each setting."""
    hints = typing.get_type_hints(Settings)
    parameters = []
    for field in fields(Settings):
        flag = "--" + field.name.replace("_", "-")
        names = [flag]
        if (tei := "--" + field.metadata["tei"].replace("_", "-")) not in ("--", flag):
            names.append(tei)
        parameters.append(parameter(field.name, hints[field.name], names, field.metadata["help"]))
    usual = inspect.signature(serve).parameters
    hinted = {
        "config": Annotated[
            Path | None, typer.Option(help="Settings file; default: m3rt.toml, if it is here.")
        ],
        "print_config": Annotated[
            bool, typer.Option("--print-config", help="Show each value, and where it came from.")
        ],
        "as_json": Annotated[bool, typer.Option("--json", help="With --print-config: as JSON.")],
    }
    own = [
        usual[name].replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY)
        for name, hint in hinted.items()
    ]

    def run(**values: Any) -> None:
        serve(**values)

    run.__doc__ = serve.__doc__
    run.__name__ = "serve"
    run.__signature__ = inspect.Signature([*parameters, *own])  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in (*parameters, *own)}
    return run


def parameter(name: str, kind: Any, names: list[str], text: str) -> inspect.Parameter:
    """Return the option of a setting; it is None where it is not given."""
    if name == "model":
        hint: Any = Annotated[
            Path | None, typer.Argument(help=f"{text} Or M3RT_MODEL, or m3rt.toml.")
        ]
    elif kind is bool:
        off = f"/--no-{names[0][2:]}"
        hint = Annotated[bool | None, typer.Option(names[0] + off, help=text)]
    else:
        taken = str if typing.get_origin(kind) is not None else kind
        hint = Annotated[taken | None, typer.Option(*names, help=text)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
