"""Where runs are trained: slots, divided among the GPUs that are there."""

from __future__ import annotations

import pytest
import torch

from cifar_ablate.device import Device, find_device, find_slots, why_no_cuda
from cifar_ablate.errors import DeviceError
from cifar_ablate.runner.preflight import advice, describe_slots

GPU = Device("cuda", "a GPU", fast_bf16=True)


def test_a_run_on_a_cpu_has_one_thread_unless_told_otherwise() -> None:
    cpu = find_device("cpu")
    assert [slot.threads for slot in find_slots(cpu, 3, None)] == [1, 1, 1]
    assert [slot.threads for slot in find_slots(cpu, 2, 4)] == [4, 4]


def test_gpus_are_divided_among_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    slots = find_slots(GPU, 5, None)
    assert [str(slot.device.torch) for slot in slots] == ["cuda:0", "cuda:1"]
    assert [slot.num_slices for slot in slots] == [3, 2]
    assert {slot.device.name for slot in slots} == {"a GPU"}
    assert len(find_slots(GPU, 1, None)) == 1


@pytest.mark.parametrize(
    ("jobs", "threads", "said"),
    [
        (1, None, "1 of 4 cores in use: --jobs 4 uses all"),
        (1, 2, "2 of 4 cores in use: --jobs 2 uses all"),
        (4, None, ""),
        (3, 2, "--jobs 3 with 2 threads each want more than the 4 cores here"),
    ],
)
def test_idle_and_crowded_cores_are_told(
    monkeypatch: pytest.MonkeyPatch, jobs: int, threads: int | None, said: str
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert advice(find_slots(find_device("cpu"), jobs, threads)) == said


def test_idle_gpus_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert advice(find_slots(GPU, 1, None)) == "2 more GPUs are idle: --jobs auto uses all"
    assert advice(find_slots(GPU, 4, None)) == ""


def test_where_runs_are_trained_is_told_and_why_not_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Device("cpu", "a CPU", fast_bf16=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("cifar_ablate.runner.preflight.why_no_cuda", lambda: "torch finds no CUDA device here")
    said = describe_slots(find_slots(cpu, 2, None), "--jobs auto: 2").splitlines()
    assert said[1] == "--jobs auto: 2"
    assert said[0] == "On a CPU (torch finds no CUDA device here), 2 runs at a time, 1 thread each"
    assert describe_slots(find_slots(GPU, 1, 4)) == "On a GPU, 1 run at a time"


def test_a_gpu_that_is_too_old_for_this_torch_is_left_alone_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GTX 1080")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90", "compute_90"])
    for cached in (why_no_cuda, find_device):
        cached.cache_clear()
    try:
        assert why_no_cuda() == "GTX 1080 has compute capability 6.1, and this torch needs 7.5"
        assert find_device("auto").kind == "cpu"
        with pytest.raises(DeviceError, match=r"--device cuda: GTX 1080 has .*; use --device cpu, or check nvidia-smi"):
            find_device("cuda")
    finally:
        for cached in (why_no_cuda, find_device):
            cached.cache_clear()
