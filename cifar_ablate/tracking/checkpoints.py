"""Checkpoints of unfinished runs in MLflow's artifact store, so that a machine without their folder can go on.

Two places take turns, and a tag that is written last says which one is whole; so an upload that is cut off costs
nothing. What a result has made useless is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cifar_ablate.errors import RecordError, not_written
from cifar_ablate.folder import MOVING, RunFolder, atomic
from cifar_ablate.text_safety import sanitize

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG = "ablate.checkpoint"
PLACES = ("checkpoint-a", "checkpoint-b")
"""Artifact folders, used in turn."""
HISTORY, CHECKPOINT = "history.jsonl", "checkpoint.safetensors"


@dataclass(frozen=True)
class Kept:
    """A checkpoint in the artifact store, with the history that it counts on."""

    place: str
    epochs: int
    steps: int
    """Of the epoch after these."""
    sha256: str
    """Of the checkpoint's file."""
    run_id: str = ""

    @property
    def progress(self) -> tuple[int, int]:
        """How far it is."""
        return self.epochs, self.steps

    def to_text(self) -> str:
        """The tag's value."""
        return json.dumps({name: value for name, value in asdict(self).items() if name != "run_id"})


def kept_from(tags: dict[str, str], run_id: str) -> Kept | None:
    """What a run's tags say; None where there is nothing, or nothing that can be read."""
    with suppress(ValueError, TypeError, KeyError):
        values = json.loads(tags[TAG])
        kept = Kept(str(values["place"]), int(values["epochs"]), int(values["steps"]), str(values["sha256"]), run_id)
        return kept if kept.place in PLACES else None
    return None


def upload(client: MlflowClient, run_id: str, folder: RunFolder, before: Kept | None) -> Kept | None:
    """Bring the newest checkpoint to the store, and give what is there now; ``before`` is what was there.

    Nothing is done where there is no checkpoint, or that one or one that is further is there already. Raises what
    MLflow and its artifact store raise.
    """
    if not folder.path.exists():
        return before
    with _as_it_is(folder) as (checkpoint, history):
        if checkpoint is None:
            return before
        progress, digest = _progress(checkpoint), _digest(checkpoint)
        if progress is None:  # damaged: no machine could go on from it
            return before
        if before is not None and (before.sha256 == digest or before.progress > progress):
            return before
        place = next(name for name in PLACES if before is None or name != before.place)
        for path in (history, checkpoint):
            client.log_artifact(run_id, str(path), place)
        kept = Kept(place, *progress, digest, run_id)
    client.set_tag(run_id, TAG, kept.to_text())
    return kept


def discard(client: MlflowClient, run_id: str) -> None:
    """The run has its result: remove what is kept of it. Stores that cannot remove files keep them."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with suppress(MlflowException):
        client.delete_tag(run_id, TAG)
    uri = client.get_run(run_id).info.artifact_uri
    for place in PLACES:
        with suppress(Exception):  # each kind of store raises what its own library raises
            store: Any = get_artifact_repository(uri)
            store.delete_artifacts(place)


def fetch(client: MlflowClient, kept: Kept, folder: RunFolder) -> None:
    """Write a kept checkpoint and its history into a run's folder; only for the process that holds its lock.

    Raises RecordError where what comes is not what was sent, OutputError where it cannot be written.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(folder.path, error) from None
    with TemporaryDirectory(dir=folder.path, prefix=MOVING) as place:
        try:
            found = Path(client.download_artifacts(kept.run_id, kept.place, place))
            history, checkpoint = (found / HISTORY).read_bytes(), found / CHECKPOINT
            if _digest(checkpoint) != kept.sha256:
                raise RecordError(f"the checkpoint that MLflow keeps of run {kept.run_id} was altered")
        except RecordError:
            raise
        except Exception as error:  # each kind of artifact store raises what its own library raises
            why = sanitize(str(error)).strip().split("\n", 1)[0][:300] or type(error).__name__
            raise RecordError(f"the checkpoint that MLflow keeps of run {kept.run_id} is not there ({why})") from None
        with atomic(folder.path / HISTORY) as temporary:
            temporary.write_bytes(history)
        with atomic(folder.checkpoint, before=folder.checkpoint_before) as temporary:
            checkpoint.replace(temporary)


@contextmanager
def _as_it_is(folder: RunFolder) -> Iterator[tuple[Path | None, Path]]:
    """Checkpoint and history as they are at this moment, whatever the training writes meanwhile."""
    with TemporaryDirectory(dir=folder.path, prefix=MOVING) as place:
        checkpoint, history = Path(place) / CHECKPOINT, Path(place) / HISTORY
        if folder.checkpoint.is_symlink() or (folder.path / HISTORY).is_symlink():  # nobody knows whose file it is
            yield None, history
            return
        try:
            _link(folder.checkpoint, checkpoint)
            shutil.copy(folder.path / HISTORY, history)  # after the checkpoint: it has all the lines that one needs
        except FileNotFoundError:  # none yet, or the run has just ended; or it was stopped in its first epoch
            if not checkpoint.exists():
                yield None, history
                return
            history.touch()
        yield checkpoint, history


def _progress(path: Path) -> tuple[int, int] | None:
    """Epochs and steps done, as the header of a checkpoint says (its format is that of safetensors); None: damaged."""
    with suppress(ValueError, KeyError, TypeError, OverflowError, MemoryError), path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        progress = json.loads(header["__metadata__"]["progress"])
        return int(progress["epochs"]), int(progress["steps"])
    return None


def _link(path: Path, to: Path) -> None:
    """The same file under another name: a new checkpoint takes the first name, and leaves this one as it is."""
    try:
        os.link(path, to)
    except FileNotFoundError:
        raise
    except OSError:  # not every file system has links
        shutil.copy(path, to)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
