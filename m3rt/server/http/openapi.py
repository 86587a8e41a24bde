"""The OpenAPI document, made from the routes: what is served is what is documented.

GET /openapi.json   the document, OpenAPI 3.1
GET /docs           the same as a page

Errors are documented by asking each surface how it tells of them.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

import m3rt
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.http import docs, native
from m3rt.server.http.replies import JSON, Reply, dumps
from m3rt.server.http.routes import Call, Route

HTML = "text/html; charset=utf-8"
PACKAGE = "m3rt.server.http."  # in the names of types of which there are several
REF = "#/components/schemas/{name}"

# What a request without a body can be refused for, and what one with a body can, besides.
ALWAYS = (Kind.MALFORMED, Kind.FAILED, Kind.NOT_READY)
OF_BODIES = (
    *(Kind.INVALID, Kind.EMPTY, Kind.TOO_LONG, Kind.TOO_MANY, Kind.TOO_LARGE, Kind.TOO_SLOW),
    *(Kind.UNSUPPORTED, Kind.OVERLOADED, Kind.EXPIRED, Kind.TOKENIZER, Kind.NOT_FOUND),
)
MEANING: Mapping[Kind, str] = {
    Kind.MALFORMED: "the request is not of this form",
    Kind.INVALID: "a value is not possible",
    Kind.EMPTY: "there are no texts",
    Kind.TOO_LONG: "a text is too long, and is not to be cut",
    Kind.TOO_MANY: "there are too many texts",
    Kind.TOO_LARGE: "the body or the answer has too many bytes",
    Kind.TOO_SLOW: "the body took too long to come",
    Kind.UNAUTHORISED: "the API key is missing or wrong",
    Kind.NOT_FOUND: "there is no such model or path",
    Kind.NOT_ALLOWED: "there is no such method here",
    Kind.UNACCEPTABLE: "no media type that is accepted can be made",
    Kind.UNSUPPORTED: "this model cannot do that",
    Kind.OVERLOADED: "there is no room now: try again after the time in retry-after",
    Kind.EXPIRED: "the deadline passed",
    Kind.NOT_READY: "the server starts, stops or is not well",
    Kind.FAILED: "the engine failed",
    Kind.TOKENIZER: "a text is not Unicode",
}
PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    "x-request-timeout-ms": {
        "description": "Milliseconds within which the answer is wanted; later it is refused.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
        "example": 2000,
    },
    "x-priority": {
        "description": "interactive or bulk, or a number, of which 0 is interactive and more is "
        "bulk. Without it, a request of few texts is interactive.",
        "schema": {
            "anyOf": [{"enum": ["interactive", "bulk"]}, {"type": "integer"}],
        },
    },
    "x-request-id": {
        "description": "Comes back in the answer and stands in the log; made where it is missing.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]+$"},
    },
}


def routes(others: Iterable[Route]) -> tuple[Route, ...]:
    """Return the routes that document others, and themselves."""

    @functools.cache
    def made() -> dict[str, Any]:
        return document((*others, *own))

    async def openapi_json(call: Call) -> Reply:
        """Return this document."""
        return Reply(await call.service.off(lambda: dumps(made())))

    async def docs_page(call: Call) -> Reply:
        """Return this document as a page."""
        return Reply(await call.service.off(lambda: docs.page(made()).encode()), media=HTML)

    others = tuple(others)
    own = (
        Route("GET", "/openapi.json", openapi_json, native.shape, open=True, observed=False),
        Route(*("GET", "/docs", docs_page, native.shape), media=(HTML,), open=True, observed=False),
    )
    return own


def document(found: Iterable[Route]) -> dict[str, Any]:
    """Return the OpenAPI document of routes."""
    found = tuple(found)
    types = [form for route in found for form in (*bodies(route), *replies(route))]
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    # by identity: what annotates a type may have no hash
    by_type = {id(form): schema for form, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    errors: dict[str, list[Any]] = {}
    for route in found:
        described = operation(route, by_type, components)
        described["responses"] = responses(route, by_type, errors)
        paths.setdefault(route.path, {})[route.method.lower()] = described
    components |= {name: inferred(samples) for name, samples in errors.items()}
    modules = dict.fromkeys(route.handler.__module__ for route in found)
    content = {
        "openapi": "3.1.0",
        "info": {
            "title": "m3rt",
            "version": m3rt.__version__,
            "description": "Dense, sparse and ColBERT vectors of BGE-M3 from one pass, in m3rt's "
            "own protocol and in those of other servers.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [
            {"name": tag(module), "description": first_line(sys.modules[module])}
            for module in modules
        ],
        "paths": paths,
        "components": {
            "schemas": components,
            "parameters": {
                name: {"name": name, "in": "header", **rest} for name, rest in PARAMETERS.items()
            },
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }
    whole: dict[str, Any] = tidy(content)
    return whole


def operation(
    route: Route, schemas: Mapping[int, Any], components: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a route is documented as."""
    summary, _, rest = (inspect.getdoc(route.handler) or "").partition("\n")
    content: dict[str, Any] = {
        "tags": [tag(route.handler.__module__)],
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "summary": summary,
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in re.findall(r"\{(\w+)\}", route.path)
            ),
            *({"$ref": f"#/components/parameters/{name}"} for name in PARAMETERS),
        ],
    }
    if rest.strip():
        content["description"] = rest.strip()
    if route.body is not None:
        forms = bodies(route)
        schema = any_of([schemas[id(form)] for form in forms])
        example = sample(schema, components) if route.example is None else route.example
        media = {"schema": schema, "example": example}
        content["requestBody"] = {"required": True, "content": {JSON: media}}
    content["security"] = [] if route.open else [{"bearer": []}, {}]
    return content


def bodies(route: Route) -> tuple[Any, ...]:
    """Return the types that document the body; none where nothing does."""
    form = route.form if route.form is not None else route.body
    return () if form in (None, bytes) else form if isinstance(form, tuple) else (form,)


def replies(route: Route) -> tuple[Any, ...]:
    """Return the types that document the answer; none where nothing does."""
    if route.reply is None:
        return ()
    return route.reply if isinstance(route.reply, tuple) else (route.reply,)


def responses(
    route: Route, schemas: Mapping[int, Any], errors: dict[str, list[Any]]
) -> dict[str, Any]:
    """Return the answers of a route: its result, and what it is refused with.

    Args:
        route: whose answers.
        schemas: by the identity of the type.
        errors: gets the contents of what is refused, by the name of their schema.
    """
    content: dict[str, Any] = {}
    if route.reply is not None or not route.media:
        content[JSON] = {"schema": any_of([schemas[id(form)] for form in replies(route)])}
    for media in route.media:
        content[media] = {"schema": {"type": "string"} if media.startswith("text/") else {}}
    headers = {"x-request-id": {"schema": {"type": "string"}}}
    found = {"200": {"description": "The result.", "headers": headers, "content": content}}
    refused: dict[int, list[tuple[Kind, str, Reply]]] = {}
    told_by = [(shape, kinds(route)) for shape in (route.shape, *route.shapes)]
    if "{" in route.path:  # with a slash in it, the path is that of no route
        told_by.append((native.shape, (Kind.NOT_FOUND,)))
    for shape, possible in told_by:
        function = getattr(shape, "__name__", "shape")
        name = f"{tag(shape.__module__)}.{'Error' if function == 'shape' else function}"
        for kind in possible:
            for param in (None, "inputs"):
                reply = shape(RefusedError(kind, MEANING[kind], param=param))
                refused.setdefault(reply.status, []).append((kind, name, reply))
                if reply.body and reply.media == JSON:
                    errors.setdefault(name, []).append(json.loads(reply.body))
    for status, told in sorted(refused.items()):
        found.setdefault(str(status), refusal(told))
    return found


def kinds(route: Route) -> tuple[Kind, ...]:
    """Return what a route can be refused for."""
    return (
        *ALWAYS,
        *(() if route.open else (Kind.UNAUTHORISED,)),
        *(OF_BODIES if route.body is not None else ()),
        *((Kind.NOT_FOUND,) if "{" in route.path and route.body is None else ()),
        *route.kinds,
    )


def refusal(told: Iterable[tuple[Kind, str, Reply]]) -> dict[str, Any]:
    """Return what one status is documented as, from answers with it."""
    told = tuple(told)
    text = "; ".join(dict.fromkeys(MEANING[kind] for kind, _, _ in told))
    found: dict[str, Any] = {"description": text[:1].upper() + text[1:] + "."}
    content: dict[str, list[Any]] = {}
    for media, name in dict.fromkeys((reply.media, name) for _, name, reply in told if reply.body):
        refs = content.setdefault(media, [])
        if media == JSON:
            refs.append({"$ref": REF.format(name=name)})
    if content:
        found["content"] = {media: {"schema": any_of(refs)} for media, refs in content.items()}
    if names := sorted({name for _, _, reply in told for name in reply.headers}):
        found["headers"] = {name: {"schema": {"type": "string"}} for name in names}
    return found


def inferred(samples: list[Any]) -> dict[str, Any]:
    """Return a schema of values like these."""
    if all(isinstance(sample, dict) for sample in samples):
        names = dict.fromkeys(name for sample in samples for name in sample)
        return {
            "type": "object",
            "properties": {
                name: inferred([sample[name] for sample in samples if name in sample])
                for name in names
            },
            "required": [name for name in names if all(name in sample for sample in samples)],
        }
    if any(isinstance(sample, dict) for sample in samples):
        parts = ([s for s in samples if isinstance(s, dict) == whole] for whole in (True, False))
        return any_of([inferred(part) for part in parts])
    named = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array"}
    types = sorted({named.get(type(sample), "null") for sample in samples})
    return {"type": types[0] if len(types) == 1 else types}


def sample(schema: Mapping[str, Any], components: Mapping[str, Any]) -> Any:
    """Return a value that fits a schema, of objects only what is required."""
    if "$ref" in schema:
        return sample(components[schema["$ref"].rpartition("/")[2]], components)
    if "anyOf" in schema:
        return sample(schema["anyOf"][0], components)
    if "enum" in schema:
        return schema["enum"][0]
    if "prefixItems" in schema:
        return [sample(item, components) for item in schema["prefixItems"]]
    kind = schema.get("type")
    if kind == "object":
        parts = schema.get("properties", {})
        return {name: sample(parts[name], components) for name in schema.get("required", ())}
    if kind == "array":
        return [sample(schema.get("items") or {}, components)]
    plain = {"string": "what is BGE-M3?", "integer": 1, "number": 1.0, "boolean": True}
    return plain.get(kind or "")


def any_of(schemas: list[Any]) -> dict[str, Any]:
    """Return a schema of what fits one of some; of none, what fits anything."""
    if len(schemas) > 1:
        return {"anyOf": schemas}
    only: dict[str, Any] = schemas[0] if schemas else {}
    return only


def tidy(value: Any) -> Any:
    """Return a document without what docstrings and modules' names bring that nobody wants."""
    if isinstance(value, dict):
        return {name.replace(PACKAGE, ""): tidied(name, part) for name, part in value.items()}
    return [tidy(part) for part in value] if isinstance(value, list) else value


def tidied(name: str, part: Any) -> Any:
    """Return one part of a document, tidied by what it is."""
    if isinstance(part, str):
        return {"description": plain_text, "$ref": plain_ref}.get(name, str)(part)
    return tidy(part)


def plain_ref(ref: str) -> str:
    """Return a reference without the package that all surfaces are in."""
    return ref.replace(PACKAGE, "")


def plain_text(text: str) -> str:
    """Return a docstring's text: paragraphs of one line, names in single backquotes."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text))
    return "\n\n".join(" ".join(part.split()) for part in paragraphs).replace("``", "`")


def tag(module: str) -> str:
    """Return the name of a surface."""
    return module.rpartition(".")[2]


def first_line(thing: Any) -> str:
    """Return the first line of what a thing says of itself."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]
