"""From a table of runs to arms: the one place where the analysis looks at what it was given."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from numbers import Real

import pandas as pd

from cifar_ablate.errors import UsageError

COLUMNS = ("arm", "seed", "accuracy")


@dataclass(frozen=True)
class Arm:
    """An arm's runs: accuracy by seed of those that finished, and how many diverged."""

    name: str
    finished: pd.Series
    num_diverged: int

    @property
    def num(self) -> int:
        return len(self.finished)


def arms_of(frame: pd.DataFrame) -> dict[str, Arm]:
    """Arms by name, in the order in which they appear.

    Raises:
        UsageError: As for ``checked``.
    """
    frame = checked(frame)
    finished: dict[str, dict[Hashable, float]] = {}
    num_diverged: dict[str, int] = {}
    for name, seed, accuracy, status in zip(*(frame[one] for one in (*COLUMNS, "status")), strict=True):
        of_arm = finished.setdefault(str(name), {})
        if status == "finished":
            of_arm[seed] = float(accuracy)
        else:
            num_diverged[str(name)] = num_diverged.get(str(name), 0) + 1
    return {
        name: Arm(name, pd.Series(of_arm, dtype=float).sort_index(), num_diverged.get(name, 0))
        for name, of_arm in finished.items()
    }


def checked(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with a column ``status`` (finished where it had none).

    Raises:
        UsageError: A column is missing, or a run's arm, seed or accuracy; a run appears twice; a status is unknown.
    """
    for column in COLUMNS:
        if column not in frame:
            raise UsageError(f"compare needs a column {column!r}; this frame has {', '.join(map(str, frame.columns))}")
    for column in ("arm", "seed"):
        if (lacks := frame[column].isna()).any():
            raise UsageError(f"row {frame.index[lacks][0]} has no {column}; each run needs its arm and seed")
    if (twice := frame.duplicated(["arm", "seed"])).any():
        row = frame[twice].iloc[0]
        raise UsageError(f"arm {row['arm']!r} has seed {row['seed']} twice; give one row per run")
    frame = frame if "status" in frame else frame.assign(status="finished")
    if unknown := set(frame["status"]) - {"finished", "diverged"}:
        raise UsageError(
            f"status {sorted(map(str, unknown))[0]!r}: a run is finished or diverged; leave the others out"
        )
    finished = frame[frame["status"] == "finished"]
    for arm, seed, accuracy in zip(finished["arm"], finished["seed"], finished["accuracy"], strict=True):
        _check_accuracy(arm, seed, accuracy)
    return frame


def _check_accuracy(arm: Hashable, seed: Hashable, accuracy: object) -> None:
    if accuracy is None or (isinstance(accuracy, Real) and not math.isfinite(accuracy)):
        raise UsageError(f"arm {arm!r} seed {seed} is finished and has no accuracy")
    if not isinstance(accuracy, Real):
        raise UsageError(f"arm {arm!r} seed {seed} is finished and its accuracy is {accuracy!r}, not a number")
