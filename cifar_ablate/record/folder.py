"""The run folder: a run writes here first, before anything reaches MLflow.

One folder per fingerprint, so two studies that contain the same training share it::

    mlruns/runs/<fingerprint>/
      recipe.yaml              the resolved recipe, as trained
      environment.json         versions, device, commit, data of the last attempt: what the fingerprint does not hold
      history.jsonl            one line per finished epoch
      checkpoint.safetensors   state to resume from; removed when the run ends
      checkpoint-before.safetensors   the one before, in case the newest is damaged
      result.json              how it ended: written last, completely or not at all
      test_logits.npy          float16 [images, classes], in the data set's canonical order
      test_labels.npy          int64 [images], the right classes in the same order
      weights.safetensors      weights of the last epoch (and weights-epoch-0010.safetensors, if requested)

Nothing here is a pickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from safetensors import SafetensorError, safe_open

from cifar_ablate.errors import RecordError, not_written
from cifar_ablate.locks import open_to_append
from cifar_ablate.spec.text import MAX_BYTES, MAX_NODES

RUNS_ROOT = Path("mlruns") / "runs"
"""Folder of the run folders, below the current folder."""
DESCRIBED = {"classes", "data", "data_digest", "device", "threads", "torch", "git_commit", "git_dirty"}
"""Keys that every environment.json has."""

Status = Literal["finished", "diverged", "failed"]


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    status: Status
    epochs: int
    """Epochs trained."""
    train_seconds: float
    """Wall time of the training epochs, without evaluation and writing."""
    eval_seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Headline metrics of the last epoch (accuracies in percent); empty unless finished."""
    reason: str = ""
    """Why a run diverged or failed, in one sentence."""


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of one run."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def checkpoint_before(self) -> Path:
        return self.path / "checkpoint-before.safetensors"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def logits(self) -> Path:
        return self.path / "test_logits.npy"

    @property
    def labels(self) -> Path:
        return self.path / "test_labels.npy"

    @property
    def fingerprint(self) -> str:
        return self.path.name

    def weights_of_epoch(self, epoch: int) -> Path:
        return self.path / f"weights-epoch-{epoch:04d}.safetensors"

    def create(self, recipe: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Create the folder and write what is known before training; only for the process that holds the lock.

        Raises OutputError if that is not possible.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_written(self.path, error) from None
        self.tidy()
        text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
        write_atomically(self.path / "recipe.yaml", text)
        self.describe(environment)

    def describe(self, environment: Mapping[str, Any]) -> None:
        """Write on what, and how, the current attempt trains."""
        write_atomically(self.path / "environment.json", json.dumps(environment, indent=1))

    def is_begun(self) -> bool:
        """Was a training prepared here?"""
        return (self.path / "environment.json").exists()

    def keeps_network(self) -> bool:
        """Does a finished run keep its network and predictions here? A trial keeps only its history."""
        return bool(self.environment().get("keeps_network", True))

    def tidy(self) -> None:
        """Remove unfinished files of a killed attempt; only for the process that holds the lock."""
        _remove(*self.path.glob(".?*.[0-9]*"))

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints: the run has its result."""
        _remove(self.checkpoint, self.checkpoint_before)

    def append_epoch(self, line: Mapping[str, Any]) -> None:
        """Add one epoch's line to the history."""
        path = self.path / "history.jsonl"
        try:
            with open_to_append(path) as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a checkpoint counts on the lines before it
        except OSError as error:
            raise not_written(path, error) from None

    def history(self) -> list[dict[str, Any]]:
        """Lines of the finished epochs, without a line that a crash cut short."""
        path = self.path / "history.jsonl"
        lines: list[dict[str, Any]] = []
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
            try:
                line = json.loads(text)
            except (ValueError, RecursionError):
                break
            if not isinstance(line, dict) or not {"epoch", "time_ms", "train_loss"} <= line.keys():
                break
            lines.append(line)
        return lines

    def keep_history(self, num_epochs: int) -> None:
        """Drop the lines after ``num_epochs``: they are trained again after a resume."""
        kept = [line for line in self.history() if line["epoch"] <= num_epochs]
        write_atomically(self.path / "history.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def environment(self) -> dict[str, Any]:
        """What ``describe`` wrote; raises RecordError if it is damaged."""
        path = self.path / "environment.json"
        values = _read_json(path)
        if not values.keys() >= DESCRIBED:
            raise damaged(path)
        return values

    def recipe(self) -> dict[str, Any]:
        path = self.path / "recipe.yaml"
        try:
            return read_recipe(path)
        except (OSError, ValueError, TypeError, yaml.YAMLError):
            raise damaged(path) from None

    def write_result(self, result: RunResult) -> None:
        """Write the result, and delete the checkpoints unless the run failed and may be tried again."""
        write_atomically(self.path / "result.json", json.dumps(asdict(result), indent=1))
        if result.status != "failed":
            self.drop_checkpoints()

    def result(self) -> RunResult | None:
        """How the run ended; None while it has not."""
        path = self.path / "result.json"
        if not path.exists():
            return None
        try:
            result = RunResult(**_read_json(path))
        except TypeError:
            raise damaged(path) from None
        if result.status not in ("finished", "diverged", "failed"):
            raise damaged(path)
        if result.status == "finished" and len(self.history()) != result.epochs:
            raise damaged(self.path / "history.jsonl")
        return result

    def artifacts(self) -> list[Path]:
        """Existing files that belong into the record; no links, which could lead to any file."""
        names = ("recipe.yaml", "environment.json", "history.csv", "confusion_matrix.png", "failure.txt")
        weights = sorted(self.path.glob("weights*.safetensors"))
        paths = [*(self.path / name for name in names), self.logits, self.labels, *weights]
        return [path for path in paths if path.is_file() and not path.is_symlink()]

    def clear_result(self) -> None:
        """Delete the result of an earlier attempt, before the run is tried again.

        Its checkpoint and the weights of epochs before it stay: those epochs are not trained again.
        """
        _remove(self.path / "result.json", self.path / "failure.txt", self.weights)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise damaged(path) from None
    if not isinstance(values, dict):
        raise damaged(path)
    return values


def read_progress(path: Path) -> dict[str, Any] | None:
    """The progress in a checkpoint's header: epochs, steps of the next one, seconds; None if there is none.

    The checkpoint is not verified.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            progress = dict(json.loads((file.metadata() or {})["progress"]))
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RecursionError):
        return None
    counts = (progress.get("epochs"), progress.get("steps"))
    seconds = (progress.get("train_seconds"), progress.get("eval_seconds"))
    is_ours = all(type(one) is int for one in counts) and all(isinstance(one, int | float) for one in seconds)
    return progress if is_ours else None


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe that was written here; raises OSError, ValueError, TypeError or YAMLError where it is none or a bomb."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("too large")
        recipe = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        left, num = [recipe], 0
        while left:
            one: Any = left.pop()
            num += 1
            left += one.values() if isinstance(one, dict) else one if isinstance(one, list | tuple | set) else ()
            if num + len(left) > MAX_NODES:
                raise ValueError("too large")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return recipe


def damaged(path: Path) -> RecordError:
    """The error for a damaged file of a run folder, with the cure."""
    return RecordError(f"{path} is damaged; remove the folder {path.parent}, and its command trains it again")


@contextmanager
def atomic(path: Path, *, before: Path | None = None) -> Iterator[Path]:
    """A temporary path that replaces ``path`` if the block succeeds, after it reached the disk.

    The old file is kept as ``before``, if given. Raises OutputError, with nothing changed, if the place cannot be
    written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _make_new(temporary)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if before is not None and path.exists():
            path.replace(before)  # killed between the two renames, ``before`` is the newest one
        temporary.replace(path)
        _sync_names(path.parent)
    except OSError as error:
        raise not_written(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _make_new(path: Path) -> None:
    """Create an empty file; never follow a link that lies in its place."""
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


def _remove(*paths: Path) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise not_written(path, error) from None


def _sync_names(folder: Path) -> None:
    """Let renames reach the disk, so that they survive a power cut; not every system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """Write text completely or not at all; raises OutputError if the place cannot be written."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
