"""The compact record of a study: a folder of plain files to commit, under 500 kB for 25 runs of CIFAR-10::

    study.json        the study as planned: question, arms with their whole recipes, seeds, published figures, ledger
    runs.csv          one row per run: arm, seed, outcome, headline metrics
    environments.json versions, device, commit and data of each run, by fingerprint
    curves.csv        one row per run and epoch
    predictions.npz   fingerprints [runs], labels [images]; predicted, loss (nats) and confidence [runs, images]

Losses of wrong predictions are kept in steps of 0.05 nats; those of right ones are -log(confidence), and 0 in the file.
Nothing in it is pickled.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cifar_ablate.errors import RecordError, not_written
from cifar_ablate.record.types import (
    CURVES,
    HEADER_DAMAGES,
    Predictions,
    RecordedRun,
    StudyRecord,
    check_document,
    environment_of,
    ledger_entry,
    seed_of,
)
from cifar_ablate.text_safety import escape_csv_formula, sanitize, sanitize_values, unescape_csv_formula

if TYPE_CHECKING:  # pandas takes 0.3 s to import, which a worker process saves
    import pandas as pd

    from cifar_ablate.record.mlflow_store import Tracking

RECORD_FORMAT = 1
MAX_PREDICTION_BYTES = 1 << 30
"""Maximum size of unpacked predictions; those of a thousand runs on 10,000 images take 50 MB."""
_DAMAGES = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
"""Errors of an archive that is damaged, has a password, or is packed by an unknown method."""
METRIC = "metric."
"""Prefix of the columns of metrics in runs.csv, so that other columns can be added."""
_TEXT = ("run_id", "arm", "fingerprint", "recipe_id", "outcome", "reason")
_COLUMNS = ("arm", "seed", "outcome", "reason", "fingerprint", "recipe_id", "run_id")


def save_record(
    folder: Path,
    record: StudyRecord,
    *,
    curves: pd.DataFrame,
    environments: Mapping[str, Mapping[str, Any]],
    predictions: Predictions | None,
) -> None:
    """Write a compact record; raises OutputError, and leaves the folder as it was, if the folder cannot be written."""
    import pandas as pd

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
        pd.DataFrame(rows).map(escape_csv_formula).to_csv(place / "runs.csv", index=False)
        curves.assign(arm=curves["arm"].map(escape_csv_formula)).to_csv(
            place / "curves.csv", index=False, float_format="%.6g"
        )
        if predictions is not None:
            small = np.uint8 if predictions.labels.max(initial=0) < 256 else np.uint16
            arrays: dict[str, Any] = {
                "fingerprints": np.array(predictions.fingerprints),
                "labels": predictions.labels.astype(small),
                "predicted": predictions.predicted.astype(small),
                "loss": _lighter_loss(predictions),
            }
            if predictions.confidence is not None:
                arrays["confidence"] = predictions.confidence
            write_arrays(place / "predictions.npz", arrays)


def _lighter_loss(predictions: Predictions) -> npt.NDArray[np.float16]:
    """What confidences do not say: losses of wrong predictions, in steps that compress."""
    if predictions.confidence is None:
        return predictions.loss
    is_right = predictions.predicted == predictions.labels
    loss: npt.NDArray[np.float16] = np.where(is_right, 0, np.round(20 * predictions.loss.astype(float)) / 20)
    return loss.astype(np.float16)


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """An .npz file packed by bzip2, all runs of an image side by side: the smallest that `numpy.load` reads."""
    with zipfile.ZipFile(path, "w") as file:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, np.asfortranarray(array), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_BZIP2)


@contextmanager
def _replaced_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder for the files of a record; they replace the earlier ones if the block raises nothing."""
    unfinished = folder / f".unfinished.{os.getpid()}"
    try:
        for left in folder.glob(".unfinished.*"):  # of an export that was killed
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
    """Read a compact record; raises RecordError with the file's name if one is missing or unreadable."""
    study, runs = folder / "study.json", folder / "runs.csv"
    if not study.is_file():
        raise RecordError(f"{folder} holds no study.json; write a record with `cifar-ablate export STUDY {folder}`")
    try:
        document = sanitize_values(json.loads(study.read_text(encoding="utf-8")))
        if not isinstance(document, dict):
            raise ValueError("study.json is no study")
        if document.pop("format") != RECORD_FORMAT:
            raise RecordError(
                f"{study} is of another format than this version reads ({RECORD_FORMAT}); export it again"
            )
        label = str(document.pop("label"))
        ledger = [ledger_entry(entry) for entry in document.pop("ledger", ())]
        check_document(document, "study.json")
        rows = [_row(row) for row in _read_csv(runs).to_dict("records")]
        return StudyRecord(label, document, rows, FolderDetails(folder), ledger)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise RecordError(f"the record in {folder} cannot be read ({error}); export it again") from None


def find_records(folder: Path) -> list[StudyRecord]:
    """The record in a folder, or all records in the folders below it; raises RecordError if there is none."""
    if (folder / "study.json").is_file():
        return [load_record(folder)]
    found = [load_record(path.parent) for path in sorted(folder.rglob("study.json"))]
    return found or [load_record(folder)]


def _read_csv(path: Path) -> pd.DataFrame:
    """A table of the record. Only an empty cell is a missing value, because an arm may be called None or NA."""
    import pandas as pd

    table = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, na_values=[""])
    for name in (name for name in _TEXT if name in table):
        table[name] = table[name].map(lambda text: sanitize(unescape_csv_formula(text)), na_action="ignore")
    return table


def load_curves(folder: Path) -> pd.DataFrame:
    """Curves of a compact record: columns fingerprint, arm, seed, epoch and one per metric."""
    return _read_csv(folder / "curves.csv")


def load_predictions(folder: Path) -> Predictions:
    """Per-image predictions of a compact record. Object arrays are refused, so nothing is unpickled."""
    try:
        # numpy does not close a damaged file that it opens itself
        with (folder / "predictions.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if not isinstance(arrays, np.lib.npyio.NpzFile) or _unpacked_bytes(arrays) > MAX_PREDICTION_BYTES:
                raise ValueError(f"it is no archive of arrays, or unpacks to over {MAX_PREDICTION_BYTES >> 20:,} MiB")
            names = tuple(str(name) for name in arrays["fingerprints"])
            labels, predicted = arrays["labels"].astype(np.int64), arrays["predicted"].astype(np.uint16)
            loss, confidence = arrays["loss"], arrays.get("confidence")
            if confidence is not None:
                is_left_out = (predicted == labels) & (loss == 0)
                loss = np.where(is_left_out, -np.log(np.maximum(confidence, 0.01)), loss).astype(np.float16)
            return Predictions(names, labels, predicted, loss, confidence)
    except (OSError, ValueError, KeyError, EOFError, MemoryError, *_DAMAGES, *HEADER_DAMAGES) as error:
        raise RecordError(f"predictions.npz cannot be read ({_why(error)}); export the record again") from None


def _unpacked_bytes(arrays: np.lib.npyio.NpzFile) -> int:
    return sum(one.file_size for one in arrays.zip.infolist()) if arrays.zip is not None else 0


@dataclass(frozen=True)
class FolderDetails:
    """Details of the runs of a compact record, read from its files when asked for."""

    folder: Path

    def curves(self, runs: Sequence[RecordedRun]) -> pd.DataFrame:
        """Curves of these runs, from curves.csv."""
        try:
            curves = load_curves(self.folder)
            curves = curves.astype({name: float for name in CURVES if name in curves})
        except (OSError, ValueError) as error:
            raise RecordError(f"curves.csv cannot be read ({_why(error)}); export the record again") from None
        return curves[curves["fingerprint"].isin([run.fingerprint for run in runs])]

    def environments(self, runs: Sequence[RecordedRun]) -> dict[str, dict[str, Any]]:
        """Environments of these runs by fingerprint, from environments.json."""
        path = self.folder / "environments.json"
        try:
            kept = sanitize_values(json.loads(path.read_text(encoding="utf-8")))
            return {run.fingerprint: environment_of(kept[run.fingerprint], "an environment") for run in runs}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise RecordError(f"{path} cannot be read ({error!r}); export the record again") from None

    def predictions(self, runs: Sequence[RecordedRun]) -> Predictions | None:
        """Predictions of these runs in their order, from predictions.npz; None for no runs."""
        if not runs:
            return None
        kept = load_predictions(self.folder)
        row = {fingerprint: index for index, fingerprint in enumerate(kept.fingerprints)}
        if missing := [run for run in runs if run.fingerprint not in row]:
            raise RecordError(f"{self.folder} lacks the predictions of {missing[0].arm} seed {missing[0].seed}")
        order = [row[run.fingerprint] for run in runs]
        return Predictions(
            tuple(run.fingerprint for run in runs),
            kept.labels,
            kept.predicted[order],
            kept.loss[order],
            None if kept.confidence is None else kept.confidence[order],
        )


def _why(error: Exception) -> str:
    """The message without a path, so that a report does not depend on where the record is."""
    return getattr(error, "strerror", None) or str(error)


def _row(row: Mapping[Any, Any]) -> RecordedRun:
    import pandas as pd

    text = {name: "" if pd.isna(row[name]) else str(row[name]) for name in _TEXT}
    metrics = {
        str(name).removeprefix(METRIC): float(value)
        for name, value in row.items()
        if str(name).startswith(METRIC) and not pd.isna(value)
    }
    try:
        seed = seed_of(row["seed"])
    except ValueError as error:
        raise ValueError(f"runs.csv: {error}, of {text['arm']!r:.60}") from None
    if text["outcome"] == "finished" and not math.isfinite(metrics.get("test_accuracy", math.nan)):
        raise ValueError(f"runs.csv: {text['arm']} seed {seed} finished and has no test_accuracy")
    return RecordedRun(seed=seed, metrics=metrics, owner=None, **text)


def export_study(tracking: Tracking, label: str, folder: Path) -> StudyRecord:
    """Write the compact record of a study's current runs; raises RecordError if none has a result.

    Runs that an edited study has superseded are left out.
    """
    from cifar_ablate.record.mlflow_store import noted

    record = tracking.load(label)
    runs = record.current()
    ended = [run for run in runs if run.outcome in ("finished", "diverged")]
    if not ended:
        raise RecordError(f"no run of {label!r} has ended yet, so there is nothing to export; run the study first")
    current = replace(noted(tracking, record, "export", "compact record"), runs=runs)
    details = record.details
    save_record(
        folder,
        current,
        curves=details.curves(ended),
        environments=details.environments(ended),
        predictions=details.predictions([run for run in ended if run.outcome == "finished"]),
    )
    return current
