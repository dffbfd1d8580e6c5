"""What a report needs beside the runs' metrics: curves, environments and predictions, from the runs' artifacts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

import numpy as np
import numpy.typing as npt
import pandas as pd

from cifar_ablate.errors import RecordError
from cifar_ablate.records import CURVES, Predictions, RecordedRun, predictions_from_logits

if TYPE_CHECKING:
    from cifar_ablate.tracking.store import Tracking


class TrackedDetails:
    """Details of runs that MLflow holds. Artifacts on this machine's disk are read where they are."""

    def __init__(self, tracking: Tracking, places: Mapping[str, str]) -> None:
        self.tracking, self.places = tracking, places
        """Artifact location of each run, by its id."""

    def curves(self, runs: Sequence[RecordedRun]) -> pd.DataFrame:
        """Columns fingerprint, arm, seed, epoch and one per metric; one row per run and epoch."""
        frames = [self._curve(run) for run in runs]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["arm", "seed", "epoch"])

    def environments(self, runs: Sequence[RecordedRun]) -> dict[str, dict[str, Any]]:
        """Where each run was trained, by fingerprint."""
        with tempfile.TemporaryDirectory() as folder:
            return {
                run.fingerprint: json.loads(
                    self._artifact(run, "environment.json", Path(folder)).read_text(encoding="utf-8")
                )
                for run in runs
            }

    def predictions(self, runs: Sequence[RecordedRun]) -> Predictions | None:
        """Predictions of finished runs; None of none. Raises RecordError where they were tested on different images."""
        if not runs:
            return None
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            labels = self._array(runs[0], "test_labels.npy", folder)
            parts = []
            for run in runs:
                if not np.array_equal(labels, self._array(run, "test_labels.npy", folder)):
                    raise RecordError(
                        f"{run.arm!r} was tested on other images than {runs[0].arm!r}, and a compact record holds the "
                        "predictions for one test set; split the study by data set"
                    )
                parts.append(predictions_from_logits(self._array(run, "test_logits.npy", folder), labels))
        predicted, loss, confidence = (np.stack(arrays) for arrays in zip(*parts, strict=True))
        return Predictions(tuple(run.fingerprint for run in runs), labels.astype(np.int64), predicted, loss, confidence)

    def _curve(self, run: RecordedRun) -> pd.DataFrame:
        path = self._local(run, "history.csv")
        if path is not None:
            frame = pd.read_csv(path)
            frame = frame[["epoch", *(name for name in CURVES if name in frame)]]
        else:
            points = self.tracking.curves(run.run_id, CURVES)
            columns = {name: pd.Series(dict(of_metric), dtype=float) for name, of_metric in points.items()}
            frame = pd.DataFrame(columns).rename_axis("epoch").reset_index()
        for name in ("seed", "arm", "fingerprint"):
            frame.insert(0, name, getattr(run, name))
        return frame

    def _array(self, run: RecordedRun, name: str, folder: Path) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = np.load(self._artifact(run, name, folder), allow_pickle=False)
        return array

    def _artifact(self, run: RecordedRun, name: str, folder: Path) -> Path:
        return self._local(run, name) or self.tracking.artifact(run.run_id, name, folder)

    def _local(self, run: RecordedRun, name: str) -> Path | None:
        """The artifact on this machine's disk; asking MLflow for it costs 10 ms."""
        place = urlparse(self.places.get(run.run_id, ""))
        if place.scheme not in ("", "file") or not place.path:
            return None
        path = Path(unquote(place.path) if place.scheme else place.path) / name
        return path if path.is_file() else None
