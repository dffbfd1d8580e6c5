"""Each 3x3 convolution of both networks on one CPU core: oneDNN's kernel against a matrix product, in bf16.

    python -m benchmarks.layers [--batch-size 128] [--out layers.json]

It is what decides `cifar_ablate/training/convolution.py`: forward, gradient of the input and gradient of the weights,
each by torch's own convolution and by im2col and a product, in GFLOP/s of nominal operations, medians of 5, the two
taking turns. The last column says which way training takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.task import MODELS
from cifar_ablate.device import find_device
from cifar_ablate.models.build import build_model
from cifar_ablate.training import convolution

ROUNDS = 5


def layers_of(model: str) -> list[tuple[nn.Conv2d, int, int]]:
    """The different 3x3 convolutions of a network, with the size of their input, and how often each is there."""
    found: dict[tuple[int, int, int, int], list[Any]] = {}

    def seen(layer: nn.Module, inputs: tuple[Tensor], _: Tensor) -> None:
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            key = (layer.in_channels, layer.out_channels, inputs[0].shape[2], layer.stride[0])
            found.setdefault(key, [layer, inputs[0].shape[2], 0])[2] += 1

    network = build_model(model, {}, num_classes=10, image_size_px=32, init_seed=0)
    for layer in network.modules():
        layer.register_forward_hook(seen)  # type: ignore[arg-type]
    network(torch.zeros(2, 3, 32, 32))
    return [(layer, size, times) for layer, size, times in found.values()]


def seconds_of(*actions: Callable[[], object]) -> list[float]:
    """Median seconds of each, in turn."""
    taken: list[list[float]] = [[] for _ in actions]
    for _ in range(ROUNDS + 1):
        for index, action in enumerate(actions):
            begun = time.perf_counter()
            action()
            taken[index].append(time.perf_counter() - begun)
    return [statistics.median(values[1:]) for values in taken]


def measure(conv: nn.Conv2d, size: int, batch_size: int) -> dict[str, Any]:
    """GFLOP/s of one layer's three passes, by oneDNN and by products."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)

    stride, channels = conv.stride[0], (conv.in_channels, conv.out_channels)
    x, w = draw(batch_size, channels[0], size, size), draw(channels[1], channels[0], 3, 3)
    out = nn.functional.conv2d(x, w, stride=stride, padding=1)
    grad = draw(*out.shape)
    flat = grad.permute(0, 2, 3, 1).reshape(-1, channels[1])
    rows = convolution._rows(w)

    def backward(mask: list[bool]) -> object:
        return torch.ops.aten.convolution_backward(
            grad, x, w, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, mask
        )

    forward = seconds_of(
        lambda: nn.functional.conv2d(x, w, stride=stride, padding=1),
        lambda: convolution.im2col(x, 3, stride, 1) @ rows.t(),
    )
    of_input = seconds_of(
        lambda: backward([True, False, False]),
        lambda: convolution._spread(flat @ rows, x.shape, grad.shape, 3, stride, 1),
    )
    of_weight = seconds_of(
        lambda: backward([False, True, False]), lambda: flat.t() @ convolution.im2col(x, 3, stride, 1)
    )
    operations = 2 * out.numel() * 9 * channels[0] / 1e9
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = convolution._like(conv).products(x)
    return {
        "layer": f"{channels[0]} to {channels[1]} at {size}, stride {stride}",
        "gflops": [[operations / value for value in pair] for pair in (forward, of_input, of_weight)],
        "products": list(ours),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--out", type=Path, help="write the table as JSON, too")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, Any]]] = {}
    print(f"{find_device('cpu').name}, one thread, bf16, batch {chosen.batch_size}, torch {torch.__version__}\n")
    print(
        "| network | layer | times | forward: oneDNN, product | gradient of input | gradient of weights | by products |"
    )
    print("|---|---|---:|---:|---:|---:|---|")
    for model in MODELS:
        for conv, size, times in layers_of(model):
            row = measure(conv, size, chosen.batch_size)
            rows.setdefault(model, []).append(row | {"times": times})
            pairs = " | ".join(f"{onednn:.0f}, {product:.0f}" for onednn, product in row["gflops"])
            ends, weights = row["products"]
            which = {(False, False): "nothing", (False, True): "weights"}.get((ends, weights), "all")
            print(f"| {model} | {row['layer']} | {times} | {pairs} | {which} |", flush=True)
    if chosen.out:
        content = {"device": find_device("cpu").name, "torch": torch.__version__, "batch_size": chosen.batch_size}
        chosen.out.write_text(json.dumps(content | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
