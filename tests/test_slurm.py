"""The script of docs/cluster.md in a real SLURM: a study on two nodes, and one that its time runs out for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.disturbing import RUN, STUDY, assert_undisturbed, steps_done, wait_until
from tests.slurm import Slurm, slurm

if TYPE_CHECKING:
    from tests.conftest import Tried, Workshop
    from tests.disturbing import Undisturbed

pytestmark = pytest.mark.cluster

SCRIPT = Path(__file__).parent.parent / "docs" / "slurm" / "cifar-ablate.sbatch"
SMALL = ("--nodes=2", "--cpus-per-task=1", "--gpus-per-node=0", "--output=job.log")


@pytest.fixture
def controller(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    programs = workshop.folder / "bin"
    programs.mkdir()
    (programs / "cifar-ablate").write_text(f'#!/bin/sh\nexec {sys.executable} -m cifar_ablate.cli "$@"\n')
    (programs / "cifar-ablate").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray lets everything else on a machine go first
    workshop.write("tiny.yaml", STUDY)
    with slurm() as controller:
        yield controller


def submit(controller: Slurm, workshop: Workshop) -> str:
    return controller("sbatch", "--parsable", *SMALL, str(SCRIPT), *RUN, "--jobs", "auto", within=workshop.folder)


def said(workshop: Workshop) -> str:
    path = workshop.folder / "job.log"
    return path.read_text() if path.exists() else ""


def wait_for_end(controller: Slurm, workshop: Workshop, job: str) -> None:
    wait_until(lambda: controller.state(job) not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"), seconds=400)
    assert controller.state(job) == "COMPLETED", said(workshop)


def test_a_study_in_a_slurm_job_is_trained_on_all_its_nodes(
    workshop: Workshop, controller: Slurm, undisturbed: Undisturbed
) -> None:
    job = submit(controller, workshop)
    wait_for_end(controller, workshop, job)
    assert "Ray, 2 nodes, 2 CPUs" in said(workshop)
    assert_undisturbed(workshop.folder, undisturbed)


@pytest.mark.faults
def test_a_slurm_job_whose_time_runs_out_goes_on_where_it_stood_when_there_is_time_again(
    workshop: Workshop, controller: Slurm, undisturbed: Undisturbed, tried: Tried
) -> None:
    tried("SLURM job whose time runs out")
    job = submit(controller, workshop)
    wait_until(lambda: "epoch 2/" in said(workshop) or controller.state(job) == "FAILED", seconds=400)
    controller("scancel", "--batch", "--signal=USR1", job)  # as --signal=B:USR1@120 does
    wait_until(lambda: "interrupted by SIGTERM" in said(workshop), seconds=60)
    assert steps_done(workshop.folder)
    wait_until(lambda: said(workshop).count("runs at a time") == 2, seconds=400)
    wait_for_end(controller, workshop, job)
    assert_undisturbed(workshop.folder, undisturbed)


@pytest.mark.faults
def test_a_slurm_job_that_is_cancelled_writes_checkpoints_and_is_not_queued_again(
    workshop: Workshop, controller: Slurm, tried: Tried
) -> None:
    tried("SLURM job cancelled (`scancel --batch`)")
    job = submit(controller, workshop)
    wait_until(lambda: "epoch 2/" in said(workshop) or controller.state(job) == "FAILED", seconds=400)
    controller("scancel", "--batch", "--signal=TERM", job)
    wait_until(lambda: controller.state(job) not in ("RUNNING", "COMPLETING"), seconds=200)
    assert controller.state(job) == "FAILED"  # exit 130, and not PENDING
    assert "interrupted by SIGTERM" in said(workshop)
    assert steps_done(workshop.folder)
