"""Studies on a Ray cluster: the same runs, records and bits as on one machine, wherever they are trained."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.clusters import RayCluster, ray_cluster
from tests.disturbing import RUN, assert_undisturbed, wait_until
from tests.tuning import trials, write

if TYPE_CHECKING:
    from tests.conftest import Workshop
    from tests.disturbing import Begin, Undisturbed


pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as cluster:
        yield cluster


@pytest.fixture
def joined(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> RayCluster:
    """The cluster, for commands of the test."""
    for name, value in cluster.environment().items():
        if name.startswith("RAY"):
            monkeypatch.setenv(name, value)
    return cluster


def test_a_study_on_ray_is_the_study_on_one_machine_to_the_bit(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    command = begin(*RUN, "--executor", "ray", "--jobs", "2", fresh=())
    command.wait_for("Ray, 1 node, 2 CPUs\\), 2 runs at a time, 1 thread each", seconds=240)
    servers = [one for one in command.workers() if one.name() in ("raylet", "gcs_server")]
    assert command.end(seconds=300) == 0, command.said
    assert servers
    wait_until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in servers))
    assert_undisturbed(workshop.folder, undisturbed)
    assert not list(workshop.folder.glob("mlruns/.sighting*"))


def test_nodes_that_do_not_see_the_run_folders_bring_their_files_to_the_command(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, joined: RayCluster
) -> None:
    joined.add(2, hidden=workshop.folder)
    command = begin(*RUN, "--executor", "ray", "--address", joined.address, "--jobs", "auto", fresh=())
    command.wait_for("Ray, 3 nodes, 2 CPUs\\), 2 runs at a time", seconds=240)
    assert command.end(seconds=300) == 0, command.said
    assert_undisturbed(workshop.folder, undisturbed)
    for node in joined.nodes:
        node.kill()


def test_a_tuning_on_ray_has_the_trials_of_one_machine(workshop: Workshop, joined: RayCluster) -> None:
    write(workshop)
    assert workshop("tune", "small.yaml", "--offline").code == 0
    (workshop.folder / "alone").mkdir()
    shutil.move("optuna.db", "alone")
    shutil.move("mlruns", "alone")
    joined.add(hidden=workshop.folder)
    options = ("--executor", "ray", "--address", joined.address)
    answer = workshop.process("tune", "small.yaml", "--offline", *options)
    assert answer.code == 0, answer
    assert "Ray" in answer.out
    here, there = (trials(folder) for folder in (workshop.folder / "alone", workshop.folder))
    assert len(here) == 4
    assert [(one.params, one.values) for one in here] == [(one.params, one.values) for one in there]


def test_who_lacks_the_token_of_a_cluster_is_turned_away_in_one_sentence(
    workshop: Workshop, joined: RayCluster, begin: Begin
) -> None:
    del begin
    wrong = {"RAY_AUTH_TOKEN": "0" * 64, "RAY_gcs_server_request_timeout_seconds": "5"}
    answer = workshop.process("run", "tiny.yaml", "--executor", "ray", "--address", joined.address, **wrong)
    assert answer.code == 1
    assert "there is no Ray cluster to be had at" in answer.err
    assert "check --address, RAY_AUTH_TOKEN" in answer.err
    assert "Traceback" not in answer.err


def test_a_cluster_without_gpus_says_so_where_one_is_asked_for(
    workshop: Workshop, joined: RayCluster, begin: Begin
) -> None:
    del begin
    options = ("--executor", "ray", "--address", joined.address, "--device", "cuda")
    answer = workshop.process("run", "tiny.yaml", *options)
    assert (answer.code, answer.err.count("\n")) == (1, 1)
    assert "no node of the Ray cluster has a GPU; use --device cpu, or start nodes with --num-gpus" in answer.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--address", "10.0.0.1:6379"), "--address 10.0.0.1:6379: that is for a cluster; add --executor ray"),
        (("--gpus-per-run", "0.5"), "--gpus-per-run 0.5: that is for a cluster; add --executor ray"),
        (("--executor", "ray", "--gpus-per-run", "2"), "a run uses one GPU or a share of one: 0.25, 1"),
        (("--executor", "ray", "--gpus-per-run", "0"), "a run uses one GPU or a share of one: 0.25, 1"),
        (("--executor", "ray", "--device", "mps"), "Ray knows no Apple GPUs"),
        (("--executor", "ray", "--address", "ray://head:10001"), "start the command on a node of the cluster"),
        (("--executor", "rey"), "unknown executor 'rey'; did you mean 'ray'?"),
    ],
)
@pytest.mark.parametrize("command", ["run", "tune"])
def test_what_no_cluster_can_do_is_refused_with_the_cure(
    workshop: Workshop, command: str, options: tuple[str, ...], said: str
) -> None:
    write(workshop)
    answer = workshop(command, "small.yaml", *options)
    assert answer.code == 2
    assert said in answer.err
    assert not (workshop.folder / "mlruns").exists()


def test_without_ray_the_executor_says_how_to_install_it(workshop: Workshop, tmp_path: Path) -> None:
    """In a process that finds no module of that name."""
    write(workshop)
    script = """
        import importlib.util, sys
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "ray" else found(name, *rest)
        import cifar_ablate.errors
        sys.argv = ["cifar-ablate", "run", "small.yaml", "--executor", "ray"]
        from cifar_ablate.cli import main
        main()
    """
    path = workshop.write("without.py", script)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 2
    assert "pip install 'cifar-ablate[ray]'" in done.stderr


TWO_VALUES = (
    """optimizer.lr: {low: 0.001, high: 0.5, log: true}
    schedule: [constant, cosine]
    schedule.warmup: {low: 0.0, high: 0.5, when: {schedule: cosine}}
""",
    "optimizer.lr: [0.02, 0.1]\n",
)


def test_twin_trials_on_nodes_of_their_own_wait_for_each_other_as_on_one_machine(
    workshop: Workshop, joined: RayCluster
) -> None:
    """Two values, four trials, two at a time: some are proposed twice at one moment."""
    write(workshop, TWO_VALUES)
    joined.add(2, hidden=workshop.folder)
    options = ("--executor", "ray", "--address", joined.address, "--jobs", "2")
    answer = workshop.process("tune", "small.yaml", "--offline", *options)
    assert answer.code == 0, answer
    assert "is being trained by" not in answer.out
    found = trials(workshop.folder)
    assert len(found) == 4
    assert all(one.value is not None for one in found)
    for node in joined.nodes:
        node.kill()


def test_no_process_is_given_another_gpu_than_the_one_that_it_has_seen(workshop: Workshop) -> None:
    """Torch stays on the first GPU of a process. Ray only believes that there are two."""
    script = """
        import os, ray
        from cifar_ablate.runner.cluster.dispatch import as_task

        def where(number):
            return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]

        ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
        task = as_task(where, uses_gpu=True)
        seen = [ray.get(task.options(num_gpus=1).remote(number)) for number in range(6)]
        assert len({pid for pid, _ in seen}) == 6, seen
    """
    path = workshop.write("gpus.py", script)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
