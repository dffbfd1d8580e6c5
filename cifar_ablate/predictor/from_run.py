"""From a recorded run to its card and its weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from cifar_ablate.compact import load_array
from cifar_ablate.errors import RecordError, UnknownNameError
from cifar_ablate.folder import read_recipe
from cifar_ablate.predictor.card import WEIGHTS, Accuracy, Card, Origin, Preprocessing, Spread, digest_of
from cifar_ablate.predictor.portable.answers import calibrate, softmax
from cifar_ablate.records import RecordedRun, StudyRecord, worth
from cifar_ablate.text_safety import sanitize_values
from cifar_ablate.tracking import Tracking
from cifar_ablate.training.checkpoint import load_weights

LEVEL = 0.05
MIN_SEEDS = 3
"""An interval from two is so wide that it says nothing."""


@dataclass(frozen=True)
class Trained:
    """A network as its run left it."""

    card: Card
    weights: Path


def from_run(
    tracking: Tracking,
    record: StudyRecord,
    run: RecordedRun,
    into: Path,
    *,
    chosen: str = "",
    by_test: bool = False,
    with_verdicts: bool = False,
) -> Trained:
    """Card and weights of a finished run of a study; artifacts that are elsewhere come ``into`` a folder.

    ``chosen``: how it was chosen, in words; ``by_test``: because of its accuracy on the test images. ``with_verdicts``:
    with what the study's verdicts say of the arm, which takes a second. Everything is of the recipe that was trained,
    and not of what the study's arm of that name may be now.
    Raises RecordError where the run has no usable weights, or its artifacts are damaged.
    """
    if run.outcome != "finished":
        why = f": {run.reason}" if run.reason else ""
        raise RecordError(
            f"run {run.run_id} ({run.arm} seed {run.seed}) has no weights, for it is {run.outcome}{why}; "
            "name another one, that has finished"
        )
    artifacts = _Artifacts(tracking, run, into)
    weights = artifacts.path(WEIGHTS)
    _, metadata = load_weights(weights)
    environment, recipe = artifacts.json("environment.json"), artifacts.yaml("recipe.yaml")
    logits, labels = artifacts.array("test_logits.npy"), artifacts.array("test_labels.npy")
    try:
        preprocessing = json.loads(metadata["preprocessing"])
        card = Card(
            network=json.loads(metadata["model"]),
            classes=list(environment["classes"]),
            preprocessing=Preprocessing(**preprocessing, flip_averaging=bool(recipe.get("flip_averaging", False))),
            origin=Origin(
                study=record.label,
                arm=run.arm,
                seed=run.seed,
                run_id=run.run_id,
                fingerprint=metadata["fingerprint"],
                epochs=int(metadata["epoch"]),
                precision=tracking.tags_of(run.run_id)["ablate.precision"],
                data=str(environment["data"]),
                data_digest=str(environment["data_digest"]),
                recipe=recipe,
            ),
            accuracy=_accuracy(record, run, logits.argmax(1) == labels, chosen, by_test),
            usual=calibrate(softmax(logits)),
            question=str(record.document["question"]),
            verdicts=verdicts_on(record, run) if with_verdicts else [],
            sha256={WEIGHTS: digest_of(weights)},
        )
    except (KeyError, ValueError, TypeError):
        raise RecordError(f"{weights} does not say what it is; train run {run.run_id} again") from None
    return Trained(card, weights)


def find_run(tracking: Tracking, run_id: str) -> tuple[StudyRecord, RecordedRun]:
    """The study and the run of an MLflow run id; raises RecordError."""
    label = tracking.study_of(run_id)
    record = tracking.load(label)
    run = next((one for one in record.runs if one.run_id == run_id), None)
    if run is None:
        raise RecordError(f"run {run_id} of {label!r} is deleted; restore it in MLflow, or name another one")
    return record, run


def first_seed(record: StudyRecord, arm: str) -> RecordedRun:
    """The run of an arm's first seed: never the luckiest one. Raises RecordError where there is none."""
    document = next(one for one in record.document["arms"] if one["name"] == arm)
    seed = document["seeds"][0]
    found = next((run for run in record.current() if run.arm == arm and run.seed == seed), None)
    if found is None:
        raise RecordError(
            f"{record.label}, arm {arm!r}: its first seed ({seed}) is not trained yet, and another one is never taken "
            "in its place; run the study first"
        )
    return found


def arm_named(record: StudyRecord, arm: str) -> str:
    """The arm, if the study has it; raises UnknownNameError."""
    known = [one["name"] for one in record.document["arms"]]
    if arm not in known:
        raise UnknownNameError(f"arm of {record.label}", arm, known)
    return arm


def verdicts_on(record: StudyRecord, run: RecordedRun) -> list[str]:
    """The sentences of the report that are about a run's arm; none where the study has another recipe by now."""
    from cifar_ablate.report.accuracy import Study

    current = record.current()
    if run.run_id not in (one.run_id for one in current):
        return []
    found = [one for family in Study(record, current).compared.families.values() for one in family]
    return [one.sentence for one in found if run.arm in (one.arm, one.reference)]


def _accuracy(record: StudyRecord, run: RecordedRun, is_right: Any, chosen: str, by_test: bool) -> Accuracy:
    from statsmodels.stats.proportion import proportion_confint

    num, right = len(is_right), int(is_right.sum())
    low, high = proportion_confint(right, num, alpha=LEVEL, method="wilson")
    return Accuracy(
        percent=100 * right / num,
        num_images=num,
        interval=(100 * float(low), 100 * float(high)),
        over_seeds=_spread(record, run),
        is_chosen_on_test=by_test,
        choice=chosen,
    )


def _spread(record: StudyRecord, run: RecordedRun) -> Spread | None:
    """Over all seeds of the run's own recipe, where at least three have ended and none has diverged."""
    from scipy import stats

    mine = [one for one in record.runs if (one.arm, one.recipe_id) == (run.arm, run.recipe_id)]
    by_seed = {one.seed: one for one in sorted(mine, key=worth)}  # of several records of a seed, the one that says most
    runs = [one for one in by_seed.values() if one.outcome in ("finished", "diverged")]
    values = [one.metrics["test_accuracy"] for one in runs if one.outcome == "finished"]
    # without the diverged ones the mean would look better than it is
    if len(values) < MIN_SEEDS or len(values) < len(runs):
        return None
    mean, sd = fmean(values), stdev(values)
    half = float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1)) * sd / math.sqrt(len(values))
    return Spread(mean=mean, sd=sd, num_seeds=len(values), interval=(max(mean - half, 0.0), min(mean + half, 100.0)))


class _Artifacts:
    """Files of one run, read where they are, or downloaded."""

    def __init__(self, tracking: Tracking, run: RecordedRun, into: Path) -> None:
        self.tracking, self.run, self.into = tracking, run, into

    def path(self, name: str) -> Path:
        return self.tracking.artifact(self.run.run_id, name, self.into)

    def json(self, name: str) -> Any:
        return self._read(name, lambda path: dict(sanitize_values(json.loads(path.read_text(encoding="utf-8")))))

    def yaml(self, name: str) -> Any:
        return self._read(name, lambda path: sanitize_values(read_recipe(path)))

    def array(self, name: str) -> Any:
        return self._read(name, load_array)

    def _read(self, name: str, read: Any) -> Any:
        path = self.path(name)
        try:
            return read(path)
        except (OSError, ValueError, TypeError, EOFError, RecursionError, yaml.YAMLError):
            run = self.run
            raise RecordError(
                f"artifact {name!r} of run {run.run_id} ({run.arm} seed {run.seed}) is damaged; delete the run in "
                "MLflow, and `cifar-ablate run` delivers or trains it again"
            ) from None
