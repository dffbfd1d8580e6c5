"""What a Ray cluster may lose in the middle of a study: processes, nodes, the command, itself."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.clusters import RayCluster, ray_cluster
from tests.disturbing import (
    ONE_RUN,
    RUN,
    Command,
    assert_undisturbed,
    starts,
    statuses,
    steps_done,
    wait_until,
)

if TYPE_CHECKING:
    from tests.conftest import Tried, Workshop
    from tests.disturbing import Begin, Undisturbed

pytestmark = [pytest.mark.cluster, pytest.mark.faults]
SECONDS = 300.0


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[RayCluster]:
    with ray_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayCluster]:
    """A cluster without nodes, which the test adds."""
    for name, value in shared_cluster.environment().items():
        if name.startswith("RAY"):
            monkeypatch.setenv(name, value)
    yield shared_cluster
    for node in shared_cluster.nodes:
        node.kill()
    shared_cluster.nodes.clear()


def start(begin: Begin, cluster: RayCluster, *more: str) -> Command:
    return begin(*RUN, *more, "--executor", "ray", "--address", cluster.address, "--jobs", "2", fresh=())


def tasks() -> list[psutil.Process]:
    """Processes that train for a command on this machine's clusters."""
    found = []
    for one in psutil.process_iter(["cmdline"]):
        if " ".join(one.info["cmdline"] or []).startswith("ray::cifar-ablate"):
            found.append(one)
    return found


def wait_for_start(command: Command, number: int) -> None:
    """Until its run has been begun so often, and an epoch of it has ended."""
    wait_until(lambda: command.said.count("\n[1/1] ") >= number and bool(tasks()), seconds=SECONDS)
    epochs = command.said.count(" loss ")
    wait_until(lambda: command.said.count(" loss ") > epochs or command.code is not None, seconds=SECONDS)


@pytest.mark.parametrize("is_hidden", [False, True], ids=["that sees the run folders", "with folders of its own"])
def test_runs_of_a_node_that_is_killed_go_on_elsewhere(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried, cluster: RayCluster, is_hidden: bool
) -> None:
    tried("Ray node killed in the middle")
    cluster.add(2, hidden=workshop.folder if is_hidden else None)
    command = start(begin, cluster)
    command.wait_for("seed 0: epoch 2/", seconds=SECONDS)
    cluster.nodes[0].kill()
    assert command.end(seconds=SECONDS) == 0, command.said
    assert "begun again from the last checkpoint" in command.said
    assert_undisturbed(workshop.folder, undisturbed)


def test_a_run_whose_process_is_killed_on_a_node_is_begun_again_and_given_up_when_that_happens_always(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried, cluster: RayCluster
) -> None:
    tried("Ray task killed")
    cluster.add(hidden=workshop.folder)
    command = start(begin, cluster, *ONE_RUN)
    for number in range(4):
        wait_for_start(command, number + 1)
        for one in tasks():
            one.kill()
    assert command.end(seconds=SECONDS) == 1, command.said
    assert command.said.count("begun again from the last checkpoint") == 3
    ((status, reason),) = statuses().values()
    assert status == "FAILED"
    assert "was lost 4 times" in reason
    again = start(begin, cluster, *ONE_RUN, "--retry", "failed")
    assert again.end(seconds=SECONDS) == 0, again.said
    assert max(starts(again.said).values()) >= 1
    assert_undisturbed(workshop.folder, undisturbed, only=("flip 0",))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told to end"])
def test_a_command_that_ends_in_the_middle_leaves_no_task_behind_and_the_next_one_goes_on(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried, cluster: RayCluster, number: int
) -> None:
    tried("command of a Ray cluster killed" if number == signal.SIGKILL else "command of a Ray cluster told to end")
    cluster.add(2, hidden=workshop.folder)
    command = start(begin, cluster)
    command.wait_for("seed 0: epoch 2/", seconds=SECONDS)
    command.send(number, to_group=True)
    code = command.end(seconds=30)
    assert code == (130 if number == signal.SIGTERM else -9)
    before = steps_done(workshop.folder)
    assert before
    wait_until(lambda: not tasks(), seconds=60)
    again = start(begin, cluster)
    assert again.end(seconds=SECONDS) == 0, again.said
    assert "(from epoch " in again.said
    assert not list(workshop.folder.glob("mlruns/.sighting*"))
    assert_undisturbed(workshop.folder, undisturbed)


def test_a_cluster_that_is_gone_ends_the_command_with_one_sentence_and_nothing_lost(
    workshop: Workshop, begin: Begin, undisturbed: Undisturbed, tried: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried("Ray cluster gone")
    with ray_cluster() as cluster:
        for name, value in cluster.environment().items():
            if name.startswith("RAY"):
                monkeypatch.setenv(name, value)
        cluster.add(hidden=workshop.folder)
        command = start(begin, cluster)
        command.wait_for("epoch 2/", seconds=SECONDS)
    assert command.end(seconds=SECONDS) != 0
    assert steps_done(workshop.folder)
    again = begin(*RUN)
    assert again.end(seconds=SECONDS) == 0, again.said
    assert_undisturbed(workshop.folder, undisturbed)
