"""Load a network from a run, from MLflow's model registry or from a packaged folder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

import numpy as np
import yaml
from PIL import Image

from cifar_ablate.data import DataSet, load_data
from cifar_ablate.errors import AblateError, RecordError, UnknownNameError, UsageError
from cifar_ablate.portable.answers import calibrate, softmax
from cifar_ablate.predictor.card import (
    CARD,
    WEIGHTS,
    Accuracy,
    Card,
    Preprocessing,
    Provenance,
    SeedSpread,
    check_files,
    digest_of,
    read_card,
)
from cifar_ablate.predictor.network import Predictor
from cifar_ablate.process import temporary_folder
from cifar_ablate.record.folder import read_recipe
from cifar_ablate.record.mlflow_models import CHAMPION, fetch_network, find_registered, registered
from cifar_ablate.record.mlflow_store import Tracking, existing
from cifar_ablate.record.types import RecordedRun, StudyRecord, load_array, worth
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.text_safety import sanitize_values
from cifar_ablate.training.checkpoint import load_weights

LEVEL = 0.05
"""One minus the confidence level of the intervals."""
MIN_SEEDS = 3
"""Fewest seeds for an interval of their mean: with two it is too wide to be of use."""
NUM_EXAMPLES = 10
"""Most test images that a page offers as examples."""


@dataclass(frozen=True)
class NetworkFiles:
    """Everything from which a ``Predictor`` is built."""

    card: Card
    weights: Path
    """Weights in safetensors format."""


def load(
    model: str | Path | None = None, *, run: str | None = None, device: str = "cpu", tracking: Tracking | None = None
) -> Predictor:
    """Load a trained network as a callable for paths, arrays and PIL images.

    >>> predictor = load("onecycle@champion")   # registered by ``cifar-ablate promote``
    >>> predictor("frog.jpg").label
    'frog'

    Args:
        model: ``NAME@ALIAS`` or ``NAME/VERSION`` of MLflow's model registry, ``NAME`` for its champion, or a folder
            that ``cifar-ablate package`` wrote. None without ``run``: the only champion in the registry.
        run: An MLflow run id, instead of ``model``.
        device: Device of the network, such as ``cpu`` or ``cuda``.
        tracking: The tracking store; None: that of MLFLOW_TRACKING_URI, else of the current folder.

    Raises:
        UnknownNameError: No registered model, version or alias has this name.
        RecordError: The run has no weights, or a file is missing, damaged or altered.
        TrackingError: MLflow does not answer.
        UsageError: Both ``model`` and ``run`` are given, or neither and there is not exactly one champion.
    """
    with located(model, run=run, tracking=tracking) as found:
        return Predictor(found.card, found.weights, device=device)


@contextmanager
def located(
    model: str | Path | None = None,
    *,
    run: str | None = None,
    tracking: Tracking | None = None,
    with_verdicts: bool = False,
) -> Iterator[NetworkFiles]:
    """Find what ``load`` loads; downloaded files exist within the block only. Raises as ``load``.

    ``with_verdicts`` adds the study's verdicts to the card of a run, which takes about a second.
    """
    if model is not None and run is not None:
        raise UsageError("both a run and a model are given; name one of them")
    if model is not None and (isinstance(model, Path) or _is_folder(model)):
        yield _in_folder(Path(model))
        return
    tracking = tracking or existing()
    with temporary_folder() as place:
        if run is not None:
            record, recorded = _find_run(tracking, run)
            yield files_of_run(tracking, record, recorded, place, with_verdicts=with_verdicts)
        else:
            network = find_registered(tracking, str(model) if model is not None else _only_champion(tracking))
            yield _in_folder(fetch_network(tracking, network, place))


def _is_folder(model: str) -> bool:
    """Whether the name means a folder, which may be missing; no study has such a name."""
    return (
        (Path(model) / CARD).is_file() or model.startswith((".", "/", "~")) or ("/" in model and Path(model).exists())
    )


def _in_folder(folder: Path) -> NetworkFiles:
    card = read_card(folder)
    check_files(card, folder)
    return NetworkFiles(card, folder / WEIGHTS)


def _only_champion(tracking: Tracking) -> str:
    found = registered(tracking)
    champions = [name for name, aliases in found.items() if CHAMPION in aliases]
    if not champions and any(found.values()):
        listed = ", ".join(f"--model {name}@{alias}" for name, aliases in found.items() for alias in aliases)
        raise UsageError(f"no network has the alias {CHAMPION}; name one: {listed}")
    if not champions:
        raise UsageError("no network is promoted yet; run `cifar-ablate promote STUDY`, or name a run with --run ID")
    if len(champions) > 1:
        listed = ", ".join(f"--model {name}@{CHAMPION}" for name in champions)
        raise UsageError(f"{len(champions)} networks are promoted; name one: {listed}")
    return f"{champions[0]}@{CHAMPION}"


def _find_run(tracking: Tracking, run_id: str) -> tuple[StudyRecord, RecordedRun]:
    label = tracking.study_of(run_id)
    record = tracking.load(label)
    run = next((one for one in record.runs if one.run_id == run_id), None)
    if run is None:
        raise RecordError(f"run {run_id} of {label!r} is deleted; restore it in MLflow, or name another one")
    return record, run


def first_seed(record: StudyRecord, arm: str) -> RecordedRun:
    """The run of an arm's first seed, never that of the luckiest one; raises RecordError if it is missing."""
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
    """Return ``arm`` if the study has it; raise UnknownNameError otherwise."""
    known = [one["name"] for one in record.document["arms"]]
    if arm not in known:
        raise UnknownNameError(f"arm of {record.label}", arm, known)
    return arm


def files_of_run(
    tracking: Tracking,
    record: StudyRecord,
    run: RecordedRun,
    into: Path,
    *,
    chosen: str = "",
    by_test: bool = False,
    with_verdicts: bool = False,
) -> NetworkFiles:
    """Card and weights of a finished run.

    The card describes the recipe that was trained, even if the study's arm has changed since.

    Args:
        tracking: The store with the run's artifacts.
        record: The study.
        run: One of its runs.
        into: Folder for artifacts that have to be downloaded.
        chosen: How the run was chosen, in words.
        by_test: Whether it was chosen by its accuracy on the test images.
        with_verdicts: Whether the card includes the study's verdicts on the arm, which takes about a second.

    Raises:
        RecordError: The run has no usable weights, or its artifacts are damaged.
    """
    _require_finished(run)
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
            origin=Provenance(
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
            verdicts=_verdicts_on(record, run) if with_verdicts else [],
            sha256={WEIGHTS: digest_of(weights)},
        )
    except (KeyError, ValueError, TypeError):
        raise RecordError(f"the metadata of {weights} are incomplete; train run {run.run_id} again") from None
    return NetworkFiles(card, weights)


def _require_finished(run: RecordedRun) -> None:
    if run.outcome != "finished":
        why = f": {run.reason}" if run.reason else ""
        raise RecordError(
            f"run {run.run_id} ({run.arm} seed {run.seed}) has no weights because it is {run.outcome}{why}; "
            "name another one that has finished"
        )


def _verdicts_on(record: StudyRecord, run: RecordedRun) -> list[str]:
    """The report's sentences about a run's arm; none if the study has another recipe now."""
    from cifar_ablate.report.recorded_study import RecordedStudy

    current = record.current()
    if run.run_id not in (one.run_id for one in current):
        return []
    found = [one for family in RecordedStudy(record, current).compared.families.values() for one in family]
    return [one.sentence for one in found if run.arm in (one.arm, one.reference)]


def _accuracy(record: StudyRecord, run: RecordedRun, is_right: Any, chosen: str, by_test: bool) -> Accuracy:
    num, right = len(is_right), int(is_right.sum())
    low, high = wilson(right, num, alpha=LEVEL)
    return Accuracy(
        percent=100 * right / num,
        num_images=num,
        interval=(100 * low, 100 * high),
        over_seeds=_over_seeds(record, run),
        is_chosen_on_test=by_test,
        choice=chosen,
    )


def wilson(count: int, num: int, *, alpha: float) -> tuple[float, float]:
    """Interval of a proportion in [0, 1] (Wilson 1927)."""
    z, share = NormalDist().inv_cdf(1 - alpha / 2), count / num
    center = share + z**2 / (2 * num)
    half = z * math.sqrt(share * (1 - share) / num + (z / (2 * num)) ** 2)
    return (center - half) / (1 + z**2 / num), (center + half) / (1 + z**2 / num)


def _over_seeds(record: StudyRecord, run: RecordedRun) -> SeedSpread | None:
    """Test accuracy over the seeds of the run's own recipe; None with fewer than three, or if one diverged."""
    from scipy import special

    mine = [one for one in record.runs if (one.arm, one.recipe_id) == (run.arm, run.recipe_id)]
    by_seed = {one.seed: one for one in sorted(mine, key=worth)}  # the last, most complete record of each seed
    runs = [one for one in by_seed.values() if one.outcome in ("finished", "diverged")]
    values = [one.metrics["test_accuracy"] for one in runs if one.outcome == "finished"]
    # leaving out the diverged ones would make the mean optimistic
    if len(values) < MIN_SEEDS or len(values) < len(runs):
        return None
    mean, sd = fmean(values), stdev(values)
    half = float(special.stdtrit(len(values) - 1, 1 - LEVEL / 2)) * sd / math.sqrt(len(values))
    interval = (max(mean - half, 0.0), min(mean + half, 100.0))
    return SeedSpread(mean=mean, sd=sd, num_seeds=len(values), interval=interval)


class _Artifacts:
    """Reads the artifacts of one run, and downloads those that are not on this machine."""

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

    def _read(self, name: str, read: Callable[[Path], Any]) -> Any:
        path = self.path(name)
        try:
            return read(path)
        except (OSError, ValueError, TypeError, EOFError, RecursionError, yaml.YAMLError):
            run = self.run
            raise RecordError(
                f"artifact {name!r} of run {run.run_id} ({run.arm} seed {run.seed}) is damaged; delete the run in "
                "MLflow, and `cifar-ablate run` delivers or trains it again"
            ) from None


def test_images(card: Card, say: Callable[[str], None]) -> DataSet | None:
    """The data that the network was trained and tested on; None if they are not here, and ``say`` gets the reason."""
    try:
        recipe = Recipe.model_validate(card.origin.recipe)
        data = load_data(recipe.data.name, recipe.data.kwargs(), train_size=recipe.train_size)
    except (AblateError, ValueError) as error:
        say(f"without test images: {error}")
        return None
    if data.digest != card.origin.data_digest:
        say("without test images: the data here are not those that the network was trained on")
        return None
    return data


def write_examples(data: DataSet, folder: Path) -> list[Path]:
    """Write the first test image of each of the first ten classes as a PNG."""
    paths = []
    for label, name in list(enumerate(data.classes))[:NUM_EXAMPLES]:
        index = int(np.flatnonzero(data.test_labels == label)[0])
        file_name = "".join(letter if letter.isalnum() else "-" for letter in name)[:40]
        path = folder / f"{label}-{file_name}.png"
        Image.fromarray(np.ascontiguousarray(data.test_images[index].transpose(1, 2, 0))).save(path)
        paths.append(path)
    return paths
