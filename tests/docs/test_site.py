"""The documentation site, built strictly and read by a real browser."""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

import pytest

ROOT = Path(__file__).parent.parent.parent
ZENSICAL = Path(sys.executable).with_name("zensical")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
NARROW = 360

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ZENSICAL.exists(), reason="the extra docs is not installed"),
]
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"
)


class Built:
    """The folder of a built site and what the builder said."""

    def __init__(self, folder: Path, said: str, code: int) -> None:
        self.folder, self.said, self.code = folder, said, code

    @property
    def pages(self) -> list[str]:
        return sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*.html"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The site, built in a folder of its own from copies of what it is made of."""
    project = tmp_path_factory.mktemp("project")
    for name in ("docs", "scripts"):
        shutil.copytree(ROOT / name, project / name)
    shutil.copy(ROOT / "zensical.toml", project)
    (project / "src").symlink_to(ROOT / "src")
    environment = {**os.environ, "PYTHONPATH": "scripts", "NO_COLOR": "1"}
    done = subprocess.run(
        [ZENSICAL, "build", "--clean", "--strict"],
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Built(project / "site", done.stdout, done.returncode)


class Links(HTMLParser):
    """Identifiers of a page, what it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.formulas = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value for key, value in attrs if value}
        self.names |= {given[key] for key in ("id", "name") if key in given}
        self.formulas += tag == "math"
        if tag == "a" and "href" in given:
            self.targets.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(given.get("href", ""))
        elif "src" in given:
            self.loaded.append(given["src"])


@pytest.fixture(scope="module")
def links(built: Built) -> dict[str, Links]:
    return {page: Links((built.folder / page).read_text(encoding="utf-8")) for page in built.pages}


def test_the_site_builds_without_a_warning(built: Built) -> None:
    assert built.code == 0, built.said
    lines = [line.strip() for line in built.said.splitlines() if line.strip()]
    assert {"Build started", "No issues found"} <= set(lines)
    assert len(lines) == 3, built.said  # the third says how long it took


def test_every_document_is_a_page_and_linked(built: Built, links: dict[str, Links]) -> None:
    documents = {
        path.relative_to(built.folder.parent / "docs").with_suffix(".html").as_posix()
        for path in (built.folder.parent / "docs").rglob("*.md")
    }
    assert documents | {"404.html"} == set(built.pages)
    linked = {
        urldefrag(urljoin(f"http://site/{page}", target))[0].removeprefix("http://site/")
        for page, found in links.items()
        for target in found.targets
    }
    assert sorted(documents - linked) == []


def test_internal_links_and_anchors_hold(built: Built, links: dict[str, Links]) -> None:
    broken = []
    for page, found in links.items():
        if page == "404.html":
            continue  # its addresses are relative to wherever it is shown
        for target in found.targets + found.loaded:
            if "://" in target or target.startswith(("mailto:", "data:")):
                continue
            path, anchor = urldefrag(urljoin(f"http://site/{page}", target))
            name = unquote(path.removeprefix("http://site/")) or "index.html"
            if not (built.folder / name).exists() or (
                anchor and name in links and unquote(anchor) not in links[name].names
            ):
                broken.append(f"{page}: {target}")
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(built: Built, links: dict[str, Links]) -> None:
    foreign = {
        source
        for found in links.values()
        for source in found.loaded
        if source.startswith(("http", "//"))
    }
    assert foreign == set()
    for sheet in built.folder.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert "url(http" not in text
        assert "@import" not in text


def test_formulas_are_mathml(links: dict[str, Links]) -> None:
    assert links["cycles.html"].formulas >= 10
    assert links["methods/levenberg_marquardt.html"].formulas >= 8
    assert links["reference/second_order.html"].formulas >= 10  # from docstrings


def test_the_reference_holds_all_public_names(links: dict[str, Links]) -> None:
    import opifex.models
    import opifex.optimization.second_order
    import opifex.training.multilevel

    for page, room in (
        ("models", opifex.models),
        ("second_order", opifex.optimization.second_order),
        ("multilevel", opifex.training.multilevel),
    ):
        names = {name.rpartition(".")[2] for name in links[f"reference/{page}.html"].names}
        assert sorted(set(room.__all__) - names) == []


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that does not report."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(built: Built) -> Iterator[str]:
    def handler(*args: Any) -> Quiet:
        return Quiet(*args, directory=str(built.folder))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(flag)
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


OVERFLOWING = """
const screenWidth = arguments[0];
const scrolls = e =>
  e && (/(auto|scroll)/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
const wide = [...document.querySelectorAll('article *')]
  .filter(e => e.getBoundingClientRect().right > screenWidth + 1 && !scrolls(e))
  .map(e => e.outerHTML.slice(0, 120));
return {page: document.documentElement.scrollWidth, screen: innerWidth, wide};
"""

PICTURES = """
return [...document.querySelectorAll('article img')].map(e => {
  e.loading = 'eager';
  return {source: e.src, width: e.complete ? e.naturalWidth : 0, shown: e.getBoundingClientRect().width};
});
"""

REQUESTS = "return performance.getEntriesByType('resource').map(e => e.name)"


def complaints(browser: Any) -> list[str]:
    """Errors and warnings of the console since the last call."""
    return [e["message"] for e in browser.get_log("browser") if e["level"] in ("WARNING", "SEVERE")]


def narrow(browser: Any) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": NARROW, "height": 740, "deviceScaleFactor": 2, "mobile": True},
    )


def wide(browser: Any) -> None:
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.set_window_size(1280, 900)


@needs_browser
def test_pages_load_without_errors_and_from_here_only(
    built: Built, address: str, browser: Any
) -> None:
    wide(browser)
    for page in built.pages:
        browser.get(address + page)
        assert browser.title, page
        assert complaints(browser) == [], page
        foreign = [r for r in browser.execute_script(REQUESTS) if not r.startswith(address)]
        assert foreign == [], page


@needs_browser
def test_nothing_overflows_and_pictures_show_on_a_narrow_screen(
    built: Built, links: dict[str, Links], address: str, browser: Any
) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    narrow(browser)
    shown = 0
    with contextlib.ExitStack() as stack:
        stack.callback(wide, browser)
        for page in built.pages:
            if page == "404.html":
                continue
            browser.get(address + page)
            found = browser.execute_script(OVERFLOWING, NARROW)
            # A browser on a small screen makes the page wider than the screen where it must.
            assert found == {"page": NARROW, "screen": NARROW, "wide": []}, page
            WebDriverWait(browser, 20).until(
                lambda b: all(picture["width"] > 0 for picture in b.execute_script(PICTURES))
            )
            for picture in browser.execute_script(PICTURES):
                assert 50 < picture["shown"] <= NARROW, (page, picture)
                shown += 1
    assert shown >= 5


@needs_browser
@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("Levenberg", "methods/levenberg_marquardt.html"),
        ("neuraloperator", "migration.html"),
        ("verify_transfer", "reference/multilevel.html"),
    ],
)
def test_search_finds_pages(address: str, browser: Any, words: str, page: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    wide(browser)
    browser.get(address + "index.html")
    browser.find_element(By.CSS_SELECTOR, ".md-search__button").click()
    wait = WebDriverWait(browser, 20)
    host = wait.until(
        lambda b: b.execute_script(
            "return [...document.querySelectorAll('*')].find("
            "e => e.shadowRoot && e.shadowRoot.querySelector('input'))"
        )
    )
    host.shadow_root.find_element(By.CSS_SELECTOR, "input").send_keys(words)

    def results(_: Any) -> list[str]:
        anchors = host.shadow_root.find_elements(By.CSS_SELECTOR, "a")
        return [anchor.get_attribute("href") or "" for anchor in anchors]

    found = wait.until(lambda b: [r for r in results(b) if r.startswith(address + page)])
    browser.get(found[0])
    assert words.lower() in browser.page_source.lower()
    assert complaints(browser) == []


@needs_browser
def test_formulas_are_drawn(address: str, browser: Any) -> None:
    browser.get(address + "methods/levenberg_marquardt.html")
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('article math')].map(e => {"
        "const box = e.getBoundingClientRect(); return [box.width, box.height]})"
    )
    assert len(sizes) >= 8
    assert all(width > 3 and height > 5 for width, height in sizes)
    # A fraction is higher than a letter only where the browser draws MathML.
    assert max(height for _, height in sizes) > 1.5 * min(height for _, height in sizes)
