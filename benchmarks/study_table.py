"""From the rounds of `study_time.py` to a table: medians, and ratios within each round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.contenders import OURS

Record = dict[str, Any]


def summary(rounds: Sequence[Record], model: str, contenders: Sequence[str], runs: int) -> list[Record]:
    """One row for each contender: medians, and ratios to ours within each round."""
    all_outcomes = [one["outcomes"] for one in rounds if one["model"] == model]
    ours = [outcomes[OURS]["study_seconds"] for outcomes in all_outcomes]
    rows = []
    for name in contenders:
        mine = [outcomes[name] for outcomes in all_outcomes]
        seconds = [one["study_seconds"] for one in mine]
        ratios = [theirs / our for theirs, our in zip(seconds, ours, strict=True)]
        rows.append(
            {
                "model": model,
                "contender": name,
                "study_seconds": statistics.median(seconds),
                "study_seconds_range": (min(seconds), max(seconds)),
                "runs_per_hour": 3600 * runs / statistics.median(seconds),
                "cold_seconds": statistics.median(one["cold_seconds"] for one in mine),
                "warm_images_per_second": statistics.median(
                    one["lanes"] / one["train_seconds_per_image"] for one in mine
                ),
                "ratio": statistics.median(ratios),
                "ratio_range": (min(ratios), max(ratios)),
                "mean_test_accuracy": statistics.fmean(value for one in mine for value in one["test_accuracy"]),
                "rounds": len(mine),
            }
        )
    return rows


def summaries(rounds: Sequence[Record], models: Sequence[str], contenders: Sequence[str], runs: int) -> list[Record]:
    """The rows of all models that have a round."""
    measured = {one["model"] for one in rounds}
    return [row for model in models if model in measured for row in summary(rounds, model, contenders, runs)]


def print_table(rows: Sequence[Record], how: str) -> None:
    """Markdown; `how` says whether the times of the whole study are measured or extrapolated."""
    print(
        f"| model | contender | study s, {how} (range) | runs/h | cold s | warm images/s | ratio to ours (range) "
        "| test % of what was trained | rounds |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        low, high = row["study_seconds_range"]
        least, greatest = row["ratio_range"]
        cells = (
            row["model"],
            row["contender"],
            f"{row['study_seconds']:.1f} ({low:.1f} to {high:.1f})",
            f"{row['runs_per_hour']:.1f}",
            f"{row['cold_seconds']:.1f}",
            f"{row['warm_images_per_second']:.0f}",
            f"{row['ratio']:.2f} ({least:.2f} to {greatest:.2f})",
            f"{row['mean_test_accuracy']:.2f}",
            row["rounds"],
        )
        print(f"| {' | '.join(map(str, cells))} |")
