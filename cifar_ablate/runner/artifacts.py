"""Files for people that are made from a run's folder: the history as CSV and the confusion matrix as PNG."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence

import numpy as np

from cifar_ablate.locks import lock
from cifar_ablate.record.folder import RunFolder, atomic, damaged


def write_artifacts(folder: RunFolder, class_names: Sequence[str]) -> None:
    """Write history.csv and the confusion matrix into the folder; raises RecordError if it is damaged."""
    folder.recipe(), folder.environment()
    _write_history(folder)
    result = folder.result()
    if result is not None and result.status == "finished" and folder.keeps_network():
        draw_confusion(folder, class_names)


def write_missing_artifacts(folder: RunFolder) -> None:
    """Write the artifacts that are missing because the training process ended too early.

    Raises RecordError if the folder is damaged, OutputError if it cannot be written.
    """
    result = folder.result()
    if result is None or not folder.is_begun():
        return
    names = ["history.csv"]
    names += ["confusion_matrix.png"] if result.status == "finished" and folder.keeps_network() else []
    if all((folder.path / name).exists() for name in names):
        return
    with lock(folder.lock) as mine:
        if mine:
            write_artifacts(folder, folder.environment()["classes"])


def _write_history(folder: RunFolder) -> None:
    lines = folder.history()
    columns = list(dict.fromkeys(key for line in lines for key in line))
    with atomic(folder.path / "history.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)


def draw_confusion(folder: RunFolder, class_names: Sequence[str]) -> None:
    """Draw the confusion matrix of the test images as a PNG: rows are true classes, cells percent of the row.

    scikit-learn's ConfusionMatrixDisplay is not used: its import adds 4 s and 150 MB to each training process, it draws
    with pyplot, and it parses a class name such as ``$x`` as mathematics.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    try:
        predicted = np.load(folder.logits, allow_pickle=False).astype(np.float32).argmax(1)
        labels = np.load(folder.labels, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise damaged(folder.logits) from None
    num = len(class_names)
    counts = np.bincount(labels * num + predicted, minlength=num * num).reshape(num, num)
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
    if num <= 20:
        axes.set_xticks(range(num), class_names, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(num), class_names, parse_math=False)  # a class name may contain $
        for row, column in np.ndindex(num, num):
            shade = "white" if percent[row, column] > 50 else "black"
            axes.text(column, row, f"{percent[row, column]:.0f}", ha="center", va="center", color=shade, fontsize=7)
    accuracy = 100 * np.trace(counts) / counts.sum()
    axes.set(xlabel="predicted", ylabel="true", title=f"Test accuracy {accuracy:.2f}% on {counts.sum():,} images")
    with atomic(folder.path / "confusion_matrix.png") as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # class names in a script the font lacks
        figure.savefig(temporary, dpi=110, format="png")
