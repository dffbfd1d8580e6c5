"""Convolutions as matrix products on a CPU: the same numbers as torch's, and no death of the process."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifar_ablate.models.build import build_model
from cifar_ablate.training import convolution
from cifar_ablate.training.convolution import Conv2d, im2col, with_matrix_products

SHAPES = list(product((1, 3), (1, 2), (2, 3, 5, 8)))  # kernel, stride, size of the input


def gradients(conv: nn.Module, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """Output, and the gradients of the input and of all parameters."""
    x = x.clone().requires_grad_()
    conv.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        out = conv(x)
    out.backward(upstream.to(out.dtype))
    found = [out.detach(), x.grad, *(parameter.grad for parameter in conv.parameters())]
    return [tensor.clone() for tensor in found if tensor is not None]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "size"), SHAPES)
def test_output_and_gradients_are_those_of_torch(
    kernel: int, stride: int, size: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(6, 5, kernel, stride=stride, padding=kernel // 2, bias=bias).double()
    x = torch.randn(3, 6, size, size, dtype=torch.double, generator=generator)
    upstream = torch.randn(conv(x).shape, dtype=torch.double, generator=generator)
    expected = gradients(conv, x, upstream)
    # everything by products, 2x2 maps by one dense product and by im2col; and the gradient of the weights alone
    for large, many in ((0, 0), (0, 2**40), (2**40, 0)):
        ours = with_matrix_products(nn.Sequential(conv))[0]
        assert type(ours) is Conv2d
        monkeypatch.setattr(Conv2d, "products", lambda self, x, large=large: (self.weight.numel() >= large, True))
        monkeypatch.setattr(convolution, "WORTH_DENSE", many)
        found = gradients(ours, x.contiguous(memory_format=torch.channels_last), upstream)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("batch", "channels", "size"), [(24, 16, 16), (37, 16, 16), (64, 32, 32), (100, 64, 8)])
def test_a_strided_shortcut_is_as_close_to_the_truth_as_torch(
    batch: int, channels: int, size: int, dtype: torch.dtype
) -> None:
    """On AVX-512 its bits are torch's; with AMX, torch sums the gradient of the weights in another order."""
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(batch, channels, size, size, generator=generator).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    upstream = torch.randn(batch, 2 * channels, size // 2, size // 2, generator=generator)
    upstream = upstream.contiguous(memory_format=torch.channels_last)
    ours = gradients(with_matrix_products(nn.Sequential(copy.deepcopy(conv)))[0], x, upstream)
    torchs = gradients(conv, x, upstream)
    truth = gradients(conv.double(), x.double(), upstream.double())
    for mine, other, true in zip(ours, torchs, truth, strict=True):
        assert (mine - true).norm() < 1.1 * (other - true).norm()


@pytest.mark.parametrize(("channels", "size", "stride"), [((512, 512), 2, 1), ((256, 512), 4, 2), ((128, 256), 8, 2)])
def test_in_bf16_the_products_are_as_close_to_the_truth_as_torch(
    channels: tuple[int, int], size: int, stride: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(*channels, 3, stride=stride, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(8, channels[0], size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    upstream = torch.randn(conv(x).shape, generator=generator)
    truth = gradients(conv.double(), x.double(), upstream.double())
    conv.float()
    torchs = gradients(conv, x.bfloat16(), upstream)
    ours = gradients(with_matrix_products(nn.Sequential(conv))[0], x.bfloat16(), upstream)
    for mine, other, true in zip(ours, torchs, truth, strict=True):
        assert (mine - true).norm() < 1.5 * (other - true).norm()


def test_im2col_holds_the_patch_at_each_output_position() -> None:
    x = torch.arange(2 * 3 * 5 * 5.0).view(2, 3, 5, 5)
    unfolded = nn.functional.unfold(x, 3, padding=1, stride=2)  # [B, C k k, L]
    expected = unfolded.view(2, 3, 9, 9).permute(0, 3, 2, 1).reshape(2 * 9, 9 * 3)
    assert torch.equal(im2col(x.contiguous(memory_format=torch.channels_last), 3, 2, 1), expected)


@pytest.mark.parametrize("name", ["resnet18-compact", "resnet18", "convnext_atto", "test_resnet"])
def test_weights_keep_their_names_and_are_shared(name: str) -> None:
    model = build_model(name, {}, num_classes=10, image_size_px=32, init_seed=0)
    before = dict(model.named_parameters())
    after = dict(with_matrix_products(model).named_parameters())
    assert list(after) == list(before)
    assert all(after[key] is before[key] for key in before)


@pytest.mark.parametrize(
    "options", [{"groups": 2}, {"dilation": 2}, {"padding": "same"}, {"padding_mode": "reflect", "padding": 1}], ids=str
)
def test_convolutions_of_other_kinds_are_left_alone(options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, **options), nn.Conv2d(4, 4, (1, 3)))
    kinds = [type(layer) for layer in with_matrix_products(model)]
    assert kinds == [nn.Conv2d, nn.Conv2d]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18-compact", "resnet18"])
def test_a_narrow_network_survives_odd_batches_on_two_threads(name: str) -> None:
    """torch's own strided 1x1 convolution ends the process here."""
    code = f"""
import torch
from cifar_ablate.models.build import build_model
from cifar_ablate.training.convolution import with_matrix_products
torch.set_num_threads(2)
model = build_model("{name}", {{"width": 4}}, num_classes=10, image_size_px=32, init_seed=0)
model = with_matrix_products(model).to(memory_format=torch.channels_last)
for _ in range(20):
    model(torch.randn(25, 3, 32, 32).contiguous(memory_format=torch.channels_last)).square().mean().backward()
"""
    patient = os.environ | {"OMP_WAIT_POLICY": "passive"}  # threads that spin slow each other down on a busy machine
    assert subprocess.run([sys.executable, "-c", code], env=patient, check=False).returncode == 0
