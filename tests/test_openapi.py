"""The OpenAPI document: all of what is served is in it, and what it says is what comes."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from selenium import webdriver
from selenium.webdriver.chrome.service import Service as ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from m3rt.server.faults import Kind
from m3rt.server.http import openapi
from m3rt.server.http.surfaces import ROUTES
from tests.served import Served

CONFORMANCE = [content_type_conformance, response_schema_conformance, status_code_conformance]
BODIES = [route for route in ROUTES if route.body is not None]


@pytest.fixture(scope="module")
def document(served: Served) -> dict[str, Any]:
    """The document, as it is served."""
    answer = httpx.get(f"{served.url}/openapi.json").raise_for_status()
    assert answer.headers["content-type"] == "application/json"
    content: dict[str, Any] = answer.json()
    return content


WHOLE = schemathesis.openapi.from_dict(openapi.document(ROUTES))


@WHOLE.parametrize()
@settings(
    max_examples=8,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_what_is_said_is_what_comes(case: schemathesis.Case[Any], served: Served) -> None:
    answer = case.call(base_url=served.url)
    late = answer.status_code == 504 and "x-request-timeout-ms" in {
        str(name).lower() for name in case.headers or ()
    }
    case.validate_response(answer, checks=[*CONFORMANCE, *([] if late else [not_a_server_error])])


def test_every_route_is_there(document: dict[str, Any], served: Served) -> None:
    routes = served.app.table.routes
    assert document == openapi.document(routes)
    documented = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    assert documented == {(route.method, route.path) for route in routes}


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Return all objects inside a value."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            yield from parts(part)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = [part["$ref"] for part in parts(document) if isinstance(part.get("$ref"), str)]
    assert found
    for ref in found:
        target: Any = document
        for name in ref.removeprefix("#/").split("/"):
            target = target[name]
        assert target


def test_names_are_those_that_openapi_allows(document: dict[str, Any]) -> None:
    for section in document["components"].values():
        for name in section:
            assert re.fullmatch(r"[a-zA-Z0-9._-]+", name)
    ids = [
        operation["operationId"]
        for methods in document["paths"].values()
        for operation in methods.values()
    ]
    assert len(set(ids)) == len(ids)


def test_nothing_is_told_without_words(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    tags = {tag["name"]: tag["description"] for tag in document["tags"]}
    assert all(tags.values())
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["summary"]
            assert set(operation["tags"]) <= set(tags)
            assert all(answer["description"] for answer in operation["responses"].values())


@pytest.mark.parametrize("route", BODIES, ids=lambda route: f"{route.method} {route.path}")
def test_every_body_has_a_schema(route: Any, document: dict[str, Any]) -> None:
    operation = document["paths"][route.path][route.method.lower()]
    (content,) = operation["requestBody"]["content"].values()
    assert content["schema"]
    schema = {"$defs": document["components"]["schemas"], **content["schema"]}
    moved = json.loads(json.dumps(schema).replace("#/components/schemas/", "#/$defs/"))
    jsonschema_rs.validator_for(moved).validate(content["example"])


@pytest.mark.parametrize("route", BODIES, ids=lambda route: f"{route.method} {route.path}")
def test_the_example_is_answered(served: Served, route: Any, document: dict[str, Any]) -> None:
    if route.example is None:
        pytest.skip("its example is made from the schema")
    answer = httpx.request(route.method, f"{served.url}{route.path}", json=route.example)
    assert answer.status_code == 200, answer.text


def test_every_refusal_has_a_meaning() -> None:
    assert set(openapi.MEANING) == set(Kind)


class Page(html.parser.HTMLParser):
    """What is in a page, as a browser finds it."""

    EMPTY = ("meta", "input", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, wanted: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == wanted]


def test_the_page(served: Served, document: dict[str, Any]) -> None:
    answer = httpx.get(f"{served.url}/docs").raise_for_status()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Page()
    page.feed(answer.text)
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    # nothing is loaded from elsewhere, every label and every link has its place
    assert page.values("src") == []
    assert set(page.values("href")) == {"openapi.json"} | {
        f"#{operation['operationId']}"
        for methods in document["paths"].values()
        for operation in methods.values()
    }
    assert {link.removeprefix("#") for link in page.values("href")[:-1]} <= {
        *page.ids,
        "openapi.json",
    }
    fields = [
        tag for tag, name, _ in page.attributes if name == "id" and tag in ("input", "textarea")
    ]
    assert len(page.values("for")) == len(fields)
    assert set(page.values("for")) <= set(page.ids)
    assert not re.search(r"https?:|@import|url\(", answer.text)


def test_the_form_in_a_browser(served: Served) -> None:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("there is no Chromium with its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, ChromeService(driver))
    try:
        browser.get(f"{served.url}/docs#post_v1_m3_score")
        form = browser.find_element(By.CSS_SELECTOR, "#post_v1_m3_score form")
        form.find_element(By.TAG_NAME, "button").click()
        found = form.find_element(By.TAG_NAME, "pre")
        WebDriverWait(browser, 20).until(lambda _: len(found.text) > 1)
        status, _, content = found.text.partition("\n")
        assert status.startswith("200, ")
        assert "combined" in json.loads(content)["scores"]
        body = form.find_element(By.TAG_NAME, "textarea")
        body.clear()
        body.send_keys("{}")
        form.find_element(By.TAG_NAME, "button").click()
        WebDriverWait(browser, 20).until(lambda _: found.get_attribute("class") == "bad")
        assert found.text.startswith("400, ")
    finally:
        browser.quit()
