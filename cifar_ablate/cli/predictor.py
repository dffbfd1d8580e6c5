"""The commands that use trained networks: promote, predict, serve, package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cifar_ablate.cli.options import DeviceName
from cifar_ablate.console import counting, fail, make_console, write

Run = Annotated[str | None, typer.Option("--run", metavar="ID", help="An MLflow run id, instead of a model.")]
Model = Annotated[str | None, typer.Option("--model", metavar="NAME@ALIAS|DIR", help="Default: the only champion.")]


def promote(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Label, such as onecycle or onecycle@pilot.")],
    arm: Annotated[str | None, typer.Option(metavar="NAME", help="Default: the best by the verdicts.")] = None,
    alias: Annotated[str, typer.Option(metavar="ALIAS", help="Alias in MLflow's model registry.")] = "champion",
) -> None:
    """Register an arm's network (its first seed, never the luckiest) in MLflow's model registry."""
    from cifar_ablate.predictor.promote import lines_of
    from cifar_ablate.predictor.promote import promote as promote_arm
    from cifar_ablate.record.mlflow_store import existing

    promoted = promote_arm(existing(), study, arm, alias=alias)
    console = make_console()
    for line in lines_of(promoted):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")],
    run: Run = None,
    model: Model = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to show.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
    device: DeviceName = "cpu",
) -> None:
    """Classify images: print the likeliest classes with their probabilities."""
    from cifar_ablate.device import find_device
    from cifar_ablate.predictor import load
    from cifar_ablate.predictor.predict import as_json, failures, find_pictures, predict_files, table_of

    paths = find_pictures(images)
    predictor = load(model, run=run, device=find_device(device).kind)
    with counting("pictures", len(paths)) as advance:
        predicted = list(predict_files(predictor, paths, advance))
    if json:
        write(as_json(predictor, predicted, top))
    else:
        write("".join(f"{line}\n" for line in (predictor.card.headline(), *table_of(predicted, top))))
    if unread := failures(predicted):
        fail("\n".join(unread), 1)


def serve(
    run: Run = None,
    model: Model = None,
    host: Annotated[str, typer.Option(help="0.0.0.0: everyone in the network can open the page.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 7860,
    share: Annotated[bool, typer.Option("--share", help="Also make a public link through gradio.live.")] = False,
    device: DeviceName = "cpu",
) -> None:
    """Serve a page that classifies dropped images and compares two arms; needs the extra [serve]."""
    from cifar_ablate.device import find_device
    from cifar_ablate.errors import require_extra

    require_extra("serve", "gradio")
    from cifar_ablate.predictor.serve import ServerAddress, serve_page

    console = make_console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    serve_page(model, run, ServerAddress(host, port, share), device=find_device(device).kind, say=say)


def package(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    run: Run = None,
    model: Model = None,
    space: Annotated[bool, typer.Option("--space", help="With a page, ready for a Hugging Face Space.")] = False,
) -> None:
    """Write a folder that runs anywhere: weights, ONNX, labels, model card; needs the extra [package]."""
    from cifar_ablate.errors import require_extra

    require_extra("package", "onnx", "onnxscript", "onnxruntime", *(["gradio"] if space else []))
    from cifar_ablate.predictor.package import lines_of
    from cifar_ablate.predictor.package import package as write_package

    packaged = write_package(folder, model=model, run=run, space=space)
    console = make_console()
    for line in lines_of(packaged):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
