"""The session of a ``tune`` command: it proposes trials one by one, follows their trainings, and prunes."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from cifar_ablate.errors import AblateError, OutputError, TakenError, TrackingError
from cifar_ablate.plan import PlannedRun
from cifar_ablate.record.folder import RunFolder, read_progress
from cifar_ablate.record.mlflow_writer import MlflowWriter
from cifar_ablate.record.types import Key
from cifar_ablate.runner.events import Ended, Group
from cifar_ablate.runner.session import MAX_ALIKE, Session
from cifar_ablate.runner.stop import StopSignal
from cifar_ablate.training.events import Started, Stepped
from cifar_ablate.tuning.display import TuningDisplay
from cifar_ablate.tuning.trials import ArmTrials, RunningTrial

HEARTBEAT_SECONDS = 30.0
"""Time between two heartbeats of a running trial, by which other machines know that its process is alive."""


class TuneSession(Session):
    """Trials of several arms, one arm after the other."""

    def __init__(
        self,
        arms: Sequence[ArmTrials],
        runs_root: Path,
        writer: MlflowWriter,
        display: TuningDisplay,
        stop: StopSignal,
        *,
        num_slices: int = 1,
    ) -> None:
        """``num_slices``: number of trials that take turns in one slot, and are proposed together."""
        super().__init__(runs_root, writer, stop)
        self.arms, self.display, self.num_slices = arms, display, num_slices
        self.trials: dict[Key, RunningTrial] = {}
        """The trial of each training."""
        self.reasons: list[str] = []
        """Reasons of the last trials in a row that could not be trained."""
        self.is_closed = threading.Event()
        threading.Thread(target=self._send_heartbeats, name="heartbeat", daemon=True).start()

    def groups(self) -> Iterator[Group]:
        """Propose trials as slots become free, so that each proposal uses all trials that have ended."""
        for arm in self.arms:
            self.reasons.clear()
            while not self.stop(None):
                begun = [one for _ in range(self.num_slices) if (one := self._begin(arm)) is not None]
                # seed by seed: trials that take turns are then at the same epoch
                runs = sorted((run for one in begun for run in one.runs), key=lambda run: (run.shape, run.seed))
                for _, of_a_shape in groupby(runs, key=lambda run: run.shape):
                    yield list(of_a_shape)
                if len(begun) < self.num_slices:
                    break

    def close(self) -> None:
        """No more events will come: give back the trials that did not end."""
        self.is_closed.set()
        for trial in list(self.trials.values()):
            if not trial.is_over:
                trial.is_over = True
                with suppress(AblateError):  # the storage is gone: the next command finds the trial anyway
                    trial.arm.give_back(trial, self.stop.reason or "the command ended")

    def on_note(self, text: str) -> None:
        self.display.on_note(text)

    def on_start(self, run: PlannedRun, folder: RunFolder, started: Started) -> None:
        trial = self.trials[run.key]
        self._replay(trial, run, folder, started.epochs_done)
        self.display.on_start(trial, run, started.epochs_done)

    def on_step(self, run: PlannedRun, step: Stepped) -> None:
        self.display.on_step(self.trials[run.key], run, step)

    def on_epoch(self, run: PlannedRun, line: Mapping[str, Any]) -> None:
        self._report(self.trials[run.key], run.seed, line["epoch"], line.get("val_accuracy"))

    def settle(self, run: PlannedRun, folder: RunFolder, reason: str) -> Ended:
        """A trial whose worker process died is resumed once: the next one may have more memory."""
        trial = self.trials[run.key]
        trial.has_lost_worker = True
        return Ended("failed" if trial.had_lost_worker else "stopped", reason)

    def on_end(self, run: PlannedRun, folder: RunFolder, ended: Ended) -> None:
        trial, result = self.trials[run.key], ended.result
        kind = result.status if ended.kind == "shared" and result is not None else ended.kind
        outcome = "pruned" if kind == "stopped" and trial.is_pruned else "killed" if kind == "stopped" else kind
        self._add_cost(trial, folder, ended)
        if result is not None or self.writer.has(run.key):
            if outcome not in ("finished", "diverged", "pruned", "killed"):
                outcome = "failed"
            self.writer.end(run, folder, outcome, ended.reason)
        if ended.kind == "shared":
            self._replay(trial, run, folder, len(folder.history()))
        if not trial.is_over:
            with self._telling(trial):
                self._settle_trial(trial, run, outcome, folder, ended)
        if ended.halts:
            self.stop.everything(ended.reason)

    def _begin(self, arm: ArmTrials) -> RunningTrial | None:
        trial = arm.begin(partial(self.display.on_invalid, arm.plan))
        if trial is not None:
            self.runs |= {run.key: run for run in trial.runs}
            self.trials |= {run.key: trial for run in trial.runs}
            self.display.on_trial(trial)
        return trial

    def _replay(self, trial: RunningTrial, run: PlannedRun, folder: RunFolder, epochs_done: int) -> None:
        """Report the epochs of an earlier attempt under the trial's new number."""
        for line in folder.history()[:epochs_done]:
            self._report(trial, run.seed, line["epoch"], line.get("val_accuracy"))

    def _report(self, trial: RunningTrial, seed: int, epoch: int, accuracy: float | None) -> None:
        is_last = epoch == trial.recipe.epochs and len(trial.finals) == len(trial.runs) - 1
        if accuracy is None or not math.isfinite(accuracy) or trial.is_over:
            return
        with self._telling(trial):
            if trial.arm.report(trial, seed, epoch, accuracy) and not (is_last or trial.is_untuned):
                trial.is_pruned = True
                self._stop_trainings(trial)

    def _stop_trainings(self, trial: RunningTrial) -> None:
        self.stop.pruned |= {run.key for run in trial.runs}

    @contextmanager
    def _telling(self, trial: RunningTrial) -> Iterator[None]:
        """Handle errors of the storage in the block: they are no failures of the trial.

        A trial that another command took over belongs to that command. If the storage does not answer or has no room,
        the command stops; the next one finds the trial without a process and resumes it.
        """
        try:
            yield
        except TakenError as error:
            trial.is_over = True
            self._stop_trainings(trial)
            self.display.on_incomplete(trial, str(error))
        except (TrackingError, OutputError) as error:
            trial.is_over = False  # ``close`` tries to give it back
            self.stop.everything(str(error))

    def _add_cost(self, trial: RunningTrial, folder: RunFolder, ended: Ended) -> None:
        """Add a training's cost, with that of earlier attempts; a training shared with another trial costs nothing."""
        if ended.kind == "shared" and not trial.is_resumed:
            return
        trial.epochs += len(folder.history())
        if ended.result is not None:
            trial.seconds += ended.result.train_seconds + ended.result.eval_seconds
        elif progress := read_progress(folder.checkpoint):  # it was stopped
            trial.seconds += progress["train_seconds"] + progress["eval_seconds"]

    def _settle_trial(
        self, trial: RunningTrial, run: PlannedRun, outcome: str, folder: RunFolder, ended: Ended
    ) -> None:
        """End the trial, unless other seeds of it are still to be trained."""
        if outcome == "finished" and ended.result is not None:
            trial.finals[run.seed] = ended.result.metrics["val_accuracy"]
            if len(trial.finals) < len(trial.runs):
                if not trial.is_pruned:
                    return
                outcome = "pruned"  # too late for this seed, but in time for the others
        trial.is_over = True
        self._stop_trainings(trial)
        if outcome == "finished":
            value = trial.arm.complete(trial)
            self.reasons.clear()
            self.display.on_complete(trial, value)
        elif outcome == "pruned":
            trial.arm.prune(trial)
            folder.drop_checkpoints()
            self.reasons.clear()
            self.display.on_incomplete(trial, "pruned")
        elif outcome == "killed":
            trial.arm.give_back(trial, ended.reason or self.stop.reason)
            self.display.on_incomplete(trial, "stopped, to be taken up again")
        else:
            trial.arm.fail(trial, ended.reason, "diverged" if outcome == "diverged" else "failed")
            self.display.on_incomplete(trial, f"{outcome}: {ended.reason}")
            self._stop_if_hopeless(trial, outcome, ended.reason)

    def _stop_if_hopeless(self, trial: RunningTrial, outcome: str, reason: str) -> None:
        """Stop if the last trials of this arm failed for one reason: the next would, too."""
        self.reasons = [] if outcome == "diverged" else [*self.reasons, reason.split(";", maxsplit=1)[0]]
        if len(self.reasons) >= MAX_ALIKE and len(set(self.reasons[-MAX_ALIKE:])) == 1:
            self.stop.everything(f"{MAX_ALIKE} trials of {trial.plan.arm} in a row ended alike: {reason}")

    def _send_heartbeats(self) -> None:
        while not self.is_closed.wait(HEARTBEAT_SECONDS):
            for trial in {id(one): one for one in list(self.trials.values())}.values():
                if not trial.is_over:
                    with suppress(AblateError):  # the next heartbeat makes up for a missed one
                        trial.arm.beat(trial)
