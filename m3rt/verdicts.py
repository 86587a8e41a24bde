"""How the command line shows what the gates found."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.filesize import decimal
from rich.table import Table

from m3rt import render
from m3rt.artifact import Build
from m3rt.certificate import Certificate, check_of, limit_of
from m3rt.engines.trt.plan import Plan
from m3rt.errors import ParityError


@contextlib.contextmanager
def differing(model: Path, as_json: bool) -> Iterator[None]:
    """Show the figures of a ParityError before it goes on."""
    try:
        yield
    except ParityError as error:
        if error.parity or error.certificate:
            show(model, error.parity, error.certificate, as_json)
        raise


def show(
    model: Path, figures: Mapping[str, Any], certificate: Certificate | None, as_json: bool
) -> None:
    """Print the figures of a comparison with the checkpoint, and a certificate."""
    if as_json:
        found = None if certificate is None else dataclasses.asdict(certificate)
        render.show_json({"path": str(model), "parity": figures, "certificate": found})
        return
    if figures:
        render.show(render.parity(figures))
    if certificate:
        render.show(*certified(certificate))


def built(build: Build) -> list[Table]:
    """Return what was found of a build, and what it took to pass the gate."""
    tables = [render.parity(build.parity)]
    if build.certificate:
        tables += certified(build.certificate)
        if report := build.recipe.get("recovery"):
            tables += recovered(report, build.certificate)
    if "plan" in build.recipe:
        tables += planned(Plan.read(build.recipe))
    return tables


def note(build: Build) -> str | None:
    """Return what else is to be said of a build, if anything."""
    engine = str(build.parity.get("engine", ""))
    spec, beside, _ = engine.partition(" as its graph")
    if not beside:
        return None
    kernels = ", and its kernels by what is written in them" if "plan" in build.recipe else ""
    return (
        f"no device of {spec} is here: its graph was judged on ONNX Runtime{kernels}; on the GPU "
        f"run: m3rt verify MODEL --engine {spec}"
    )


def planned(plan: Plan) -> list[Table]:
    """Return the shapes that a TensorRT engine was built for, and the memory that they take."""
    table = render.titled(
        f"{plan.library} {plan.version} for {', '.join(plan.target)}",
        *("lengths", "most texts", "best for", "activations"),
    )
    for profile, memory in itertools.zip_longest(plan.profiles, plan.memory):
        table.add_row(
            f"{profile.least[1]} to {profile.most[1]}",
            str(profile.most[0]),
            "x".join(map(str, profile.best)),
            "not told" if memory is None else decimal(memory),
        )
    table.add_row("weights", "", "", decimal(plan.weights))
    return [table]


def certified(certificate: Certificate) -> list[Table]:
    """Return the tables of a certificate."""
    verdict = "ok" if certificate.ok else "out of tolerance"
    table = render.titled(
        f"quality gate: {verdict} (against {certificate.against})",
        *("heads", "figure", "value", "tolerance"),
    )
    add(table, certificate, certificate.figures)
    if not certificate.dataset:
        return [table]
    retrieval = render.titled(
        f"retrieval: {certificate.dataset}", *("heads", "figure", "value", "tolerance")
    )
    add(retrieval, certificate, certificate.retrieval)
    return [table, retrieval]


def add(table: Table, certificate: Certificate, figures: Mapping[str, Mapping[str, Any]]) -> None:
    """Add figures and their tolerances to a table."""
    for heads, of_heads in figures.items():
        for name, value in of_heads.items():
            check = check_of(heads, name)
            limit = "" if check is None else limit_of(certificate.tolerances, check[0])
            table.add_row(heads, name, render.figure(value), render.figure(limit))


def recovered(report: Mapping[str, Any], certificate: Certificate) -> list[Table]:
    """Return which layers a build raised to pass the gate, what that gave, and what it cost."""
    raised = render.titled("raised to higher precision", "layer", "weight")
    for site, layer in report["raised"].items():
        raised.add_row(layer, site)
    change = render.titled("what it gave, and cost", "", "int8 alone", "as built", "float32")
    for heads, of_heads in report["before"]["figures"].items():
        for name, value in of_heads.items():
            if check_of(heads, name):
                now = certificate.figures.get(heads, {}).get(name, "")
                change.add_row(f"{heads} {name}", render.figure(value), render.figure(now))
    if speed := report["tokens_per_second"]:  # {} where the engine's device was not there
        rates = [f"{speed[name]:.0f}" for name in ("before", "after", "float32")]
        change.add_row("tokens a second", *rates)
    change.add_row("size", *(decimal(report["bytes"][name]) for name in ("before", "after")))
    return [raised, change]
