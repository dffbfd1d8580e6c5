"""Evidence beside the verdicts: classes, calibration, published figures, curves, more seeds, how to reproduce."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
from scipy import special

from cifar_ablate.analysis import Contrast
from cifar_ablate.analysis.images import Bin, reliability
from cifar_ablate.analysis.images import class_effects as class_effects_of
from cifar_ablate.analysis.power import half_widths, level_of_one
from cifar_ablate.analysis.sentences import count, points
from cifar_ablate.analysis.verdicts import Interval
from cifar_ablate.report.families import Families, used_seeds
from cifar_ablate.report.formatting import quoted, run_command
from cifar_ablate.report.recorded_study import RecordedStudy
from cifar_ablate.report.types import Calibration, ClassEffect, Curve, MeanSd, PublishedRow, Reproduce, WidthCurve
from cifar_ablate.spec.schema import Published

MAX_CLASSES = 100
"""With more classes no difference by class is computed."""
VERSIONED = ("cifar_ablate", "python", "torch", "torchvision", "timm", "numpy", "mlflow")
"""What of an environment is listed with its version."""


def class_effects(study: RecordedStudy, families: Families) -> tuple[ClassEffect, ...]:
    """Differences of every arm from the baseline by class; empty without predictions."""
    baseline = study.document["baseline"]
    if study.predictions is None or len(study.class_names) > MAX_CLASSES:
        return ()
    contrasts = [one.contrast for family in families.families[:1] for one in family.comparisons]
    references = {one.arm: baseline for one in contrasts if one.estimate is not None}
    correct = dict(study.correct)
    for one in contrasts:  # with looks: only the seeds of the arm's look
        used = used_seeds(study, one)
        correct[one.arm] = {seed: right for seed, right in study.correct.get(one.arm, {}).items() if seed in used}
    found = class_effects_of(correct, study.predictions.labels, references)
    return tuple(
        ClassEffect(
            row["arm"],
            baseline,
            study.class_name(row["label"]),
            row["estimate"],
            None if np.isnan(row["p"]) else row["p"],
            bool(row["is_shown"]),
        )
        for row in found.to_dict("records")
    )


def calibrations(study: RecordedStudy) -> tuple[Calibration, ...]:
    """Calibration of every arm that has finished runs."""
    found = []
    for arm in study.arms:
        nll, ece = study.mean_sd(arm, "test_nll"), study.mean_sd(arm, "test_ece")
        if nll is not None or ece is not None:
            found.append(Calibration(arm, nll, ece, _bins(study, arm)))
    return tuple(found)


def _bins(study: RecordedStudy, arm: str) -> tuple[Bin, ...]:
    predictions = study.predictions
    if predictions is None or predictions.confidence is None:
        return ()
    rows = [index for index, run in enumerate(study.finished) if run.arm == arm]
    right = predictions.predicted[rows] == predictions.labels
    return reliability(predictions.confidence[rows].astype(np.float64).ravel(), right.ravel())


def published_rows(study: RecordedStudy, spreads: Mapping[str, MeanSd | None]) -> tuple[PublishedRow, ...]:
    """Published figures and ours; those of a variant have other recipes."""
    why = "of a variant" if study.document["variant"] else "tuned" if study.tuned is not None else ""
    rows = []
    for arm, values in study.document["published"].items():
        published, measured = Published(**values), spreads.get(arm)
        mean_interval, run_interval = _t_intervals(measured)
        difference = None if measured is None else measured.mean - published.accuracy
        text = _published_text(arm, published, measured, run_interval, why)
        rows.append(
            PublishedRow(
                arm=arm,
                published=published,
                measured=measured,
                mean_interval=mean_interval,
                run_interval=run_interval,
                difference=difference,
                text=text,
            )
        )
    return tuple(rows)


def _t_intervals(measured: MeanSd | None) -> tuple[Interval | None, Interval | None]:
    """95% interval of the mean over seeds, and 95% prediction interval of one more run (Student's t)."""
    if measured is None or measured.sd is None:
        return None, None
    t = float(-special.stdtrit(measured.num - 1, 0.025))
    mean, run = (t * measured.sd * part**0.5 for part in (1 / measured.num, 1 + 1 / measured.num))
    return (measured.mean - mean, measured.mean + mean), (measured.mean - run, measured.mean + run)


def _published_text(arm: str, published: Published, measured: MeanSd | None, run: Interval | None, why: str) -> str:
    """``why``: the reason that recipes differ from the published ones; empty where they do not."""
    note = f" ({published.note})" if published.note else ""
    said = f"{arm}: {published.accuracy:g}% published{note}"
    if measured is None:
        return f"{said}; no finished run here."
    said += f", {measured.mean:.2f}% here over {measured.num} seeds"
    if why:
        return f"{said}, {why}: other recipes, so not a repetition."
    if run is None:
        return f"{said} ({points(measured.mean - published.accuracy)} points)."
    is_inside = run[0] <= published.accuracy <= run[1]
    where = "lies within" if is_inside else "lies outside"
    return (
        f"{said} ({points(measured.mean - published.accuracy)} points). The published figure {where} what one run of "
        f"ours would show 19 times in 20 ({run[0]:.2f} to {run[1]:.2f})."
    )


def curves(study: RecordedStudy) -> dict[str, dict[int, Curve]]:
    """Test accuracy by epoch of every run with a result."""
    found: dict[str, dict[int, Curve]] = {}
    if study.curves is None or not study.ended:
        return found
    table = study.curves.dropna(subset=["test_accuracy"])
    of_run: dict[str, list[tuple[int, float]]] = {}
    for fingerprint, epoch, value in zip(table["fingerprint"], table["epoch"], table["test_accuracy"], strict=True):
        of_run.setdefault(str(fingerprint), []).append((int(epoch), float(value)))
    for run in study.ended:
        found.setdefault(run.arm, {})[run.seed] = tuple(sorted(of_run.get(run.fingerprint, ())))
    return found


def width_curve(families: Families) -> WidthCurve | None:
    """Expected width of intervals against the baseline by number of seeds; None without an interval."""
    if not families.families:
        return None
    of_family = families.families[0].comparisons
    known = [one.contrast for one in of_family if _has_interval(one.contrast)]
    if not known:
        return None
    now = min(min(one.num_seeds, one.num_seeds_reference) for one in known)
    nums = _grid(now)
    images = [max(one.image - one.residual, 0.0) for one in (two.new_images for two in of_family) if one is not None]
    level = median(level_of_one(one) or 0.05 for one in known)
    floor = float(-special.ndtri(level / 2)) * median(images) ** 0.5 if images and median(images) > 0 else None
    return WidthCurve(tuple(nums), tuple(half_widths(known, nums)), floor, now)


def _has_interval(contrast: Contrast) -> bool:
    return contrast.ci95 is not None and not contrast.is_diverged


def _grid(now: int) -> Sequence[int]:
    """From 2 seeds to 4 times the present number, at least 20, in growing steps."""
    last = max(20, 4 * now)
    return sorted({*range(2, 21), *(round(float(num)) for num in np.geomspace(20, last, 8)), now} - {0, 1})


def classes_text(effects: Sequence[ClassEffect]) -> str:
    """Which per-class differences stand out, in a sentence."""
    if not effects:
        return "No per-class differences: they need per-image predictions and at least two shared seeds."
    shown = sorted((one for one in effects if one.is_shown), key=lambda one: -abs(one.estimate))
    family = f"{len(effects)} differences (arms times classes), Benjamini and Hochberg at 5%"
    if not shown:
        return f"No class stands out among {family}."
    named = "; ".join(f"{one.arm} on {one.class_name} {points(one.estimate)}" for one in shown[:6])
    more = f"; and {len(shown) - 6} more" if len(shown) > 6 else ""
    return f"{len(shown)} of {family}, stand out: {named}{more} points."


def reproduce(study: RecordedStudy, shared: RecordedStudy | None) -> Reproduce:
    """Commands, commits, versions and data; ``shared`` is the study that a tuned one is compared with."""
    document, environments = study.document, list(study.environments.values())
    commits = dict.fromkeys(
        f"{one['git_commit'][:12]}{' with changes' if one.get('git_dirty') else ''}"
        for one in environments
        if one.get("git_commit")
    )
    versions = dict.fromkeys(
        ", ".join(f"{name} {one[name]}" for name in VERSIONED if name in one)
        + f"; {one.get('device', 'unknown device')}, {count(one.get('threads', 1), 'thread')}"
        for one in environments
    )
    return Reproduce(
        commands=(
            *([] if shared is None else [run_command(shared.document)]),
            run_command(document),
            f"cifar-ablate report {quoted(study.record.label)}",
        ),
        commits=tuple(commits),
        versions=tuple(versions),
        data_digests=tuple(dict.fromkeys(arm["data_digest"] for arm in document["arms"])),
    )
