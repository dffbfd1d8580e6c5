"""What a sampler gains over random search, and what tuning costs beyond training: ``python -m benchmarks.tuning``

    python -m benchmarks.tuning --part samplers [--repeats 10] [--trials 20]
    python -m benchmarks.tuning --part overhead [--seconds 12] [--trials 16]

``samplers``: each sampler tunes the same recipe on digits with the same budget, ``--repeats`` times with different
seeds. The table shows the best validation accuracy after a quarter, half and all of the trials, and the difference from
random search, paired by seed, with its 95% t interval. There is no pruner, so only the sampler differs.
``overhead``: the share of time that is neither training nor evaluation, of a trial from proposal to end (proposing,
setting up, reporting, pruning, recording in MLflow), and of the whole command (also the start of workers, the figures
at the end, and, with two trials at a time, the worker that waits for the other's last trial).
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from scipy import stats

from cifar_ablate.data import DataSet
from cifar_ablate.device import find_device, find_slots
from cifar_ablate.plan import DataKey, load_all_data
from cifar_ablate.record.mlflow_store import Tracking
from cifar_ablate.runner.executor import ExecutorConfig
from cifar_ablate.runner.executors.local import Local
from cifar_ablate.runner.stop import StopSignal
from cifar_ablate.spec.load import load_study
from cifar_ablate.spec.schema import Study, Tune
from cifar_ablate.tuning.display import TuningDisplay
from cifar_ablate.tuning.plan import plan_tuning
from cifar_ablate.tuning.result import ArmResult
from cifar_ablate.tuning.run import tune_arms

SAMPLERS = ("random", "tpe", "gp")
STUDY = """
study: {name}
question: Which sampler finds a good recipe sooner?
recipe:
  data: digits
  {size}
  model: {{name: resnet18-compact, width: {width}}}
  epochs: {epochs}
  batch_size: {batch}
  eval_every: 0
  optimizer: {{name: sgd, lr: 0.003, momentum: 0.9}}
arms: {{baseline: null}}
tune:
  space:
    optimizer.lr: {{low: 1.0e-4, high: 3.0, log: true}}
    optimizer.momentum: {{low: 0.0, high: 0.99}}
    optimizer.weight_decay: {{choices: [0.0, 1.0e-4, 1.0e-3, 1.0e-2, 0.1]}}
    schedule: [constant, cosine, linear]
    schedule.warmup: {{low: 0.0, high: 0.6, when: {{schedule: [cosine, linear]}}}}
  pruner: {pruner}
  val_fraction: 0.4
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the selected parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("samplers", "overhead"), action="append")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--seconds", type=float, default=12.0, help="training time of a trial, for the overhead")
    given = parser.parse_args(arguments)
    for part in given.part or ("samplers", "overhead"):
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            if part == "samplers":
                compare_samplers(given.repeats, given.trials or 20)
            else:
                measure_overhead(given.seconds, given.trials or 16)


def compare_samplers(repeats: int, trials: int) -> None:
    """Print the best validation accuracy of each sampler by number of trials, over ``repeats`` seeds."""
    study = _study(size="train_size: 600", width=4, epochs=3, batch=40, pruner="none")
    data = _data(study)
    best: dict[str, list[list[float]]] = {name: [] for name in SAMPLERS}
    for seed in range(repeats):
        for name in SAMPLERS:
            tune = _tune(study, trials, sampler={"name": name}, seed=seed)
            result = _tuned(study, data, tune, f"{name}-{seed}")
            best[name].append(_best_after_each(result, trials))
    marks = sorted({max(1, trials // 4), trials // 2, trials})
    titles = " | ".join(f"best of {mark} trials, %" for mark in marks)
    print(f"| sampler | seeds | {titles} | over random (95% interval) |")
    print("|---|---:|" + "---:|" * (len(marks) + 1))
    for name in SAMPLERS:
        curves = np.array(best[name])
        cells = [f"{curves[:, mark - 1].mean():.2f}" for mark in marks]
        gain = "" if name == "random" else _interval(curves[:, -1] - np.array(best["random"])[:, -1])
        print(f"| {name} | {repeats} | {' | '.join(cells)} | {gain} |")


def measure_overhead(seconds: float, trials: int) -> None:
    """Print the share of time that is not training, for trials of about ``seconds`` seconds."""
    probe = _study(size="train_size: 1400", width=16, epochs=2, batch=64, pruner="median")
    data = _data(probe)
    first = _tuned(probe, data, _tune(probe, 2), "probe").trials[-1]
    epochs = max(2, round(first.epochs * seconds / first.seconds))
    print("| pruner | at a time | trials | seconds a trial | wall seconds | outside, in trials | in all |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for jobs, pruner in ((1, "none"), (1, "median"), (2, "none"), (2, "median")):
        study = _study(size="train_size: 1400", width=16, epochs=epochs, batch=64, pruner=pruner)
        shutil.rmtree("mlruns/runs")  # otherwise this row would reuse the trainings of the row before
        begun_at = time.perf_counter()
        result = _tuned(study, data, _tune(study, trials), f"{pruner}-{jobs}", tracking=Tracking(), jobs=jobs)
        whole = time.perf_counter() - begun_at
        spans = [one.ended - one.began for one in result.trials if one.began is not None and one.ended is not None]
        trained = sum(one.seconds for one in result.trials)
        all_of = sum(span.total_seconds() for span in spans), jobs * whole
        outside = " | ".join(f"{100 * (1 - trained / seconds):.1f}%" for seconds in all_of)
        print(f"| {pruner} | {jobs} | {trials} | {trained / trials:.1f} | {whole:.1f} | {outside} |", flush=True)


def _study(**values: object) -> Study:
    path = Path("study.yaml")
    path.write_text(STUDY.format(name="samplers", **values), encoding="utf-8")
    return load_study(path)


def _data(study: Study) -> dict[DataKey, DataSet]:
    return load_all_data([study], lambda what, done, total: None)


def _tune(study: Study, trials: int, **changes: object) -> Tune:
    if study.tune is None:
        raise ValueError("the study has no tune section")
    plain = study.tune.model_dump(mode="python")
    plain |= {"sampler": study.tune.sampler, "pruner": study.tune.pruner, "space": study.tune.space}
    return Tune.model_validate(plain | {"trials": trials} | changes)


def _tuned(
    study: Study,
    data: dict[DataKey, DataSet],
    tune: Tune,
    name: str,
    tracking: Tracking | None = None,
    jobs: int = 1,
) -> ArmResult:
    plans = plan_tuning(replace(study, name=name), ["baseline"], data, find_device("cpu"), tune=tune)
    summary = tune_arms(
        plans,
        url="sqlite:///optuna.db",
        tracking=tracking,
        executor=Local(ExecutorConfig()),
        slots=find_slots(find_device("cpu"), jobs, 1),
        display=TuningDisplay(Console(file=io.StringIO())),
        stop=StopSignal(),
    )
    if summary.stopped_because:
        raise RuntimeError(summary.stopped_because)
    return summary.results[0]


def _best_after_each(result: ArmResult, trials: int) -> list[float]:
    best, curve = 0.0, []
    for one in result.trials:
        best = max(best, one.val_accuracy or 0.0)
        curve.append(best)
    return curve + [best] * (trials - len(curve))


def _interval(differences: np.ndarray) -> str:  # type: ignore[type-arg]
    mean, num = differences.mean(), len(differences)
    half = stats.t.ppf(0.975, num - 1) * differences.std(ddof=1) / np.sqrt(num) if num > 1 else np.nan
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


if __name__ == "__main__":
    main()
