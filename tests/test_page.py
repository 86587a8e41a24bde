"""The playground in a real browser: by keyboard, and against the direct result."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import m3rt
from m3rt import score
from m3rt.server.faults import Kind, RefusedError
from m3rt.server.settings import Settings
from m3rt.server.work import Answer, Ask, Sender
from m3rt.types import Floats
from tests.browsing import Page, chromium, in_browser
from tests.served import Served, serving

HEADS = ("dense", "sparse", "colbert")
QUERY = "the quick brown fox"
PASSAGES = ["a brown fox ran", "Grüße aus Köln", "quick, the fox is quick", "東京は日本の首都です"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def page(browser: Page, served: Served) -> Iterator[Page]:
    """The page, open; what it did must be free of errors and of others' addresses."""
    for kind in ("browser", "performance"):
        browser.log(kind)  # forgets what was before
    browser.open(f"{served.url}/")
    yield browser
    browser.emulate()
    assert browser.log("browser") == []
    events = [json.loads(entry["message"]) for entry in browser.log("performance")]
    urls = [
        event["message"]["params"]["request"]["url"]
        for event in events
        if event["message"]["method"] == "Network.requestWillBeSent"
    ]
    assert urls
    assert [url for url in urls if not url.startswith(f"{served.url}/")] == []


def direct(model: m3rt.M3, query: str, passages: list[str]) -> score.Scores:
    """Return the scores (1, m), with the weights that a server has by default."""
    found = model.encode([query, *passages])
    rest = found.take(range(1, len(found)))
    return score.matrix(found.take([0]), rest, score.Weights(0.4, 0.2, 0.4))


def close(shown: list[float], expected: Floats) -> None:
    """Compare what is shown with three digits."""
    np.testing.assert_allclose(shown, expected, rtol=0, atol=0.0005 + 1e-6)


def order(page: Page) -> list[int]:
    """Return the passages' places, as the cards come."""
    return [int(text.split()[1].rstrip(",")) - 1 for text in page.texts(".card .facts")]


@in_browser
def test_by_keyboard_only(page: Page, served: Served) -> None:
    page.tab("#query")
    page.chord(Keys.CONTROL, "a")
    page.press(QUERY)
    page.tab("#passages")
    page.chord(Keys.CONTROL, "a")
    page.press("\n\n".join(PASSAGES))
    page.submit()
    scores = direct(served.model, QUERY, PASSAGES)
    best = np.argsort(-scores.combined[0], kind="stable")
    assert order(page) == best.tolist()
    close(page.numbers(".card .combined"), scores.combined[0][best])
    for head in HEADS:
        close(page.numbers(f".card .{head} dd"), getattr(scores, head)[0][best])
    lengths = served.model.encode([QUERY, *PASSAGES]).n_tokens
    facts = [f"passage {row + 1}, {lengths[row + 1]} tokens" for row in best]
    assert page.texts(".card .facts") == facts
    assert f"{lengths.sum()} tokens" in page.text("#status")
    assert re.search(r"in \d+\.\d ms tokenise \d+\.\d, queue \d+\.\d, engine", page.text("#status"))

    page.tab("#w-dense")
    page.tab(".open")
    page.press(Keys.ENTER)
    assert page.one(".why").is_displayed()
    assert page.one(".open").get_attribute("aria-expanded") == "true"
    page.tab(".scroll")
    told = page.text(".readout")
    assert "best match" in told
    page.press(Keys.ARROW_DOWN)
    page.press(Keys.ARROW_RIGHT)
    assert page.text(".readout") != told
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert page.run(outline) == "solid"
    page.chord(Keys.SHIFT, Keys.TAB)
    page.press(" ")
    assert not page.one(".why").is_displayed()


@in_browser
def test_weights_count_in_the_page(page: Page, served: Served) -> None:
    page.ask(QUERY, PASSAGES)
    scores = direct(served.model, QUERY, PASSAGES)
    requests = (
        "return performance.getEntriesByName(new URL('v1/m3/score', document.baseURI)).length"
    )
    assert page.run(requests) == 1
    for head, key, weights in (
        ("dense", Keys.HOME, (0, 0.2, 0.4)),
        ("colbert", Keys.HOME, (0, 0.2, 0)),
        ("sparse", Keys.END, (0, 1, 0)),
        ("dense", Keys.END, (1, 1, 0)),
        ("dense", Keys.ARROW_LEFT, (0.95, 1, 0)),
    ):
        page.one(f"#w-{head}").send_keys(key)
        expected = np.average(
            [scores.dense[0], scores.sparse[0], scores.colbert[0]],  # type: ignore[index]
            axis=0,
            weights=weights,
        )
        best = np.argsort(-expected, kind="stable")
        assert order(page) == best.tolist()
        close(page.numbers(".card .combined"), expected[best])
    for head in ("dense", "sparse"):
        page.one(f"#w-{head}").send_keys(Keys.HOME)
    assert page.numbers(".card .combined") == [0.0] * 4
    assert order(page) == [0, 1, 2, 3]
    page.one("#reset").send_keys(Keys.ENTER)
    close(page.numbers(".card .combined"), np.sort(scores.combined[0])[::-1])
    assert page.run(requests) == 1


@in_browser
def test_weights_of_the_server(browser: Page, model_dir: Path, model: m3rt.M3) -> None:
    weights = (3.0, 1 / 3, 1.0)  # no places of a slider
    with serving(Settings(model_dir, weights=weights), model) as found:
        body = {"query": QUERY, "passages": PASSAGES}
        answer = httpx.post(f"{found.url}/v1/m3/score", json=body).raise_for_status().json()
        expected = np.float32(answer["scores"]["combined"][0])
        browser.open(f"{found.url}/")
        browser.ask(QUERY, PASSAGES)
        assert order(browser) == np.argsort(-expected, kind="stable").tolist()
        close(browser.numbers(".card .combined"), np.sort(expected)[::-1])
        assert browser.numbers(".weights output") == [3.0, 0.33, 1.0]
        browser.one("#w-colbert").send_keys(Keys.ARROW_LEFT)
        assert browser.numbers(".weights output") == [3.0, 0.33, 0.9]


@in_browser
def test_tokens_are_shaded_by_their_weights(page: Page, served: Served) -> None:
    page.ask(QUERY, PASSAGES)
    found = served.model.encode([QUERY, *PASSAGES])
    tokens = served.model.tokenize([QUERY, *PASSAGES])
    assert found.sparse is not None
    most = float(found.sparse.weights.values.max())
    special = served.model.manifest.unscored_ids
    texts = [page.one("#query-tokens"), *page.all(".card .tokens")]
    for element, row in zip(texts, [0, *(place + 1 for place in order(page))], strict=True):
        shaded = page.run(
            "return [...arguments[0].querySelectorAll('.token')].map((e) => [e.title,"
            "Number(e.style.getPropertyValue('--w')), getComputedStyle(e).backgroundColor])",
            element,
        )
        ids = [token for token in tokens.ids[row].tolist() if token not in special]
        expected = [found.sparse[row].get(token, 0.0) for token in ids]
        np.testing.assert_allclose([w for _, w, _ in shaded], np.array(expected) / most, atol=1e-6)
        for (title, weight, colour), token in zip(shaded, ids, strict=True):
            assert title.startswith(served.model.tokenizer.piece(token))
            alpha = float(re.search(r"([\d.e-]+)\)$", colour)[1])  # type: ignore[index]
            assert alpha == pytest.approx(0.88 * weight, abs=0.01)
        greyed = [mark.text for mark in element.find_elements(By.CSS_SELECTOR, ".special")]
        pieces = map(served.model.tokenizer.piece, tokens.ids[row].tolist())
        assert greyed == [piece for piece in pieces if piece in ("<s>", "</s>", "<unk>")]
    # the pieces give the text again
    assert page.text("#query-tokens").split()[1:-1] == QUERY.split()
    shared = set(tokens.ids[0].tolist()) & set(found.sparse[0])
    for element, row in zip(texts[1:], order(page), strict=True):
        marked = len(element.find_elements(By.CSS_SELECTOR, ".shared"))
        there = [
            t for t in tokens.ids[row + 1].tolist() if t in shared & set(found.sparse[row + 1])
        ]
        bare = [t for t in there if served.model.tokenizer.piece(t) == "▁"]
        assert marked == len(there) - len(bare)


@in_browser
def test_alignment(page: Page, served: Served) -> None:
    page.ask(QUERY, PASSAGES)
    found = served.model.encode([QUERY, *PASSAGES])
    assert found.colbert is not None
    scores = direct(served.model, QUERY, PASSAGES)
    for card, row in enumerate(order(page)):
        page.explain(card)
        expected = found.colbert[0] @ found.colbert[row + 1].T
        base = f"#cards > :nth-child({card + 1}) .heat"
        shown = np.reshape(page.numbers(f"{base} tbody td"), expected.shape)
        np.testing.assert_allclose(shown, expected, atol=0.005 + 1e-6)
        best = page.run(
            "return [...document.querySelectorAll(`${arguments[0]} tbody tr`)].map((row) =>"
            "[...row.cells].flatMap((c, i) => (c.classList.contains('best') ? [i - 1] : [])))",
            base,
        )
        assert best == [[column] for column in expected.argmax(axis=1).tolist()]
        assert len(page.texts(f"{base} th[scope=row]")) == len(expected)
        assert len(page.texts(f"{base} th[scope=col]")) == len(expected.T)
        assert scores.colbert is not None
        assert scores.sparse is not None
        assert f"{scores.colbert[0, row]:.3f}" in page.text(f"{base} figcaption")
        products = page.numbers(f"#cards > :nth-child({card + 1}) .words td:last-child")
        assert sum(products) == pytest.approx(
            scores.sparse[0, row], abs=0.0005 * (len(products) + 1)
        )


@in_browser
def test_a_text_that_is_cut_says_so(page: Page, served: Served) -> None:
    page.ask(QUERY, [PASSAGES[0], "fox " * 9000])
    cut = [text for text in page.texts(".card .facts") if "cut" in text]
    assert cut == [f"passage 2, cut: only its first {served.model.max_length:,} tokens were read"]
    page.explain(order(page).index(1))
    # thousands of columns are too many: those of the best matches are left
    assert "only best matches are shown" in page.text(".heat figcaption")
    found = served.model.encode([QUERY, "fox " * 9000])
    assert found.colbert is not None
    best = (found.colbert[0] @ found.colbert[1].T).argmax(axis=1)
    assert len(page.all(".heat thead th")) == len(set(best.tolist()))
    assert len(page.all(".heat td.best")) == len(best)


@in_browser
def test_right_to_left(page: Page) -> None:
    page.ask("ما هي عاصمة مصر؟", ["القاهرة هي عاصمة مصر", "Cairo is the capital", "שלום עולם"])
    direction = "return getComputedStyle(arguments[0]).direction"
    texts = [page.one("#query-tokens"), *page.all(".card .tokens")]
    rows = [1, *order(page)]
    for element, row in zip(texts, rows, strict=True):
        if row == 0 or element is texts[0] or row == 2:
            assert page.run(direction, element) == "rtl"
    for card, row in enumerate(order(page)):
        page.explain(card)
        heads = page.all(f"#cards > :nth-child({card + 1}) .heat thead th")
        left_to_right = heads[0].location["x"] < heads[-1].location["x"]
        assert left_to_right == (row == 1)
        tokens = page.all(f"#cards > :nth-child({card + 1}) .tokens .token")
        assert (tokens[0].location["x"] < tokens[-1].location["x"]) == (row == 1)


@in_browser
def test_hostile_texts_stay_texts(page: Page, served: Served) -> None:
    hostile = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>"
    page.ask(hostile, [hostile, "</span></p><svg onload=window.hit=1>", "fox"])
    for card in range(3):
        page.explain(card)
    pieces = map(served.model.tokenizer.piece, served.model.tokenize([hostile]).ids[0].tolist())
    # the thin gaps, and the spaces beside <s> and </s>, are spaces
    shown = page.text("#query-tokens").replace("\u00a0", "").replace(" ", "")
    assert shown == "".join(pieces).replace("▁", "")
    assert page.all("#found script, #found img, #found svg, #lines img, #curl img") == []
    assert page.run("return window.hit") is None
    assert page.text("#lines > :first-child") == hostile
    # nor could a mistake in the page make them more: the browser refuses markup from text
    refused = "try { document.body.innerHTML = 'x'; return '' } catch (e) { return e.name }"
    assert page.run(refused) == "TypeError"
    complaints = [entry["message"] for entry in page.log("browser")]
    assert ["TrustedHTML" in complaint for complaint in complaints] == [True]


@in_browser
def test_examples_are_one_click_away(page: Page) -> None:
    names = page.texts(".chip")
    assert len(names) >= 7
    for chip in page.all(".chip"):
        chip.click()
        page.wait(lambda: not page.all("#go[aria-busy]"))
        passages = str(page.one("#passages").get_property("value")).split("\n")
        assert len(page.all(".card")) == len(passages)
        assert page.text("#problem") == ""
        assert page.text("#curl").startswith("curl http://127.0.0.1:")


@in_browser
@pytest.mark.parametrize("width", [360, 820])
def test_small_screens(page: Page, width: int) -> None:
    metrics = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": width < 500}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.ask(QUERY, [*PASSAGES, "fox" * 300, "a quick brown fox and a lazy dog " * 5])
        for card in range(6):
            page.explain(card)
        root = "return document.documentElement"
        assert page.run(f"{root}.scrollWidth") <= page.run(f"{root}.clientWidth") <= width
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@in_browser
def test_light_and_dark(page: Page) -> None:
    page.ask(QUERY, PASSAGES)

    def lightness(of: str, selector: str) -> float:
        script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        return float(re.match(r"oklch\(([\d.]+)", page.run(script, selector, of))[1])  # type: ignore[index]

    for scheme, dark in (("light", False), ("dark", True)):
        page.emulate(prefers_color_scheme=scheme)
        paper, ink = lightness("backgroundColor", "html"), lightness("color", ".combined")
        assert ((paper < 0.3), (ink > 0.7)) == (dark, dark)
        assert abs(paper - lightness("color", ".status")) > 0.45


@in_browser
def test_nothing_moves_where_it_should_not(page: Page) -> None:
    page.ask(QUERY, PASSAGES)
    for motion, moves in (("no-preference", True), ("reduce", False)):
        page.emulate(prefers_reduced_motion=motion)
        page.one("#w-dense").send_keys(Keys.END if moves else Keys.HOME)
        assert (page.run("return document.getAnimations().length") > 0) == moves


@in_browser
def test_all_controls_have_names(page: Page) -> None:
    page.ask(QUERY, PASSAGES)
    page.explain(0)
    page.one("summary").click()
    controls = page.all("a, button, input, textarea, summary, .scroll, #curl")
    assert len(controls) > 25
    for control in controls:
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")
    names = [button.accessible_name for button in page.all(".open")]
    assert names == [f"Explain passage {row + 1}" for row in order(page)]
    assert [e.aria_role for e in page.all("#status, #problem")] == ["alert", "status"]
    assert page.one(".heat table").aria_role == "table"


@in_browser
def test_what_is_missing_is_asked_for(page: Page) -> None:
    page.ask(" ", PASSAGES)
    assert page.text("#problem") == "Write a query."
    assert page.run("return document.activeElement.id") == "query"
    page.ask(QUERY, ["", " "])
    assert page.text("#problem") == "Write at least one passage."
    page.ask(QUERY, ["fox"] * 51)
    assert page.text("#problem") == "51 passages are too many: this page takes 50."
    assert page.all(".card") == []
    page.ask(QUERY, ["fox"] * 50)
    assert page.text("#problem") == ""
    assert len(page.all(".card")) == 50


@in_browser
def test_refusals_are_sentences(browser: Page, model_dir: Path, model: m3rt.M3) -> None:
    refusals = [
        (
            RefusedError(Kind.OVERLOADED, "no room", retry_after=7),
            "The server has too much to do. Try again in 7 seconds.",
        ),
        (
            RefusedError(Kind.INVALID, "text 3 is <b>bad</b>"),
            "The server refused the request: text 3 is <b>bad</b>.",
        ),
        (
            RefusedError(Kind.EXPIRED, "60 s are over"),
            "The server did not get to it in time: 60 s are over.",
        ),
        (
            RefusedError(Kind.NOT_READY, "it stops"),
            "The server is not ready: it stops. Try again later.",
        ),
        (RefusedError(Kind.FAILED, "NaN"), "The server failed (500): NaN."),
    ]

    with serving(Settings(model_dir), model) as found:

        async def refuse(ask: Ask, sender: Sender) -> Answer:
            raise refusals[0][0]

        found.service.embed = refuse  # type: ignore[method-assign]
        browser.open(f"{found.url}/")
        while refusals:
            browser.ask(QUERY, PASSAGES)
            assert browser.text("#problem") == refusals.pop(0)[1]
            assert browser.all("#problem b") == []
    browser.ask(QUERY, PASSAGES)
    assert browser.text("#problem") == "The server cannot be reached."


@in_browser
def test_a_key_is_asked_for(browser: Page, model_dir: Path, model: m3rt.M3) -> None:
    with serving(Settings(model_dir, api_key="open sesame"), model) as found:
        browser.open(f"{found.url}/")
        assert browser.text("#problem") == "The server asks for an API key."
        assert browser.one("#key").is_displayed()
        assert browser.run("return document.activeElement.id") == "key"
        browser.press("wrong")
        browser.submit()
        assert browser.text("#problem") == "The server does not take this key."
        browser.chord(Keys.CONTROL, "a")
        browser.press("open sesame")
        browser.submit()
        assert browser.text("#problem") == ""
        assert len(browser.all(".card")) == 5
        assert not browser.one("#key").is_displayed()
        assert browser.one("#info").is_displayed()
        assert "sesame" not in browser.text("#curl")
        # kept in the tab, and nowhere else
        assert browser.run("return [sessionStorage.length, localStorage.length]") == [1, 0]
        assert browser.run("return document.cookie") == ""
        browser.open(f"{found.url}/")
        assert browser.one("#info").is_displayed()


def test_files_are_served_with_a_policy(served: Served) -> None:
    with httpx.Client(base_url=served.url) as client:
        check_files(client)


def check_files(client: httpx.Client) -> None:
    index = client.get("/").raise_for_status()
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        part.split(" ", 1) for part in index.headers["content-security-policy"].split("; ")
    )
    assert policy.pop("require-trusted-types-for") == "'script'"
    own = {"script-src", "style-src", "img-src", "connect-src"}
    assert {name for name, value in policy.items() if value == "'self'"} == own
    assert {value for name, value in policy.items() if name not in own} == {"'none'"}
    assert not re.search(r"<script(?! type=\"module\" src=)|<style| style=| on\w+=", index.text)
    parts = set(re.findall(r'(?:src|href)="(page/[^"]+)"', index.text))
    scripts = {f"page/{name}" for name in ("heat.js", "tokens.js", "scores.js", "examples.js")}
    for part in parts | scripts:
        found = client.get(f"/{part}").raise_for_status()
        tag = found.headers["etag"]
        assert found.headers["x-content-type-options"] == "nosniff"
        for known in (tag, f'"x", W/{tag}'):
            again = client.get(f"/{part}", headers={"if-none-match": known})
            assert (again.status_code, again.content) == (304, b"")
        changed = client.get(f"/{part}", headers={"if-none-match": '"x"'})
        assert changed.content == found.content
        head = client.head(f"/{part}")
        assert (head.headers["etag"], head.content) == (tag, b"")
        # all that the page names is here
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", found.text)
    for name in ("secret", "..%2fservice.py", "index.html/", "%2e%2e"):
        assert client.get(f"/page/{name}").status_code == 404


def test_info(served: Served) -> None:
    found = httpx.get(f"{served.url}/v1/m3/info").raise_for_status().json()
    assert found == {
        "model": served.service.name,
        "engine": "cpu:fp32",
        "heads": list(HEADS),
        "max_length": served.model.max_length,
        "weights": {"dense": 0.4, "sparse": 0.2, "colbert": 0.4},
    }
