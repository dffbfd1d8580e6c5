"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cifar_ablate.registry import EXECUTORS

Files = Annotated[list[Path], typer.Argument(metavar="STUDY.yaml...", help="Study files.")]
Profile = Annotated[str | None, typer.Option(metavar="NAME|FILE", help="Overlay: smoke, pilot, or a profile file.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overlay: optimizer.lr=0.1")]
DeviceName = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads per run (default on a CPU: 1).")]
Jobs = Annotated[
    str, typer.Option(metavar="N|auto", envvar="CIFAR_ABLATE_JOBS", help="Runs at a time; auto measures what pays.")
]
ExecutorName = Annotated[str, typer.Option(help=f"Where trainings happen: {', '.join(EXECUTORS.names())}.")]
Address = Annotated[str | None, typer.Option(metavar="HOST:PORT|auto", help="Of a Ray cluster; default: one here.")]
GpusPerRun = Annotated[float | None, typer.Option(metavar="SHARE", help="GPUs per run on a Ray cluster: 0.25, 1.")]
OnOff = Annotated[str, typer.Option(metavar="auto|on|off", help="Forced, or what pays on the device.")]
CheckpointSeconds = Annotated[
    float, typer.Option(min=0, help="Checkpoint at the end of an epoch when the last one is so old.")
]
