"""Resuming: a training that is left anywhere, by request or by force, ends as if nothing had happened, to the bit."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cifar_ablate.data import load_data
from cifar_ablate.errors import OutputError
from cifar_ablate.record.folder import RunFolder, read_progress
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training.batches import DeviceData, to_device
from cifar_ablate.training.checkpoint import load_checkpoint, save_weights
from cifar_ablate.training.evaluate import EVAL_BATCH
from cifar_ablate.training.events import Stepped, TrainingEvent
from cifar_ablate.training.state import TrainState, resume, set_up, write_checkpoint
from cifar_ablate.training.train import Stopped
from tests.test_training import CPU, EVERYTHING, SGD, Diary, Run, metadata_of, same, train_in
from tests.test_training import recipe as small_recipe

ROOT = Path(__file__).parent.parent
NUM_TRAIN, NUM_TEST, NUM_STEPS = 70, 60, 3
NUM_QUESTIONS = 12
"""Of two epochs: 3 steps each and 2 batches of the test set, then 2 of the training set."""
NARROWEST = {"name": "resnet18-compact", "width": 4}
CONFIGURATIONS = [
    pytest.param({"augment": EVERYTHING, "loss": {"label_smoothing": 0.1}}, id="sgd"),
    pytest.param({"model": NARROWEST | {"dropout": 0.3}}, id="sgd and dropout"),
    pytest.param({"optimizer": {"name": "adamw", "lr": 1e-3, "decay_norm_and_bias": False}}, id="adamw"),
    pytest.param({"optimizer": {"name": "muon", "lr": 0.01}, "schedule": "cosine"}, id="muon"),
    pytest.param({"optimizer": {"name": "sgd", "lr": 0.05}}, id="sgd without momentum"),
]
MIDDLE_OF_EPOCH_3 = (3, 2)


def recipe(**fields: Any) -> Recipe:
    """Three steps of an epoch, the last one with 6 images."""
    return small_recipe(**({"model": NARROWEST, "batch_size": 32} | fields))


@pytest.fixture(scope="module")
def data() -> DeviceData:
    return few_digits()


def few_digits() -> DeviceData:
    whole = to_device(load_data("digits", {}, train_size=NUM_TRAIN), CPU)
    return replace(whole, test_images=whole.test_images[:NUM_TEST], test_labels=whole.test_labels[:NUM_TEST])


@pytest.fixture(scope="module", autouse=True)
def _several_batches_to_evaluate() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EVAL_BATCH, "cpu", 40)
        yield


@pytest.fixture
def undisturbed(data: DeviceData, tmp_path: Path) -> Callable[..., Run]:
    """Train from start to end without a checkpoint."""
    return lambda chosen, **more: train_in(
        RunFolder(tmp_path / "undisturbed"), chosen, data, checkpoint_seconds=math.inf, **more
    )


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture(scope="module")
def reference(data: DeviceData, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three undisturbed epochs of a network with dropout."""
    return train_in(RunFolder(tmp_path_factory.mktemp("reference") / "run"), dropout_recipe(), data)


def dropout_recipe() -> Recipe:
    return recipe(epochs=3, model=NARROWEST | {"dropout": 0.3})


@pytest.fixture(scope="module")
def left_in_epoch_3(data: DeviceData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a run, left in its third epoch: the newest checkpoint is of there, the one before has two."""
    folder = RunFolder(tmp_path_factory.mktemp("left") / "run")
    stopped(folder, dropout_recipe(), data, after_step(*MIDDLE_OF_EPOCH_3), checkpoint_seconds=0.0)
    assert progress_of(folder.checkpoint) == (2, 2)
    assert progress_of(folder.checkpoint_before) == (2, 0)
    return folder.path


@pytest.fixture
def two_generations(left_in_epoch_3: Path, folder: RunFolder) -> RunFolder:
    shutil.copytree(left_in_epoch_3, folder.path)
    return folder


def at_question(number: int) -> Callable[[Diary], bool]:
    return lambda diary: diary.asked == number


def after_step(epoch: int, step: int) -> Callable[[Diary], bool]:
    return lambda diary: diary.steps[-1:] == [(epoch, step, NUM_STEPS)]


def stopped(
    folder: RunFolder,
    chosen: Recipe,
    data: DeviceData,
    stop: Callable[[Diary], bool],
    *,
    checkpoint_seconds: float = math.inf,
    **more: Any,
) -> Diary:
    """Train until it is told to stop; gives what was seen."""
    diary = Diary(stop=stop)
    with pytest.raises(Stopped):
        train_in(folder, chosen, data, diary=diary, checkpoint_seconds=checkpoint_seconds, **more)
    assert folder.result() is None
    assert not folder.weights.exists()
    return diary


def killed(folder: RunFolder, chosen: Recipe, data: DeviceData, *, after_epoch: int, **more: Any) -> None:
    """Train until an epoch has ended, and leave as if killed: without a checkpoint of this moment."""
    with pytest.raises(KeyboardInterrupt):
        train_in(folder, chosen, data, diary=Diary(interrupt_after=after_epoch), **more)
    assert folder.result() is None


def progress_of(path: Path) -> tuple[int, int] | None:
    """Epochs, and steps of the next one, that a checkpoint has."""
    progress = read_progress(path)
    return None if progress is None else (progress["epochs"], progress["steps"])


def generations(folder: RunFolder) -> list[bytes]:
    return [path.read_bytes() for path in (folder.checkpoint, folder.checkpoint_before)]


def leftovers(folder: RunFolder) -> set[str]:
    return {path.name for path in folder.path.glob(".*")} - {".lock"}


BOTH = ["checkpoint.safetensors", "checkpoint-before.safetensors"]


def epochs_of(run: Run) -> list[int]:
    return [line["epoch"] for line in run.diary.lines]


# Asked to stop


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fields", CONFIGURATIONS[:-1])
def test_a_run_stopped_wherever_it_asks_and_taken_up_again_equals_an_undisturbed_one(
    fields: dict[str, Any], precision: str, data: DeviceData, tmp_path: Path, undisturbed: Callable[..., Run]
) -> None:
    chosen = recipe(**fields)
    expected = undisturbed(chosen, precision=precision)
    assert expected.diary.asked == NUM_QUESTIONS
    places = [(0, 1), (0, 2), (0, 3), (0, 3), (0, 3), (1, 1), (1, 2), *5 * [(1, 3)]]
    for question, place in enumerate(places, 1):
        if precision == "bf16" and question not in (2, 3, 5, 7, 12):
            continue  # bf16 changes the steps, and not where they may be left
        folder = RunFolder(tmp_path / f"stopped-{question}")
        stopped(folder, chosen, data, at_question(question), precision=precision)
        assert progress_of(folder.checkpoint) == place
        torch.rand(5)  # the global stream of whoever takes it up must not matter
        resumed = train_in(folder, chosen, data, precision=precision)
        assert resumed.equals(expected), f"stopped at question {question}"
        assert resumed.diary.started_after == [place[0]]
        assert resumed.diary.damaged == []
        assert len(resumed.diary.steps) == 2 * NUM_STEPS - (NUM_STEPS * place[0] + place[1]), "a step was taken twice"
        assert not folder.checkpoint.exists()
        assert not folder.checkpoint_before.exists()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fields", CONFIGURATIONS)
def test_a_run_stopped_seven_times_equals_an_undisturbed_one(
    fields: dict[str, Any], precision: str, data: DeviceData, folder: RunFolder, undisturbed: Callable[..., Run]
) -> None:
    chosen = recipe(epochs=4, eval_every=2, **fields)
    rng = np.random.default_rng(len(str(fields)) + (precision == "bf16"))
    chosen_steps = sorted(rng.choice(4 * NUM_STEPS, size=7, replace=False).tolist())
    seen: list[tuple[int, int, int]] = []
    for index in chosen_steps:
        seconds = rng.choice([0.0, math.inf])
        place = (index // NUM_STEPS + 1, index % NUM_STEPS + 1)
        seen += stopped(folder, chosen, data, after_step(*place), precision=precision, checkpoint_seconds=seconds).steps
    ended = train_in(folder, chosen, data, precision=precision)
    assert seen + ended.diary.steps == [(epoch, step, NUM_STEPS) for epoch in range(1, 5) for step in (1, 2, 3)]
    assert ended.equals(undisturbed(chosen, precision=precision)), f"stopped after the steps {chosen_steps}"


def test_a_run_stopped_after_every_single_step_equals_an_undisturbed_one(
    data: DeviceData, folder: RunFolder, reference: Run
) -> None:
    for index in range(3 * NUM_STEPS):
        diary = stopped(folder, dropout_recipe(), data, lambda diary: bool(diary.steps))
        assert diary.steps == [(index // NUM_STEPS + 1, index % NUM_STEPS + 1, NUM_STEPS)]
    ended = train_in(folder, dropout_recipe(), data)
    assert ended.diary.steps == []
    assert ended.equals(reference)


def test_a_run_may_be_stopped_again_before_it_takes_a_step(data: DeviceData, folder: RunFolder, reference: Run) -> None:
    for _ in range(3):  # the epoch's steps are done; each attempt is stopped before it has evaluated a batch
        stopped(folder, dropout_recipe(), data, lambda diary: diary.asked > NUM_STEPS or not diary.steps)
    assert progress_of(folder.checkpoint) == (0, NUM_STEPS)
    assert train_in(folder, dropout_recipe(), data).equals(reference)


def test_an_epoch_that_was_stopped_is_not_in_the_history_until_it_ends(data: DeviceData, folder: RunFolder) -> None:
    stopped(folder, recipe(), data, after_step(2, 3))
    assert [line["epoch"] for line in folder.history()] == [1]
    train_in(folder, recipe(), data)
    assert [line["epoch"] for line in folder.history()] == [1, 2]


def test_weights_of_epochs_before_and_after_a_stop_are_those_of_an_undisturbed_run(
    data: DeviceData, folder: RunFolder, undisturbed: Callable[..., Run]
) -> None:
    chosen = recipe(epochs=3, checkpoint_every=1)
    stopped(folder, chosen, data, after_step(2, 2))
    train_in(folder, chosen, data)
    expected = undisturbed(chosen).folder
    for epoch in (1, 2, 3):
        written = folder.weights_of_epoch(epoch)
        assert same(load_file(written), load_file(expected.weights_of_epoch(epoch)))
        assert metadata_of(written)["epoch"] == str(epoch)


@pytest.mark.parametrize("question", [2, 4, 12])
def test_a_training_that_stops_leaves_the_global_generators_alone(
    question: int, data: DeviceData, folder: RunFolder
) -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1]
    stopped(folder, recipe(model=NARROWEST | {"dropout": 0.3}), data, at_question(question))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[arg-type]


def test_a_run_that_diverges_in_the_epoch_it_was_stopped_in_is_diverged(data: DeviceData, folder: RunFolder) -> None:
    chosen = recipe(optimizer=SGD | {"lr": 1e20})
    stopped(folder, chosen, data, after_step(1, 2))
    ended = train_in(folder, chosen, data)
    assert ended.result.status == "diverged"
    assert ended.result.reason.endswith("in epoch 1")
    assert not folder.checkpoint.exists()


# Left by force


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("fields", CONFIGURATIONS)
def test_a_run_killed_between_epochs_equals_an_undisturbed_one(
    fields: dict[str, Any], precision: str, data: DeviceData, folder: RunFolder, undisturbed: Callable[..., Run]
) -> None:
    chosen = recipe(epochs=3, **fields)
    killed(folder, chosen, data, after_epoch=1, precision=precision, checkpoint_seconds=0.0)
    assert progress_of(folder.checkpoint) == (1, 0)
    assert not folder.checkpoint_before.exists()
    with (folder.path / "history.jsonl").open("a") as file:
        file.write('{"epoch": 2, "train_lo')  # and a line that was cut off
    resumed = train_in(folder, chosen, data, precision=precision)
    assert epochs_of(resumed) == [2, 3]
    assert resumed.equals(undisturbed(chosen, precision=precision))


def test_epochs_after_the_last_checkpoint_are_trained_again(
    data: DeviceData, folder: RunFolder, undisturbed: Callable[..., Run]
) -> None:
    chosen = recipe(epochs=3, optimizer={"name": "muon", "lr": 0.01})
    killed(folder, chosen, data, after_epoch=1, checkpoint_seconds=0.0)
    killed(folder, chosen, data, after_epoch=2, checkpoint_seconds=math.inf)
    assert [line["epoch"] for line in folder.history()] == [1, 2]
    resumed = train_in(folder, chosen, data)
    assert epochs_of(resumed) == [2, 3]
    assert resumed.equals(undisturbed(chosen))


def test_a_run_killed_before_its_first_checkpoint_starts_over(
    data: DeviceData, folder: RunFolder, reference: Run
) -> None:
    killed(folder, dropout_recipe(), data, after_epoch=2)
    assert not folder.checkpoint.exists(), "a checkpoint is not due before a minute"
    again = train_in(folder, dropout_recipe(), data)
    assert epochs_of(again) == [1, 2, 3]
    assert again.equals(reference)


def test_a_run_killed_after_a_stop_goes_on_from_the_middle_of_the_epoch(
    data: DeviceData, folder: RunFolder, reference: Run
) -> None:
    stopped(folder, dropout_recipe(), data, after_step(2, 1))
    killed(folder, dropout_recipe(), data, after_epoch=2)
    resumed = train_in(folder, dropout_recipe(), data)
    assert resumed.diary.steps[0] == (2, 2, NUM_STEPS)
    assert resumed.equals(reference)


def test_two_generations_are_kept_and_the_older_one_is_that_before(
    data: DeviceData, folder: RunFolder, reference: Run
) -> None:
    killed(folder, dropout_recipe(), data, after_epoch=2, checkpoint_seconds=0.0)
    first = generations(folder)
    assert progress_of(folder.checkpoint) == (2, 0)
    assert progress_of(folder.checkpoint_before) == (1, 0)
    stopped(folder, dropout_recipe(), data, after_step(3, 1))
    assert generations(folder)[1] == first[0]
    assert train_in(folder, dropout_recipe(), data).equals(reference)


def test_the_newest_checkpoint_is_enough(two_generations: RunFolder, data: DeviceData, reference: Run) -> None:
    two_generations.checkpoint_before.unlink()
    resumed = train_in(two_generations, dropout_recipe(), data)
    assert resumed.diary.steps == [(3, 3, NUM_STEPS)]
    assert resumed.diary.damaged == []
    assert resumed.equals(reference)


def test_a_run_killed_between_the_two_renames_goes_on_from_the_checkpoint_before(
    two_generations: RunFolder, data: DeviceData, reference: Run
) -> None:
    two_generations.checkpoint.rename(two_generations.path / ".checkpoint.safetensors.12345")
    resumed = train_in(two_generations, dropout_recipe(), data)
    assert resumed.diary.started_after == [2]
    assert resumed.diary.steps[0] == (3, 1, NUM_STEPS)
    assert resumed.diary.damaged == []
    assert resumed.equals(reference)
    assert leftovers(two_generations) == set()


class Deadly(Diary):
    """Kills its process in the middle of the third epoch."""

    def should_stop(self) -> bool:
        if after_step(*MIDDLE_OF_EPOCH_3)(self):
            os.kill(os.getpid(), signal.SIGKILL)
        return False


def train_until_killed(folder: Path) -> None:
    train_in(RunFolder(folder), dropout_recipe(), few_digits(), diary=Deadly(), checkpoint_seconds=0.0)


def stamp(path: Path) -> int:
    """When a file was written; 0 where it is not there at this moment."""
    with suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return 0


def write_until_killed(folder: Path) -> None:
    """Write checkpoints in a process that is killed at some moment of it, 24 times; tell what each one left."""
    run, state = RunFolder(folder), state_after_a_step(few_digits(), width=4)
    run.create({}, {})
    write_checkpoint(state, run)
    rng = np.random.default_rng(0)
    for number in range(24):
        known, written = leftovers(run), stamp(run.checkpoint)
        child = os.fork()
        while not child:
            state.epochs_done += 1
            write_checkpoint(state, run)
        time.sleep(rng.uniform(0.005, 0.03))
        while number % 4 == 0 and stamp(run.checkpoint) == written:  # a busy machine leaves it no time
            pass
        while number % 2 and leftovers(run) <= known:  # every other one when it has just begun to write
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = leftovers(run)
        run.create({}, {})
        paths = (run.checkpoint, run.checkpoint_before)
        progress, damaged = load_checkpoint(paths, state.model, state.optimizer, max_epochs=sys.maxsize)
        state.epochs_done = -1 if progress is None else progress.values["epochs"]
        line = {"epochs": state.epochs_done, "damaged": len(damaged), "left": len(left), "kept": sorted(leftovers(run))}
        sys.stdout.write(json.dumps(line) + "\n")


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of 24 processes left that were killed while they wrote checkpoints."""
    if sys.platform == "win32":
        pytest.skip("Windows has no fork")
    done = in_a_process(write_until_killed, tmp_path_factory.mktemp("kills") / "run")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def in_a_process(what: Callable[[Path], None], folder: Path) -> subprocess.CompletedProcess[str]:
    text = f"from pathlib import Path; from tests.test_checkpoint import *; {what.__name__}(Path({str(folder)!r}))"
    command = [sys.executable, "-c", text]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_process_that_is_killed_leaves_a_run_that_another_one_ends_equally(
    folder: RunFolder, data: DeviceData, reference: Run
) -> None:
    done = in_a_process(train_until_killed, folder.path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert progress_of(folder.checkpoint) == (2, 0)
    assert train_in(folder, dropout_recipe(), data).equals(reference)


@pytest.mark.slow
def test_a_process_killed_at_any_moment_of_writing_leaves_a_usable_checkpoint(kills: list[dict[str, Any]]) -> None:
    epochs = [kill["epochs"] for kill in kills]
    assert epochs == sorted(epochs), "a later process had to go on from an earlier checkpoint"
    assert 0 <= epochs[0] < epochs[-1]
    assert not any(kill["damaged"] for kill in kills)
    assert any(kill["left"] for kill in kills), "killed between the writes only"


def test_nothing_of_a_process_killed_while_writing_is_left_by_the_next_attempt(kills: list[dict[str, Any]]) -> None:
    assert [kill["kept"] for kill in kills] == [[]] * len(kills)


# Damaged checkpoints


def altered(content: bytes, position: int, mask: int) -> bytes:
    changed = bytearray(content)
    changed[position] ^= mask
    return bytes(changed)


def places_in(content: bytes, part: str, num: int) -> list[int]:
    """Seeded positions in the length of the header, in the header, or in the tensors."""
    begin = 8 + int.from_bytes(content[:8], "little")
    low, high = {"length": (0, 8), "header": (8, begin), "tensors": (begin, len(content))}[part]
    return sorted(np.random.default_rng(len(part)).choice(np.arange(low, high), num, replace=False).tolist())


@pytest.mark.parametrize(("part", "num"), [("length", 6), ("header", 12), ("tensors", 14)])
def test_one_altered_byte_is_noticed_and_the_run_goes_on_from_the_checkpoint_before(
    part: str, num: int, left_in_epoch_3: Path, data: DeviceData, tmp_path: Path, reference: Run
) -> None:
    content = (left_in_epoch_3 / "checkpoint.safetensors").read_bytes()
    for position in places_in(content, part, num):
        folder = RunFolder(tmp_path / f"altered-{position}")
        shutil.copytree(left_in_epoch_3, folder.path)
        folder.checkpoint.write_bytes(altered(content, position, 1 << position % 8))
        resumed = train_in(folder, dropout_recipe(), data)
        assert resumed.diary.damaged == [folder.checkpoint.name], f"byte {position} of {len(content)}"
        assert resumed.diary.started_after == [2]
        assert resumed.diary.steps[0] == (3, 1, NUM_STEPS)
        assert resumed.equals(reference)


@pytest.mark.parametrize("part", ["header", "tensors"])
def test_an_altered_byte_changes_nothing_of_a_network_that_would_take_it_up(
    part: str, two_generations: RunFolder, data: DeviceData
) -> None:
    content = two_generations.checkpoint.read_bytes()
    state = set_up(dropout_recipe(), 0, data, "fp32")
    before = copy.deepcopy(state.model.state_dict())
    rng = np.random.default_rng(0)
    for position in places_in(content, part, 100):
        two_generations.checkpoint.write_bytes(altered(content, position, int(rng.integers(1, 256))))
        paths = [two_generations.checkpoint]
        assert load_checkpoint(paths, state.model, state.optimizer, max_epochs=9) == (None, paths), f"byte {position}"
    assert same(dict(state.model.state_dict()), dict(before))
    assert state.optimizer.state_dict()["state"] == {}


class Trap:
    """What a pickle may do to whoever loads it: here, make a file."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> Any:
        return Path.touch, (self.sign,)


def pickled(path: Path, sign: Path) -> None:
    path.write_bytes(pickle.dumps({"progress": Trap(sign)}))


def zipped(path: Path, sign: Path) -> None:
    torch.save({"progress": Trap(sign)}, path)


@pytest.mark.parametrize(
    "progress",
    [
        "{}",
        '{"epochs": 1}',
        '{"epochs": "1", "steps": 0, "train_seconds": 1, "eval_seconds": 1}',
        '{"epochs": 1, "steps": 0, "train_seconds": null, "eval_seconds": 1}',
        "[" * 100_000,
    ],
)
def test_a_checkpoint_whose_progress_is_none_of_ours_says_nothing(progress: str, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "checkpoint.safetensors", {"progress": progress})
    assert read_progress(tmp_path / "checkpoint.safetensors") is None


@pytest.mark.parametrize("write", [pickled, zipped])
def test_a_pickle_in_place_of_a_checkpoint_is_damaged_and_never_run(
    write: Callable[[Path, Path], None], two_generations: RunFolder, data: DeviceData, tmp_path: Path, reference: Run
) -> None:
    sign = tmp_path / "sign"
    write(two_generations.checkpoint, sign)
    write(two_generations.checkpoint_before, sign)
    assert read_progress(two_generations.checkpoint) is None
    again = train_in(two_generations, dropout_recipe(), data)
    assert not sign.exists()
    assert again.diary.damaged == BOTH
    assert again.equals(reference)
    write(two_generations.checkpoint, sign)
    content = two_generations.checkpoint.read_bytes()
    torch.load(io.BytesIO(content), weights_only=False) if write is zipped else pickle.loads(content)
    assert sign.exists(), "whoever unpickles it runs it"


def _empty(path: Path, _: DeviceData) -> None:
    path.write_bytes(b"")


def _cut_in_the_header(path: Path, _: DeviceData) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _cut_in_the_tensors(path: Path, _: DeviceData) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _cut_by_a_byte(path: Path, _: DeviceData) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _longer_by_a_byte(path: Path, _: DeviceData) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _zeros(path: Path, _: DeviceData) -> None:
    path.write_bytes(bytes(path.stat().st_size))  # some file systems leave this after a power cut


def _garbage(path: Path, _: DeviceData) -> None:
    path.write_bytes(b"\xff" * 4096)


def _weights(path: Path, data: DeviceData) -> None:
    save_weights(path, set_up(dropout_recipe(), 1, data, "fp32").model, {"seed": "1"})


def _another_network(path: Path, data: DeviceData) -> None:
    other = RunFolder(path.parent.parent / f"other-{path.stem}")
    stopped(other, recipe(model=NARROWEST | {"width": 8}), data, after_step(1, 1))
    path.write_bytes(other.checkpoint.read_bytes())


DAMAGES = [
    pytest.param(damage, id=damage.__name__[1:].replace("_", " "))
    for damage in (
        _empty,
        _cut_in_the_header,
        _cut_in_the_tensors,
        _cut_by_a_byte,
        _longer_by_a_byte,
        _zeros,
        _garbage,
        _weights,
        _another_network,
    )
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_or_foreign_one(
    damage: Callable[[Path, DeviceData], None], two_generations: RunFolder, data: DeviceData, reference: Run
) -> None:
    damage(two_generations.checkpoint, data)
    resumed = train_in(two_generations, dropout_recipe(), data)
    assert resumed.diary.damaged == [two_generations.checkpoint.name]
    assert resumed.diary.started_after == [2]
    assert resumed.diary.steps[0] == (3, 1, NUM_STEPS)
    assert resumed.equals(reference)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_whose_checkpoints_are_both_damaged_or_foreign_starts_over(
    damage: Callable[[Path, DeviceData], None], two_generations: RunFolder, data: DeviceData, reference: Run
) -> None:
    damage(two_generations.checkpoint, data)
    damage(two_generations.checkpoint_before, data)
    again = train_in(two_generations, dropout_recipe(), data)
    assert again.diary.damaged == BOTH
    assert epochs_of(again) == [1, 2, 3]
    assert again.equals(reference)


def test_a_damaged_checkpoint_before_does_not_matter_while_the_newest_is_whole(
    two_generations: RunFolder, data: DeviceData, reference: Run
) -> None:
    two_generations.checkpoint_before.write_bytes(b"")
    resumed = train_in(two_generations, dropout_recipe(), data)
    assert resumed.diary.damaged == []
    assert resumed.diary.steps == [(3, 3, NUM_STEPS)]
    assert resumed.equals(reference)


def test_a_damaged_checkpoint_never_takes_the_place_of_a_whole_one_before_it(
    two_generations: RunFolder, data: DeviceData
) -> None:
    two_generations.checkpoint.write_bytes(b"")
    stopped(two_generations, dropout_recipe(), data, after_step(3, 1))
    state = set_up(dropout_recipe(), 0, data, "fp32")
    for path in (two_generations.checkpoint, two_generations.checkpoint_before):
        progress, damaged = load_checkpoint([path], state.model, state.optimizer, max_epochs=2)
        assert progress is not None, f"{path.name} is damaged"
        assert damaged == []


# A history that lacks lines


@pytest.mark.parametrize(
    ("kept", "resumed_after"), [(2, 2), (1, 1), (0, 0), (None, 0)], ids=["whole", "one line", "empty", "no file"]
)
def test_a_checkpoint_with_more_epochs_than_the_history_is_passed_over(
    kept: int | None, resumed_after: int, data: DeviceData, folder: RunFolder, reference: Run
) -> None:
    killed(folder, dropout_recipe(), data, after_epoch=2, checkpoint_seconds=0.0)
    path = folder.path / "history.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.unlink() if kept is None else path.write_text("".join(lines[:kept]))
    resumed = train_in(folder, dropout_recipe(), data)
    assert resumed.diary.started_after == [resumed_after]
    assert bool(resumed.diary.damaged) == (kept != 2), "what is passed over is told"
    assert epochs_of(resumed) == list(range(resumed_after + 1, 4))
    assert resumed.equals(reference)


def test_a_checkpoint_in_the_middle_of_an_epoch_needs_the_lines_of_those_before_it(
    two_generations: RunFolder, data: DeviceData, reference: Run
) -> None:
    path = two_generations.path / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-3])  # the second line is not whole
    resumed = train_in(two_generations, dropout_recipe(), data)
    assert resumed.diary.started_after == [0]  # both generations are later than epoch 1
    assert resumed.equals(reference)


def test_a_short_history_beside_a_damaged_checkpoint_still_ends_equal(
    data: DeviceData, folder: RunFolder, reference: Run
) -> None:
    killed(folder, dropout_recipe(), data, after_epoch=2, checkpoint_seconds=0.0)
    path = folder.path / "history.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    folder.checkpoint.write_bytes(b"")
    resumed = train_in(folder, dropout_recipe(), data)
    assert resumed.diary.started_after == [1]
    assert resumed.diary.damaged == [folder.checkpoint.name]
    assert resumed.equals(reference)


# A disk that refuses


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux may mount a small disk")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def remount(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def tiny_recipe(**fields: Any) -> Recipe:
    """A megabyte has room for two of its checkpoints (376 kB), and not for three."""
    return recipe(model=NARROWEST | {"width": 2}, **fields)


def free_bytes(disk: Path) -> int:
    return shutil.disk_usage(disk).free


def test_a_full_disk_ends_a_training_with_its_cure_and_more_space_lets_it_go_on(
    disk: Path, data: DeviceData, undisturbed: Callable[..., Run]
) -> None:
    chosen, folder = tiny_recipe(epochs=4), RunFolder(disk / "run")
    killed(folder, chosen, data, after_epoch=2, checkpoint_seconds=0.0)
    before = generations(folder)
    with pytest.raises(OutputError, match=r"cannot write .*checkpoint\.safetensors: .*No space left.*free space"):
        train_in(folder, chosen, data, checkpoint_seconds=0.0)
    assert generations(folder) == before
    assert leftovers(folder) == set()
    assert folder.result() is None
    remount(disk, "size=8m")
    resumed = train_in(folder, chosen, data, checkpoint_seconds=0.0)
    assert resumed.diary.started_after == [2]
    assert resumed.equals(undisturbed(chosen))


def test_a_full_disk_refuses_the_checkpoint_of_a_stop_and_leaves_both_generations(
    disk: Path, data: DeviceData, undisturbed: Callable[..., Run]
) -> None:
    chosen, folder = tiny_recipe(epochs=4), RunFolder(disk / "run")
    killed(folder, chosen, data, after_epoch=2, checkpoint_seconds=0.0)
    before = generations(folder)
    (disk / "filler").write_bytes(bytes(free_bytes(disk) - 20_000))
    with pytest.raises(OutputError, match=r"checkpoint\.safetensors: .*No space left.*free space"):
        train_in(folder, chosen, data, diary=Diary(stop=after_step(3, 2)))
    assert generations(folder) == before
    assert leftovers(folder) == set()
    (disk / "filler").unlink()
    remount(disk, "size=8m")
    assert train_in(folder, chosen, data).equals(undisturbed(chosen))


@pytest.mark.parametrize("free", [0, 1, 50, -1], ids=["no block", "one block", "half", "one block too few"])
def test_a_checkpoint_that_does_not_fit_changes_nothing(free: int, disk: Path, data: DeviceData) -> None:
    folder, state = RunFolder(disk / "run"), state_after_a_step(data)
    folder.create({}, {})
    for epoch in (1, 2):
        state.epochs_done = epoch
        write_checkpoint(state, folder)
    before, block = generations(folder), os.statvfs(disk).f_bsize
    num_blocks = -(-len(before[0]) // block)
    remount(disk, "size=2m")
    wanted = free if free >= 0 else num_blocks + free
    (disk / "filler").write_bytes(bytes(free_bytes(disk) - wanted * block))
    state.epochs_done = 3
    with pytest.raises(OutputError, match=r"checkpoint\.safetensors: .*No space left.*free space"):
        write_checkpoint(state, folder)
    assert generations(folder) == before
    assert leftovers(folder) == set()
    (disk / "filler").unlink()
    write_checkpoint(state, folder)
    assert generations(folder)[1] == before[0]
    assert progress_of(folder.checkpoint) == (3, 0)


def test_a_disk_that_became_read_only_is_an_output_error(disk: Path, data: DeviceData) -> None:
    folder, state = RunFolder(disk / "run"), state_after_a_step(data)
    folder.create({}, {})
    write_checkpoint(state, folder)
    write_checkpoint(state, folder)
    before = generations(folder)
    remount(disk, "ro")
    with pytest.raises(OutputError, match=r"Read-only file system.*run where you may write"):
        write_checkpoint(state, folder)
    assert generations(folder) == before


def state_after_a_step(data: DeviceData, width: int = 2) -> TrainState:
    """A training whose optimizer has a momentum for every weight, as after a step."""
    state = set_up(recipe(model=NARROWEST | {"width": width}), 0, data, "fp32")
    for parameter in state.optimizer.param_groups[0]["params"]:
        state.optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
    return state


# What a killed attempt leaves


def test_temporary_files_of_a_killed_attempt_are_removed_and_nothing_else(folder: RunFolder) -> None:
    folder.create({}, {})
    kept = {
        *(".lock", "checkpoint.safetensors", "checkpoint-before.safetensors", "weights-epoch-0010.safetensors"),
        *("history.jsonl", "test_logits.npy", "weights.safetensors"),
    }
    removed = {
        *(".checkpoint.safetensors.12345", ".weights.safetensors.7", ".weights-epoch-0010.safetensors.99"),
        *(".history.jsonl.1", ".test_logits.npy.4194304", ".result.json.31", f".recipe.yaml.{os.getpid()}"),
    }
    for name in kept | removed:
        (folder.path / name).write_text(name)
    folder.create({}, {})
    assert {path.name for path in folder.path.iterdir()} == kept | {"recipe.yaml", "environment.json"}
    assert all((folder.path / name).read_text() == name for name in kept)


def test_a_leftover_on_a_read_only_disk_is_an_output_error(disk: Path) -> None:
    folder = RunFolder(disk / "run")
    folder.create({}, {})
    (folder.path / ".checkpoint.safetensors.12345").touch()
    remount(disk, "ro")
    with pytest.raises(OutputError, match=r"Read-only file system.*run where you may write"):
        folder.create({}, {})


# Times


class Slow(Diary):
    """Takes its time, so that every step is at least this long."""

    seconds = 0.03

    def note(self, event: TrainingEvent) -> None:
        super().note(event)
        if isinstance(event, Stepped):
            time.sleep(self.seconds)


def test_times_of_a_stopped_and_resumed_run_are_sums(data: DeviceData, folder: RunFolder) -> None:
    chosen = recipe(epochs=2, eval_every=1)
    walls, parts = [], []
    for place in ((1, 2), (2, 1), (2, 2)):
        begun = time.perf_counter()
        with pytest.raises(Stopped):
            train_in(folder, chosen, data, diary=Slow(stop=after_step(*place)))
        walls.append(time.perf_counter() - begun)
        progress = read_progress(folder.checkpoint)
        assert progress is not None
        parts.append(progress["train_seconds"])
    begun = time.perf_counter()
    result = train_in(folder, chosen, data, diary=Slow()).result
    walls.append(time.perf_counter() - begun)
    parts.append(result.train_seconds)
    steps = (2, 2, 1, 1)
    for number, (seconds, wall) in enumerate(zip(np.diff(parts, prepend=0.0), walls, strict=True)):
        assert steps[number] * Slow.seconds <= seconds <= wall
    speeds = [line["images_per_second"] for line in folder.history()]
    assert sum(NUM_TRAIN / speed for speed in speeds) == pytest.approx(result.train_seconds, rel=1e-9)
    assert all(NUM_TRAIN / speed >= NUM_STEPS * Slow.seconds for speed in speeds), "an epoch counts all of its parts"


def test_evaluations_of_a_stopped_and_resumed_run_are_added_up(data: DeviceData, folder: RunFolder) -> None:
    chosen = recipe(epochs=3, eval_every=1)
    stopped(folder, chosen, data, after_step(3, 1))
    progress = read_progress(folder.checkpoint)
    assert progress is not None
    assert progress["eval_seconds"] > 0
    assert train_in(folder, chosen, data).result.eval_seconds > progress["eval_seconds"]


def test_an_evaluation_that_was_stopped_counts(data: DeviceData, folder: RunFolder) -> None:
    stopped(folder, recipe(epochs=1), data, at_question(NUM_STEPS + 3))
    progress = read_progress(folder.checkpoint)
    assert progress is not None
    assert progress["eval_seconds"] > 0


def test_a_stop_keeps_the_seconds_of_the_epoch_under_way(data: DeviceData, folder: RunFolder) -> None:
    stopped(folder, recipe(), data, after_step(2, 2))
    progress = read_progress(folder.checkpoint)
    assert progress is not None
    assert 0 < progress["epoch_seconds"] < progress["train_seconds"]
    state = set_up(recipe(), 0, data, "fp32")
    assert resume(state, folder) == []
    assert (state.epochs_done, state.steps_done) == (1, 2)
    assert (state.epoch_seconds, state.train_seconds) == (progress["epoch_seconds"], progress["train_seconds"])
