"""The studies of a command in the record: opened once, read again at each look, and their ledger."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from pathlib import Path

from cifar_ablate.errors import OutputError, TrackingError
from cifar_ablate.plan import Plan, PlannedRun
from cifar_ablate.records import RecordedRun
from cifar_ablate.runner.checkpoints import bring_checkpoints
from cifar_ablate.runner.kept_plans import keep_plan, mark_recorded
from cifar_ablate.runner.looks import Standing, stand
from cifar_ablate.tracking import Tracking


class Opened:
    """Plans, kept here and in MLflow, with what is recorded of them. ``tracking`` None: only the folders are asked."""

    def __init__(self, plans: Sequence[Plan], tracking: Tracking | None, runs_root: Path) -> None:
        """Raises AblateError where a plan can be kept neither here nor there."""
        self.plans, self.tracking, self.runs_root = plans, tracking, runs_root
        self.experiments: dict[str, str] = {}
        """Id by label."""
        self.recorded: dict[str, Sequence[RecordedRun]] = {}
        self.looks_told: set[tuple[str, int]] = set()
        for plan in plans:
            label = plan.study.label
            keep_plan(plan)
            if tracking is not None:
                self.experiments[label] = tracking.open_study(label, plan.document)
                mark_recorded(label, plan.document)
                self.recorded[label] = tracking.runs(self.experiments[label])

    def standings(self) -> list[Standing]:
        """Where each study stands by what is known here."""
        return [stand(plan, self.of(plan), self.runs_root) for plan in self.plans]

    def of(self, plan: Plan) -> Sequence[RecordedRun]:
        """What was recorded of a plan when that was last read."""
        return self.recorded.get(plan.study.label, ())

    def read_again(self, labels: Container[str]) -> None:
        """What other commands have delivered of these; where MLflow does not answer, the folders have to do."""
        for plan in self.plans:
            if self.tracking is not None and plan.study.label in labels:
                with suppress(TrackingError, OutputError):
                    self.recorded[plan.study.label] = self.tracking.runs(self.experiments[plan.study.label])

    def bring_checkpoints(
        self, runs: Sequence[PlannedRun], on_note: Callable[[str], None], should_stop: Callable[[], bool]
    ) -> None:
        """Fetch what other machines left in MLflow of these runs, where they came further than this one."""
        for plan in self.plans:
            if self.tracking is not None:
                theirs = {one.fingerprint for one in self.of(plan) if one.trained_by}
                mine = [run for run in runs if run.study == plan.study.label and run.fingerprint not in theirs]
                experiment = self.experiments[plan.study.label]
                bring_checkpoints(self.tracking, experiment, mine, self.runs_root, on_note, should_stop)

    def note_margins(self, standings: Sequence[Standing]) -> None:
        """Enter in the ledgers which margin was set, and how much was known by then."""
        for one in standings:
            if self.tracking is not None:
                self.tracking.note(one.plan.study.label, "margin", f"{one.plan.study.margin:g}", one.results)

    def new_looks(self, standings: Sequence[Standing]) -> list[str]:
        """What the looks say that were not told by this command yet; they are entered in the ledgers."""
        said = []
        for one in standings:
            label = one.plan.study.label
            for look in one.taken():
                if (label, look) in self.looks_told:
                    continue
                self.looks_told.add((label, look))
                said += one.said_at(look)
                if self.tracking is not None:
                    with suppress(TrackingError, OutputError):  # away: the next command enters it
                        self.tracking.note(label, "look", str(look), one.runs_of_look(look))
        return said
