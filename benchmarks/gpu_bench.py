"""What the parts of `gpu.py` share: a deadline, a table that grows, and errors that are a line of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import recipe_of
from benchmarks.task import Task
from cifar_ablate.device import find_device
from cifar_ablate.record.folder import write_atomically
from cifar_ablate.spec.schema import Recipe


@dataclass
class Bench:
    """What is being measured, and what was."""

    task: Task
    steps: int
    """Of an epoch that is timed; the rest is extrapolated."""
    deadline: float
    out: Path | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def time_left(self) -> float:
        return self.deadline - time.monotonic()

    def say(self, part: str, what: str, value: float | None, unit: str, note: str = "") -> None:
        """Add a line to the table, and to the file."""
        self.rows.append({"part": part, "what": what, "value": value, "unit": unit, "note": note})
        print(f"{part}: {what}: {'-' if value is None else f'{value:.4g}'} {unit} {note}".rstrip(), flush=True)
        self._write()

    def leave_out(self, what: str) -> None:
        """Say that there was no time for something."""
        self.left_out.append(what)
        self._write()

    def _write(self) -> None:
        if self.out is not None:
            found = find_device()
            content = {"device": found.name, "torch": torch.__version__, "rows": self.rows, "left_out": self.left_out}
            write_atomically(self.out, json.dumps(content, indent=1) + "\n")

    def attempt(
        self, part: str, what: str, unit: str, seconds: float, measure: Callable[[], tuple[float, str]]
    ) -> None:
        """Measure a value and a note about it, if there is time for it; an error is a line, and the others go on."""
        if self.time_left() < seconds:
            self.leave_out(f"{part}: {what}")
            return
        try:
            value, note = measure()
        except Exception as error:  # the device is lent for minutes: one part must not cost the others
            self.say(part, what, None, unit, f"{type(error).__name__}: {error}".split("\n", 1)[0][:200])
            return
        self.say(part, what, value, unit, note)

    def recipe(self, model: str, **fields: Any) -> Recipe:
        """The recipe of the task for a network, with some fields changed."""
        return Recipe.model_validate(recipe_of(replace(self.task, model=model)) | fields)

    def extrapolated(self, whole: bool) -> str:
        return "" if whole else f"extrapolated from {self.steps} steps"
