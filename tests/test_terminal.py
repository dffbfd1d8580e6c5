"""What a person sees while a study runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cifar_ablate.console import duration
from cifar_ablate.plan import PlannedRun
from cifar_ablate.record.folder import RunResult
from cifar_ablate.runner.display import Pace, TerminalDisplay
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training.events import Stepped

RECIPE = Recipe.model_validate(
    {"data": "digits", "model": "resnet18-compact", "epochs": 2, "optimizer": {"name": "sgd", "lr": 0.1}}
)
RUN = PlannedRun(
    study="study", arm="an [arm] with a name", seed=3, recipe=RECIPE, precision="bf16", recipe_id="id", fingerprint="f"
)
LINE = {"epoch": 1, "train_loss": 1.25, "running_accuracy": 40.0, "test_accuracy": 51.5, "images_per_second": 321.0}


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0:00"), (59.6, "1:00"), (75, "1:15"), (3725, "1:02:05")])
def test_durations_read_like_a_clock(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_time_left_follows_the_pace_of_this_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("cifar_ablate.runner.display.time.monotonic", lambda: now[0])
    pace = Pace(1000, done=500)
    assert pace.left() == "?"
    now[0] += 10
    pace.done = 600
    assert pace.left() == "0:40"


def shown(*, live: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=live, width=160, soft_wrap=True)
    with TerminalDisplay(console, lambda _: 100.0) as terminal:
        terminal.on_plan([RUN], num_done=4, num_failed=1)
        terminal.on_start(RUN, epochs_done=0)
        for step in range(1, 11):
            terminal.on_step(RUN, Stepped(1, step, 10, 1.5))
        terminal.on_epoch(RUN, LINE)
        terminal.on_step(RUN, Stepped(2, 1, 10, 1.4))
        terminal.progress.refresh()
        metrics = {"test_accuracy": 61.25}
        terminal.on_end(RUN, RunResult("finished", 2, 75.0, 1.0, metrics))
    return out.getvalue()


def test_a_log_file_gets_one_line_for_each_epoch() -> None:
    lines = shown(live=False).splitlines()
    assert lines[0] == "Runs: 1 to train, 4 done before, 1 failed before (--retry failed tries them again)"
    assert lines[1] == "[1/1] study an [arm] with a name seed 3"
    assert lines[2].startswith("  epoch 1/2  loss 1.250  running 40.0%  test 51.50%  321 images/s  run ")
    assert lines[3] == "study an [arm] with a name seed 3: test 61.25%  in 1:15"
    assert len(lines) == 4


def test_a_terminal_shows_steps_loss_accuracy_and_time_left() -> None:
    text = shown(live=True)
    assert "an [arm] with a name seed 3" in text
    for part in ("epoch 2/2", "steps/s", "loss 1.400", "running 40.0%", "test 51.5%", "left", "run 1 of 1"):
        assert part in text, part
