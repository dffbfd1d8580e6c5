"""The record of a study, from MLflow or from a compact record."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # 0.3 s to import, which a worker process saves
    import pandas as pd

from cifar_ablate.process import ProcessId

Key = tuple[str, str, str]
"""Study, arm and fingerprint of a run."""
AGAINST_BASELINE = "against the baseline"
AGAINST_PARENT = "against the parent arm"
ABANDONED = "its process ended without a word"
"""Reason of a run that MLflow shows as RUNNING although no process trains it."""

HEADER_DAMAGES = (RecursionError, OverflowError, SyntaxError, TokenError)
"""Errors of Python's parser, which numpy uses for the header of an array."""
CURVES = ("train_loss", "running_accuracy", "test_accuracy", "test_nll", "lr", "images_per_second")
"""Metrics of an epoch."""


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """Identity of a run: its study, arm and training."""

    study: str
    """Label of the study's variant."""
    arm: str
    seed: int
    precision: str
    """Precision of the computation: fp32 or bf16."""
    recipe_id: str
    """Fingerprint without the seed, equal for all seeds of an arm."""
    fingerprint: str
    tags: tuple[tuple[str, str], ...] = ()
    """Additional tags of its MLflow run; a trial has those of its tuning."""

    @property
    def key(self) -> Key:
        """Key that is unique within one command."""
        return (self.study, self.arm, self.fingerprint)

    @property
    def name(self) -> str:
        """Study, arm and seed, for messages."""
        return f"{self.study} {self.arm} seed {self.seed}"


@dataclass(frozen=True)
class RecordedRun:
    """A recorded run; ``outcome`` is finished, diverged, failed, killed or running."""

    run_id: str
    arm: str
    seed: int
    fingerprint: str
    recipe_id: str
    outcome: str
    reason: str
    metrics: Mapping[str, float]
    owner: ProcessId | None = None
    """The process that trains it, as far as MLflow shows; a compact record does not keep it."""


@dataclass(frozen=True)
class LedgerEntry:
    """An event at which test accuracies were read, or a choice was made that they must not influence."""

    kind: str
    """margin: the margin was set; look: a look was taken; verdicts, plan, export: a command read test accuracies."""
    when: str
    """ISO 8601, UTC, to the second."""
    detail: str
    """The margin in points, or the seeds of the look; free text otherwise."""
    num_seeds: int
    """Seeds of the finished runs at that time."""
    num_runs: int
    """Finished runs at that time."""


MAX_SEED = 2**63 - 1
"""Maximum seed: tables of the analysis hold int64."""


def seed_of(value: Any) -> int:
    """A seed from a table or a tag; raises ValueError for other values."""
    is_whole = value.is_integer() if isinstance(value, float) else str(value).isdecimal()
    if not is_whole or len(str(value)) > 25 or not 0 <= int(value) <= MAX_SEED:
        raise ValueError(f"{value!r:.60} is no seed")
    return int(value)


def ledger_entry(values: Any) -> LedgerEntry:
    """A ledger entry from its stored values; raises TypeError for values that this program does not write."""
    entry = LedgerEntry(**values)
    texts, numbers = (entry.kind, entry.when, entry.detail), (entry.num_seeds, entry.num_runs)
    if not all(isinstance(one, str) for one in texts) or not all(isinstance(one, int) for one in numbers):
        raise TypeError("an entry of another kind in the ledger")
    return entry


class Details(Protocol):
    """Details of runs, which are large and read only when needed."""

    def curves(self, runs: Sequence[RecordedRun]) -> pd.DataFrame:
        """Columns fingerprint, arm, seed, epoch and one per metric; one row per run and epoch."""

    def environments(self, runs: Sequence[RecordedRun]) -> Mapping[str, Mapping[str, Any]]:
        """Environment of each run, by fingerprint."""

    def predictions(self, runs: Sequence[RecordedRun]) -> Predictions | None:
        """Predictions of finished runs, in this order; None for no runs. Raises RecordError if they cannot be read."""


@dataclass(frozen=True)
class StudyRecord:
    """A study's variant as last planned, and all runs ever recorded under its label."""

    label: str
    document: Mapping[str, Any]
    runs: Sequence[RecordedRun]
    details: Details
    ledger: Sequence[LedgerEntry] = ()
    """Entries, the oldest first."""

    def current(self) -> list[RecordedRun]:
        """Runs of the study as it is planned now, without those of recipes that were edited since.

        Of several records of one training, one with a result is preferred.
        """
        best: dict[tuple[str, int], RecordedRun] = {}
        wanted = self._wanted()
        for run in self.runs:
            if (run.arm, run.recipe_id, run.seed) in wanted:
                kept = best.get((run.arm, run.seed))
                if kept is None or worth(run) > worth(kept):
                    best[run.arm, run.seed] = run
        order = {arm["name"]: index for index, arm in enumerate(self.document["arms"])}
        return sorted(best.values(), key=lambda run: (order[run.arm], run.seed))

    def num_superseded(self) -> int:
        """Number of recorded runs of a recipe or seed that the study no longer has, whatever their outcome."""
        wanted = self._wanted()
        return sum((run.arm, run.recipe_id, run.seed) not in wanted for run in self.runs)

    def _wanted(self) -> set[tuple[str, str, int]]:
        """Arm, recipe and seed of each run that is planned now."""
        return {(arm["name"], arm["recipe_id"], seed) for arm in self.document["arms"] for seed in arm["seeds"]}


def is_fingerprint(text: Any) -> bool:
    """Whether a text has the form of a fingerprint, which is used in folder names and queries."""
    return isinstance(text, str) and re.fullmatch(r"[0-9a-zA-Z_-]{1,64}", text) is not None


_NUMBER = int | float
_KINDS: dict[str, Any] = {"study": str, "variant": str, "question": str, "baseline": str, "seeds": list, "arms": list}
_KINDS |= {"margin": _NUMBER, "published": dict}
_KINDS_OF_ARM: dict[str, Any] = {"name": str, "recipe_id": str, "seeds": list, "precision": str, "recipe": dict}
_KINDS_OF_ARM |= {"differs": list, "parent": str | None, "data": str, "data_digest": str}
_KINDS_OF_ENVIRONMENT: dict[str, Any] = {"git_commit": str | None, "device_kind": str, "threads": int, "classes": list}


def check_document(document: Any, where: str) -> None:
    """Raise ValueError naming a part of a study that is missing or has another type than this program writes."""
    if not isinstance(document, Mapping):
        raise ValueError(f"{where} is no study")
    _check_kinds(document, where, _KINDS)
    for arm in document["arms"]:
        _check_kinds(arm, f"an arm in {where}", _KINDS_OF_ARM)
        _check_kinds(arm["recipe"], f"the recipe of {arm['name']!r:.60} in {where}", {"epochs": int})
        _check_kinds({"eval_every": 0, **arm["recipe"]}, f"a recipe in {where}", {"eval_every": int})
    names = [arm["name"] for arm in document["arms"]]
    if len(set(names)) < len(names) or document["baseline"] not in names:
        raise ValueError(f"{where}: 'baseline' is none of its arms, or two arms have one name")
    for arm in document["arms"]:
        if arm["parent"] is not None and arm["parent"] not in names:
            raise ValueError(f"{where}: there is no arm {arm['parent']!r}")
    for seeds in (document["seeds"], document.get("looks") or [], *(arm["seeds"] for arm in document["arms"])):
        if not all(type(seed) is int and 0 <= seed <= MAX_SEED for seed in seeds):
            raise ValueError(f"{where}: 'seeds' or 'looks' are {seeds!r:.60}")
    for arm, figure in document["published"].items():
        _check_kinds(figure, f"what was published of {arm!r} in {where}", {"accuracy": _NUMBER, "note": str})


def environment_of(kept: Any, where: str) -> dict[str, Any]:
    """A run's environment from its stored values, some of which older records lack; raises ValueError for others."""
    if not isinstance(kept, Mapping):
        raise ValueError(f"{where} is {kept!r:.60}")
    _check_kinds(kept, where, {name: kind for name, kind in _KINDS_OF_ENVIRONMENT.items() if name in kept})
    if not all(isinstance(name, str) for name in kept.get("classes", ())):
        raise ValueError(f"{where}: 'classes' is {kept['classes']!r:.60}")
    return dict(kept)


def _check_kinds(part: Any, where: str, kinds: Mapping[str, Any]) -> None:
    if not isinstance(part, Mapping):
        raise ValueError(f"{where} is {part!r:.60}")
    for name, kind in kinds.items():
        if name not in part:
            raise ValueError(f"{where} has no {name!r}")
        if not isinstance(part[name], kind):
            raise ValueError(f"{where}: {name!r} is {part[name]!r:.60}")


def families_of(document: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The families of contrasts that a study declares: the reference of each arm, by the name of the family.

    One has every arm against the baseline, the other every arm against its parent, if that is another arm.
    """
    parents = {arm["name"]: arm["parent"] for arm in document["arms"] if arm["parent"] is not None}
    baseline = document["baseline"]
    found = {
        AGAINST_BASELINE: dict.fromkeys(parents, baseline),
        AGAINST_PARENT: {arm: parent for arm, parent in parents.items() if parent != baseline},
    }
    return {name: pairs for name, pairs in found.items() if pairs}


def frame_of(runs: Iterable[RecordedRun]) -> pd.DataFrame:
    """Runs with a result as a table: arm, seed, accuracy (percent; nan if diverged), status."""
    rows = [
        (
            run.arm,
            run.seed,
            run.metrics.get("test_accuracy", math.nan) if run.outcome == "finished" else math.nan,
            run.outcome,
        )
        for run in runs
    ]
    import pandas as pd

    frame = pd.DataFrame(rows, columns=["arm", "seed", "accuracy", "status"])
    return frame.astype({"seed": "int64", "accuracy": "float64"})


def worth(run: RecordedRun) -> int:
    """Rank of a record among several of one training: a result, then a failure, then a run that never ended."""
    return {"finished": 3, "diverged": 3, "failed": 2, "killed": 1}.get(run.outcome, 0)


@dataclass(frozen=True)
class Predictions:
    """Per-image predictions of a study's finished runs on the test images, in the data set's canonical order."""

    fingerprints: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    """Classes of the images [images]."""
    predicted: npt.NDArray[np.uint16]
    """Predicted classes [runs, images]."""
    loss: npt.NDArray[np.float16]
    """-log p(label) in nats, [runs, images]."""
    confidence: npt.NDArray[np.float16] | None
    """Probability of the predicted class in steps of 0.01, [runs, images]; None in records made before it was kept."""


def predictions_from_logits(
    logits: npt.NDArray[Any], labels: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """Predicted class, loss and confidence, each [images], of one run's logits [images, classes].

    Confidence is rounded to hundredths, and at least 0.01: enough for reliability, in half the bytes.
    """
    scores = np.ascontiguousarray(logits.T, dtype=np.float32)  # classes first: numpy is 3 times as fast over long rows
    highest = scores.max(0)
    predicted = (scores == highest).argmax(0).astype(np.uint16)  # argmax of booleans: twice as fast
    scores -= highest
    of_label = scores[labels, np.arange(len(labels))]
    total = np.exp(scores, out=scores).sum(0)
    return (
        predicted,
        (np.log(total) - of_label).astype(np.float16),
        np.maximum(np.round(1 / total, 2), 0.01).astype(np.float16),
    )


def load_array(path: Path) -> npt.NDArray[Any]:
    """The array in a .npy file, without unpickling; raises OSError, ValueError or EOFError for anything else."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            file.seek(0)
            array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    except MemoryError:
        raise ValueError("it says that it is larger than the memory") from None
    except HEADER_DAMAGES as error:
        raise ValueError(f"its header is damaged ({error!r:.60})") from None
    return array
