"""How one step's news gets from the training loop to the screen: the files whose code holds it, in order.

python -m benchmarks.hops
"""

from __future__ import annotations

import io
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from cifar_ablate.runner.executor import ExecutorConfig
from cifar_ablate.runner.executors.local import Local
from cifar_ablate.runner.run import RunOptions, run_studies
from cifar_ablate.training.events import Stepped

PACKAGE = Path(__file__).parent.parent / "cifar_ablate"
STUDY = """
study: hops
question: How many hands does a step's news go through?
seeds: 1
recipe:
  data: digits
  train_size: 100
  model: {name: resnet18-compact, width: 4}
  epochs: 1
  batch_size: 50
  optimizer: {name: sgd, lr: 0.05}
arms: {baseline: null}
"""


def holders() -> list[str]:
    """Train a run of two steps in a temporary folder; files of the package whose functions hold the event."""
    found: dict[str, None] = {}

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "return") or not frame.f_code.co_filename.startswith(str(PACKAGE)):
            return
        for value in frame.f_locals.values():
            if isinstance(value, Stepped) or (isinstance(value, tuple) and any(isinstance(v, Stepped) for v in value)):
                found.setdefault(str(Path(frame.f_code.co_filename).relative_to(PACKAGE)))

    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("hops.yaml").write_text(STUDY, encoding="utf-8")
        console = Console(file=io.StringIO(), force_terminal=True)
        sys.setprofile(watch)
        try:
            run_studies(
                [Path("hops.yaml")],
                *(None, None, None, None),
                offline=True,
                executor=Local(ExecutorConfig(jobs=1)),
                options=RunOptions(),
                console=console,
            )
        finally:
            sys.setprofile(None)
    return list(found)


if __name__ == "__main__":
    files = ["training/epoch.py", *holders()]
    print(" -> ".join(files))
    print(f"{len(files) - 1} hops")
