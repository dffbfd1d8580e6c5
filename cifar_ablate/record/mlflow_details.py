"""What a report needs besides metrics: curves, environments and predictions, from the runs' artifacts."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlparse

import numpy as np
import numpy.typing as npt

from cifar_ablate.errors import RecordError
from cifar_ablate.record.types import (
    CURVES,
    Predictions,
    RecordedRun,
    environment_of,
    load_array,
    predictions_from_logits,
)
from cifar_ablate.text_safety import sanitize_values

if TYPE_CHECKING:
    import pandas as pd

Part = TypeVar("Part")


class TrackedDetails:
    """Details of runs in MLflow. Artifacts on this machine's disk are read directly."""

    def __init__(
        self,
        curves: Callable[[str, Sequence[str]], Mapping[str, Sequence[tuple[int, float]]]],
        artifact: Callable[[str, str, Path], Path],
        places: Mapping[str, str],
    ) -> None:
        """``curves``: points of a run's metrics. ``artifact``: downloads one. ``places``: artifact locations by run."""
        self.curves_of, self.artifact_of = curves, artifact
        self.folders = {run_id: _folder(place) for run_id, place in places.items()}

    def curves(self, runs: Sequence[RecordedRun]) -> pd.DataFrame:
        """Columns fingerprint, arm, seed, epoch and one per metric; one row per run and epoch."""
        import pandas as pd

        lines = self._each(self._history, runs)
        whole = [(run, line) for run, of_run in zip(runs, lines, strict=True) for line in of_run]
        columns: dict[str, list[Any]] = {
            name: [getattr(run, name) for run, _ in whole] for name in ("fingerprint", "arm", "seed")
        }
        columns |= {name: [line.get(name) for _, line in whole] for name in ("epoch", *CURVES)}
        return pd.DataFrame(columns).astype(dict.fromkeys(CURVES, float))

    def environments(self, runs: Sequence[RecordedRun]) -> dict[str, dict[str, Any]]:
        """Where each run was trained, by fingerprint."""
        with tempfile.TemporaryDirectory() as folder:
            return {run.fingerprint: self._environment(run, Path(folder)) for run in runs}

    def predictions(self, runs: Sequence[RecordedRun]) -> Predictions | None:
        """Predictions of finished runs; None if there are none. Raises RecordError if their test images differ."""
        if not runs:
            return None
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            labels = self._array(runs[0], "test_labels.npy", folder)

            def read(run: RecordedRun) -> tuple[npt.NDArray[Any], ...]:
                if not np.array_equal(labels, self._array(run, "test_labels.npy", folder / run.run_id)):
                    raise RecordError(
                        f"{run.arm!r} was tested on other images than {runs[0].arm!r}, and a compact record holds the "
                        "predictions for one test set; split the study by data set"
                    )
                return predictions_from_logits(self._array(run, "test_logits.npy", folder / run.run_id), labels)

            parts = self._each(read, runs)
        predicted, loss, confidence = (np.stack(arrays) for arrays in zip(*parts, strict=True))
        return Predictions(tuple(run.fingerprint for run in runs), labels.astype(np.int64), predicted, loss, confidence)

    def _each(self, read: Callable[[RecordedRun], Part], runs: Sequence[RecordedRun]) -> list[Part]:
        """Read something of each run; with several threads from a server, where each request waits."""
        if all(self.folders.get(run.run_id) for run in runs):
            return [read(run) for run in runs]
        with ThreadPoolExecutor() as pool:
            return list(pool.map(read, runs))

    def _environment(self, run: RecordedRun, folder: Path) -> dict[str, Any]:
        path = self._artifact(run, "environment.json", folder)
        try:
            return environment_of(sanitize_values(json.loads(path.read_text(encoding="utf-8"))), "it")
        except (OSError, ValueError, TypeError, RecursionError):
            raise _damaged(run, "environment.json") from None

    def _history(self, run: RecordedRun) -> list[dict[str, float]]:
        """One dictionary per epoch, with the metrics that it has."""
        path = self._local(run, "history.csv")
        if path is not None:
            try:
                return _lines(path)
            except (OSError, ValueError, TypeError, csv.Error):  # cut off, or written by something else
                raise _damaged(run, "history.csv") from None
        lines: dict[int, dict[str, float]] = {}
        for name, points in self.curves_of(run.run_id, CURVES).items():
            for epoch, value in points:
                lines.setdefault(epoch, {"epoch": epoch})[name] = value
        return [lines[epoch] for epoch in sorted(lines)]

    def _array(self, run: RecordedRun, name: str, folder: Path) -> npt.NDArray[Any]:
        path = self._artifact(run, name, folder)
        try:
            return load_array(path)
        except (OSError, ValueError, EOFError):
            raise _damaged(run, name) from None

    def _artifact(self, run: RecordedRun, name: str, folder: Path) -> Path:
        local = self._local(run, name)
        if local is not None:
            return local
        folder.mkdir(exist_ok=True)
        return self.artifact_of(run.run_id, name, folder)

    def _local(self, run: RecordedRun, name: str) -> Path | None:
        """The artifact on this machine's disk: asking MLflow for it costs 10 ms."""
        folder = self.folders.get(run.run_id)
        return folder / name if folder is not None and (folder / name).is_file() else None


def _lines(path: Path) -> list[dict[str, float]]:
    wanted = {"epoch", *CURVES}
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {
                name: int(value) if name == "epoch" else float(value)
                for name, value in line.items()
                if name in wanted and value
            }
            for line in csv.DictReader(file)
        ]


def _folder(place: str) -> Path | None:
    """The folder of a location on this machine's disk; None for other locations."""
    parts = urlparse(place)
    if parts.scheme not in ("", "file") or not parts.path:
        return None
    return Path(unquote(parts.path) if parts.scheme else parts.path)


def _damaged(run: RecordedRun, name: str) -> RecordError:
    return RecordError(
        f"artifact {name!r} of run {run.run_id} ({run.arm} seed {run.seed}) is damaged; delete the run in MLflow, and "
        "`cifar-ablate run` delivers or trains it again"
    )
