"""The ledger: which command read the test set, when, and what had been settled before."""

from __future__ import annotations

import json
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest

from cifar_ablate.errors import RecordError, UnknownNameError
from cifar_ablate.record.compact import load_record
from cifar_ablate.record.mlflow_store import Tracking
from cifar_ablate.record.types import LedgerEntry, RecordedRun
from tests.conftest import Workshop

STUDY = """
    study: tiny
    question: Does mirroring help a tiny network on digits?
    seeds: {looks: [3, 4]}
    margin: 0.5
    recipe:
      data: digits
      train_size: 100
      model: {name: resnet18-compact, width: 4}
      epochs: 2
      batch_size: 5
      eval_every: 0
      optimizer: {name: sgd, lr: 0.05}
    arms:
      baseline:
      flip: {augment: {hflip: {p: 0.5}}}
"""
DOCUMENT: dict[str, Any] = {
    "study": "tiny",
    "variant": "",
    "question": "why",
    "baseline": "baseline",
    "seeds": [0],
    "margin": 0.2,
    "published": {},
    "arms": [
        {
            "name": "baseline",
            "parent": None,
            "recipe_id": "r",
            "seeds": [0],
            "precision": "fp32",
            "recipe": {"epochs": 1},
            "differs": [],
            "data": "digits",
            "data_digest": "d",
        }
    ],
}


def entries(label: str = "tiny") -> list[tuple[str, str, int, int]]:
    """What the ledger says, without times."""
    return [(one.kind, one.detail, one.num_seeds, one.num_runs) for one in Tracking().load(label).ledger]


def tags() -> dict[str, str]:
    experiment = mlflow.MlflowClient().get_experiment_by_name("tiny")
    assert experiment is not None
    return {name: value for name, value in experiment.tags.items() if name.startswith("ablate.ledger.")}


def run(seed: int, outcome: str = "finished") -> RecordedRun:
    return RecordedRun("", "baseline", seed, f"fingerprint{seed}", "recipe", outcome, "", {"test_accuracy": 50.0})


@pytest.fixture
def opened(workshop: Workshop) -> Workshop:
    """A study that is recorded, with no run."""
    Tracking().open_study("tiny", DOCUMENT)
    return workshop


@pytest.mark.slow
def test_run_notes_the_margin_before_results_and_each_look_as_it_is_taken(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", STUDY)
    assert workshop("run", "tiny.yaml").code == 0
    expected = [("margin", "0.5", 0, 0), ("look", "3", 3, 6), ("look", "4", 4, 8)]
    assert entries() == expected
    before = tags()
    assert workshop("run", "tiny.yaml").code == 0
    assert tags() == before
    workshop.write("tiny.yaml", STUDY.replace("margin: 0.5", "margin: 3"))
    assert workshop("run", "tiny.yaml").code == 0
    assert ("margin", "3", 4, 8) in entries()  # set when all had been seen
    assert tags().items() >= before.items()


@pytest.mark.slow
def test_plan_and_export_are_noted_and_an_exported_record_keeps_the_ledger(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", STUDY.replace("{looks: [3, 4]}", "2"))
    assert workshop("plan", "tiny.yaml").code == 0
    assert workshop("run", "tiny.yaml", "--seed", "0").code == 0
    assert workshop("plan", "tiny.yaml").code == 0
    assert entries() == [("margin", "0.5", 0, 0)]  # one run of an arm has no spread, so plan read none
    assert workshop("run", "tiny.yaml").code == 0
    for command in (("plan", "tiny.yaml"), ("export", "tiny", "record"), ("plan", "tiny.yaml")):
        assert workshop(*command).code == 0
    seen = [("plan", "seed spread", 2, 4), ("export", "compact record", 2, 4)]
    assert sorted(entries()) == sorted([("margin", "0.5", 0, 0), *seen])
    kept = load_record(Path("record")).ledger
    assert set(kept) == set(Tracking().load("tiny").ledger)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", one.when) for one in kept)


@pytest.mark.slow
def test_offline_commands_leave_no_entry(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", STUDY)
    assert workshop("run", "tiny.yaml", "--offline").code == 0
    assert mlflow.MlflowClient().get_experiment_by_name("tiny") is None
    assert workshop("run", "tiny.yaml").code == 0
    assert entries()[0] == ("margin", "0.5", 4, 8)  # for MLflow it was set when all was there
    assert [one[:2] for one in entries()[1:]] == [("look", "3"), ("look", "4")]


def test_a_record_from_before_the_ledger_can_be_read(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", STUDY.replace("{looks: [3, 4]}", "2"))
    assert workshop("run", "tiny.yaml").code == 0
    assert workshop("export", "tiny", "record").code == 0
    path = Path("record/study.json")
    content = json.loads(path.read_text())
    assert content.pop("ledger")
    assert content.pop("looks") == []
    path.write_text(json.dumps(content))
    assert load_record(Path("record")).ledger == []
    assert workshop("report", "--record", "record").code == 0


def test_an_entry_is_written_once_and_never_over(opened: Workshop) -> None:
    tracking = Tracking()
    first = tracking.note("tiny", "verdicts", "95%", [run(0), run(1), run(2, "failed")])
    assert first is not None
    assert (first.kind, first.detail, first.num_seeds, first.num_runs) == ("verdicts", "95%", 2, 2)
    before = tags()
    assert tracking.note("tiny", "verdicts", "95%", [run(1), run(0)]) is None
    assert tags() == before
    assert tracking.note("tiny", "verdicts", "90%", [run(0), run(1)]) is not None
    assert tracking.note("tiny", "verdicts", "95%", [run(0), run(1), run(2)]) is not None
    assert len(tags()) == 3
    assert all(re.fullmatch(r"ablate\.ledger\.verdicts\.[0-9a-f]{8}", name) for name in tags())
    assert first in tracking.load("tiny").ledger


def test_a_margin_is_entered_when_it_is_first_set_and_not_again(opened: Workshop) -> None:
    tracking = Tracking()
    assert tracking.note("tiny", "margin", "0.2", []) == LedgerEntry(
        "margin", tracking.load("tiny").ledger[0].when, "0.2", num_seeds=0, num_runs=0
    )
    assert tracking.note("tiny", "margin", "0.2", [run(0)]) is None
    assert tracking.note("tiny", "margin", "0.5", [run(0)]) is not None


def test_writers_at_once_do_not_fail(opened: Workshop) -> None:
    def write(number: int) -> None:
        Tracking().note("tiny", "look", str(number % 2), [run(0)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(16)))
    assert sorted(entries()) == [("look", "0", 1, 1), ("look", "1", 1, 1)]


def test_a_study_that_is_not_recorded_has_no_ledger(workshop: Workshop) -> None:
    with pytest.raises(UnknownNameError):
        Tracking().note("tiny", "look", "3", [])


def test_a_damaged_entry_is_named_with_its_cure(opened: Workshop) -> None:
    experiment = mlflow.MlflowClient().get_experiment_by_name("tiny")
    assert experiment is not None
    mlflow.MlflowClient().set_experiment_tag(experiment.experiment_id, "ablate.ledger.look.00000000", "{")
    with pytest.raises(RecordError, match=r"the tag ablate\.ledger\.look\.00000000 .* is damaged; remove it"):
        Tracking().load("tiny")


@pytest.mark.slow
def test_plan_and_export_work_where_the_store_refuses_to_be_written(workshop: Workshop) -> None:
    workshop.write("tiny.yaml", STUDY.replace("{looks: [3, 4]}", "2"))
    assert workshop("run", "tiny.yaml").code == 0
    refuse = "BEGIN SELECT RAISE(ABORT, 'attempt to write a readonly database'); END"
    with closing(sqlite3.connect("mlflow.db")) as database:
        database.execute(f"CREATE TRIGGER refuse BEFORE INSERT ON experiment_tags {refuse}")
        database.commit()
    planned = workshop("plan", "tiny.yaml")
    assert (planned.code, planned.err) == (0, "")
    assert "from 4 recorded runs" in planned.out
    assert workshop("export", "tiny", "record").code == 0
    assert load_record(Path("record")).ledger == [Tracking().load("tiny").ledger[0]]
    assert entries() == [("margin", "0.5", 0, 0)]
