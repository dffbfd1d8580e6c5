"""Accuracies for the tests of the analysis: one study that two libraries were asked about, and small ones by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

WORKED: Mapping[str, Sequence[float]] = {
    "base": (94.02, 93.81, 94.11, 93.90, 94.06),
    "mixup": (94.41, 94.20, 94.37, 94.15, 94.52),
    "cutmix": (94.55, 94.49, 94.80, 94.38, 94.61),
    "aggr": (93.60, 94.05, 93.42, 93.88, 93.71),
    "ls": (94.05, 93.99, 94.02, 94.08, 93.95),
}
"""Percent, seeds 0 to 4: the worked example of docs/statistics.md."""

DIVERGED = math.nan
"""In place of an accuracy."""


def runs(arms: Mapping[str, Sequence[float | None]]) -> pd.DataFrame:
    """One row per run, seeds from 0; None is a run that is not there."""
    rows = [
        {"arm": arm, "seed": seed, "accuracy": one, "status": "diverged" if math.isnan(one) else "finished"}
        for arm, of_arm in arms.items()
        for seed, one in enumerate(of_arm)
        if one is not None
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "accuracy", "status"])
