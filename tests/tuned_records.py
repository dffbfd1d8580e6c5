"""The committed pilot as a study with a shared recipe, and beside it the same arms each at its own best."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cifar_ablate.record.types import StudyRecord
from tests.recording import ARMS
from tests.reporting import pilot_record

Edit = Callable[[dict[str, Any]], object]
SPACE = {"optimizer.lr": "0.001 to 0.1 (log)", "schedule": "constant, cosine"}
RATES = dict(zip(ARMS, (0.03, 0.02, 0.05, 0.01, 0.04), strict=True))
COMMAND = "cifar-ablate run experiments/readme-augmentation.yaml --profile pilot"


def tuned_section(arms: Mapping[str, Any]) -> dict[str, Any]:
    """As ``tune --write`` writes it."""
    return {
        "study": "readme-augmentation",
        "variant": "pilot",
        "date": "2026-11-22",
        "data": "cifar10: 4,500 of 50,000 training images, judged on 500 others",
        "space": SPACE,
        "sampler": "tpe",
        "pruner": "median",
        "seeds": 1,
        "val_fraction": 0.1,
        "objective": "val_accuracy",
        "arms": arms,
    }


def tuned_arm(rate: float) -> dict[str, Any]:
    return {
        "trial": 7,
        "val_accuracy": 53.25,
        "is_present": False,
        "present_val_accuracy": 51.5,
        "trials": 20,
        "pruned": 8,
        "failed": 1,
        "epochs": 120,
        "values": {"optimizer.lr": rate, "schedule": "cosine"},
    }


def shared_record(edit: Edit = lambda document: None) -> StudyRecord:
    record = pilot_record()
    document = copy.deepcopy(dict(record.document))
    edit(document)
    return replace(record, document=document)


def tuned_record(
    points: Mapping[str, float] = {}, edit: Edit = lambda document: None, *, only: tuple[str, ...] = ARMS
) -> StudyRecord:
    """The same runs, each arm's accuracies moved by some points, with a rate and a schedule of its own.

    Arms that are not in ``only`` were not tuned.
    """
    record = pilot_record()
    document = copy.deepcopy(dict(record.document))
    document |= {"study": "readme-augmentation-tuned", "file": "experiments/readme-augmentation-tuned.yaml"}
    document["tuned"] = tuned_section({name: tuned_arm(RATES[name]) for name in only})
    for arm in document["arms"]:
        if arm["name"] in only:
            arm["recipe"]["optimizer"]["lr"] = RATES[arm["name"]]
            arm["recipe"]["schedule"] = {"name": "cosine", "warmup_epochs": 0, "final_factor": 0.0}
            arm["recipe_id"] = f"t{arm['recipe_id'][1:]}"
    edit(document)
    ids = {arm["name"]: arm["recipe_id"] for arm in document["arms"]}
    runs = [
        replace(
            run,
            recipe_id=ids.get(run.arm, run.recipe_id),
            metrics={**run.metrics, "test_accuracy": run.metrics["test_accuracy"] + points.get(run.arm, 0.0)},
        )
        for run in record.runs
    ]
    label = f"{document['study']}@{document['variant']}"
    return replace(record, label=label, document=document, runs=runs)
