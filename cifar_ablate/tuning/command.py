"""One ``tune`` command, seen from its trials: it asks for them one by one, hears how they fare, and prunes them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

from cifar_ablate.errors import AblateError, OutputError, TakenError, TrackingError
from cifar_ablate.folder import RunFolder
from cifar_ablate.plan import PlannedRun
from cifar_ablate.records import Key
from cifar_ablate.runner.messages import Channel, Ended, EpochEnded, Group, Lost, Message, Noted, Started, Stepped
from cifar_ablate.runner.stopping import Stops
from cifar_ablate.tracking import Courier
from cifar_ablate.training.checkpoint import read_progress
from cifar_ablate.tuning.events import TuningEvents
from cifar_ablate.tuning.trials import ArmTrials, Asked

HEARTBEAT_SECONDS = 30.0
ALIKE = 3
"""So many trials of an arm in a row that cannot be trained, for one reason: the others would not, either."""


@dataclass
class Active:
    """A trial under way, with its trainings."""

    trials: ArmTrials
    asked: Asked
    runs: list[PlannedRun]
    is_pruned: bool = False
    worker_died: bool = False
    is_over: bool = False
    """Told to Optuna; what is left of its trainings is not begun."""


class TuneCommand(Channel):
    """Trials of several arms, one arm after the other; a channel that executors talk to."""

    def __init__(
        self,
        arms: Sequence[ArmTrials],
        runs_root: Path,
        courier: Courier,
        events: TuningEvents,
        stops: Stops,
        *,
        parents: Mapping[str, str],
        at_a_time: int = 1,
        bring: Callable[[Sequence[PlannedRun]], None] = lambda runs: None,
    ) -> None:
        """``parents``: MLflow's run of each arm's tuning. ``at_a_time``: trials that take turns in one place.

        ``bring``: fetches what another machine may have left of the trainings of a trial that is taken up.
        """
        self.arms, self.runs_root, self.courier = arms, runs_root, courier
        self.events, self.stops, self.parents, self.at_a_time, self.bring = events, stops, parents, at_a_time, bring
        self.active: dict[Key, Active] = {}
        self.reasons: list[str] = []
        """Of the last trials, as long as they could not be trained."""
        self.is_closed = threading.Event()
        threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True).start()

    def groups(self) -> Iterator[Group]:
        """Trials as they are asked for: each may depend on how the ones before it ended."""
        for arm in self.arms:
            self.reasons.clear()
            while not self.should_stop():
                begun = [one for _ in range(self.at_a_time) if (one := self._begin(arm)) is not None]
                # seed by seed: where they take turns, those are at one epoch of several trials, not of one trial
                runs = sorted((run for one in begun for run in one.runs), key=lambda run: (run.shape, run.seed))
                for _, of_a_shape in groupby(runs, key=lambda run: run.shape):
                    yield list(of_a_shape)
                if len(begun) < self.at_a_time:
                    break

    def should_stop(self, key: Key | None = None) -> bool:
        active = None if key is None else self.active.get(key)
        return self.stops.should_stop(key) or (active is not None and (active.is_pruned or active.is_over))

    def tell(self, message: Message) -> None:
        if isinstance(message, Noted):
            self.events.on_note(message.text)
            return
        active = self.active[message.key]
        run = next(run for run in active.runs if run.key == message.key)
        folder = RunFolder(self.runs_root / run.fingerprint)
        if isinstance(message, Started):
            self.courier.begin(run, folder)
            self._replay(active, run, folder, message.epochs_done)
            self.events.on_start(active.trials.plan, active.asked, run, message.epochs_done)
        elif isinstance(message, Stepped):
            self.events.on_step(active.trials.plan, active.asked, run, message.epoch, message.step / message.num_steps)
        elif isinstance(message, EpochEnded):
            self.courier.news(run.key)
            self._report(active, run.seed, message.line["epoch"], message.line.get("val_accuracy"))
        elif isinstance(message, Lost):
            self._end(active, run, folder, self._lost(active, message))
        else:
            self._end(active, run, folder, message)

    def close(self) -> None:
        """Nothing more will be told: what was asked for and never begun is given back."""
        self.is_closed.set()
        for active in list(self.active.values()):
            if not active.is_over:
                active.is_over = True
                with suppress(AblateError):  # a storage that is gone: the next command finds the trial without us
                    active.trials.give_back(active.asked, self.stops.reason or "the command ended")

    def _begin(self, arm: ArmTrials) -> Active | None:
        asked = arm.begin(partial(self.events.on_unfit, arm.plan))
        if asked is None:
            return None
        runs = arm.plan.runs(asked.recipe, asked.number, self.parents.get(arm.plan.identity, ""))
        every = arm.plan.recipe.eval_every if arm.plan.tune.pruner.name == "none" else 1
        runs = [_evaluating(run, every) for run in runs]
        if asked.is_taken_up:
            self.bring(runs)
        active = Active(arm, asked, runs)
        self.active |= {run.key: active for run in runs}
        self.events.on_trial(arm.plan, asked)
        return active

    def _replay(self, active: Active, run: PlannedRun, folder: RunFolder, epochs_done: int) -> None:
        """A trial that is taken up again, or was trained before, tells its new number what was seen."""
        for line in folder.history()[:epochs_done]:
            self._report(active, run.seed, line["epoch"], line.get("val_accuracy"))

    def _report(self, active: Active, seed: int, epoch: int, accuracy: float | None) -> None:
        is_last = epoch == active.asked.recipe.epochs and len(active.asked.finals) == len(active.runs) - 1
        if accuracy is None or not math.isfinite(accuracy) or active.is_over:
            return
        with self._telling(active):
            if active.trials.report(active.asked, seed, epoch, accuracy):
                active.is_pruned |= not is_last and not active.asked.is_present

    @contextmanager
    def _telling(self, active: Active) -> Iterator[None]:
        """Where Optuna cannot be told in the block, the trial is let go without a word, and has not failed by itself.

        Taken over by another command it is that one's now. Where the storage does not answer, or has no room, the
        command stops; the next one finds the trial without a process, and takes it up.
        """
        try:
            yield
        except TakenError as error:
            active.is_over = True
            self.events.on_ended(active.trials.plan, active.asked, str(error))
        except (TrackingError, OutputError) as error:
            active.is_over = False  # ``close`` tries to give it back
            self.stops.everything(str(error))

    def _end(self, active: Active, run: PlannedRun, folder: RunFolder, ended: Ended) -> None:
        result = ended.result
        kind = result.status if ended.kind == "shared" and result is not None else ended.kind
        outcome = "pruned" if kind == "stopped" and active.is_pruned else "killed" if kind == "stopped" else kind
        self._note_cost(active, folder, ended)
        if result is not None or run.key in self.courier.parcels:
            outcome = outcome if outcome in ("finished", "diverged", "pruned", "killed") else "failed"
            self.courier.end(run, folder, outcome, result=result, reason=ended.reason)
        if ended.kind == "shared":
            self._replay(active, run, folder, len(folder.history()))
        if not active.is_over:
            with self._telling(active):
                self._settle(active, run, outcome, folder, ended)
        if ended.halts:
            self.stops.everything(ended.reason)

    @staticmethod
    def _lost(active: Active, message: Lost) -> Ended:
        """Of a worker that is gone: its trial is taken up again once, for the next one may have more memory."""
        is_second, active.worker_died = active.asked.worker_died, True
        return Ended(message.key, "failed" if is_second else "stopped", message.reason)

    def _note_cost(self, active: Active, folder: RunFolder, ended: Ended) -> None:
        """What a training took, also before it was taken up again; one that another trial has done costs nothing."""
        if ended.kind == "shared" and not active.asked.is_taken_up:
            return
        active.asked.epochs += len(folder.history())
        if ended.result is not None:
            active.asked.seconds += ended.result.train_seconds + ended.result.eval_seconds
        elif progress := read_progress(folder.checkpoint):  # of one that was stopped
            active.asked.seconds += progress["train_seconds"] + progress["eval_seconds"]

    def _settle(self, active: Active, run: PlannedRun, outcome: str, folder: RunFolder, ended: Ended) -> None:
        """What the end of one training means for its trial."""
        trials, asked = active.trials, active.asked
        if outcome == "finished" and ended.result is not None:
            asked.finals[run.seed] = ended.result.metrics["val_accuracy"]
            if len(asked.finals) < len(active.runs):
                if not active.is_pruned:
                    return
                outcome = "pruned"  # the word came too late for this seed, and ends the others
        active.is_over = True
        if outcome == "finished":
            value = trials.finish(asked)
            self.reasons.clear()
            self.events.on_finished(trials.plan, asked, value)
        elif outcome == "pruned":
            trials.prune(asked)
            folder.drop_checkpoints()
            self.reasons.clear()
            self.events.on_ended(trials.plan, asked, "pruned")
        elif outcome == "killed":
            trials.give_back(asked, ended.reason or self.stops.reason, worker_died=active.worker_died)
            self.events.on_ended(trials.plan, asked, "stopped, to be taken up again")
        else:
            trials.fail(asked, ended.reason, "diverged" if outcome == "diverged" else "failed")
            self.events.on_ended(trials.plan, asked, f"{outcome}: {ended.reason}")
            self._judge(trials, outcome, ended.reason)

    def _judge(self, trials: ArmTrials, outcome: str, reason: str) -> None:
        """What no trial of this arm survives is told once, and not for each of them."""
        self.reasons = [] if outcome == "diverged" else [*self.reasons, reason.split(";", maxsplit=1)[0]]
        if len(self.reasons) >= ALIKE and len(set(self.reasons[-ALIKE:])) == 1:
            self.stops.everything(f"{ALIKE} trials of {trials.plan.arm} in a row ended alike: {reason}")

    def _keep_beating(self) -> None:
        while not self.is_closed.wait(HEARTBEAT_SECONDS):
            for active in {id(one): one for one in list(self.active.values())}.values():
                if not active.is_over:
                    with suppress(AblateError):  # a heartbeat that is missed is made up for by the next one
                        active.trials.beat(active.asked)


def _evaluating(run: PlannedRun, every: int) -> PlannedRun:
    """The same training, evaluated as often as its pruner asks; that is not part of its fingerprint."""
    return replace(run, recipe=run.recipe.model_copy(update={"eval_every": every, "checkpoint_every": None}))
