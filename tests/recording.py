"""The committed record of a real study, copied and edited, for reports of what is not as it should be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PILOT = Path(__file__).parent.parent / "reports" / "readme-augmentation-pilot" / "record"
ARMS = ("baseline", "mixup+affine", "+cutmix", "aggressive", "label-smoothing")


def edited_record(
    place: Path,
    runs: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table,
    document: Callable[[dict[str, Any]], object] = lambda content: None,
    *,
    with_predictions: bool = True,
) -> Path:
    """A copy of the pilot's record with its runs and its study edited; predictions follow the runs that are left."""
    folder = place / "record"
    shutil.copytree(PILOT, folder, dirs_exist_ok=True)
    table = runs(pd.read_csv(folder / "runs.csv", dtype={"reason": str}))
    table.to_csv(folder / "runs.csv", index=False)
    study = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    document(study)
    (folder / "study.json").write_text(json.dumps(study), encoding="utf-8")
    if not with_predictions:
        (folder / "predictions.npz").unlink()
    return folder


def keep_arms(*names: str) -> Callable[[dict[str, Any]], None]:
    """Edit of a study: only these arms are left."""

    def edit(study: dict[str, Any]) -> None:
        study["arms"] = [arm for arm in study["arms"] if arm["name"] in names]
        study["published"] = {name: value for name, value in study["published"].items() if name in names}

    return edit


def with_seeds(*seeds: int) -> Callable[[dict[str, Any]], None]:
    """Edit of a study: it plans these seeds."""

    def edit(study: dict[str, Any]) -> None:
        study["seeds"] = list(seeds)
        for arm in study["arms"]:
            arm["seeds"] = list(seeds)

    return edit


def diverged(table: pd.DataFrame, rows: pd.Series) -> pd.DataFrame:
    """These runs diverged."""
    table = table.copy()
    table.loc[rows, "outcome"] = "diverged"
    table.loc[rows, "reason"] = "the training loss was nan"
    table.loc[rows, "metric.test_accuracy"] = np.nan
    return table
