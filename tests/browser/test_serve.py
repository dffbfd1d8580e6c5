"""The page of a study as a person uses it: a picture dropped, an example picked, two arms compared.

Needs Debian's chromium (or another Chromium on the path); no browser is downloaded.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cifar_ablate.predictor import load
from tests.conftest import Workshop
from tests.predicting import content, digits, picture, run_of
from tests.serving import serve_command, served

pytestmark = pytest.mark.slow

DROP = """([name, data]) => {
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, {type: "image/png"}));
    const zone = document.querySelector("#file button");
    for (const kind of ["dragenter", "dragover", "drop"])
        zone.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, bubbles: true, cancelable: true}));
}"""


@pytest.fixture
def page(trained: Workshop, browser: Any, tmp_path: Path) -> Iterator[Any]:
    command = serve_command("--run", run_of("larger"))
    with served(command, trained.folder, tmp_path / "serve.log") as address:
        opened = browser.new_page(viewport={"width": 1100, "height": 1000})
        opened.asked = []
        opened.on("request", lambda request: opened.asked.append(request.url))
        opened.goto(address)
        opened.wait_for_selector("#file", timeout=60_000)
        opened.address = address
        yield opened
        opened.close()


def shows(page: Any, expected: str, place: str = "#label") -> bool:
    """Does a label come to name this class largest?"""
    query = "([place, text]) => document.querySelector(`${place} h2`)?.innerText.trim() === text"
    page.wait_for_function(query, arg=[place, expected], timeout=60_000)
    return True


def test_a_dropped_file_is_named_an_example_is_picked_and_two_arms_are_compared(page: Any, trained: Workshop) -> None:
    predictor = load(run=run_of("larger"))
    page.evaluate(DROP, ["digit.png", base64.b64encode(content(picture(4))).decode()])
    assert shows(page, predictor(picture(4)).label)
    assert "32x32 as it is" in page.inner_text("#how")
    assert "arm larger, seed 0" in page.inner_text("#about")
    assert page.locator("#label-of-other").count() == 0 or not page.locator("#label-of-other").is_visible()

    page.locator("#examples button").nth(2).click()
    first_two = next(index for index, label in enumerate(digits().test_labels) if label == 2)
    page.wait_for_function("document.querySelector('#file').innerText.includes('2-2')", timeout=30_000)
    assert shows(page, predictor(picture(first_two)).label)

    page.locator("#other input").click()
    page.get_by_role("option", name="larger and longer (seed 0)").click()
    rival = load(run=run_of("larger and longer"))
    assert shows(page, rival(picture(first_two)).label, "#label-of-other")
    assert "arm larger and longer" in page.inner_text("#about-other")

    outside = [url for url in page.asked if not url.startswith((page.address, "data:", "blob:"))]
    assert outside == []  # no fonts, no counters: it works without a network
