"""The device that runs are trained on, and what it computes in."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from cifar_ablate.errors import DeviceError, UnknownNameError

Precision = Literal["fp32", "bf16"]
CHOICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class Device:
    """One device: ``kind`` is cpu, cuda or mps; ``name`` is the maker's name for it."""

    kind: str
    name: str
    fast_bf16: bool
    """Does it compute bf16 in hardware?"""
    index: int = 0
    """Of several GPUs, which."""

    @property
    def torch(self) -> torch.device:
        return torch.device(self.kind, self.index) if self.kind == "cuda" else torch.device(self.kind)

    def resolve(self, precision: str) -> Precision:
        """The precision that ``auto`` means here: bf16 where the hardware computes in it, else fp32."""
        if precision == "auto":
            return "bf16" if self.fast_bf16 else "fp32"
        return "bf16" if precision == "bf16" else "fp32"


NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In messages of errors that have no type of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Does it say that the device or the machine has no memory left? A capture that it ended may say so only below."""
    if error.__context__ is not None and is_out_of_memory(error.__context__):
        return True
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def first_cause(error: BaseException) -> str:
    """Kind and first line of what went wrong first: a capture that an error ended raises another one about its end."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}".split("\n", 1)[0]


def out_of_memory(error: BaseException, batch_size: int | None = None) -> DeviceError:
    """The error for a recipe that is too large for where it is trained, with the cure."""
    said = " ".join(str(error).split())[:160]
    at = "" if batch_size is None else f" at batch_size {batch_size}"
    return DeviceError(
        f"out of memory{at} ({type(error).__name__}: {said}); make batch_size or the network smaller, or give fewer "
        "--jobs, then try --retry failed"
    )


@dataclass(frozen=True)
class Slot:
    """What one process trains with: a device, CPU threads, and the number of runs that take turns."""

    device: Device
    threads: int
    """Number of CPU threads."""
    num_slices: int = 1
    """Number of runs that take turns."""

    def enter(self) -> None:
        """Let this process compute here."""
        torch.set_num_threads(self.threads)
        _keep_freed_memory()
        if self.device.kind == "cuda":
            torch.cuda.set_device(self.device.index)
            torch.backends.cudnn.benchmark = True  # shapes never change, so the search is paid once


def on_stream(stream: Any) -> AbstractContextManager[object]:
    """Issue what follows on a torch.cuda.Stream; None: where it would go anyway."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def give_back_freed_memory() -> None:
    """To the machine, for other processes: what ``_keep_freed_memory`` kept."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _keep_freed_memory() -> None:
    """Tell glibc to keep what is freed, for the next step: it would give large arrays back, and pay for new pages.

    Steps on a CPU are 3 to 10% faster so (``python -m benchmarks.without``). Other C libraries are left alone.
    """
    mmap_threshold, trim_threshold = -3, -1  # of malloc.h
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def find_slots(device: Device, jobs: int, threads: int | None) -> list[Slot]:
    """Slots for ``jobs`` runs at a time.

    On a CPU each run has a process of its own with one thread, unless ``threads`` says otherwise: equal threads give
    equal bits, and two runs with two threads each are slower than four with one. Each GPU has one process, where its
    share of the runs take turns: processes of their own would not overlap there.
    """
    if device.kind != "cuda":
        threads = threads or (1 if device.kind == "cpu" else max(1, torch.get_num_threads() // jobs))
        return [Slot(device, threads) for _ in range(jobs)]
    num_slots = min(jobs, torch.cuda.device_count())
    threads = threads or max(1, torch.get_num_threads() // num_slots)
    shares = [len(range(index, jobs, num_slots)) for index in range(num_slots)]
    return [Slot(replace(device, index=index), threads, share) for index, share in enumerate(shares)]


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def find_device(choice: str = "auto") -> Device:
    """The device called ``choice``; raises UnknownNameError for another name, DeviceError when it is not there."""
    if choice not in CHOICES:
        raise UnknownNameError("device", choice, CHOICES)
    missing = why_no_cuda()
    if choice in ("auto", "cuda") and not missing:
        return Device("cuda", torch.cuda.get_device_name(0), torch.cuda.is_bf16_supported(including_emulation=False))
    if choice == "cuda":
        raise DeviceError(f"--device cuda: {missing}; use --device cpu, or check nvidia-smi")
    if choice == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceError("--device mps: torch finds no Apple GPU here; use --device cpu")
        return Device("mps", "Apple GPU", fast_bf16=False)
    return Device("cpu", _cpu_name(), _cpu_has_bf16())


@cache
def why_no_cuda() -> str:
    """Why no CUDA device can be used, in a clause; empty where one can."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device here"
    major, minor = torch.cuda.get_device_capability(0)
    supported = [int(name.removeprefix("sm_").rstrip("af")) for name in torch.cuda.get_arch_list() if "sm_" in name]
    if supported and 10 * major + minor < min(supported):
        lowest = min(supported)
        return (
            f"{torch.cuda.get_device_name(0)} has compute capability {major}.{minor}, and this torch needs "
            f"{lowest // 10}.{lowest % 10}"
        )
    return ""


def _cpu_has_bf16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")  # torch's own check is private and covers AVX-512 alone
    flags = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
