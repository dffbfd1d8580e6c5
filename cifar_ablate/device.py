"""Devices: finding them, their precision, and the slots in which runs are trained."""

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
    """A device: ``kind`` is cpu, cuda or mps; ``name`` is the manufacturer's name."""

    kind: str
    name: str
    fast_bf16: bool
    """Whether it computes bf16 in hardware."""
    index: int = 0
    """Index of a GPU."""

    @property
    def torch(self) -> torch.device:
        return torch.device(self.kind, self.index) if self.kind == "cuda" else torch.device(self.kind)

    def resolve(self, precision: str) -> Precision:
        """The precision to compute in; ``auto`` is bf16 if the hardware supports it, else fp32."""
        if precision == "auto":
            return "bf16" if self.fast_bf16 else "fp32"
        return "bf16" if precision == "bf16" else "fp32"


NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Parts of messages of out-of-memory errors that have a general type."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that led to it, says that the device or the machine is out of memory."""
    if error.__context__ is not None and is_out_of_memory(error.__context__):
        return True
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def first_cause(error: BaseException) -> str:
    """Type and first line of the first error of a chain; a failed CUDA graph capture raises further ones."""
    while error.__context__ is not None:
        error = error.__context__
    return f"{type(error).__name__}: {error}".split("\n", 1)[0]


def out_of_memory(error: BaseException, batch_size: int | None = None) -> DeviceError:
    """The error for a recipe that needs more memory than there is, with the remedy."""
    said = " ".join(str(error).split())[:160]
    at = "" if batch_size is None else f" at batch_size {batch_size}"
    return DeviceError(
        f"out of memory{at} ({type(error).__name__}: {said}); make batch_size or the network smaller, or give fewer "
        "--jobs, then try --retry failed"
    )


@dataclass(frozen=True)
class Slot:
    """What one process trains with: a device, the number of CPU threads, and the number of runs that take turns."""

    device: Device
    threads: int
    num_slices: int = 1

    def enter(self) -> None:
        """Configure this process for the slot."""
        torch.set_num_threads(self.threads)
        _keep_freed_memory()
        if self.device.kind == "cuda":
            torch.cuda.set_device(self.device.index)
            torch.backends.cudnn.benchmark = True  # shapes never change, so the search is paid once


def on_stream(stream: Any) -> AbstractContextManager[object]:
    """Context in which kernels go to a torch.cuda.Stream; None: the current stream."""
    return nullcontext() if stream is None else torch.cuda.stream(stream)


def give_back_freed_memory() -> None:
    """Return the memory that ``_keep_freed_memory`` kept to the system, for other processes."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step, instead of returning large arrays and requesting new pages.

    Steps on a CPU are 3 to 10% faster (``python -m benchmarks.without``). Other C libraries are not configured.
    """
    mmap_threshold, trim_threshold = -3, -1  # of malloc.h
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def find_slots(device: Device, jobs: int, threads: int | None) -> list[Slot]:
    """Slots for ``jobs`` runs at a time.

    On a CPU each run has its own process with one thread, unless ``threads`` is given: equal numbers of threads give
    equal bits, and two runs with two threads each are slower than four with one. Each GPU has one process, in which its
    share of the runs take turns, because processes would not overlap on it.
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
    """The device called ``choice``; raises UnknownNameError for another name, DeviceError for a missing device."""
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
    """Why no CUDA device can be used, in a clause; empty if one can."""
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
    cpuinfo = Path("/proc/cpuinfo")  # torch's check is private and covers only AVX-512
    flags = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
