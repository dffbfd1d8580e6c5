"""The HTML report in a real browser, as a person meets it: sorting, narrow and dark screens, print, no JavaScript.

Needs Debian's chromium (or another Chromium on the path); no browser is downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cifar_ablate.report.build import build_report
from cifar_ablate.report.write import render
from tests.reporting import NAMES, hostile_record, pilot_record

pytestmark = pytest.mark.slow

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports as files: of the pilot, and of two studies, one of them with hostile names."""
    folder = tmp_path_factory.mktemp("pages")
    records = {"pilot": [pilot_record()], "hostile": [pilot_record(), hostile_record()]}
    found = {name: folder / f"{name}.html" for name in records}
    for name, path in found.items():
        path.write_text(render(build_report(records[name]), "html").text, encoding="utf-8")
    return found


@pytest.fixture
def open_page(browser: Any, pages: dict[str, Path]) -> Iterator[Open]:
    """Opens a report in a context of its own; the test fails where a page logs an error, throws or asks for a file."""
    contexts, trouble = [], []

    def open_one(name: str = "pilot", width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 844}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: trouble.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda one: None if one.url.startswith(("file:", "data:")) else trouble.append(one.url))
        page.goto(pages[name].as_uri())
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not trouble


def verdict_table(page: Any) -> Any:
    return page.locator("table.verdicts-1").first


def column(table: Any, title: str) -> list[str]:
    index = table.locator("thead th").all_inner_texts().index(title)
    return [row.locator("> *").nth(index).inner_text() for row in table.locator("tbody tr").all()]


def order(table: Any) -> list[str]:
    return [text.strip() for text in table.locator("tbody th").all_inner_texts()]


@pytest.mark.parametrize("name", ["pilot", "hostile"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_opens_without_a_complaint_and_draws_every_figure(name: str, scheme: str, open_page: Open) -> None:
    page = open_page(name, color_scheme=scheme)
    figures = page.locator("svg[role=img]").all()
    assert len(figures) >= 4
    for figure in figures:
        box = figure.bounding_box()
        assert box is not None
        assert box["width"] > 200, figure.get_attribute("aria-label")
        assert box["height"] > 80, figure.get_attribute("aria-label")
    assert page.title().startswith("Ablation report: readme-augmentation@pilot")


@pytest.mark.parametrize("how", ["click", "Enter", "Space"])
def test_a_header_sorts_as_numbers_in_both_directions(how: str, open_page: Open) -> None:
    page = open_page()
    table = verdict_table(page)
    header = table.get_by_role("columnheader", name="Mean, %")
    button = header.get_by_role("button")

    def press() -> None:
        if how == "click":
            button.click()
        else:
            button.focus()
            page.keyboard.press(how)

    assert header.get_attribute("aria-sort") is None
    press()
    means = [float(text) for text in column(table, "Mean, %")]
    assert means == sorted(means)
    assert header.get_attribute("aria-sort") == "ascending"
    press()
    assert [float(text) for text in column(table, "Mean, %")] == sorted(means, reverse=True)
    assert header.get_attribute("aria-sort") == "descending"


def test_minus_signs_and_other_columns_sort_too_and_empty_cells_stay_last(open_page: Open) -> None:
    page = open_page()
    table = page.locator("table.verdicts-2")
    table.get_by_role("button", name="Difference").click()
    differences = [float(text.replace("\N{MINUS SIGN}", "-")) for text in column(table, "Difference")]
    assert differences == sorted(differences)
    assert differences[0] < 0 < differences[-1]

    table = verdict_table(page)
    for _ in range(2):
        table.get_by_role("button", name="Difference").click()
        assert order(table)[-1] == "baseline"  # it has no difference
    table.get_by_role("button", name="Arm").click()
    assert table.locator("th[aria-sort]").count() == 1
    assert sorted(order(table)) == sorted(["baseline", "mixup+affine", "+cutmix", "aggressive", "label-smoothing"])


def test_sorting_is_stable(open_page: Open) -> None:
    page = open_page()
    page.locator("details > summary").click()
    table = page.locator("table.runs")
    before = list(zip(order(table), column(table, "Seed"), strict=True))
    table.get_by_role("button", name="Seed").click()
    after = list(zip(order(table), column(table, "Seed"), strict=True))
    assert after == sorted(before, key=lambda row: int(row[1]))


@pytest.mark.parametrize("name", ["pilot", "hostile"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280, 1920])
def test_a_page_never_scrolls_sideways(name: str, width: int, open_page: Open) -> None:
    page = open_page(name, width=width)
    for summary in page.locator("details > summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_wide_table_scrolls_in_a_region_that_takes_the_focus(open_page: Open) -> None:
    page = open_page(width=390)
    region = page.get_by_role("region", name=re.compile("Comparisons against the baseline"))
    assert region.evaluate("one => one.scrollWidth > one.clientWidth")
    region.focus()
    page.keyboard.press("ArrowRight")
    for _ in range(100):  # scrolling is smooth; the page's policy lets no waiting script in
        if region.evaluate("one => one.scrollLeft") > 0:
            break
        page.wait_for_timeout(50)
    assert region.evaluate("one => one.scrollLeft") > 0


CONTRASTS = """
() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const found = rgb(getComputedStyle(one).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255, 255];
  };
  const light = (color) => {
    const [r, g, b] = color.slice(0, 3).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const kinds = "p, li, td, th, dt, dd, h1, h2, h3, h4, a, summary, button, figcaption, code, .badge";
  return [...document.querySelectorAll(kinds)].filter((one) => one.innerText?.trim() && !one.closest(".skip"))
    .map((one) => {
      const [a, b] = [light(rgb(getComputedStyle(one).color)), light(ground(one))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), `${one.tagName}.${one.className}: ${one.innerText.slice(0, 40)}`];
    }).sort((x, y) => x[0] - y[0]);
}
"""
"""Contrast of every text with its background by WCAG's formula, the lowest first."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_and_badge_has_the_contrast_of_wcag_aa(scheme: str, open_page: Open) -> None:
    page = open_page("hostile", color_scheme=scheme)
    lowest, where = page.evaluate(CONTRASTS)[0]
    assert lowest >= 4.5, where
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    is_dark = sum(map(int, re.findall(r"\d+", background)[:3])) < 3 * 128
    assert is_dark == (scheme == "dark")


def test_every_kind_of_badge_has_contrast_a_word_and_a_sign(open_page: Open) -> None:
    page = open_page()
    page.evaluate("""() => document.querySelector("main").insertAdjacentHTML("beforeend",
        ["better", "worse", "equivalent", "no_worse", "no_better", "undecided", "provisional", "single_run", "diverged"]
        .map((kind) => `<span class="badge ${kind}">${kind}</span>`).join(" "))""")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        lowest, where = page.evaluate(CONTRASTS)[0]
        assert lowest >= 4.5, (scheme, where)
    badges = page.locator("ul.verdicts .badge").all()
    assert badges
    for badge in badges:
        assert re.fullmatch(r"\S+ .*[a-z]{4,}.*", badge.inner_text())


def test_the_switch_changes_between_light_and_dark(open_page: Open) -> None:
    page = open_page(color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.get_by_role("button", name="Dark", exact=True).click()
    assert page.evaluate(ground) != before
    ink = page.evaluate("getComputedStyle(document.querySelector('svg[role=img]')).color")
    assert ink == page.evaluate("getComputedStyle(document.body).color")  # figures follow
    page.get_by_role("button", name="Light", exact=True).click()
    assert page.evaluate(ground) == before


def test_print_is_light_without_buttons_and_with_everything_open_and_nothing_cut(open_page: Open) -> None:
    page = open_page(color_scheme="dark", width=703)  # A4 less its margins, in CSS pixels
    page.get_by_role("button", name="Light", exact=True).click()
    page.get_by_role("button", name="Dark", exact=True).click()
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    # a header's button has no box of its own in print: only its words are there
    boxes = page.evaluate(
        "[...document.querySelectorAll('button')].filter((one) => one.getClientRects().length).length"
    )
    assert boxes == 0
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
    assert page.locator("table.runs tbody tr").last.is_visible()
    for table in page.locator("table").all():
        box = table.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= 703 + 1, table.get_attribute("class")
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


def test_without_javascript_all_is_there_and_no_button_is_dead(open_page: Open) -> None:
    page = open_page("hostile", java_script_enabled=False)
    assert page.locator("button:visible").count() == 0
    text = page.locator("main").inner_text()
    for said in (*NAMES.values(), "mixup+affine", "too close to call", "What you must know"):
        assert said in text
    assert re.search(r"\+\d+\.\d\d to \+\d+\.\d\d", text)
    page.locator("details > summary").first.click()
    assert page.locator("table.runs").first.is_visible()


def test_headings_are_in_order_and_the_keyboard_reaches_the_content_first(open_page: Open) -> None:
    page = open_page("hostile")
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    links = page.get_by_role("navigation", name="Contents").get_by_role("link")
    assert links.count() >= 12
    for target in links.evaluate_all("all => all.map((one) => one.getAttribute('href'))"):
        assert page.locator(f"[id='{target[1:]}']").count() == 1
