"""Every format renders every report: numbers as they are, names without breaking out."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import markdown_it
import pandas as pd
import pytest
import scipy.stats

from cifar_ablate.registry import FORMATS
from cifar_ablate.report.blocks import Section, walk
from cifar_ablate.report.build import build_report
from cifar_ablate.report.document import build_document
from cifar_ablate.report.figures import draw_figures
from cifar_ablate.report.formats.latex import escape as latex_escape
from cifar_ablate.report.formats.markdown import escape, keep_code
from cifar_ablate.report.types import Comparison, Report
from cifar_ablate.report.write import format_of, render
from tests.reporting import LABEL, NAMES, QUESTION, empty_record, hostile_record, lonely_record, pilot_record
from tests.timing import times_as_long

RECORDS = {"pilot": pilot_record, "hostile": hostile_record, "empty": empty_record, "lonely": lonely_record}
Text = Callable[[str, str], str]


@pytest.fixture(scope="module")
def reports() -> Mapping[str, Report]:
    found = {name: build_report([record()]) for name, record in RECORDS.items()}
    return found | {"all": Report(tuple(study for one in found.values() for study in one.studies)), "none": Report(())}


@pytest.fixture(scope="module")
def text(reports: Mapping[str, Report]) -> Text:
    """The report of a name in a format, rendered once."""
    kept: dict[tuple[str, str], str] = {}

    def get(format: str, name: str) -> str:
        if (format, name) not in kept:
            kept[format, name] = render(reports[name], format).text
        return kept[format, name]

    return get


def comparisons(report: Report) -> list[Comparison]:
    return [one for study in report.studies for family in study.families for one in family.comparisons]


@pytest.mark.parametrize("name", [*RECORDS, "all", "none"])
@pytest.mark.parametrize("format", FORMATS.names())
def test_every_format_renders_every_report(format: str, name: str, text: Text) -> None:
    rendered = text(format, name)
    assert rendered.strip()
    rendered.encode()  # no half characters
    if name in ("pilot", "empty", "lonely"):
        assert not re.findall(r"\b(None|nan|NaN|inf|Undefined)\b", rendered)


@pytest.mark.parametrize("format", FORMATS.names())
def test_a_format_renders_the_same_report_to_the_same_text(
    format: str, text: Text, reports: Mapping[str, Report]
) -> None:
    assert render(reports["pilot"], format).text == text(format, "pilot")


@pytest.mark.parametrize("name", [*RECORDS, "all"])
def test_formats_for_people_have_the_same_sections_in_the_same_order(
    name: str, text: Text, reports: Mapping[str, Report]
) -> None:
    sections = [block for _, block in walk(build_document(reports[name], ink="#000000").studies)]
    titles = [block.title for block in sections if isinstance(block, Section)]
    assert {"Verdicts", "Arms", "What you must know", "How to reproduce"} <= set(titles)
    found = {
        "markdown": re.findall(r"(?m)^#{2,} (.*)$", text("markdown", name)),
        "html": [unescape(one) for one in re.findall(r"<h[234] id[^>]*>(.*?)</h[234]>", text("html", name))],
        "latex": re.findall(r"(?m)^\\(?:(?:sub)+section|paragraph)\*\{(.*)\}$", text("latex", name)),
    }
    assert found["markdown"] == list(map(escape, titles))
    assert found["html"] == titles
    assert found["latex"] == [latex_escape(title) for title in titles if title != "Figures"]


def test_the_example_of_the_guide_for_contributors_is_a_whole_format(
    reports: Mapping[str, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", guide.split("### A report format")[1], re.DOTALL)
    assert example is not None
    monkeypatch.setattr(FORMATS, "_entries", {name: FORMATS.get(name) for name in FORMATS.names()})
    exec(example[1], {})
    written = render(reports["pilot"], "text").text
    assert "WHAT YOU MUST KNOW" in written
    assert all(one.text in written for one in comparisons(reports["pilot"]))
    assert "mixup+affine\t5/5\t50.80" in written
    assert FORMATS.summary("text") == "Headings, sentences and tables as plain text."
    assert format_of(None, Path("report.text")) == "text"


def test_a_name_that_xml_has_no_characters_for_is_drawn(reports: Mapping[str, Report]) -> None:
    study = reports["pilot"].studies[0]
    runs = tuple(replace(run, arm="a\uffff<&") for run in study.runs)
    rows = tuple(replace(row, name="a\uffff<&") for row in study.rows)
    drawn = draw_figures(replace(study, rows=rows, runs=runs, families=(), class_effects=(), calibration=(), curves={}))
    assert "a\N{REPLACEMENT CHARACTER}&lt;&amp;" in next(one.svg for one in drawn if one.title == "Seeds")


def test_figures_hold_no_more_decimals_than_can_be_seen(reports: Mapping[str, Report]) -> None:
    for svg in render(reports["all"], "markdown").files.values():
        tags = "".join(re.findall(r"<[a-zA-Z][^>]*>", svg))
        assert not re.findall(r'(?:d|x|y|transform)="[^"]*\.\d{3,}', tags)
        assert len(svg) < 40_000


def test_listing_the_formats_imports_nothing_heavy() -> None:
    code = (
        "import sys; from cifar_ablate.registry import FORMATS; FORMATS.names();"
        "print(*({'jinja2', 'pandas', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- HTML ---


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.mark.parametrize("name", ["pilot", "hostile", "all"])
def test_a_page_needs_nothing_but_itself_and_runs_one_script_its_own(name: str, text: Text) -> None:
    text_of_page = text("html", name)
    page = Page(text_of_page)
    assert len(page.all("script")) == 1
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "embed", "base", "form", "b", "i")]
    for tag, attributes in page.tags:
        assert not [attribute for attribute in attributes if attribute.startswith("on")], tag
        assert not {"src", "srcset", "action", "data", "ping"} & set(attributes), tag
        target = attributes.get("href") or attributes.get("xlink:href") or "#"
        assert target.startswith("#") or target == "data:,", target
    script = re.search(r"<script>(.*?)</script>", text_of_page, re.DOTALL)
    assert script is not None
    allowed = b64encode(sha256(script[1].encode()).digest()).decode()
    policy = next(one["content"] for one in page.all("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert f"script-src 'sha256-{allowed}'" in policy
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize("name", ["pilot", "hostile", "all"])
def test_ids_of_a_page_are_its_own_and_each_reference_finds_one(name: str, text: Text) -> None:
    page = Page(text("html", name))
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert not [one for one, number in ids.items() if number > 1]
    for _, attributes in page.tags:
        for key, value in attributes.items():
            named = value.split() if key == "aria-labelledby" else re.findall(r"url\(#([^)]*)\)", value)
            named += [value[1:]] if key in ("href", "xlink:href") and value.startswith("#") else []
            assert set(named) <= set(ids), (key, value)


def test_what_a_page_sorts_by_is_the_same_on_every_machine(text: Text) -> None:
    """The last digits of a float are those of a processor's matrix products: ``--check`` would fail on another one."""
    values = [
        attributes["data-value"] for _, attributes in Page(text("html", "pilot")).tags if "data-value" in attributes
    ]
    assert any("." in value for value in values)
    assert [value for value in values if value != f"{float(value):.9g}"] == []


def test_a_page_says_names_as_they_are(text: Text) -> None:
    words = "".join(Page(text("html", "hostile")).words)
    for said in (*NAMES.values(), LABEL, QUESTION):
        assert said in words


def test_a_page_holds_every_figure_and_every_verdict(text: Text, reports: Mapping[str, Report]) -> None:
    page = Page(text("html", "pilot"))
    words = "".join(page.words)
    drawn = draw_figures(reports["pilot"].studies[0])
    figures = [one for one in page.all("svg") if one.get("role") == "img"]
    assert [one["aria-label"] for one in figures] == [one.title for one in drawn]
    for said in [one.text for one in comparisons(reports["pilot"])] + [one.caption for one in drawn]:
        assert said in words


# --- JSON ---


def refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.parametrize("name", [*RECORDS, "all"])
def test_json_is_strict_and_holds_the_numbers_of_every_comparison(
    name: str, text: Text, reports: Mapping[str, Report]
) -> None:
    read = json.loads(text("json", name), parse_constant=refuse)
    assert read["format"] == 1
    found = [
        (one["contrast"]["arm"], one["contrast"]["estimate"], one["contrast"]["ci95"], one["contrast"]["verdict"])
        for study in read["studies"]
        for family in study["families"]
        for one in family["comparisons"]
    ]
    assert found == [
        (one.arm, one.estimate, one.ci95 and list(one.ci95), one.verdict.value)
        for one in (both.contrast for both in comparisons(reports[name]))
    ]
    for study, mine in zip(read["studies"], reports[name].studies, strict=True):
        assert [run["test_accuracy"] for run in study["runs"]] == [run.test_accuracy for run in mine.runs]
        assert (study["label"], study["question"]) == (mine.label, mine.question)


def test_json_holds_the_numbers_that_stand_only_in_sentences(text: Text) -> None:
    comparisons = {
        (one["contrast"]["arm"], one["contrast"]["reference"]): one
        for family in json.loads(text("json", "hostile"))["studies"][0]["families"]
        for one in family["comparisons"]
    }
    diverged = comparisons[NAMES["label-smoothing"], NAMES["baseline"]]["divergence"]
    assert (diverged["arm"]["count"], diverged["arm"]["num"], diverged["reference"]["count"]) == (1, 5, 0)
    assert diverged["arm"]["ci95"] == pytest.approx([0.51, 71.64], abs=0.01)  # R: binom.test(1, 5)
    assert diverged["p"] == pytest.approx(scipy.stats.boschloo_exact([[1, 0], [4, 5]]).pvalue)
    for one in comparisons.values():
        assert (one["detectable"] is None) == (one["contrast"]["se"] is None)
        assert one["mcnemar_p"] is None


def test_json_ranks_two_single_networks_by_mcnemar() -> None:
    pilot = pilot_record()
    arms = pilot.document["arms"][:2]
    study = build_report(
        [
            replace(
                pilot,
                document={**pilot.document, "arms": arms, "seeds": [0], "published": {}},
                runs=[run for run in pilot.runs if run.seed == 0 and run.arm in [arm["name"] for arm in arms]],
            )
        ]
    )
    read = json.loads(render(study, "json").text)
    assert 0 <= read["studies"][0]["families"][0]["comparisons"][0]["mcnemar_p"] < 1e-6  # 6.6 points of 10,000 images
    assert [entry["kind"] for entry in read["studies"][0]["ledger"]] == ["export", "plan", "margin"]


def test_json_writes_null_for_what_is_not_finite(reports: Mapping[str, Report]) -> None:
    study = reports["pilot"].studies[0]
    run = replace(study.runs[0], nll=float("inf"), ece=float("nan"))
    read = json.loads(render(Report((replace(study, runs=(run,)),)), "json").text, parse_constant=refuse)
    assert (read["studies"][0]["runs"][0]["nll"], read["studies"][0]["runs"][0]["ece"]) == (None, None)


def test_json_of_ten_times_the_runs_takes_about_ten_times_as_long(reports: Mapping[str, Report]) -> None:
    study = reports["pilot"].studies[0]
    curve = tuple((epoch, 50.0 + epoch / 7) for epoch in range(1, 51))

    def write(num: int) -> None:
        runs = tuple(replace(study.runs[0], seed=seed) for seed in range(num))
        render(Report((replace(study, runs=runs, curves={"baseline": dict.fromkeys(range(num), curve)}),)), "json")

    assert times_as_long(lambda: write(3000), lambda: write(300)) < 20


# --- CSV ---


def read_csv(text: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""])


@pytest.mark.parametrize("name", ["pilot", "hostile"])
def test_csv_read_by_pandas_equals_the_report(name: str, text: Text, reports: Mapping[str, Report]) -> None:
    frame = read_csv(text("csv", name))
    report = reports[name]
    assert next(iter(frame.columns)) == "study"
    rows = frame[frame["family"].notna()]
    mine = comparisons(report)
    assert list(rows["difference"].fillna(-1)) == [
        -1 if one.contrast.estimate is None else one.contrast.estimate for one in mine
    ]
    assert list(rows["arm"].str.removeprefix("'")) == [one.contrast.arm for one in mine]
    assert list(rows["verdict"]) == [one.contrast.verdict.value for one in mine]
    for column, end in (("ci95_low", 0), ("ci95_high", 1)):
        ends = [one.contrast.ci95[end] if one.contrast.ci95 else None for one in mine]
        pd.testing.assert_series_equal(rows[column].reset_index(drop=True), pd.Series(ends, name=column, dtype=float))
    own = frame[frame["family"].isna()]
    study = report.studies[0]
    assert list(own["arm"]) == [study.baseline]
    accuracy = study.rows[0].test_accuracy
    assert accuracy is not None
    assert list(own["test_accuracy"]) == [accuracy.mean]


def test_an_arm_that_was_compared_with_nothing_has_a_row(text: Text) -> None:
    assert list(read_csv(text("csv", "lonely"))["arm"]) == ["baseline"]


@pytest.mark.parametrize("name", ["pilot", "hostile", "all"])
def test_no_cell_of_text_is_a_formula(name: str, text: Text) -> None:
    for row in csv.DictReader(io.StringIO(text("csv", name))):
        for column, cell in row.items():
            if cell.startswith(("=", "+", "-", "@", "\t", "\r")):
                float(cell)  # a number, and of a column of numbers
                assert column not in ("study", "family", "arm", "reference", "verdict", "differs", "text")


# --- LaTeX ---


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RECORDS, "all", "none"])
def test_latex_compiles_with_pdflatex(name: str, text: Text, tmp_path: Path) -> None:
    pdflatex = shutil.which("pdflatex")
    if pdflatex is None:
        pytest.skip("pdflatex is not installed (Debian: texlive-latex-base texlive-latex-recommended)")
    (tmp_path / "report.tex").write_text(text("latex", name), encoding="ascii")
    done = subprocess.run(
        [pdflatex, "-no-shell-escape", "-halt-on-error", "-interaction=nonstopmode", "report.tex"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=240,
        check=False,
    )
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert "(/etc/passwd" not in re.sub(r"\s", "", (tmp_path / "report.log").read_text(errors="replace"))  # not opened


def test_latex_names_every_run_by_its_id(text: Text) -> None:
    written = text("latex", "pilot")
    assert all(run.run_id in written for run in pilot_record().runs)


def test_latex_leaves_no_command_of_a_name(text: Text) -> None:
    written = text("latex", "hostile")
    assert written.isascii()
    assert r"\input" not in written
    assert written.count(r"\end{document}") == 1
    assert r"r\'{e}seau" in written
    assert "[U+6570]".replace("[", "{[}").replace("]", "{]}") in written


@pytest.mark.parametrize(
    "name",
    [
        "# big",
        "###### x",
        "1. x",
        "12) x",
        "> x",
        "- x",
        "+ x",
        "---",
        "===",
        "-",
        "    x",
        "\tx",
        " # x",
        "a #",
        "a$x and b$y",
        "+cutmix",
        "-0.5",
        "#1",
        "1.5",
        "a > b",
        "`x",
        "**x**",
        "<b>",
        "~~~",
        "&#35; x",
        "\\# x",
    ],
)
@pytest.mark.parametrize(
    ("line", "tags"),
    [("- {}", ["ul", "li"]), ("{}", ["p"]), ("## {}", ["h2"]), ("**{}**: x", ["p", "strong"]), ("x {}", ["p"])],
)
def test_markdown_makes_nothing_of_a_name_wherever_it_stands(name: str, line: str, tags: list[str]) -> None:
    """Not even a formula: GitHub looks for those after the markdown, in each piece of text by itself."""
    page = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(line.format(escape(name)))
    assert [tag for tag in re.findall(r"<(\w+)>", page) if tag != "span"] == tags
    assert name.strip() in unescape(re.sub(r"<[^>]*>", "", page))
    assert not any(piece.count("$") > 1 for piece in re.split(r"<[^>]*>", page))


def test_markdown_keeps_code_and_what_is_beside_it() -> None:
    assert keep_code("# a `b$c` - d$") == "\\# a `b$c` - d<span>$</span>"
    assert keep_code("`a` # b") == "`a` # b"
