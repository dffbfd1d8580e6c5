"""Names that want out: of a study file, of a record that somebody sent, and of an MLflow that others write to."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from cifar_ablate.record.mlflow_store import Tracking
from tests.comparing import runs_of
from tests.conftest import Answer, Workshop
from tests.recording import PILOT, edited_record

ARMS = (
    "<script>alert(1)</script>",
    r"\input{/etc/passwd}$\write18{touch evil}$",
    "a|b`touch evil`$(touch evil)",
    "'; DROP TABLE runs; --",
    "../../../evil/%2e%2e/x",
    "=cmd|' /C calc'!A0",
    "CON",
    "con",
    "[x](javascript:alert(1))",
    "{{ 7*7 }}{% raw %}%s%n",
)
QUESTION = "</title><script>alert(1)</script> \\input{x} | `x` '; DROP TABLE x; -- ![x](http://evil.invalid/x.png)"
NEW_LINE = "a\r# Evil\u2028b\x0bc\x85d\x1b[2J\u202ee"
STUDY: dict[str, Any] = {
    "study": "names",
    "question": QUESTION,
    "seeds": 2,
    "recipe": {
        "data": "digits",
        "train_size": 60,
        "model": {"name": "resnet18-compact", "width": 4},
        "epochs": 1,
        "batch_size": 20,
        "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.5},
    },
}
TUNE = {
    "space": {"optimizer.momentum": {"low": 0.1, "high": 0.9}},
    "trials": 1,
    "sampler": "random",
    "val_fraction": 0.5,
}
FORMATS = {"md": "markdown", "html": "html", "tex": "latex", "csv": "csv", "json": "json"}


def study(*names: str, **more: Any) -> str:
    arms = {name: {"optimizer": {"lr": 0.02 + 0.001 * index}} for index, name in enumerate(names, 1)}
    return yaml.safe_dump({**STUDY, "arms": {"baseline": None, **arms}, **more}, allow_unicode=True, sort_keys=False)


class Page(HTMLParser):
    """What a browser would find of a page: its elements, and attributes that run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def is_harmless(folder: Path) -> None:
    """The reports below a folder hold names as text: no script, command, formula, heading or picture is one of them."""
    found = {path.suffix for path in folder.rglob("*.*")}
    assert {".md", ".html", ".tex", ".csv", ".json"} <= found
    for path in folder.rglob("*.*"):
        assert path.is_file()
        if path.suffix not in (".md", ".html", ".tex", ".csv", ".json", ".svg"):
            continue
        text = path.read_text(encoding="utf-8")
        assert not {"\x1b", "\u202e", "\u2028", "\x85", "\x0b", "\r"} & set(text), path
        if path.suffix == ".html":
            page = Page(text)
            assert page.tags.count("script") == 1
            assert not {"iframe", "object", "embed", "base", "form"} & set(page.tags)
            assert not [name for name, _ in page.attributes if name.startswith("on")]
            assert not [value for name, value in page.attributes if name in ("href", "src") and ":" in value[:12]
                        and not value.startswith(("data:", "#"))]  # fmt: skip
            assert "default-src 'none'" in text
        elif path.suffix == ".md":
            text = re.sub(r"(?ms)^```.*?^```$", "", text)
            assert not re.search(r"<(script|img|iframe)", text)
            assert not re.search(r"(?m)^#+ Evil|^```\n.*evil", text)
            assert not re.search(r"(?<!\\)\]\((javascript|http)", text)
        elif path.suffix == ".tex":
            assert not re.search(r"\\(input|write18|include|openout|immediate|catcode)\b", text)
        elif path.suffix == ".csv":
            cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
            assert not [cell for cell in cells if cell[:1] in tuple("=@\t") or re.match(r"[+-][^\d]", cell)]
        elif path.suffix == ".svg":
            assert not re.search(r"<script|onload|href=\"http", text)


def reports_of(workshop: Workshop, *options: str) -> list[Answer]:
    return [workshop("report", *options, "--output", f"reports/all.{ending}") for ending in FORMATS]


def files_around(workshop: Workshop) -> set[str]:
    """Everything beside the folder of the test: nothing may appear there."""
    return {path.name for path in workshop.folder.parent.iterdir()} | {"evil" for _ in workshop.folder.rglob("evil")}


def all_went_well(answers: list[Answer]) -> None:
    for answer in answers:
        assert answer.code == 0, answer
        assert not {"\x1b", "\u202e", "\x9b"} & set(answer.out + answer.err)


@pytest.mark.slow
def test_arms_of_any_name_stay_in_their_folders_and_are_text_everywhere(workshop: Workshop) -> None:
    before = files_around(workshop)
    workshop.write("names.yaml", study(*ARMS))
    all_went_well([workshop("run", "names.yaml"), workshop("plan", "names.yaml")])
    all_went_well(reports_of(workshop))
    all_went_well([workshop("export", "names", "reports/record"), workshop("preview", "names.yaml")])
    is_harmless(workshop.folder / "reports")
    again = workshop("report", "--record", "reports/record", "--format", "json")
    names = [row["name"] for row in json.loads(again.out)["studies"][0]["rows"]]
    assert names == ["baseline", *ARMS]  # as they were, through every file
    assert len(runs_of("names")) == 2 * (1 + len(ARMS))
    assert files_around(workshop) == before


@pytest.mark.slow
def test_networks_of_any_name_are_promoted_and_packaged_within_their_folder(workshop: Workshop) -> None:
    before = files_around(workshop)
    workshop.write("names.yaml", study(*ARMS[:3]))
    all_went_well([workshop("run", "names.yaml")])
    all_went_well([workshop("promote", "names", "--arm", arm) for arm in (*ARMS[1:3], ARMS[0])])
    all_went_well([workshop("package", "packaged", "--space")])
    _, front, body = (workshop.folder / "packaged" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["title"] == f"names {ARMS[0]}"[:60]
    about = (workshop.folder / "packaged" / "ABOUT.md").read_text()
    assert "&lt;script" in body
    assert "<script" not in re.sub(r"(?ms)^```.*?^```$", "", body) + about
    assert "script" not in (workshop.folder / "packaged" / "app.py").read_text()
    assert files_around(workshop) == before


@pytest.mark.slow
def test_tuned_arms_of_any_name_are_written_as_values_and_as_files_in_their_folder(workshop: Workshop) -> None:
    before = files_around(workshop)
    workshop.write("names.yaml", study(*ARMS[:5], tune=TUNE))
    tuned = workshop("tune", "names.yaml", "--all-arms", "--write", "--history", "trials", "--output", "a b;x.yaml")
    all_went_well([tuned, workshop("plan", "a b;x.yaml"), workshop("plan", "names.yaml")])
    written = yaml.safe_load((workshop.folder / "a b;x.yaml").read_text())
    assert list(written["arms"]) == ["baseline", *ARMS[:5]]
    assert files_around(workshop) == before
    assert len(list((workshop.folder / "trials").iterdir())) == 6
    for table in (workshop.folder / "trials").glob("*/trials.csv"):
        cells = [cell for row in csv.reader(table.read_text().splitlines()) for cell in row]
        assert not [cell for cell in cells if cell[:1] in ("=", "@", "+")]


def test_a_file_name_with_a_line_break_does_not_break_out_of_the_comment_of_a_tuned_study(workshop: Workshop) -> None:
    workshop.write("names.yaml", study("other", tune=TUNE))
    name = "x\nquestion: replaced\n.yaml"
    all_went_well([workshop("tune", "names.yaml", "--offline", "--write", "--output", name)])
    written = yaml.safe_load((workshop.folder / name).read_text())
    assert written["question"].startswith(QUESTION)


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "/etc/x", "a/b", "..", ".hidden", "a\\b", "C:\\x", "x\x00", "x\ny", "<script>", "\\input{x}", "a|b"),
        *("`x`", "'; DROP TABLE x", "x\u202ey", "a b", "A", "é", "x" * 65, "", "-rf", "~", "$HOME", "x:y", "x@y"),
    ],
)
def test_a_study_has_a_name_that_is_one_file_everywhere(workshop: Workshop, name: str) -> None:
    workshop.write("bad.yaml", study("other", study="PLACE").replace("PLACE", json.dumps(name)))
    for command in ("run", "preview"):
        answer = workshop(command, "bad.yaml")
        assert answer.code == 2
        assert re.match(r"bad\.yaml:1:[18]: study: ", answer.err), answer.err
        assert answer.err.isascii() or "\u202e" not in answer.err
        assert not {"\x00", "\x1b"} & set(answer.err)
    assert not (workshop.folder / "mlruns").exists()


@pytest.mark.parametrize("name", ["", " x", "x\x00", "x\ny", "x\u202ey", "x\u2066y", "\ufeffx", "x\x1b[2J", "x" * 81])
def test_an_arm_has_a_name_that_can_be_shown(workshop: Workshop, name: str) -> None:
    workshop.write("bad.yaml", study("PLACE").replace("PLACE", json.dumps(name)))
    answer = workshop("run", "bad.yaml")
    assert answer.code == 2
    assert re.match(r"bad\.yaml:\d+:\d+: arms\.", answer.err), answer.err
    assert not {"\x00", "\x1b", "\u202e"} & set(answer.err)


@pytest.mark.parametrize("bomb", ["aliases", "nesting", "size", "long"])
def test_a_study_file_that_is_a_bomb_is_refused_at_once(workshop: Workshop, bomb: str) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{one}: &{one} [{', '.join([f'*{before}'] * 9)}]" for before, one in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    text = {
        "aliases": "\n".join(lines),
        "nesting": "study: " + "[" * 100_000,
        "size": "x" * 1_000_001,
        "long": "study: x\nquestion: x\nseeds: " + "9" * 100_000,
    }
    workshop.write("bomb.yaml", text[bomb])
    answer = workshop("run", "bomb.yaml")
    assert answer.code == 2
    assert answer.err.startswith("bomb.yaml:")
    assert len(answer.err) < 3000


def hostile(document: dict[str, Any]) -> None:
    """Everything that a person could write into a study of a record."""
    names = {arm["name"]: f"{index}{ARMS[index]}{NEW_LINE}" for index, arm in enumerate(document["arms"])}
    for arm in document["arms"]:
        arm["name"], arm["parent"] = names[arm["name"]], names.get(arm["parent"])
        arm["data"] = arm["data"] + f"<script>alert(2)</script>\\input{{x}}{NEW_LINE}"
        arm["data_digest"] = f"</code><script>x</script>\n# Evil{NEW_LINE}"
    document["baseline"] = names[document["baseline"]]
    document["published"] = {names[arm]: value for arm, value in document["published"].items()}
    document["question"] = QUESTION + NEW_LINE
    document["file"] = "../../evil\n```\n# Evil <script>.yaml"
    document["variant"] = "../../evil\n```\n# Evil,x=<script>$(touch evil)`touch evil`"
    document["label"] = f"../../../evil/<script>{NEW_LINE}`'"
    document["ledger"] = [
        {"kind": "look", "when": "2026<script>", "detail": f"\n# Evil{NEW_LINE}", "num_seeds": 1, "num_runs": 1}
    ]


def hostile_runs(names: Callable[[int], str]) -> Callable[[Any], Any]:
    def edit(table: Any) -> Any:
        known = list(dict.fromkeys(table["arm"]))
        table = table.copy()
        # pandas writes a carriage return without quotes, and then reads it as the end of a line
        table["arm"] = [names(known.index(arm)).replace("\r", "\\u000d") for arm in table["arm"]]
        reason = f"=cmd|'/C calc'!A0 <script>\\input{{x}}{NEW_LINE[2:]}\n# Evil"
        table.loc[0, ["outcome", "reason"]] = ["failed", reason]
        return table

    return edit


@pytest.mark.slow
def test_an_exported_record_that_somebody_sent_breaks_no_format_and_no_folder(workshop: Workshop) -> None:
    before = files_around(workshop)
    edit = hostile_runs(lambda index: f"{index}{ARMS[index]}{NEW_LINE}")
    record = edited_record(workshop.folder / "sent", edit, hostile)
    environments = json.loads((record / "environments.json").read_text())
    for one in environments.values():
        one |= {"git_commit": "</code>\n# Evil", "device": f"<script>{NEW_LINE}", "torch": "`x`\n# Evil"}
        one["classes"] = [f"<script>{NEW_LINE}{index}" for index, _ in enumerate(one["classes"])]
    (record / "environments.json").write_text(json.dumps(environments))
    all_went_well(reports_of(workshop, "--record", "sent"))
    is_harmless(workshop.folder / "reports")
    printed = workshop("report", "--record", "sent")
    all_went_well([printed])
    assert files_around(workshop) == before


def environments(field: str) -> str:
    """Of every run of the pilot, with this one field alone."""
    kept = json.loads((PILOT / "environments.json").read_text(encoding="utf-8"))
    return json.dumps(dict.fromkeys(kept, json.loads(f"{{{field}}}")))


RUNS = "arm,seed,outcome,reason,fingerprint,recipe_id,run_id\nbaseline,%s,failed,x,f,r,i\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("study.json", "[" * 200_000),
        ("study.json", '"text"'),
        ("study.json", '{"format": 1, "label": "x", "arms": [null]}'),
        ("study.json", "9" * 10_000),
        ("environments.json", "[" * 200_000),
        ("runs.csv", "arm,seed\n" + "x," * 10_000),
        ("runs.csv", '"' * 99_999),
        ("runs.csv", RUNS % "inf"),
        ("runs.csv", RUNS % ("9" * 30)),
        ("runs.csv", RUNS % "1.5"),
        ("environments.json", environments('"git_commit": 5')),
        ("environments.json", environments('"threads": [1]')),
        ("environments.json", environments('"device_kind": {}')),
        ("environments.json", environments('"classes": [[1]]')),
        ("curves.csv", "fingerprint,arm,seed,epoch,test_accuracy\nf,a,0,1,1e-\n"),
    ],
)
def test_a_record_that_is_none_is_a_sentence(workshop: Workshop, name: str, content: str) -> None:
    record = edited_record(workshop.folder)
    (record / name).write_text(content)
    answer = workshop("report", "--record", "record")
    assert "Traceback" not in answer.err
    if name in ("runs.csv", "study.json"):
        assert answer.code == 1
        assert "export it again" in answer.err
        assert len(answer.err) < 1000
    else:  # without these, the report says so
        assert answer.code == 0
        assert f"{name} cannot be read" in answer.out


@pytest.mark.parametrize(
    "edit",
    [
        lambda study: study["arms"][0].update(seeds=["0"]),
        lambda study: study["arms"][0].update(parent="nobody"),
        lambda study: study.update(baseline="nobody"),
        lambda study: study["arms"].append(study["arms"][0]),
        lambda study: study.update(seeds=[{}]),
        lambda study: study.update(looks=["x"]),
        lambda study: study.update(published={"baseline": 3}),
        lambda study: study.update(question=["x"]),
        lambda study: study.update(seeds=[10**30]),
        lambda study: study["arms"][0].update(seeds=[-1]),
        lambda study: study["arms"][0].update(recipe={}),
        lambda study: study["arms"][0]["recipe"].update(eval_every="x"),
        lambda study: study["ledger"].append(
            {"kind": "verdicts", "when": 5, "detail": "x", "num_seeds": 1, "num_runs": 1}
        ),
    ],
)
def test_a_record_of_other_kinds_is_a_sentence(workshop: Workshop, edit: Callable[[dict[str, Any]], object]) -> None:
    edited_record(workshop.folder, document=edit)
    answer = workshop("report", "--record", "record")
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert "export it again" in answer.err


@pytest.mark.slow
def test_tags_that_others_wrote_into_mlflow_break_no_format_and_no_folder(workshop: Workshop) -> None:
    before = files_around(workshop)
    workshop.write("names.yaml", study("one", "two", "three"))
    all_went_well([workshop("run", "names.yaml")])
    tracking = Tracking()
    document: dict[str, Any] = json.loads(json.dumps(tracking.load("names").document))
    names = {arm["name"]: f"{index}{ARMS[index]}{NEW_LINE}" for index, arm in enumerate(document["arms"])}
    hostile(document)
    document.pop("label"), document.pop("ledger")
    tracking.open_study("names", document)
    client = mlflow.MlflowClient()
    for run in runs_of("names"):
        client.set_tag(run.info.run_id, "ablate.arm", names[run.data.tags["ablate.arm"]])
        client.set_tag(run.info.run_id, "ablate.reason", f"=cmd <script>\\input{{x}}{NEW_LINE}\n# Evil")
    client.update_run(run.info.run_id, status="FAILED")
    other = client.create_experiment("../../evil <script>'; DROP TABLE x; --")
    client.set_experiment_tag(other, "ablate.study", "x:9")
    turned = client.create_experiment(f"evil{NEW_LINE}")
    client.set_experiment_tag(turned, "ablate.study", "x:1")
    all_went_well(reports_of(workshop, "names"))
    all_went_well([workshop("export", "names", "reports/record"), workshop("report", "names")])
    is_harmless(workshop.folder / "reports")
    for arguments in (("report",), ("report", "../../evil <script>'; DROP TABLE x; --"), ("report", f"evil{NEW_LINE}")):
        answer = workshop(*arguments)
        assert answer.code != 0
        assert "Traceback" not in answer.err
        assert not {"\x1b", "\u202e"} & set(answer.err)
    assert files_around(workshop) == before
    assert runs_of("names")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("ablate.seed", "x"),
        ("ablate.seed", "-1"),
        ("ablate.seed", "²"),
        ("ablate.seed", "9" * 30),
        ("ablate.seed", "9" * 4500),
        ("ablate.fingerprint", "../../../evil"),
        ("ablate.fingerprint", "x' or '1'='1"),
        ("ablate.recipe", "../x"),
        ("ablate.arm", None),
    ],
)
def test_a_run_in_mlflow_that_is_none_of_ours_is_named(workshop: Workshop, tag: str, value: str | None) -> None:
    workshop.write("names.yaml", study("one", seeds=1))
    all_went_well([workshop("run", "names.yaml")])
    client, run = mlflow.MlflowClient(), runs_of("names")[0]
    client.set_tag(run.info.run_id, tag, value) if value is not None else client.delete_tag(run.info.run_id, tag)
    for command in (("report",), ("export", "names", "record"), ("promote", "names")):
        answer = workshop(*command)
        assert answer.code == 1
        assert f"run {run.info.run_id} in MLflow was not written by this program" in answer.err
        assert answer.err.count("\n") == 1


def test_a_kept_plan_that_somebody_sent_names_no_folder_outside(workshop: Workshop) -> None:
    workshop.write("names.yaml", study("one", seeds=1))
    all_went_well([workshop("run", "names.yaml", "--offline")])
    outside = workshop.folder / "elsewhere"
    run = next((workshop.folder / "mlruns" / "runs").iterdir())
    run.rename(outside)
    (plan,) = (workshop.folder / "mlruns" / "plans").glob("*.json")
    plan.write_text(plan.read_text().replace(run.name, "../../elsewhere"))
    answer = workshop("sync")
    assert answer.code == 1
    assert "is damaged" in answer.err
    assert answer.err.count("\n") == 1
