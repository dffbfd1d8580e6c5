"""How long work takes, as a multiple of other work at that moment: seconds differ between machines and neighbours."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cifar_ablate.errors import AblateError
from cifar_ablate.spec.load import load_study
from cifar_ablate.spec.overlay import load_overlay

QUICK_SECONDS = 1.0
"""Of processor time: what takes less is quick on any machine, and is not compared with anything."""
QUICK_TIMES = 10.0
"""Times the reference study; a quiet core reads that in about 0.1 s."""
REFERENCE = """\
study: reference
question: How long does a large plain study take here and now?
recipe: {data: digits, model: resnet18-compact, optimizer: {name: sgd, lr: 0.1}}
arms:
  baseline:
""" + "".join(f"  arm {i}: {{epochs: {i + 2}, optimizer: {{lr: 0.{i + 2}}}}}\n" for i in range(300))


def seconds(work: Callable[[], object]) -> float:
    """Processor time of this process."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def times_as_long(work: Callable[[], object], reference: Callable[[], object]) -> float:
    """Processor time of ``work`` over that of ``reference``: the least of three, each taken in turn."""
    return min(seconds(work) / seconds(reference) for _ in range(3))


def read_study(path: Path, profile: Path | None = None, settings: tuple[str, ...] = ()) -> object:
    """The study in a file, or why it is none."""
    try:
        return load_study(path, load_overlay(None if profile is None else str(profile), settings))
    except AblateError as error:
        return error


def assert_read_quickly(
    path: Path, profile: Path | None = None, settings: tuple[str, ...] = ()
) -> tuple[object, float]:
    """The study in a file, or why it is none, and the processor time; fails where that is long for its machine."""
    answers: list[object] = []
    took = seconds(lambda: answers.append(read_study(path, profile, settings)))
    if took >= QUICK_SECONDS:
        reference = path.with_name("reference.yaml")
        reference.write_text(REFERENCE, encoding="utf-8")
        times = times_as_long(lambda: read_study(path, profile, settings), lambda: read_study(reference))
        assert times < QUICK_TIMES, f"{times:.0f} times the reference ({took:.2f} s): {path.read_bytes()[:3000]!r}"
    return answers[0], took
