"""From records to a `Report`: all numbers and sentences, before any format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

from cifar_ablate.analysis.images import flip_floor, is_luckily_small
from cifar_ablate.analysis.power import noise_floor
from cifar_ablate.record.types import StudyRecord
from cifar_ablate.report.caveats import caveats
from cifar_ablate.report.evidence import (
    calibrations,
    class_effects,
    classes_text,
    curves,
    published_rows,
    reproduce,
    width_curve,
)
from cifar_ablate.report.families import all_families, interactions_of
from cifar_ablate.report.recommendations import missing_runs, next_steps, noise_text
from cifar_ablate.report.recorded_study import RecordedStudy, run_row
from cifar_ablate.report.tuned import between, counterpart, shared_label, tuning_report
from cifar_ablate.report.types import ArmRow, Report, StudyReport, TuningReport


def build_report(records: Sequence[StudyRecord], *, shared_recipes: Sequence[StudyRecord] = ()) -> Report:
    """Everything that a report says of the studies, in the given order.

    Args:
        records: Of the studies that are reported.
        shared_recipes: Of the studies that tuned ones are compared with, and that are not reported themselves.
    """
    studies = [RecordedStudy(record, record.current()) for record in (*records, *shared_recipes)]
    by_label = {study.record.label: study for study in reversed(studies)}
    reported = studies[: len(records)]
    shared = {study.record.label: by_label.get(shared_label(study.document) or "") for study in reported}
    tuned = {study.record.label: tuning_report(study, shared[study.record.label]) for study in reported}
    return Report(tuple(_study(study, tuned, shared[study.record.label]) for study in reported))


def _study(study: RecordedStudy, tuned: Mapping[str, TuningReport | None], shared: RecordedStudy | None) -> StudyReport:
    record, document = study.record, study.document
    families = all_families(study)
    wanted = families.looks.wanted if families.looks is not None else {}
    rows = tuple(_row(study, arm, wanted.get(arm["name"], len(arm["seeds"]))) for arm in document["arms"])
    floors = {family.name: noise_floor([one.contrast for one in family.comparisons]) for family in families.families}
    effects_of_classes = class_effects(study, families)
    effects, interaction_note = interactions_of(study)
    return StudyReport(
        label=record.label,
        is_variant=bool(document["variant"]),
        question=document["question"],
        data=tuple(dict.fromkeys(arm["data"] for arm in document["arms"])),
        baseline=document["baseline"],
        seeds=tuple(document["seeds"]),
        looks=study.looks,
        precision=tuple(dict.fromkeys(arm["precision"] for arm in document["arms"])),
        margin=document["margin"],
        rows=rows,
        runs=tuple(map(run_row, study.runs)),
        missing=tuple(f"{arm} seed {seed}" for arm, seed in missing_runs(study, families)),
        families=families.families,
        noise_floors=floors,
        noise_text=noise_text(floors),
        interactions=effects,
        interaction_note=interaction_note,
        next_steps=tuple(next_steps(study, families, rows, effects)),
        ledger=tuple(record.ledger),
        class_effects=effects_of_classes,
        classes_text=classes_text(effects_of_classes),
        calibration=calibrations(study),
        published=published_rows(study, {row.name: row.test_accuracy for row in rows}),
        width=width_curve(families),
        curves=curves(study),
        must_know=(*_counterparts(record.label, tuned), *caveats(study, families, record.num_superseded())),
        reproduce=reproduce(study, shared),
        tuning=tuned[record.label],
    )


def _counterparts(label: str, tuned: Mapping[str, TuningReport | None]) -> Iterator[tuple[str, str]]:
    """For the study of a shared recipe: what its tuned counterparts show."""
    for name, tuning in tuned.items():
        if tuning is not None and tuning.is_at_hand and tuning.shared == label:
            yield counterpart(name, tuning)


def _differs(study: RecordedStudy, arm: Mapping[str, Any]) -> tuple[str, ...]:
    """Differences from the arm's parent, in words; those that the search found are marked."""
    if study.tuned is None or arm["parent"] is None:
        return tuple(arm["differs"])
    return between(study, arm["parent"], arm["name"]).in_words


def _row(study: RecordedStudy, arm: Mapping[str, Any], num_planned: int) -> ArmRow:
    name = arm["name"]
    accuracy = study.mean_sd(name, "test_accuracy")
    seconds = study.by_seed(name, "train_seconds").values()
    correct = study.correct.get(name, {})
    row = ArmRow(
        name=name,
        parent=arm["parent"],
        differs=_differs(study, arm),
        epochs=arm["recipe"]["epochs"],
        num_planned=num_planned,
        outcomes=Counter(run.outcome for run in study.runs_of.get(name, ())),
        test_accuracy=accuracy,
        train_accuracy=study.mean_sd(name, "train_accuracy"),
        outlying_seeds=tuple(study.outlying[name]),
        sd_floor=flip_floor(np.stack(list(correct.values()))) if len(correct) > 1 else None,
        is_sd_lucky=False,
        is_flip_averaged=bool(arm["recipe"].get("flip_averaging")),
        is_weight_averaged=bool(arm["recipe"].get("ema")),
        train_seconds=fmean(seconds) if seconds else None,
    )
    if accuracy is None or accuracy.sd is None or row.sd_floor is None:
        return row
    return replace(row, is_sd_lucky=is_luckily_small(accuracy.sd, row.sd_floor, accuracy.num))
