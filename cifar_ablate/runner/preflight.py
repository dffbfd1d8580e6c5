"""Checks before any training: studies, data, device and tracking store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from cifar_ablate.console import reporting
from cifar_ablate.data import DataSet
from cifar_ablate.device import Device, Slot, num_cores, why_no_cuda
from cifar_ablate.errors import RecordError, TrackingError
from cifar_ablate.plan import Plan, load_all_data, make_plan
from cifar_ablate.record.folder import RUNS_ROOT, RunFolder
from cifar_ablate.record.mlflow_store import Tracking
from cifar_ablate.spec.load import load_studies
from cifar_ablate.spec.overlay import load_overlay


@dataclass(frozen=True)
class Prepared:
    """Studies that can be trained here."""

    plans: list[Plan]
    data: dict[str, DataSet]
    device: Device


def prepare(
    files: Sequence[Path],
    profile: str | None,
    settings: Sequence[str] | None,
    *,
    device: Callable[[], Device],
    console: Console,
) -> Prepared:
    """Load the studies and plan them for the device that ``device`` finds; raises AblateError if that is impossible."""
    studies = load_studies(files, load_overlay(profile, settings or []))
    found = device()
    with reporting(console) as report_progress:
        data = load_all_data(studies, report_progress)
    return Prepared([make_plan(study, data, found, _was_trained) for study in studies], data, found)


def _was_trained(fingerprint: str) -> bool:
    """Whether the run's folder holds the result of a training that did not fail."""
    with suppress(RecordError):
        result = RunFolder(RUNS_ROOT / fingerprint).result()
        return result is not None and result.status != "failed"
    return False


def open_tracking(
    offline: str = "train with --offline, and deliver with `cifar-ablate sync` later",
) -> Tracking:
    """The tracking store; raises TrackingError, with how to do without it (``offline``), if it does not answer."""
    try:
        return Tracking()
    except TrackingError as error:
        raise TrackingError(f"{error}; or {offline}") from None


def describe_slots(slots: Sequence[Slot], why: str = "") -> str:
    """Where runs are trained, and why not on a GPU; then why this many at a time, or a better choice."""
    return "\n".join(line for line in (_where(slots), why or advice(slots)) if line)


def _where(slots: Sequence[Slot]) -> str:
    device, at_a_time = slots[0].device, sum(slot.num_slices for slot in slots)
    number = f"{at_a_time} runs at a time" if at_a_time > 1 else "1 run at a time"
    if device.kind != "cpu":
        return f"On {device.name}, {number}"
    threads = "1 thread" if slots[0].threads == 1 else f"{slots[0].threads} threads"
    return f"On {device.name} ({why_no_cuda() or 'as asked for'}), {number}, {threads} each"


def advice(slots: Sequence[Slot]) -> str:
    """A sentence about a better use of this machine; empty if there is none."""
    if slots[0].device.kind == "cuda":
        idle = torch.cuda.device_count() - len(slots)
        return f"{idle} more GPUs are idle: --jobs auto uses all" if idle > 0 else ""
    if slots[0].device.kind != "cpu":
        return ""
    used, cores = len(slots) * slots[0].threads, num_cores()
    if used > cores:
        return f"--jobs {len(slots)} with {slots[0].threads} threads each want more than the {cores} cores here"
    if used < cores:
        return f"{used} of {cores} cores in use: --jobs {cores // slots[0].threads} uses all"
    return ""
