"""The benchmarks compare what they say: same weights, rates, law and steps; and they keep what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import peers, study_time, tuning
from benchmarks.contenders import LOOPS, OURS, Outcome, Prepared, Sizes, recipe_of
from benchmarks.layers import measure as measure_layer
from benchmarks.peak import BytesMoved, gflop_per_image
from benchmarks.same_training import check_steps, difference
from benchmarks.task import AUGMENT, MODELS, Task, channel_statistics, load, with_fewer_tests
from cifar_ablate.device import find_device
from cifar_ablate.spec.load import load_study
from cifar_ablate.spec.schema import Recipe
from cifar_ablate.training.batches import to_device
from cifar_ablate.training.state import set_up

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TINY = Task(width=8, images=128, test_images=40, epochs=5, batch_size=32, lr=0.05, precision="fp32")


def test_the_law_is_that_of_the_shipped_study() -> None:
    arm = load_study(ROOT / "experiments" / "readme-augmentation.yaml").arm("+cutmix")
    assert arm.recipe.augment == Recipe.model_validate(recipe_of(TINY)).augment
    assert set(AUGMENT) == set(arm.recipe.augment)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_learns_from_the_weights_that_a_study_begins_with(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    network = Task.network

    def watched(*arguments: Any) -> torch.nn.Module:
        model = network(*arguments)
        built.append({name: value.clone() for name, value in model.state_dict().items()})
        return model

    monkeypatch.setattr(Task, "network", watched)
    lines: list[dict[str, Any]] = []
    total = peers.train_all(loop, TINY, workers=0, max_steps=None, say=lines.append)
    data = load(TINY)
    ours = set_up(Recipe.model_validate(recipe_of(TINY)), 0, to_device(data, torch.device("cpu")), "fp32")
    assert len(built) == 1
    assert all(torch.equal(value, built[0][name]) for name, value in ours.model.state_dict().items())
    np.testing.assert_array_equal(TINY.rates(len(data.train_labels)), ours.base_lr * ours.lr_factors)
    assert [line["images"] for line in lines] == [128] * 5
    assert min(lines[-1]["loss"], lines[-2]["loss"]) < 0.9 * lines[0]["loss"]
    assert total["test_accuracy"] == [lines[-1]["test_accuracy"]]
    assert total["images"] == "digits: 128 of 1,437 training images, 40 of 360 test images"
    assert 0 < total["cold_seconds"] < total["wall_seconds"]


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_keeps_the_partial_batch_and_stops_after_max_steps(loop: str) -> None:
    task = replace(TINY, images=80, epochs=3, eval_every=0)
    lines: list[dict[str, Any]] = []
    total = peers.train_all(loop, task, workers=0, max_steps=4, say=lines.append)
    assert [line["images"] for line in lines] == [80, 32]
    assert "only 4 steps of each run" in total["images"]


def test_statistics_of_the_images_are_ours() -> None:
    data = load(TINY)
    ours = to_device(data, torch.device("cpu"))
    mean, std = channel_statistics(data.train_images)
    np.testing.assert_allclose(mean, ours.mean.flatten(), rtol=1e-5)
    np.testing.assert_allclose(std, ours.std.flatten(), rtol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_our_step_is_the_plain_step(model: str) -> None:
    task = replace(TINY, model=model, images=None, test_images=None, batch_size=16)
    check = check_steps(task, load(task))
    assert check.holds, check


def test_a_wrong_step_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.peers.WEIGHT_DECAY", 0.0)
    task = replace(TINY, images=None, test_images=None, batch_size=16)
    assert not check_steps(task, load(task)).holds


def test_an_interval_that_excludes_0_is_noticed() -> None:
    assert difference("plain", [50.0, 52.0, 51.0], [51.0, 51.0, 50.5]).holds
    assert not difference("plain", [60.0, 62.0, 61.0], [51.0, 52.0, 51.5]).holds


def test_fewer_test_images_are_class_balanced() -> None:
    data = with_fewer_tests(load(replace(TINY, test_images=None)), 50)
    assert np.bincount(data.test_labels).tolist() == [5] * 10


def test_a_whole_study_is_extrapolated_by_warm_time_per_image() -> None:
    outcome = Outcome(100.0, 10.0, 60.0, 20.0, 0.5, 0.1, 2, True, (50.0,), {})
    done, whole = replace(TINY, epochs=2, seeds=3), replace(TINY, epochs=4, seeds=3)
    # 360 more images trained and 140 + 80 more evaluated by each run, in two waves
    expected = 100 + 2 * (360 * 0.5 + 220 * 0.1)
    assert outcome.extrapolated(done, Sizes(20, 10), whole, Sizes(100, 40)) == pytest.approx(expected)


def test_a_study_is_timed_and_an_interrupted_benchmark_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "study_time.json"
    options = "--share 0.1 --model resnet18-compact --width 8 --images 320 --test-images 80 --epochs 4 --batch-size 32 "
    options += f"--runs 1 --jobs 1 --loop-threads 1 --precision fp32 --resume --out {out}"

    def run(rounds: int) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", ["study_time", *options.split(), "--rounds", str(rounds)])
        study_time.main()
        return dict(json.loads(out.read_text(encoding="utf-8")))

    document = run(1)
    outcomes = document["measured"][0]["outcomes"]
    assert set(outcomes) == {OURS, *LOOPS}
    assert document["how"] == "extrapolated"
    for outcome in outcomes.values():
        assert 0 < outcome["cold_seconds"] < outcome["wall_seconds"] < outcome["study_seconds"]
    assert document["rows"][0]["ratio"] == 1

    measured = []

    def again(self: Prepared, name: str, **_: Any) -> Outcome:
        measured.append(name)
        kept = {field: value for field, value in outcomes[name].items() if field != "study_seconds"}
        return Outcome(**kept)

    monkeypatch.setattr(Prepared, "measure", again)
    assert run(1)["measured"] == document["measured"]
    assert measured == []
    resumed = run(2)
    assert measured == [*LOOPS, OURS]
    assert resumed["measured"][0] == document["measured"][0]
    assert [row["rounds"] for row in resumed["rows"]] == [2, 2, 2, 2]


@pytest.mark.parametrize(("model", "gflop"), [("resnet18-compact", 0.809), ("resnet18", 3.329)])
def test_nominal_operations_are_those_of_the_published_networks(model: str, gflop: float) -> None:
    assert gflop_per_image(model, {}) == pytest.approx(gflop, abs=5e-4)


def test_bytes_moved_count_what_operations_read_and_write_and_views_move_nothing() -> None:
    a, b = torch.zeros(10, 10), torch.zeros(10, 10)
    with BytesMoved() as moved:
        a.t()
        torch.add(a, b)
    assert moved.total == 3 * 400


def test_a_layer_is_measured_both_ways() -> None:
    row = measure_layer(torch.nn.Conv2d(256, 512, 3, stride=2, padding=1, bias=False), 4, 2)
    assert row["products"] == [True, True]
    assert all(rate > 0 for pair in row["gflops"] for rate in pair)


def test_the_benchmark_of_a_gpu_measures_part_by_part_and_says_what_it_left_out(tmp_path: Path) -> None:
    out = tmp_path / "speed.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "speed", "--data", "digits", "--width", "4", "--steps", "2"]
    done = subprocess.run(
        [*command, "--minutes", "0.9", "--out", str(out)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    document = json.loads(out.read_text())
    by_part = {row["part"]: row for row in document["rows"]}
    assert by_part["peak"]["value"] > 0
    if find_device().kind == "cpu":
        assert by_part["same seed"]["value"] == 0
    left_out = [what.split(",")[0] for what in document["left_out"] if what.startswith("loop")]
    assert left_out == ["loop: plain", "loop: fair"] * 2  # a minute each
    assert "| part | what | value | note |" in done.stdout
    assert f"left out, for lack of time: {document['left_out'][0]}" in done.stdout


def test_the_benchmark_of_a_gpu_tunes_and_trains_what_came_of_it(tmp_path: Path) -> None:
    out = tmp_path / "tune.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "tune", "--data", "digits", "--width", "4", "--out", str(out)]
    subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    (row,) = json.loads(out.read_text())["rows"]
    assert 0 < row["value"] < 100, row["note"]
    assert "baseline: 2 of 2 trials" in row["note"]
    written = load_study(tmp_path / "tune-k30-tuned.yaml")
    assert written.tuned is not None
    assert (tmp_path / "tune-trials.csv").read_text().count("\n") == 3


def test_samplers_are_compared_by_the_best_of_equal_budgets(capsys: pytest.CaptureFixture[str]) -> None:
    tuning.main(["--part", "samplers", "--repeats", "2", "--trials", "2"])
    head, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert head.split(" | ")[2:] == ["best of 1 trials, %", "best of 2 trials, %", "over random (95% interval) |"]
    firsts = [row.split(" | ")[2] for row in rows]
    assert [row.split(" | ")[0] for row in rows] == ["| random", "| tpe", "| gp"]
    assert len(set(firsts)) == 1, "the first trial is the recipe as it stands, whoever proposes"
