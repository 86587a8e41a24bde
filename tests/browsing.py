"""A page in a headless Chromium, as somebody at a keyboard has it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM = shutil.which("chromium") or ""
CHROMEDRIVER = shutil.which("chromedriver") or ""
# nothing is downloaded, and nobody is called
QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--window-size=1280,900",
)
in_browser = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="needs Debian's chromium and chromium-driver"
)


@dataclass(frozen=True, slots=True)
class Page:
    """The page in a browser."""

    driver: webdriver.Chrome

    def open(self, url: str) -> None:
        """Load it, and wait until it knows its model."""
        self.driver.get(url)
        self.wait(lambda: self.one("#info").is_displayed() or self.text("#problem"))

    def wait(self, condition: Callable[[], object]) -> None:
        """Wait until it is so."""
        WebDriverWait(self.driver, 20, 0.02).until(lambda _: condition())

    def one(self, selector: str) -> WebElement:
        """Return the first element."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        """Return the elements, in the order of the page."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """Return an element's text, shown or not."""
        return str(self.one(selector).get_property("textContent"))

    def run(self, script: str, *args: object) -> Any:
        """Run a script as the page's own."""
        return self.driver.execute_script(script, *args)

    def numbers(self, selector: str) -> list[float]:
        """Return the numbers that elements hold."""
        return [float(text) for text in self.texts(selector)]

    def texts(self, selector: str) -> list[str]:
        """Return what elements hold."""
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
        return list(self.run(script, selector))

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def chord(self, held: str, key: str) -> None:
        """Press a key while another is held."""
        ActionChains(self.driver).key_down(held).send_keys(key).key_up(held).perform()

    def tab(self, to: str) -> None:
        """Go on by the Tab key until an element has the focus."""
        for _ in range(40):
            self.press(Keys.TAB)
            if self.run("return document.activeElement.matches(arguments[0])", to):
                return
        raise AssertionError(f"the Tab key does not reach {to}")

    def submit(self) -> None:
        """Press Ctrl+Enter, and wait for an answer or a problem."""
        self.chord(Keys.CONTROL, Keys.ENTER)
        self.wait(lambda: not self.all("#go[aria-busy]"))

    def ask(self, query: str, passages: list[str]) -> None:
        """Fill the form as a paste does, and submit."""
        for name, value in (("query", query), ("passages", "\n".join(passages))):
            self.run(
                "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
                "field.dispatchEvent(new Event('input', { bubbles: true }))",
                *(name, value),
            )
        self.submit()

    def explain(self, card: int) -> None:
        """Show why a card has its scores, by keyboard."""
        self.run("arguments[0].focus()", self.all(".open")[card])
        self.press(Keys.ENTER)

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Return what was logged since the last call, and forget it."""
        return list(self.driver.get_log(kind))  # type: ignore[no-untyped-call]

    def emulate(self, **features: str) -> None:
        """Set what the browser's user prefers, until the next call."""
        found = [
            {"name": name.replace("_", "-"), "value": value} for name, value in features.items()
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": found})


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """Start a browser with an empty profile, until the block ends."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*QUIET, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(CHROMEDRIVER))
    try:
        driver.get("about:blank")  # ends the requests of its own first page
        yield Page(driver)
    finally:
        driver.quit()
