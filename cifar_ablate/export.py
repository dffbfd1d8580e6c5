"""From MLflow to a compact record that can be committed beside a report."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cifar_ablate.errors import OutputError, RecordError, TrackingError
from cifar_ablate.records import LedgerEntry, Predictions, RecordedRun, StudyRecord, save_record
from cifar_ablate.tracking import CURVES, Tracking


def export_study(tracking: Tracking, label: str, folder: Path) -> StudyRecord:
    """Write the compact record of a study's current runs; raises RecordError where none has a result.

    Runs that an edited study has superseded are left out.
    """
    record = tracking.load(label)
    runs = record.current()
    ended = [run for run in runs if run.outcome in ("finished", "diverged")]
    if not ended:
        raise RecordError(f"no run of {label!r} has ended yet, so there is nothing to export; run the study first")
    noted = _note(tracking, label, runs)
    current = StudyRecord(label, record.document, runs, [*record.ledger, *noted])
    finished = [run for run in ended if run.outcome == "finished"]
    save_record(
        folder,
        current,
        curves=_curves(tracking, ended),
        environments={run.fingerprint: _environment(tracking, run) for run in ended},
        predictions=_predictions(tracking, finished) if finished else None,
    )
    return current


def _note(tracking: Tracking, label: str, runs: list[RecordedRun]) -> list[LedgerEntry]:
    """Enter the export in the ledger, where the store can be written; gives what was entered."""
    with suppress(TrackingError, OutputError):
        noted = tracking.note(label, "export", "compact record", runs)
        return [noted] if noted else []
    return []


def _curves(tracking: Tracking, runs: list[RecordedRun]) -> pd.DataFrame:
    frames = []
    for run in runs:
        columns = {
            name: pd.Series(dict(points), dtype=float) for name, points in tracking.curves(run.run_id, CURVES).items()
        }
        frame = pd.DataFrame(columns).rename_axis("epoch").reset_index()
        frame.insert(0, "seed", run.seed)
        frame.insert(0, "arm", run.arm)
        frame.insert(0, "fingerprint", run.fingerprint)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _environment(tracking: Tracking, run: RecordedRun) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = tracking.artifact(run.run_id, "environment.json", Path(folder))
        return dict(json.loads(path.read_text(encoding="utf-8")))


def _predictions(tracking: Tracking, runs: list[RecordedRun]) -> Predictions:
    labels = _array(tracking, runs[0], "test_labels.npy")
    predicted, losses = [], []
    for run in runs:
        if not np.array_equal(labels, _array(tracking, run, "test_labels.npy")):
            raise RecordError(
                f"{run.arm!r} was tested on other images than {runs[0].arm!r}, and a compact record holds the "
                "predictions for one test set; split the study by data set"
            )
        scores = _array(tracking, run, "test_logits.npy").astype(np.float64)
        scores -= scores.max(1, keepdims=True)
        log_total = np.log(np.exp(scores).sum(1))
        losses.append((log_total - scores[np.arange(len(labels)), labels]).astype(np.float16))
        predicted.append(scores.argmax(1))
    return Predictions(tuple(run.fingerprint for run in runs), labels, np.stack(predicted), np.stack(losses))


def _array(tracking: Tracking, run: RecordedRun, name: str) -> npt.NDArray[Any]:
    with tempfile.TemporaryDirectory() as folder:
        array: npt.NDArray[Any] = np.load(tracking.artifact(run.run_id, name, Path(folder)), allow_pickle=False)
        return array
