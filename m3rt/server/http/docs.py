"""The OpenAPI document as a page: one file, nothing loaded from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --dim: #5b6570; --back: #fff; --card: #f5f7f9;
  --line: #d8dee4; --link: #0b57b7; --post: #0b6b3a; --bad: #a3261b }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8ea; --dim: #9aa5b1; --back: #14171a;
  --card: #1c2126; --line: #323a42; --link: #7db4ff; --post: #6bd39b; --bad: #ff9d94 } }
* { box-sizing: border-box }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  display: grid; grid-template-columns: 17rem minmax(0, 60rem) }
nav { position: sticky; top: 0; height: 100vh; overflow: auto; padding: 1rem;
  overflow-wrap: anywhere;
  border-right: 1px solid var(--line); font-size: .875rem }
nav ul { list-style: none; margin: 0 0 1rem; padding: 0 } nav h2 { font-size: .875rem; margin: 0 }
main { padding: 1rem 2rem 4rem } a { color: var(--link) } nav a { text-decoration: none }
code, pre, textarea, input, .path { font-family: ui-monospace, monospace; font-size: .875rem }
section { margin-top: 2.5rem }
.dim, caption, summary .about { color: var(--dim) }
details.route { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  margin: .5rem 0; padding: 0 1rem } details.route[open] { padding-bottom: 1rem }
summary { cursor: pointer; padding: .6rem 0 } summary h3 { display: inline; font-size: 1rem }
.method { font-weight: 700; color: var(--post); margin-right: .5rem }
table { border-collapse: collapse; width: 100%; margin: .75rem 0; font-size: .875rem }
caption { text-align: left; padding: .25rem 0 } caption b { color: var(--text) }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0;
  border-top: 1px solid var(--line) } th[scope=row] { font-weight: 600; white-space: nowrap }
label { display: block; margin: .5rem 0 .2rem; font-size: .875rem }
textarea, input { width: 100%; padding: .5rem; color: inherit; background: var(--back);
  border: 1px solid var(--line); border-radius: .3rem }
button { margin-top: .6rem; padding: .4rem 1rem; font: inherit; cursor: pointer }
pre { overflow: auto; max-height: 24rem; padding: .75rem; background: var(--back);
  border: 1px solid var(--line); border-radius: .3rem; white-space: pre-wrap;
  overflow-wrap: anywhere }
pre:empty { display: none } pre.bad { border-color: var(--bad) }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px }
@media (max-width: 50rem) { body { display: block } nav { position: static; height: auto;
  border: 0 } main { padding: 1rem } }
"""

SCRIPT = """
for (const form of document.querySelectorAll('form.try')) form.onsubmit = async event => {
  event.preventDefault();
  const out = form.querySelector('pre'), body = form.querySelector('textarea');
  const key = document.getElementById('key').value, headers = {};
  if (body) headers['content-type'] = 'application/json';
  if (key) headers.authorization = 'Bearer ' + key;
  out.className = ''; out.textContent = '…';
  try {
    const path = form.querySelector('input[name=path]').value, begun = performance.now();
    const answer = await fetch(path, {method: form.dataset.method, headers, body: body?.value});
    const bytes = await answer.arrayBuffer(), ms = (performance.now() - begun).toFixed(1);
    const type = answer.headers.get('content-type') || '';
    let text = /json|text/.test(type) ? new TextDecoder().decode(bytes) : '';
    if (/json/.test(type) && text) text = JSON.stringify(JSON.parse(text), null, 1)
      .replace(/\\[\\s+(-?[\\d.e+-]+(?:,\\s+-?[\\d.e+-]+)*)\\s+\\]/g,
        (_, list) => '[' + list.replace(/\\s+/g, ' ') + ']');
    if (text.length > 20000) text = text.slice(0, 20000) + '\\n…';
    out.className = answer.ok ? '' : 'bad';
    const told = `${answer.status}, ${bytes.byteLength} bytes of ${type}, ${ms} ms`;
    out.textContent = told + '\\n\\n' + text;
  } catch (error) { out.className = 'bad'; out.textContent = String(error); }
};
const shown = () => { const place = document.getElementById(location.hash.slice(1));
  if (place?.tagName === 'DETAILS') { place.open = true; place.scrollIntoView(); } };
addEventListener('hashchange', shown); shown();
"""

Schema = Mapping[str, Any]


def page(document: Schema) -> str:
    """Return the page of an OpenAPI document."""
    info, components = document["info"], document["components"]["schemas"]
    links, sections = [], []
    for tag in document["tags"]:
        found = [
            (path, method, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
            if tag["name"] in operation["tags"]
        ]
        title = f"<h2>{escape(tag['name'])}</h2>"
        items = "".join(
            f'<li><a href="#{operation["operationId"]}">{escape(path)}</a></li>'
            for path, _, operation in found
        )
        links.append(f"{title}<ul>{items}</ul>")
        routes = "".join(route(*one, components) for one in found)
        sections.append(f"<section>{title}<p>{marked(tag['description'])}</p>{routes}</section>")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(info["title"])}: what it answers</title><style>{STYLE}</style></head><body>
<nav aria-label="Requests">{"".join(links)}</nav><main>
<h1>{escape(info["title"])} <small class="dim">{escape(info["version"])}</small></h1>
<p>{marked(info["description"])} The same for programs: <a href="openapi.json">openapi.json</a>.</p>
<label for="key">API key, if the server has one; it stays in this page</label>
<input id="key" type="password" autocomplete="off">
<section><h2>Headers of all requests</h2>{headers(document)}</section>
{"".join(sections)}</main><script>{SCRIPT}</script></body></html>
"""


def headers(document: Schema) -> str:
    """Return the table of the headers that every request may have."""
    rows = (
        row(escape(name), kind(parameter["schema"]), "", marked(parameter["description"]))
        for name, parameter in document["components"]["parameters"].items()
    )
    return table("", ("header", "type", "default", "meaning"), "".join(rows))


def route(path: str, method: str, operation: Schema, components: Schema) -> str:
    """Return all that there is to say of one route, and a form to try it."""
    name, parts = operation["operationId"], []
    if "description" in operation:
        parts.append(f"<p>{marked(operation['description'])}</p>")
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    example = ""
    if body is not None:
        text = json.dumps(body["example"], indent=1, ensure_ascii=False)
        example = f"""<label for="{name}-body">body</label>
<textarea id="{name}-body" rows="{min(12, text.count(chr(10)) + 1)}" spellcheck="false">
{escape(text)}</textarea>"""
    parts.append(f"""<form class="try" data-method="{method.upper()}">
<label for="{name}-path">path</label>
<input id="{name}-path" name="path" value="{escape(path)}" spellcheck="false">{example}
<button>Try it</button><pre aria-live="polite"></pre></form>""")
    if body is not None:
        parts.append(fields("Request", body["schema"], components))
    for status, answer in operation["responses"].items():
        for media, content in answer.get("content", {}).items() if status == "200" else ():
            if content["schema"]:
                title = f"Answer, {media.partition(';')[0]}"
                parts.append(fields(title, content["schema"], components))
            else:
                parts.append(f'<p class="dim">Answer, <code>{escape(media)}</code></p>')
    refused = "".join(
        f'<tr><th scope="row">{status}</th><td>{marked(answer["description"])}</td></tr>'
        for status, answer in operation["responses"].items()
        if status != "200"
    )
    parts.append(table("<b>Errors</b>", ("status", "meaning"), refused))
    return f"""<details class="route" id="{name}"><summary><h3>
<span class="method">{method.upper()}</span><span class="path">{escape(path)}</span></h3>
<span class="about">{marked(operation["summary"])}</span></summary>{"".join(parts)}</details>"""


def fields(title: str, schema: Schema, components: Schema) -> str:
    """Return tables of an object's fields, and of those of the objects in it."""
    parts = []
    direct = [part["$ref"] for part in (schema, *schema.get("anyOf", ())) if "$ref" in part]
    if not direct:
        parts.append(f'<p class="dim">{escape(title)}: {kind(schema)}</p>')
    names = dict.fromkeys(map(component, direct))
    names |= dict.fromkeys(referred(schema, components))
    for place, name in enumerate(names):
        found = components[name]
        label = f"{escape(title)}: " if place < len(direct) else ""
        text = f"{label}<b>{escape(short(name))}</b>. {marked(found.get('description', ''))}"
        inside = found.get("properties", {})
        told = any("description" in part for part in inside.values())
        rows = "".join(field(key, part, found, told) for key, part in inside.items())
        columns = ("field", "type", "default", *(("meaning",) if told else ()))
        parts.append(table(text, columns, rows))
    return "".join(parts)


def field(name: str, schema: Schema, owner: Schema, told: bool) -> str:
    """Return one field's row; ``told``: there is a column for what it means."""
    default = "required" if name in owner.get("required", ()) else ""
    if "default" in schema:
        default = f"<code>{escape(json.dumps(schema['default']))}</code>"
    meaning = [marked(schema.get("description", ""))] if told else []
    return row(escape(name), kind(schema), default, *meaning)


def row(name: str, *cells: str) -> str:
    """Return a row with a heading; all are HTML."""
    columns = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row"><code>{name}</code></th>{columns}</tr>'


def table(caption: str, columns: tuple[str, ...], rows: str) -> str:
    """Return a table; all but the columns' names are HTML."""
    top = "".join(f'<th scope="col">{name}</th>' for name in columns)
    title = f"<caption>{caption}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table>"


def kind(schema: Schema) -> str:
    """Return what a value may be, in HTML."""
    if "$ref" in schema:
        return escape(short(component(schema["$ref"])))
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind(part) for part in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    if "prefixItems" in schema:
        return "[" + ", ".join(kind(part) for part in schema["prefixItems"]) + "]"
    name = schema.get("type", "any")
    if name == "array":
        return "list of " + kind(schema.get("items") or {})
    names = " or ".join(name) if isinstance(name, list) else str(name)
    limits = "".join(
        f" {sign} {schema[limit]}"
        for limit, sign in (("minimum", "≥"), ("exclusiveMinimum", "&gt;"), ("maximum", "≤"))
        if limit in schema
    )
    return escape(names) + limits


def component(ref: str) -> str:
    """Return the name in a reference."""
    return ref.rpartition("/")[2]


def short(name: str) -> str:
    """Return the name of a component without its surface's."""
    return name.rpartition(".")[2]


def referred(schema: Any, components: Schema, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """Return the names of the components that a schema leads to."""
    if isinstance(schema, Mapping):
        if (ref := schema.get("$ref")) and component(ref) not in seen:
            name = component(ref)
            yield name
            yield from referred(components[name], components, seen | {name})
        for part in schema.values():
            yield from referred(part, components, seen)
    elif isinstance(schema, list):
        for part in schema:
            yield from referred(part, components, seen)


def marked(text: str) -> str:
    """Return text as HTML: what stands in backquotes is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text)).replace("\n\n", "<br>")
