"""Wall time of a whole study: `cifar-ablate run` against the loops that a user would write instead.

    python -m benchmarks.study_time --data DIR --whole [--rounds 5] [--out study_time.json] [--resume]
    python -m benchmarks.study_time --data DIR --share 0.4

The study has one arm and --runs seeds, since a hand-written loop knows no arms; a run costs the same in either. Each
contender is a process of its own, from the start of Python to its end: in an empty folder `cifar-ablate run` makes its
MLflow record, checkpoints and final evaluation, the loops only train, evaluate as often, and print. They train the same
task (see `task.py`; `same_training.py` says whether they train alike). `cifar-ablate` has --jobs runs at a time in
one-thread processes on a CPU, which is how it is used; a loop has one process, its workers, and torch's threads.

A machine is faster in one minute than in the next, so contenders take turns, in an order that moves on each round.
A ratio is a loop's time through ours in the same round: above 1, the loop takes longer. Printed are the median, the
least and the greatest. With --out, the rounds so far are written after each one, and --resume goes on with them.

A whole study of a large network takes a small machine many minutes. --share trains fewer images, in two epochs, and
prints what the whole one would take by warm time per image: "extrapolated", never "measured". With 5 epochs, 0.4 trains
two whole ones. A smaller share has shorter epochs, and counts what each costs a loop whatever its length (workers that
start, a first batch that is waited for) too often: with 0.1 it found 278 s for the fair loop where 231 s were measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from benchmarks.contenders import LOOPS, OURS, Prepared, Sizes, prepare
from benchmarks.study_table import Record, print_table, summaries
from benchmarks.task import MODELS, Task, add_task_options, load, task_of
from cifar_ablate.device import find_device, num_cores
from cifar_ablate.record.folder import write_atomically

PIECE_EPOCHS = 2
"""The first epoch of a run also pays for what is done once, so the second one gives the warm time."""
PACKAGES = ("torch", "torchvision", "timm", "mlflow", "pillow", "numpy")


def piece_of(whole: Task, share: float, sizes: Sizes) -> Task:
    """About this share of the images that a whole task trains and evaluates, in full batches."""
    part = share * whole.epochs / PIECE_EPOCHS
    images = max(1, round(sizes.train * part / whole.batch_size)) * whole.batch_size
    if not 0 < part <= 1 or images > sizes.train:
        raise SystemExit(f"--share {share:g} leaves nothing to extrapolate; give a smaller one, or --whole")
    tests = min(sizes.test, max(whole.batch_size, round(sizes.test * part)))
    return replace(whole, epochs=PIECE_EPOCHS, images=images, test_images=tests)


def order_of(contenders: Sequence[str], index: int) -> list[str]:
    """The order of a round: it begins one further than the round before."""
    start = index % len(contenders)
    return [*contenders[start:], *contenders[:start]]


def one_round(
    index: int, whole: Task, sizes: Sizes, done: Prepared, contenders: Sequence[str], chosen: argparse.Namespace
) -> Record:
    """Every contender once, one after the other."""
    outcomes: Record = {}
    for name in order_of(contenders, index):
        threads = chosen.threads if name == OURS else chosen.loop_threads
        outcome = done.measure(name, jobs=chosen.jobs, threads=threads)
        seconds = outcome.extrapolated(done.task, done.sizes, whole, sizes) if chosen.share else outcome.wall_seconds
        outcomes[name] = asdict(outcome) | {"study_seconds": seconds}
        what = "extrapolated" if chosen.share else "measured"
        print(
            f"{whole.model}, round {index + 1}, {name}: took {outcome.wall_seconds:.1f} s; "
            f"whole study {seconds:.1f} s ({what})",
            flush=True,
        )
    return {"model": whole.model, "round": index, "order": list(outcomes), "outcomes": outcomes}


def settings_of(chosen: argparse.Namespace) -> Record:
    """Everything that decides what is measured: rounds with other settings are not put beside these."""
    ignored = {"rounds", "out", "resume"}
    settings = {name: value for name, value in vars(chosen).items() if name not in ignored}
    device = find_device("auto")
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {**settings, "device": device.name, "device_kind": device.kind, "cores": num_cores(), "versions": versions}


def kept_rounds(out: Path | None, settings: Record, resume: bool) -> list[Record]:
    """The rounds of an interrupted benchmark, where it is to go on."""
    if not resume or out is None or not out.exists():
        return []
    document = json.loads(out.read_text(encoding="utf-8"))
    if document["settings"] != json.loads(json.dumps(settings)):
        raise SystemExit(f"{out} was measured with other settings, versions or on another device; give another --out")
    return list(document["measured"])


def options() -> argparse.ArgumentParser:
    on_cpu = find_device("auto").kind == "cpu"
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--whole", action="store_true", help="train the whole study")
    how.add_argument("--share", type=float, help="train about this share of its images, and extrapolate")
    parser.add_argument("--model", choices=MODELS, action="append", help="default: both")
    parser.add_argument("--loop", choices=LOOPS, action="append", help="default: all three")
    parser.add_argument("--runs", type=int, default=4, help="seeds of the study's one arm")
    parser.add_argument("--rounds", type=int, default=5)
    add_task_options(parser, Task(images=5000, epochs=5))
    parser.add_argument("--jobs", type=int, default=num_cores() if on_cpu else 1, help="of cifar-ablate run")
    parser.add_argument("--threads", type=int, help="of each run of cifar-ablate (default: its own)")
    parser.add_argument("--loop-threads", type=int, help="of torch in the loops (default: torch's own)")
    parser.add_argument("--out", type=Path, help="JSON with every round's figures, written after each round")
    parser.add_argument("--resume", action="store_true", help="keep the rounds that --out has")
    return parser


def measure_all(chosen: argparse.Namespace, rounds: list[Record]) -> Record:
    """Measure the rounds that are missing; gives the document, which is written after each round."""
    settings = settings_of(chosen)
    contenders, models = (OURS, *(chosen.loop or LOOPS)), chosen.model or list(MODELS)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = load(task_of(chosen, model=models[0]), work / "data")
        sizes = Sizes(len(data.train_labels), len(data.test_labels))
        document: Record = {
            "command": sys.argv[1:],
            "study": f"{chosen.runs} runs of {chosen.epochs} epochs on {data.describe()}",
            "how": "extrapolated" if chosen.share else "measured",
            "contenders": contenders,
            "settings": settings,
        }
        for index in range(chosen.rounds):
            for model in models:
                if any((one["round"], one["model"]) == (index, model) for one in rounds):
                    continue
                whole = task_of(chosen, model=model, seeds=chosen.runs)
                done = prepare(piece_of(whole, chosen.share, sizes) if chosen.share else whole, work)
                document[f"trained_of_{model}"] = asdict(done.task)
                rounds.append(one_round(index, whole, sizes, done, contenders, chosen))
                document |= {"rows": summaries(rounds, models, contenders, chosen.runs), "measured": rounds}
                if chosen.out:
                    write_atomically(chosen.out, json.dumps(document, indent=1) + "\n")
    return document | {"rows": summaries(rounds, models, contenders, chosen.runs), "measured": rounds}


def main() -> None:
    chosen = options().parse_args()
    document = measure_all(chosen, kept_rounds(chosen.out, settings_of(chosen), chosen.resume))
    settings = document["settings"]
    print(
        f"\nA study of {document['study']}, {document['how']}, on {settings['device']} ({settings['cores']} cores):\n"
    )
    print_table(document["rows"], document["how"])


if __name__ == "__main__":
    main()
