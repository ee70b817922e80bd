"""The HTML page of the leaderboards in a browser without a window: what its script does, and how wide it is."""

import re
import shutil

import leaderboard_sample as sample
import pytest

from kdbench.suite import leaderboard

pytestmark = pytest.mark.browser
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, of the extra dev")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(sample.ROOT)
        home = sample.write(tmp_path_factory.mktemp("boards"))
        leaderboard.render(home)
    return (home / "index.html").as_uri()


class Page:
    """The page as a person sees it."""

    def __init__(self, browser):
        self.browser = browser
        self.ask = browser.execute_script

    def all(self, selector):
        return [each for each in self.browser.find_elements("css selector", selector) if each.is_displayed()]

    def click(self, selector, place=0):
        found = self.all(selector)[place]
        self.ask("arguments[0].scrollIntoView({block: 'center'})", found)
        found.click()

    def papers(self):
        return [row.get_attribute("data-paper") for row in self.all("#papers tbody tr")]

    def width(self, pixels):
        size = {"width": pixels, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def theme(self, name):
        media = {"features": [{"name": "prefers-color-scheme", "value": name}]}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def colour(self, selector, kind="color"):
        found = self.ask(f"return getComputedStyle(document.querySelector('{selector}')).{kind}")
        return [int(part) for part in re.findall(r"\d+", found)][:3]


@pytest.fixture
def page(browser, address):
    browser.get("about:blank")
    browser.get(address)
    found = Page(browser)
    found.width(1440)
    yield found
    assert browser.get_log("browser") == [], "nothing is said on the console, and nothing was asked of a network"


def test_a_heading_sorts_its_table_both_ways_and_says_so(page):
    assert page.papers() == ["other", "small", "small/real"]
    heading = "#papers thead th:nth-child({}) button"
    for column, down in ((5, ["small", "small/real", "other"]), (1, ["small/real", "small", "other"])):
        page.click(heading.format(column))
        assert page.papers() == ["other", "small", "small/real"]
        page.click(heading.format(column))
        assert page.papers() == down
        said = [each.get_attribute("aria-sort") for each in page.all("#papers thead th")]
        assert said == ["descending" if place == column else "none" for place in range(1, 9)]
    page.click("#claims thead th:nth-child(1) button")
    order = [row.get_attribute("data-verdict") for row in page.all("#claims tbody tr")]
    assert order == sorted(order, key=("contradicted", "holds", "not shown", "void").index)


def test_filters_leave_what_fits_in_tables_and_sections(page):
    from selenium.webdriver.support.ui import Select

    def found():
        return [each.get_attribute("data-paper") for each in page.all("article.paper")]

    assert found() == ["other", "small", "small/real"]
    words = page.all("#words")[0]
    words.send_keys("REAL")
    assert page.papers() == found() == ["small/real"]
    assert page.all("#found")[0].text == "1 of 3 papers, 5 claims"
    words.send_keys(" nowhere")
    assert page.papers() == found() == []
    assert page.all("#empty")
    page.ask("arguments[0].value = ''", words)
    page.click('.toggle[data-verdict="void"]')
    assert page.papers() == found() == ["small", "small/real"]
    assert {row.get_attribute("data-verdict") for row in page.all("#claims tbody tr")} == {"void"}
    page.click('.toggle[data-verdict="void"]')
    Select(page.all("#family")[0]).select_by_visible_text("ensemble")
    assert page.papers() == ["other", "small", "small/real"]


def test_a_number_opens_its_runs_and_each_its_record(page):
    page.click('[id="small"] tr:nth-child(2) a.n')
    rows = [row.text.split() for row in page.all("#panel tbody tr")]
    assert [row[:2] for row in rows] == [["0", "78"], ["1", "79"], ["2", "80"], ["3", "81"], ["4", "82"]]
    assert page.all("#panel h2")[0].text == "student, tags: 80.00 ± 1.58"
    page.click("#panel tbody tr:nth-child(4) a")
    assert not page.all("#panel")
    assert page.ask("return decodeURIComponent(location.hash)") == "#run:small:distilbert_ro/upos/studenttags3"
    (opened,) = page.all("details.run[open]")
    assert opened.get_attribute("id") == "run:small:distilbert_ro/upos/studenttags3"
    for part in (
        "seed 3, 300 steps, 10.4 s",
        "device cpu, processes 1, threads 2",
        "torch 2.13.0",
        "2026-01-04",
        "0000000",
    ):
        assert part in opened.text
    metrics = dict(row.text.rsplit(" ", 1) for row in page.all("details.run[open] tbody tr"))
    assert metrics["test/macro_f1@student"] == "0.81"
    page.click("details.run[open] dd a")
    assert page.ask("return decodeURIComponent(location.hash)").endswith(":distilbert_ro/teacher_cased/teacher0")
    assert len(page.all("details.run")) == 26


def test_evidence_opens_its_pairs_and_their_runs(page):
    page.click('[id="small.better"] a.evidence')
    rows = [row.text.split() for row in page.all("#panel tbody tr")]
    assert rows[2] == ["2", "0.1", "distilbert_ro/upos/studenttags2", "distilbert_ro/upos/plaintags2"]
    page.click("#panel .close")
    assert not page.all("#panel")


def test_an_address_with_a_run_opens_its_record(page, browser, address):
    browser.get("about:blank")
    browser.get(f"{address}#run:small/real:distilbert_ro/student1")
    assert [each.get_attribute("id") for each in page.all("details.run[open]")] == [
        "run:small/real:distilbert_ro/student1"
    ]


@pytest.mark.parametrize("pixels", [375, 768, 1440])
def test_the_page_never_scrolls_sideways(page, pixels):
    page.width(pixels)
    page.ask("for (const each of document.querySelectorAll('details')) each.open = true")
    outside = page.ask(
        "return [...document.querySelectorAll('body *')].filter((each) => each.getBoundingClientRect().right > innerWidth + 1"
        " && !each.closest('.scroll, pre, .skip, .hidden')).map((each) => each.outerHTML.slice(0, 80))"
    )
    assert outside == [], "what is wider than the page scrolls inside its own box"
    assert page.ask("return document.documentElement.scrollWidth") <= pixels == page.ask("return innerWidth")


def test_dark_and_light_follow_the_system_until_somebody_chooses(page):
    page.theme("dark")
    assert max(page.colour("body", "backgroundColor")) < 60 < 200 < min(page.colour("body"))
    page.theme("light")
    assert min(page.colour("body", "backgroundColor")) > 200 > 60 > max(page.colour("body"))
    page.click("#theme")
    assert page.all("#theme")[0].text == "Theme: light"
    page.click("#theme")
    assert page.all("#theme")[0].text == "Theme: dark"
    assert max(page.colour("body", "backgroundColor")) < 60
    page.click("#theme")
    assert min(page.colour("body", "backgroundColor")) > 200


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground(page, theme):
    page.theme(theme)
    ground = luminance(page.colour("body", "backgroundColor"))
    for selector in (
        "body",
        ".lead",
        ".chip.holds",
        ".chip.not-shown",
        ".chip.contradicted",
        ".chip.void",
        ".cite",
        ".ways a",
        ".n i",
    ):
        text = luminance(page.colour(selector))
        low, high = sorted((ground, text))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector


def luminance(colour):
    """Return the relative luminance of a colour, by WCAG 2."""
    parts = [value / 255 for value in colour]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_table_has_a_caption_and_every_drawing_words(page):
    assert page.ask("return [...document.querySelectorAll('main table')].every((each) => each.caption?.textContent)")
    assert page.ask("return [...document.querySelectorAll('svg[role=img]')].every((each) => each.ariaLabel)")
