"""What is decided on the way to a Ray cluster; no cluster is needed for it."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cifar_ablate.device import Device
from cifar_ablate.errors import OutputError, UsageError
from cifar_ablate.process import this_process
from cifar_ablate.record.folder import RunFolder
from cifar_ablate.runner.cluster import connection, node
from cifar_ablate.runner.cluster.actor import Lent, RunActor
from cifar_ablate.runner.cluster.connection import Share
from cifar_ablate.runner.cluster.node import CommandLink, FolderSync, NodeInfo
from cifar_ablate.runner.executor import Executor, ExecutorConfig
from cifar_ablate.runner.executors.ray import Ray
from cifar_ablate.runner.run import fitting_device
from cifar_ablate.training.engine import EngineOptions

GPU = Device("cuda", "a GPU", fast_bf16=True)


@pytest.mark.parametrize(
    ("each", "in_turn", "taken"),
    [(None, 1, 1.0), (1.0, 1, 1.0), (0.5, 2, 1.0), (0.25, 4, 1.0), (0.3, 3, 0.9), (0.16666667, 6, 1.0)],
)
def test_runs_that_share_a_gpu_take_turns_in_one_task_that_asks_for_all_their_shares(
    each: float | None, in_turn: int, taken: float
) -> None:
    executor = Ray(ExecutorConfig(gpus_per_run=each))
    executor.found = GPU
    share, number = executor.share()
    assert number == in_turn
    assert share.num_gpus == pytest.approx(taken)
    assert share.num_gpus <= 1


def test_a_node_has_room_for_as_many_tasks_as_its_cpus_and_gpus_allow() -> None:
    assert Share(1).fits({"CPU": 3.0}) == 3
    assert Share(2).fits({"CPU": 3.0}) == 1
    assert Share(1, 1.0).fits({"CPU": 8.0, "GPU": 2.0}) == 2
    assert Share(1, 0.9).fits({"CPU": 8.0, "GPU": 2.0}) == 2
    assert Share(1, 1.0).fits({"CPU": 8.0}) == 0
    assert Share(4, 1.0).fits({"CPU": 4.0, "GPU": 2.0}) == 1


def test_an_error_that_travels_between_processes_keeps_its_words() -> None:
    error = OutputError(Path("/full"), "No space left on device", "free space")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_share_is_refused_before_anything_is_started() -> None:
    for each in (-1, 0, 0.0001, 1.5):
        with pytest.raises(UsageError, match="a run uses one GPU"):
            Ray(ExecutorConfig(gpus_per_run=each))


@pytest.mark.parametrize(("jobs", "at_a_time"), [(1, 1), (2, 2), (3, 2), (5, 4), (9, 8)])
def test_jobs_is_never_exceeded_where_runs_share_a_gpu(
    monkeypatch: pytest.MonkeyPatch, jobs: int, at_a_time: int
) -> None:
    monkeypatch.setattr(connection, "alive", lambda: [{"Resources": {"CPU": 64.0, "GPU": 8.0}}])
    executor = Ray(ExecutorConfig(gpus_per_run=0.5, jobs=jobs))
    executor.found = GPU
    slots, said = executor.slots([], {}, EngineOptions())
    assert sum(slot.num_slices for slot in slots) == at_a_time
    assert f", {at_a_time} run{'s' if at_a_time > 1 else ''} at a time" in said


def test_a_command_on_a_machine_without_a_gpu_trains_on_those_of_the_nodes() -> None:
    class Elsewhere(Executor):
        trains_here = False

        def device(self) -> Device:
            return GPU

    executor = Elsewhere(ExecutorConfig())
    assert fitting_device(executor, EngineOptions()) == GPU
    assert fitting_device(executor, EngineOptions(capture="on", compile="on")) == GPU
    with pytest.raises(UsageError, match="--compile always"):
        fitting_device(executor, EngineOptions(compile="always"))  # type: ignore[arg-type]


def test_a_person_is_told_where_results_depend_on_the_nodes_that_are_there() -> None:
    def info(kind: str = "cuda", *, fast_bf16: bool = True, instructions: str = "AVX2") -> NodeInfo:
        return NodeInfo("a", Device(kind, "it", fast_bf16), {}, instructions)

    assert connection.remark_on([info(), info(instructions="AVX512")], 0) == ""
    assert "fp32" in connection.remark_on([info(), info(fast_bf16=False)], 0)
    assert "without 2 busy nodes" in connection.remark_on([info()], 2)
    assert "AVX2, AVX512" in connection.remark_on([info("cpu"), info("cpu", instructions="AVX512")], 0)


@pytest.fixture
def actor(tmp_path: Path) -> RunActor:
    return RunActor(tmp_path, this_process())


def test_a_folder_that_was_lent_is_lent_again_to_who_asks_again_and_to_nobody_else(actor: RunActor) -> None:
    assert not actor.lend("task-1", "f").held_by
    assert not actor.lend("task-1", "f").held_by  # the first answer was lost on its way
    assert actor.lend("task-2", "f").held_by
    actor.take_back("task-1")
    assert not actor.lend("task-2", "f").held_by


def test_a_node_that_finds_the_newest_checkpoint_damaged_leaves_the_one_before(actor: RunActor) -> None:
    folder = RunFolder(actor.runs_root / "f")
    actor.lend("task-1", "f")
    for content in (b"first", b"second"):
        assert actor.keep("task-1", "f", {"checkpoint.safetensors": content}, []) is None
    assert actor.keep("task-1", "f", {}, ["checkpoint.safetensors"]) is None
    assert not folder.checkpoint.exists()
    assert folder.checkpoint_before.read_bytes() == b"first"
    assert actor.keep("task-1", "f", {"checkpoint.safetensors": b"third"}, []) is None
    assert actor.keep("task-1", "f", {"result.json": b"{}"}, ["checkpoint.safetensors"]) is None
    assert not folder.checkpoint_before.exists()


class Box:
    """An actor whose answers need no Ray, and in which others hold folders for a while."""

    def __init__(self, held: dict[str, int]) -> None:
        self.held, self.lent = held, list[str]()
        self.lend = SimpleNamespace(remote=self._lend)
        self.wanted_stops = SimpleNamespace(remote=frozenset)
        self.tell = SimpleNamespace(remote=lambda *_: None)

    def _lend(self, _task: str, fingerprint: str) -> Lent:
        if self.held.get(fingerprint, 0):
            self.held[fingerprint] -= 1
            return Lent({}, "another task")
        self.lent.append(fingerprint)
        return Lent({})


@pytest.mark.parametrize("order", ["ab", "ba", "abab", "cab"])
def test_tasks_take_the_folders_of_their_trials_in_one_order_so_that_no_two_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, order: str
) -> None:
    monkeypatch.setattr(node, "call_actor", lambda ask, *_: ask())
    monkeypatch.setattr(node, "WAIT_SECONDS", 0)
    group: Sequence[Any] = [SimpleNamespace(fingerprint=name, key=(name, at)) for at, name in enumerate(order)]
    box = Box({"a": 2})
    borrowed = FolderSync(CommandLink(box, "task"), tmp_path, group).borrow(waits=True)
    assert box.lent == sorted(set(order))
    assert borrowed == group


def test_a_command_that_cannot_be_reached_for_a_moment_is_asked_again_and_no_run_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[Any] = [ray.exceptions.ActorUnavailableError("cut", None), frozenset({None})]

    def get(answer: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(node, "POLL_SECONDS", 0)
    assert node.call_actor(lambda: answers.pop(0)) == frozenset({None})
    ended: list[int] = []

    def leave(code: int) -> None:
        ended.append(code)
        raise SystemExit

    monkeypatch.setattr(node.os, "_exit", leave)
    for error in (ray.exceptions.ActorDiedError(), ray.exceptions.ObjectStoreFullError()):
        with pytest.raises(SystemExit):
            node.call_actor(lambda error=error: error)
    assert ended == [1, 1]
