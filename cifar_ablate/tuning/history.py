"""Every trial of a tuning as files: for MLflow, and to be committed beside a report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cifar_ablate.errors import not_written
from cifar_ablate.folder import write_atomically
from cifar_ablate.tuning.figures import draw_history, draw_importances
from cifar_ablate.tuning.result import ArmResult, as_csv


def write_history(results: Sequence[ArmResult], folder: Path) -> Path:
    """Write the trials and figures of each arm into a folder of its own in ``folder``; raises OutputError."""
    names: set[str] = set()
    for number, result in enumerate(results):
        name = re.sub(r"[^A-Za-z0-9]+", "-", result.plan.arm).strip("-").lower() or "arm"
        name = f"{name}-{number}" if name in names else name
        names.add(name)
        try:
            (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_written(folder / name, error) from None
        write_files(result, folder / name)
    return folder


def write_files(result: ArmResult, folder: Path) -> list[Path]:
    """trials.csv, history.png and, where something is known of it, importances.png; gives what was written."""
    written = [folder / "trials.csv"]
    write_atomically(written[0], as_csv(result))
    if result.num_tried:
        written.append(folder / "history.png")
        draw_history(result, written[-1])
    if result.importances:
        written.append(folder / "importances.png")
        draw_importances(result, written[-1])
    return written
