"""The networks: published layer tables row by row, a contract for every registered model, and the door to timm."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cifar_ablate.errors import UnknownNameError, UsageError
from cifar_ablate.models.build import build_model, count, layer_table
from cifar_ablate.registry import MODELS

TABLES = Path(__file__).parent / "tables"
PUBLISHED = {
    "cifar10_resnet18_readme": ("resnet18-compact", {}),
    "cifar10_resnet18_predictor_readme": ("resnet18-compact", {}),
    "tsai_s11_readme": ("resnet18", {}),
    "assignment_8_readme": ("resnet18", {"dropout": 0.1}),
}
FAMILIES = {  # the smallest feature map that each may end with, in pixels or tokens
    "timm/resnet18": 16,
    "resnet50": 16,
    "vit_tiny_patch16_224": 64,
    "deit_tiny_patch16_224": 64,
    "mixer_s16_224": 64,
    "convnext_atto": 4,
    "swin_tiny_patch4_window7_224": 4,
    "efficientnet_b0": 4,
    "mobilenetv3_small_100": 4,
    "densenet121": 16,
    "regnetx_002": 4,
    "repvgg_a0": 4,
    "vgg11_bn": 1,
}
SMALLEST_TIMM = ("test_resnet", "test_vit")  # timm's own test models: thousands of parameters
WITH_DROPOUT = [name for name in (*MODELS.names(), *SMALLEST_TIMM) if "dropout" in MODELS.options(name).model_fields]

Row = tuple[str, str, int]


def narrow(name: str) -> dict[str, Any]:
    """Options that make a model cheap where it has such an option."""
    return {"width": 8} if "width" in MODELS.options(name).model_fields else {}


def build(name: str, options: dict[str, Any], init_seed: int = 0, image_size_px: int = 32) -> nn.Module:
    return build_model(name, options, num_classes=10, image_size_px=image_size_px, init_seed=init_seed)


def published(table: str) -> tuple[list[Row], dict[str, str]]:
    """The rows of a published table, and the totals in its heading."""
    text = (TABLES / f"{table}.txt").read_text(encoding="utf-8")
    cells = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return [(kind, shape, int(parameters)) for kind, shape, parameters in cells], dict(
        re.findall(r"^# (Total [^:]+): (.+)$", text, re.MULTILINE)
    )


def rendered(table: str) -> list[Row]:
    """The rows of a layer table as torchinfo draws it, in the form of ``published``."""
    drawn = re.findall(r"(\w+): \d+-\d+ +\[1, ([\d, ]+)\] +([\d,]+|--)", table)
    return [
        (kind, shape.replace(", ", "x"), int(parameters.replace(",", "").replace("--", "0")))
        for kind, shape, parameters in drawn
    ]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.state_dict())


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("table", PUBLISHED)
def test_every_row_of_a_published_layer_table_is_met(table: str) -> None:
    name, options = PUBLISHED[table]
    rows, _ = published(table)
    kinds = {kind for kind, _, _ in rows}
    drawn = layer_table(name, options, depth=3 if "Sequential" in kinds else 4)
    if "Sequential" in kinds:  # shortcuts stand as a whole at the table's depth; stages above it are not in the file
        drawn = "\n".join(line for line in drawn.splitlines() if not re.search(r"Sequential: [12]-", line))
    assert [row for row in rendered(drawn) if row[0] in kinds] == rows


@pytest.mark.parametrize("table", PUBLISHED)
def test_the_totals_of_a_published_layer_table_are_met(table: str) -> None:
    name, options = PUBLISHED[table]
    _, totals = published(table)
    lines = layer_table(name, options).splitlines()
    assert totals
    for label, value in totals.items():
        assert f"{label}: {value}" in lines


def test_networks_without_dropout_have_no_layers_that_the_tables_lack() -> None:
    compact, _ = published("cifar10_resnet18_readme")
    leaves = [
        type(module).__name__ for module in build("resnet18-compact", {}).modules() if not list(module.children())
    ]
    assert sorted(leaves) == sorted(kind for kind, _, _ in compact)
    assert not any(isinstance(module, nn.Dropout | nn.ReLU) for module in build("resnet18", {}).modules())


def test_the_counts_of_the_two_networks_are_the_published_ones() -> None:
    compact, plain = count("resnet18-compact", {}), count("resnet18", {})
    assert (compact.parameters, round(compact.mult_adds / 1e6, 2)) == (11_154_890, 135.15)
    assert (plain.parameters, round(plain.mult_adds / 1e6, 2)) == (11_173_962, 555.43)


def test_tokens_count_in_the_multiply_adds_of_a_transformer() -> None:
    vit = count("vit_tiny_patch16_224", {})
    tokens, blocks, width = 65, 12, 192
    of_linear_layers = tokens * blocks * 12 * width**2
    assert of_linear_layers < vit.mult_adds < 1.2 * of_linear_layers
    assert f"Total mult-adds (M): {vit.mult_adds / 1e6:,.2f}" in layer_table("vit_tiny_patch16_224", {})


def test_dropout_in_the_compact_network_follows_each_batchnorm_of_the_blocks() -> None:
    rows = rendered(layer_table("resnet18-compact", {"dropout": 0.2, "width": 8}))
    after_norm = [after[0] for before, after in pairwise(rows) if before[0] == "BatchNorm2d"]
    assert after_norm == ["ReLU"] + ["Dropout"] * 16


@pytest.mark.parametrize("name", MODELS.names())
@pytest.mark.parametrize("image_size_px", [16, 32, 48])
def test_every_registered_model_trains_on_images_of_any_usual_size(name: str, image_size_px: int) -> None:
    model = build(name, narrow(name), image_size_px=image_size_px)
    assert_trains(model, image_size_px)


@pytest.mark.parametrize("name", [*MODELS.names(), *SMALLEST_TIMM])
def test_equal_init_seeds_give_equal_weights_and_others_do_not(name: str) -> None:
    first = build(name, narrow(name), init_seed=3)
    torch.rand(5)  # the global generator has no say
    assert same(first, build(name, narrow(name), init_seed=3))
    assert not same(first, build(name, narrow(name), init_seed=4))


@pytest.mark.parametrize("name", [*MODELS.names(), *SMALLEST_TIMM])
def test_building_leaves_every_global_generator_where_it_was(name: str) -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    build(name, narrow(name))
    layer_table(name, narrow(name))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_dropout_changes_no_initial_weight_and_no_weight_name(name: str) -> None:
    assert same(build(name, narrow(name)), build(name, {**narrow(name), "dropout": 0.3}))


@pytest.mark.parametrize("name", [name for name in WITH_DROPOUT if name in MODELS.names()])
def test_dropout_acts_in_training_and_not_in_evaluation(name: str) -> None:
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, dropped = build(name, narrow(name)), build(name, {**narrow(name), "dropout": 0.3})
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        assert torch.equal(plain.eval()(images), dropped.eval()(images))
        assert not torch.allclose(plain.train()(images), dropped.train()(images))


@pytest.mark.parametrize("name", MODELS.names())
def test_a_new_model_is_in_training_mode_with_untouched_statistics(name: str) -> None:
    model = build(name, narrow(name))
    assert all(module.training for module in model.modules())
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.num_batches_tracked == 0 and not norm.running_mean.any() for norm in norms)


def test_a_wrong_option_names_the_ones_there_are() -> None:
    with pytest.raises(UsageError, match=r"widht.*its options are width, dropout"):
        build("resnet18", {"widht": 8})
    with pytest.raises(UsageError, match=r"dropout.*less than or equal to 1"):
        build("resnet18", {"dropout": 1.5})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_timm_model_of_each_family_trains_on_32_px(name: str) -> None:
    model: Any = build(name, {})
    with torch.no_grad():
        features = model.eval().forward_features(torch.zeros(1, 3, 32, 32))
    assert features[0].numel() // model.num_features >= FAMILIES[name]
    assert_trains(model.train(), 32)


@pytest.mark.parametrize("name", ["test_vit", "mixer_s16_224", "test_convnext", "test_efficientnet"])
def test_a_timm_model_takes_sizes_that_its_patches_do_not_divide(name: str) -> None:
    assert_trains(build(name, {}, image_size_px=28), 28)


def test_a_timm_model_keeps_its_own_stem_on_large_images() -> None:
    stem: Any = build("timm/resnet18", {}, image_size_px=96).get_submodule("conv1")
    assert (stem.kernel_size, stem.stride) == ((7, 7), (2, 2))


def test_one_timm_architecture_is_one_entry_under_all_its_names() -> None:
    assert MODELS.get("timm/resnet50") is MODELS.get("resnet50") is MODELS.get("resnet50.a1_in1k")
    assert MODELS.get("resnet18") is not MODELS.get("timm/resnet18")
    assert MODELS.options("resnet50") is MODELS.options("timm/resnet50")
    assert list(MODELS.options("resnet50").model_fields) == ["dropout", "drop_path"]
    assert "timm's resnet50" in MODELS.summary("resnet50")


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet19", "resnet18"), ("vit_tinny_patch16_224", "vit_tiny_patch16_224"), ("timm/vgg1", "vgg1")],
)
def test_an_unknown_model_is_told_the_nearest_known_one(name: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"did you mean '.*{near}"):
        build(name, {})


def test_a_pretrained_tag_that_does_not_exist_is_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError):
        MODELS.get("resnet50.no_such_tag")


def test_drop_rates_reach_a_timm_model() -> None:
    model: Any = build("test_vit", {"dropout": 0.2, "drop_path": 0.1})
    assert model.head_drop.p == 0.2
    assert max(getattr(module, "drop_prob", None) or 0.0 for module in model.modules()) == pytest.approx(0.1)


def test_an_option_that_a_timm_model_lacks_is_named() -> None:
    with pytest.raises(UsageError, match=r"'vgg11' has no drop_path; leave out"):
        build("vgg11", {"drop_path": 0.1})


def test_a_size_that_a_timm_model_cannot_take_ends_in_a_cure() -> None:
    with pytest.raises(UsageError, match=r"cannot be built for images of 32 px .*choose another image size"):
        build("inception_v3", {})


def test_timm_is_not_imported_for_our_own_models() -> None:
    code = (
        "import sys; from cifar_ablate.models.build import count; count('resnet18', {'width': 2}); "
        "sys.exit('timm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def assert_trains(model: nn.Module, image_size_px: int) -> None:
    """Logits of the right shape, and a finite gradient for every parameter."""
    images = torch.randn(2, 3, image_size_px, image_size_px, generator=torch.Generator().manual_seed(1))
    logits = model(images)
    assert logits.shape == (2, 10)
    nn.functional.cross_entropy(logits, torch.tensor([1, 7])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
