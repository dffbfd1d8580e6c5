"""Convolutions on a CPU as matrix products, where oneDNN's own kernels are slow.

For large weights and small feature maps in bf16, oneDNN's convolutions (as of torch 2.14) reach a quarter to two thirds
of the speed of its matrix product; ``benchmarks/layers.py`` prints both for every layer of our networks. In float32 its
kernels are faster everywhere. On a 2x2 map 20 of the 36 products of a 3x3 convolution are with padding; one dense
product leaves them out.

A strided 1x1 convolution always gets every ``stride``-th pixel as its input instead of a stride. With channels_last,
fewer than 16 channels, an odd number of images and two or more threads, oneDNN's backward pass writes out of bounds and
the process dies. On AVX-512 the result equals the strided one bit for bit; with AMX the gradient of the weights differs
in its last bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGE_WEIGHT = 2**20
"""Minimum number of elements of a weight for which the forward pass and the gradient of the input are products too."""
SMALL_MAP = {1: 16, 2: 64}
"""By stride: maximum number of output positions (H' W') for which the gradient of the weights is a product.

Above it, im2col costs more than the product saves.
"""
WORTH_DENSE = 48
"""Minimum number of images for the dense product on a 2x2 map; below it, building its matrix costs more than it saves.

``benchmarks/without.py`` measures both.
"""


def with_matrix_products(model: nn.Module) -> nn.Module:
    """Replace the plain convolutions inside ``model`` by ones that choose the faster way, and return ``model``.

    Weights are shared and keep their names. Convolutions with groups, dilation or uneven shapes stay as they are.
    """
    for name, child in model.named_children():
        if type(child) is nn.Conv2d and _is_plain(child):
            setattr(model, name, _replacement(child))
        else:
            with_matrix_products(child)
    return model


class Conv2d(nn.Conv2d):
    """A square convolution without groups or dilation, by oneDNN or by matrix products, depending on the shape."""

    def forward(self, input: Tensor) -> Tensor:
        stride, padding = self.stride[0], int(self.padding[0])
        if self.kernel_size[0] == 1 and stride > 1 and padding == 0:
            return functional.conv2d(_Subsample.apply(input, stride), self.weight, self.bias)
        products = self.products(input)
        if not any(products):
            return super().forward(input)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            input, weight = input.to(torch.bfloat16), weight.to(torch.bfloat16)
        # on a 2x2 map every output pixel depends on every input pixel
        is_dense = input.shape[2:] == (2, 2) and self.kernel_size[0] == 3 and stride == padding == 1
        out: Tensor
        if all(products) and is_dense and len(input) >= WORTH_DENSE:
            out = _Dense.apply(input, weight)
        else:
            out = _Convolve.apply(input, weight, stride, padding, *products)
        return out if self.bias is None else out + self.bias.to(out.dtype).view(-1, 1, 1)

    def products(self, input: Tensor) -> tuple[bool, bool]:
        """Which results are matrix products: the output and the gradient of ``input``; the gradient of the weights."""
        size, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        positions = _output_size(input.shape[2], size, stride, padding) * _output_size(
            input.shape[3], size, stride, padding
        )
        if not torch.is_autocast_enabled("cpu") or positions > SMALL_MAP.get(stride, 0):
            return False, False
        return self.weight.numel() >= LARGE_WEIGHT, True


class _Subsample(torch.autograd.Function):
    """Every ``stride``-th row and column of [B, C, H, W]; output and gradient are channels_last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int) -> Tensor:
        ctx.shape, ctx.stride = x.shape, stride
        return x[..., ::stride, ::stride].contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        whole = torch.empty(ctx.shape, dtype=grads[0].dtype, memory_format=torch.channels_last).zero_()
        whole[..., :: ctx.stride, :: ctx.stride] = grads[0]
        return whole, None


class _Convolve(torch.autograd.Function):
    """y [B, O, H', W'] of x [B, I, H, W] and w [O, I, k, k], all channels_last.

    ``ends``: y and the gradient of x are products; ``of_weight``: the gradient of w is a product.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, stride: int, padding: int, ends: bool, of_weight: bool) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.options = stride, padding, ends, of_weight
        if not ends:
            return functional.conv2d(x, w, stride=stride, padding=padding)
        out = im2col(x, w.shape[2], stride, padding) @ _rows(w).t()
        height, width = (_output_size(side, w.shape[2], stride, padding) for side in x.shape[2:])
        return out.view(len(x), height, width, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, w), (stride, padding, ends, of_weight) = ctx.saved_tensors, ctx.options
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        flat = grad.permute(0, 2, 3, 1).reshape(-1, len(w))
        grad_x = grad_w = None
        by_onednn = [ctx.needs_input_grad[0] and not ends, ctx.needs_input_grad[1] and not of_weight, False]
        if any(by_onednn):
            pair, sides = [stride] * 2, [padding] * 2
            grad_x, grad_w, _ = torch.ops.aten.convolution_backward(
                grad, x, w, None, pair, sides, [1, 1], False, [0, 0], 1, by_onednn
            )
        if ctx.needs_input_grad[0] and ends:
            grad_x = _col2im(flat @ _rows(w), x.shape, grad.shape, w.shape[2], stride, padding)
        if ctx.needs_input_grad[1] and of_weight:
            product = flat.t() @ im2col(x, w.shape[2], stride, padding)
            grad_w = product.view(len(w), w.shape[2], w.shape[3], -1).permute(0, 3, 1, 2)
        return grad_x, grad_w, None, None, None, None


class _Dense(torch.autograd.Function):
    """y [B, O, 2, 2] of x [B, I, 2, 2] and w [O, I, 3, 3] at stride 1, padding 1: one product [B, 4 I] @ [4 I, 4 O]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        matrix = w.new_empty(4, len(w), 4, w.shape[1])
        for out, source, tap in _TAPS:
            matrix[out, :, source] = w[:, :, *tap]
        matrix = matrix.view(4 * len(w), 4 * w.shape[1])
        ctx.save_for_backward(x, matrix)
        return _pixels_first(x).mm(matrix.t()).view(len(x), 2, 2, len(w)).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, matrix), grad = ctx.saved_tensors, _pixels_first(grads[0])
        num_out, num_in = len(matrix) // 4, x.shape[1]
        grad_x = grad_w = None
        if ctx.needs_input_grad[0]:
            grad_x = grad.mm(matrix).view(len(x), 2, 2, num_in).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            product = grad.t().mm(_pixels_first(x)).view(4, num_out, 4, num_in)
            grad_w = grad.new_zeros(num_out, 3, 3, num_in).permute(0, 3, 1, 2)
            for out, source, tap in _TAPS:
                grad_w[:, :, *tap] += product[out, :, source]
        return grad_x, grad_w


_TAPS = [
    (out, source, (source // 2 - out // 2 + 1, source % 2 - out % 2 + 1)) for out in range(4) for source in range(4)
]
"""Each output pixel of a 2x2 map, each input pixel, and the (row, column) of the weight between them."""


def _pixels_first(x: Tensor) -> Tensor:
    """[B, C, 2, 2] as [B, 4 C]; a view if ``x`` is channels_last."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1)


def im2col(x: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """The patch of ``x`` [B, C, H, W] (channels_last) at each output position: [B H' W', size size C]."""
    nhwc = x.permute(0, 2, 3, 1)
    padded = functional.pad(nhwc, (0, 0, padding, padding, padding, padding)) if padding else nhwc
    height, width = (_output_size(side, size, stride, padding) for side in x.shape[2:])
    image, row, column, channel = padded.stride()
    windows = padded.as_strided(
        (len(x), height, width, size, size, x.shape[1]), (image, row * stride, column * stride, row, column, channel)
    )
    return windows.reshape(len(x) * height * width, -1)


def _col2im(grad_columns: Tensor, shape: torch.Size, out: torch.Size, size: int, stride: int, padding: int) -> Tensor:
    """The transpose of ``im2col``: sum [B H' W', size size C] into the pixels it came from, [B, C, H, W]."""
    (num, channels, height, width), (rows, cols) = shape, out[2:]
    parts = grad_columns.view(num, rows, cols, size, size, channels)
    padded = grad_columns.new_zeros(num, height + 2 * padding, width + 2 * padding, channels)
    for i in range(size):
        for j in range(size):
            padded[:, i : i + stride * rows : stride, j : j + stride * cols : stride] += parts[:, :, :, i, j]
    return padded[:, padding : padding + height, padding : padding + width].permute(0, 3, 1, 2)


def _rows(weight: Tensor) -> Tensor:
    """[O, I, k, k] as [O, k k I]; a view if ``weight`` is channels_last."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _output_size(side: int, size: int, stride: int, padding: int) -> int:
    return (side + 2 * padding - size) // stride + 1


def _is_plain(conv: nn.Conv2d) -> bool:
    same = all(len(set(pair)) == 1 for pair in (conv.kernel_size, conv.stride, conv.padding))
    numbers = not isinstance(conv.padding, str) and conv.padding_mode == "zeros"
    return numbers and same and conv.groups == 1 and conv.dilation == (1, 1)


def _replacement(conv: nn.Conv2d) -> Conv2d:
    with torch.device("meta"):  # allocates and draws no weights: those of ``conv`` are used
        new = Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size[0],
            stride=conv.stride[0],
            padding=conv.padding[0],
            bias=conv.bias is not None,
        )
    new.weight, new.bias = conv.weight, conv.bias
    return new.train(conv.training)
