"""One ``tune`` command: it asks for trials one by one, follows their trainings, and prunes them."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from cifar_ablate.errors import AblateError, OutputError, TakenError, TrackingError
from cifar_ablate.folder import RunFolder, read_progress
from cifar_ablate.plan import PlannedRun
from cifar_ablate.records import Key
from cifar_ablate.runner.events import Ended, Group
from cifar_ablate.runner.session import MAX_ALIKE, Session
from cifar_ablate.runner.stop import StopSignal
from cifar_ablate.tracking import MlflowWriter
from cifar_ablate.training.events import Started, Stepped
from cifar_ablate.tuning.display import TuningDisplay
from cifar_ablate.tuning.trials import ArmTrials, Asked

HEARTBEAT_SECONDS = 30.0


@dataclass
class ActiveTrial:
    """A trial under way, with its trainings."""

    trials: ArmTrials
    asked: Asked
    runs: list[PlannedRun]
    is_pruned: bool = False
    worker_died: bool = False
    is_over: bool = False
    """Optuna has its end; its other trainings must not start."""


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
        parents: Mapping[str, str],
        at_a_time: int = 1,
    ) -> None:
        """``parents``: MLflow run of each arm's tuning. ``at_a_time``: trials that take turns in one slot."""
        super().__init__(runs_root, writer, stop)
        self.arms, self.display, self.parents, self.at_a_time = arms, display, parents, at_a_time
        self.active: dict[Key, ActiveTrial] = {}
        self.reasons: list[str] = []
        """Reasons of the last trials in a row that could not be trained."""
        self.is_closed = threading.Event()
        threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True).start()

    def groups(self) -> Iterator[Group]:
        """Ask for trials as slots become free: each may depend on how the ones before ended."""
        for arm in self.arms:
            self.reasons.clear()
            while not self.stop(None):
                begun = [one for _ in range(self.at_a_time) if (one := self._begin(arm)) is not None]
                # seed by seed: trials that take turns are then at the same epoch
                runs = sorted((run for one in begun for run in one.runs), key=lambda run: (run.shape, run.seed))
                for _, of_a_shape in groupby(runs, key=lambda run: run.shape):
                    yield list(of_a_shape)
                if len(begun) < self.at_a_time:
                    break

    def on_note(self, text: str) -> None:
        self.display.on_note(text)

    def on_start(self, run: PlannedRun, folder: RunFolder, started: Started) -> None:
        active = self.active[run.key]
        self._replay(active, run, folder, started.epochs_done)
        self.display.on_start(active.trials.plan, active.asked, run, started.epochs_done)

    def on_step(self, run: PlannedRun, step: Stepped) -> None:
        active = self.active[run.key]
        self.display.on_step(active.trials.plan, active.asked, run, step)

    def on_epoch(self, run: PlannedRun, line: Mapping[str, Any]) -> None:
        self._report(self.active[run.key], run.seed, line["epoch"], line.get("val_accuracy"))

    def close(self) -> None:
        """No more events will come: give back the trials that did not end."""
        self.is_closed.set()
        for active in list(self.active.values()):
            if not active.is_over:
                active.is_over = True
                with suppress(AblateError):  # the storage is gone: the next command finds the trial anyway
                    active.trials.give_back(active.asked, self.stop.reason or "the command ended")

    def _begin(self, arm: ArmTrials) -> ActiveTrial | None:
        asked = arm.begin(partial(self.display.on_unfit, arm.plan))
        if asked is None:
            return None
        runs = arm.plan.runs(asked.recipe, asked.number, self.parents.get(arm.plan.identity, ""))
        every = arm.plan.recipe.eval_every if arm.plan.tune.pruner.name == "none" else 1
        runs = [_evaluating(run, every) for run in runs]
        active = ActiveTrial(arm, asked, runs)
        self.runs |= {run.key: run for run in runs}
        self.active |= {run.key: active for run in runs}
        self.display.on_trial(arm.plan, asked)
        return active

    def _replay(self, active: ActiveTrial, run: PlannedRun, folder: RunFolder, epochs_done: int) -> None:
        """Report the epochs of an earlier attempt under the trial's new number."""
        for line in folder.history()[:epochs_done]:
            self._report(active, run.seed, line["epoch"], line.get("val_accuracy"))

    def _report(self, active: ActiveTrial, seed: int, epoch: int, accuracy: float | None) -> None:
        is_last = epoch == active.asked.recipe.epochs and len(active.asked.finals) == len(active.runs) - 1
        if accuracy is None or not math.isfinite(accuracy) or active.is_over:
            return
        with self._telling(active):
            if active.trials.report(active.asked, seed, epoch, accuracy) and not (is_last or active.asked.is_present):
                active.is_pruned = True
                self._stop_trainings(active)

    def _stop_trainings(self, active: ActiveTrial) -> None:
        self.stop.pruned |= {run.key for run in active.runs}

    @contextmanager
    def _telling(self, active: ActiveTrial) -> Iterator[None]:
        """If Optuna cannot be told in the block, the trial is let go; it has not failed by itself.

        A trial that another command took over belongs to that command. If the storage does not answer or has no room,
        the command stops; the next one finds the trial without a process and resumes it.
        """
        try:
            yield
        except TakenError as error:
            active.is_over = True
            self._stop_trainings(active)
            self.display.on_ended(active.trials.plan, active.asked, str(error))
        except (TrackingError, OutputError) as error:
            active.is_over = False  # ``close`` tries to give it back
            self.stop.everything(str(error))

    def settle(self, run: PlannedRun, folder: RunFolder, reason: str) -> Ended:
        """A trial whose worker died is resumed once: the next one may have more memory."""
        active = self.active[run.key]
        is_second, active.worker_died = active.asked.worker_died, True
        return Ended("failed" if is_second else "stopped", reason)

    def on_end(self, run: PlannedRun, folder: RunFolder, ended: Ended) -> None:
        active, result = self.active[run.key], ended.result
        kind = result.status if ended.kind == "shared" and result is not None else ended.kind
        outcome = "pruned" if kind == "stopped" and active.is_pruned else "killed" if kind == "stopped" else kind
        self._note_cost(active, folder, ended)
        if result is not None or self.writer.has(run.key):
            outcome = outcome if outcome in ("finished", "diverged", "pruned", "killed") else "failed"
            self.writer.end(run, folder, outcome, ended.reason)
        if ended.kind == "shared":
            self._replay(active, run, folder, len(folder.history()))
        if not active.is_over:
            with self._telling(active):
                self._settle(active, run, outcome, folder, ended)
        if ended.halts:
            self.stop.everything(ended.reason)

    def _note_cost(self, active: ActiveTrial, folder: RunFolder, ended: Ended) -> None:
        """Add what a training took, also before it was resumed; a training shared with another trial costs nothing."""
        if ended.kind == "shared" and not active.asked.is_taken_up:
            return
        active.asked.epochs += len(folder.history())
        if ended.result is not None:
            active.asked.seconds += ended.result.train_seconds + ended.result.eval_seconds
        elif progress := read_progress(folder.checkpoint):  # it was stopped
            active.asked.seconds += progress["train_seconds"] + progress["eval_seconds"]

    def _settle(self, active: ActiveTrial, run: PlannedRun, outcome: str, folder: RunFolder, ended: Ended) -> None:
        """What the end of one training means for its trial."""
        trials, asked = active.trials, active.asked
        if outcome == "finished" and ended.result is not None:
            asked.finals[run.seed] = ended.result.metrics["val_accuracy"]
            if len(asked.finals) < len(active.runs):
                if not active.is_pruned:
                    return
                outcome = "pruned"  # too late for this seed, but in time for the others
        active.is_over = True
        self._stop_trainings(active)
        if outcome == "finished":
            value = trials.finish(asked)
            self.reasons.clear()
            self.display.on_finished(trials.plan, asked, value)
        elif outcome == "pruned":
            trials.prune(asked)
            folder.drop_checkpoints()
            self.reasons.clear()
            self.display.on_ended(trials.plan, asked, "pruned")
        elif outcome == "killed":
            trials.give_back(asked, ended.reason or self.stop.reason, worker_died=active.worker_died)
            self.display.on_ended(trials.plan, asked, "stopped, to be taken up again")
        else:
            trials.fail(asked, ended.reason, "diverged" if outcome == "diverged" else "failed")
            self.display.on_ended(trials.plan, asked, f"{outcome}: {ended.reason}")
            self._judge(trials, outcome, ended.reason)

    def _judge(self, trials: ArmTrials, outcome: str, reason: str) -> None:
        """Stop if no trial of this arm can be trained."""
        self.reasons = [] if outcome == "diverged" else [*self.reasons, reason.split(";", maxsplit=1)[0]]
        if len(self.reasons) >= MAX_ALIKE and len(set(self.reasons[-MAX_ALIKE:])) == 1:
            self.stop.everything(f"{MAX_ALIKE} trials of {trials.plan.arm} in a row ended alike: {reason}")

    def _keep_beating(self) -> None:
        while not self.is_closed.wait(HEARTBEAT_SECONDS):
            for active in {id(one): one for one in list(self.active.values())}.values():
                if not active.is_over:
                    with suppress(AblateError):  # the next heartbeat makes up for a missed one
                        active.trials.beat(active.asked)


def _evaluating(run: PlannedRun, every: int) -> PlannedRun:
    """The same training, evaluated as often as its pruner needs; that is not part of its fingerprint."""
    return replace(run, recipe=run.recipe.model_copy(update={"eval_every": every, "checkpoint_every": None}))
