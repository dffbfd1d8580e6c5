"""What is recorded of a study, wherever it is read from, and the compact record that can be committed.

A compact record is a folder of plain files, under 2 MB for 25 runs of CIFAR-10::

    study.json        the study as planned: question, arms with their whole recipes, seeds, published figures, ledger
    runs.csv          one row per run: arm, seed, outcome, headline metrics
    environments.json versions, device, commit and data of each run, by fingerprint
    curves.csv        one row per run and epoch
    predictions.npz   fingerprints [runs], labels [images], predicted and loss (nats, float16) [runs, images]
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cifar_ablate.errors import RecordError, not_written

Key = tuple[str, str, str]
"""Study, arm and fingerprint of a run."""
ABANDONED = "its process ended without a word"
"""Reason of a run that MLflow shows as RUNNING, while nobody trains it."""

RECORD_FORMAT = 1
METRIC = "metric."
"""Prefix of the metrics' columns in runs.csv, so that columns can be added."""
_TEXT = ("run_id", "arm", "fingerprint", "recipe_id", "outcome", "reason")
_COLUMNS = ("arm", "seed", "outcome", "reason", "fingerprint", "recipe_id", "run_id")


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """Which training this is, for which study: all that the record needs to know to find or to make its run."""

    study: str
    """Label of the study's variant."""
    arm: str
    seed: int
    precision: str
    """As computed: fp32 or bf16."""
    recipe_id: str
    """Fingerprint without the seed: what all seeds of an arm share."""
    fingerprint: str

    @property
    def key(self) -> Key:
        """What tells the runs of one command apart."""
        return (self.study, self.arm, self.fingerprint)

    @property
    def name(self) -> str:
        """For people: study, arm and seed."""
        return f"{self.study} {self.arm} seed {self.seed}"


@dataclass(frozen=True)
class RecordedRun:
    """One run as the record shows it; ``outcome`` is finished, diverged, failed, killed or running."""

    run_id: str
    arm: str
    seed: int
    fingerprint: str
    recipe_id: str
    outcome: str
    reason: str
    metrics: Mapping[str, float]
    trained_by: str = ""
    """Who trains it at this moment, in words; a compact record does not keep it."""


@dataclass(frozen=True)
class LedgerEntry:
    """One time that the test set was looked at, or that something was settled which it must not decide."""

    kind: str
    """margin: the margin was set; look: a look was taken; verdicts, plan, export: a command read test accuracies."""
    when: str
    """ISO 8601, UTC, to the second."""
    detail: str
    """The margin in points, or the seeds of the look; free text otherwise."""
    num_seeds: int
    """Seeds of the finished runs at that time."""
    num_runs: int
    """Finished runs at that time."""


@dataclass(frozen=True)
class StudyRecord:
    """A study's variant as last planned, and every run ever recorded under it."""

    label: str
    document: Mapping[str, Any]
    runs: Sequence[RecordedRun]
    ledger: Sequence[LedgerEntry] = ()
    """The oldest entry first."""

    def current(self) -> list[RecordedRun]:
        """Runs of the study as it is planned now: the others were superseded when a recipe was edited.

        Of several records of one training, one that ended in a result comes first.
        """
        best: dict[tuple[str, int], RecordedRun] = {}
        for run in self.runs:
            if self._wants(run):
                kept = best.get((run.arm, run.seed))
                if kept is None or worth(run) > worth(kept):
                    best[run.arm, run.seed] = run
        order = {arm["name"]: index for index, arm in enumerate(self.document["arms"])}
        return sorted(best.values(), key=lambda run: (order[run.arm], run.seed))

    def num_superseded(self) -> int:
        """Recorded runs, however they ended, of a recipe or seed that the study no longer has."""
        return sum(not self._wants(run) for run in self.runs)

    def _wants(self, run: RecordedRun) -> bool:
        arms = {arm["name"]: arm for arm in self.document["arms"]}
        arm = arms.get(run.arm)
        return arm is not None and arm["recipe_id"] == run.recipe_id and run.seed in arm["seeds"]


def worth(run: RecordedRun) -> int:
    """Which of several records of one training says most: a result, else a failure, else what never ended."""
    return {"finished": 3, "diverged": 3, "failed": 2, "killed": 1}.get(run.outcome, 0)


@dataclass(frozen=True)
class Predictions:
    """Per-image outcomes of a study's finished runs on the test images, in the data set's canonical order."""

    fingerprints: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    """[images]."""
    predicted: npt.NDArray[np.int64]
    """[runs, images]."""
    loss: npt.NDArray[np.float16]
    """-log p(label) in nats, [runs, images]."""


def save_record(
    folder: Path,
    record: StudyRecord,
    *,
    curves: pd.DataFrame,
    environments: Mapping[str, Mapping[str, Any]],
    predictions: Predictions | None,
) -> None:
    """Write a compact record; raises OutputError, with what was there before, where the folder cannot be written."""
    with _replaced_whole(folder) as place:
        ledger = [asdict(entry) for entry in record.ledger]
        header = {"format": RECORD_FORMAT, "label": record.label, **record.document, "ledger": ledger}
        (place / "study.json").write_text(json.dumps(header, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        text = json.dumps(environments, indent=1, ensure_ascii=False)
        (place / "environments.json").write_text(text + "\n", encoding="utf-8")
        rows = [
            {
                **{name: getattr(run, name) for name in _COLUMNS},
                **{METRIC + key: run.metrics[key] for key in run.metrics},
            }
            for run in record.runs
        ]
        pd.DataFrame(rows).to_csv(place / "runs.csv", index=False)
        curves.to_csv(place / "curves.csv", index=False, float_format="%.6g")
        if predictions is not None:
            small = np.uint8 if predictions.labels.max(initial=0) < 256 else np.uint16
            np.savez_compressed(
                place / "predictions.npz",
                fingerprints=np.array(predictions.fingerprints),
                labels=predictions.labels.astype(small),
                predicted=predictions.predicted.astype(small),
                loss=predictions.loss,
            )


@contextmanager
def _replaced_whole(folder: Path) -> Iterator[Path]:
    """A place to write the files of a record in; left without an error, they take the places of what was there."""
    unfinished = folder / f".unfinished.{os.getpid()}"
    try:
        for left in folder.glob(".unfinished.*"):  # by an export that was killed
            shutil.rmtree(left)
        unfinished.mkdir(parents=True)
        yield unfinished
        (folder / "predictions.npz").unlink(missing_ok=True)
        for path in sorted(unfinished.iterdir()):
            path.replace(folder / path.name)
    except OSError as error:
        raise not_written(folder, error) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def load_record(folder: Path) -> StudyRecord:
    """Read a compact record; raises RecordError naming the file where it is missing or not readable."""
    study, runs = folder / "study.json", folder / "runs.csv"
    if not study.is_file():
        raise RecordError(f"{folder} holds no study.json; write a record with `cifar-ablate export STUDY {folder}`")
    try:
        document = json.loads(study.read_text(encoding="utf-8"))
        if document.pop("format") != RECORD_FORMAT:
            raise RecordError(
                f"{study} is of another format than this version reads ({RECORD_FORMAT}); export it again"
            )
        label = document.pop("label")
        ledger = [LedgerEntry(**entry) for entry in document.pop("ledger", ())]
        frame = _read_csv(runs)
        return StudyRecord(label, document, [_row(row) for row in frame.to_dict("records")], ledger)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"the record in {folder} cannot be read ({error}); export it again") from None


def find_records(folder: Path) -> list[StudyRecord]:
    """The record in a folder, or all records in the folders below it; raises RecordError where there is none."""
    if (folder / "study.json").is_file():
        return [load_record(folder)]
    found = [load_record(path.parent) for path in sorted(folder.rglob("study.json"))]
    return found or [load_record(folder)]


def _read_csv(path: Path) -> pd.DataFrame:
    """A table of the record; only an empty cell is missing, for an arm may be called None or NA."""
    return pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, na_values=[""])


def load_curves(folder: Path) -> pd.DataFrame:
    """Curves of a compact record: columns fingerprint, arm, seed, epoch and one per metric."""
    return _read_csv(folder / "curves.csv")


def load_predictions(folder: Path) -> Predictions:
    """Per-image predictions of a compact record; no object arrays, so nothing is unpickled."""
    try:
        with np.load(folder / "predictions.npz", allow_pickle=False) as arrays:
            names = tuple(str(name) for name in arrays["fingerprints"])
            return Predictions(names, arrays["labels"].astype(int), arrays["predicted"].astype(int), arrays["loss"])
    except (OSError, ValueError, KeyError) as error:
        raise RecordError(f"{folder / 'predictions.npz'} cannot be read ({error}); export the record again") from None


def _row(row: Mapping[Any, Any]) -> RecordedRun:
    text = {name: "" if pd.isna(row[name]) else str(row[name]) for name in _TEXT}
    metrics = {
        str(name).removeprefix(METRIC): float(value)
        for name, value in row.items()
        if str(name).startswith(METRIC) and not pd.isna(value)
    }
    return RecordedRun(**text, seed=int(row["seed"]), metrics=metrics)
