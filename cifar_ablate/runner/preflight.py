"""Everything that can be wrong with a command is found here, before any training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from cifar_ablate.console import reporting
from cifar_ablate.data import DataSet
from cifar_ablate.device import Device, Slot, num_cores, why_no_cuda
from cifar_ablate.errors import TrackingError
from cifar_ablate.plan import Plan, load_all_data, make_plan
from cifar_ablate.spec.load import load_studies
from cifar_ablate.spec.overlay import load_overlay
from cifar_ablate.tracking import Tracking


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
    """Load and plan the studies for what ``device`` finds; raises AblateError for whatever stands in the way."""
    studies = load_studies(files, load_overlay(profile, settings or []))
    found = device()
    with reporting(console) as report_progress:
        data = load_all_data(studies, report_progress)
    return Prepared([make_plan(study, data, found) for study in studies], data, found)


def open_tracking() -> Tracking:
    """The record; raises TrackingError, before anything is trained, where it does not answer."""
    try:
        return Tracking()
    except TrackingError as error:
        raise TrackingError(f"{error}; or train with --offline, and deliver with `cifar-ablate sync` later") from None


def describe_slots(slots: Sequence[Slot], why: str = "") -> str:
    """Where runs are trained, and why not on a GPU; then why so many at a time, or what would be better."""
    return "\n".join(line for line in (_where(slots), why or advice(slots)) if line)


def _where(slots: Sequence[Slot]) -> str:
    device, at_a_time = slots[0].device, sum(slot.num_slices for slot in slots)
    number = f"{at_a_time} runs at a time" if at_a_time > 1 else "1 run at a time"
    if device.kind != "cpu":
        return f"On {device.name}, {number}"
    threads = "1 thread" if slots[0].threads == 1 else f"{slots[0].threads} threads"
    return f"On {device.name} ({why_no_cuda() or 'as asked for'}), {number}, {threads} each"


def advice(slots: Sequence[Slot]) -> str:
    """What would make better use of this machine, in a sentence; empty where nothing would."""
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
