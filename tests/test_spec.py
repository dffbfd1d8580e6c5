"""How a study is read: YAML's scalars, the grammar of deltas, overlays, and what differs between two recipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cifar_ablate.errors import Location, Problem, StudyError
from cifar_ablate.spec.delta import differences, merge
from cifar_ablate.spec.edit import as_node, read_document, set_value, without_sections, write_document
from cifar_ablate.spec.load import load_studies, load_study
from cifar_ablate.spec.overlay import load_overlay, model_options, profile_names
from cifar_ablate.spec.schema import Recipe, Study
from cifar_ablate.spec.text import parse_yaml, scalar

EXPERIMENTS = sorted((Path(__file__).parent.parent / "experiments").glob("*.yaml"))
HEAD = """\
study: tiny
question: Does it help?
recipe:
  data: digits
  model: {name: resnet18-compact, width: 8}
  epochs: 10
  optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
  augment: {hflip: {p: 0.2}}
"""
TWO_ARMS = f"{HEAD}arms: {{baseline: , longer: {{epochs: 30}}}}\n"


def study_of(folder: Path, text: str, profile: str | None = None, set_: tuple[str, ...] = ()) -> Study:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return load_study(path, load_overlay(profile, set_))


def laid_over(base: str, delta: str, **kwargs: Any) -> tuple[Any, list[Problem]]:
    found: list[Problem] = []
    merged = merge(parse_yaml(base, "base"), parse_yaml(delta, "delta"), found, **kwargs)
    return merged.value, found


def merged(base: str, delta: str, **kwargs: Any) -> Any:
    value, found = laid_over(base, delta, **kwargs)
    assert not found
    return value


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("010", 10),
        ("0o10", 8),
        ("0x10", 16),
        ("0b10", "0b10"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        (".inf", float("inf")),
    ],
)
def test_a_plain_scalar_follows_yaml_1_2(text: str, value: Any) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_quoted_scalars_are_text_and_keys_are_names() -> None:
    tree = parse_yaml("""{a: '5', b: "null", no: 1, 1: 2, true: 3, ~: 4, 5e-4: 5}""", "x")
    assert tree.value == {"a": "5", "b": "null", "no": 1, "1": 2, "true": 3, "~": 4, "5e-4": 5}


def test_every_value_remembers_its_line_and_column() -> None:
    tree = parse_yaml("a:\n  b: [1, {c: 2}]\n", "x.yaml")
    assert tree.at(("a", "b")).location == Location("x.yaml", 2, 3)
    assert tree.at(("a", "b", "1", "c")).location == Location("x.yaml", 2, 11)
    assert tree.at(("a", "nothing", "here")).path == "a"


def test_an_alias_is_the_value_written_again() -> None:
    assert parse_yaml("{a: &x {p: 1}, b: *x}", "x").value == {"a": {"p": 1}, "b": {"p": 1}}


def test_a_byte_order_mark_and_windows_line_ends_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(("\ufeff" + TWO_ARMS.replace("\n", "\r\n")).encode())
    assert load_study(tmp_path / "a.yaml").arm("longer").recipe.epochs == 30


def test_arms_may_be_called_no_and_1_and_tilde(tmp_path: Path) -> None:
    study = study_of(
        tmp_path, f"{HEAD}baseline: no\narms: {{no: , 1: {{epochs: 2}}, ~: {{from: '1', batch_size: 64}}}}\n"
    )
    assert [arm.name for arm in study.arms] == ["no", "1", "~"]
    assert study.arm("~").recipe.epochs == 2


# The grammar of a delta


def test_a_mapping_merges_and_a_scalar_or_list_replaces() -> None:
    assert merged("{a: {b: 1, c: 2}, d: [1, 2]}", "{a: {c: 3}, d: [4]}") == {"a": {"b": 1, "c": 3}, "d": [4]}


def test_a_scalar_gives_way_to_a_mapping_and_back() -> None:
    assert merged("{a: 1}", "{a: {b: 2}}") == {"a": {"b": 2}}
    assert merged("{a: {b: 2}}", "{a: 1}") == {"a": 1}


def test_a_component_written_as_a_string_is_its_name() -> None:
    assert merged("{model: resnet18}", "{model: {width: 8}}") == {"model": {"name": "resnet18", "width": 8}}


def test_the_same_component_keeps_its_options() -> None:
    below = "{optimizer: {name: sgd, lr: 0.1, momentum: 0.9}}"
    expected = {"optimizer": {"name": "sgd", "lr": 0.2, "momentum": 0.9}}
    assert merged(below, "{optimizer: {name: sgd, lr: 0.2}}") == expected
    assert merged(below, "{optimizer: sgd}") == merged(below, "{}")


def test_another_component_replaces_the_one_below_whole() -> None:
    below = "{optimizer: {name: sgd, lr: 0.1, momentum: 0.9}}"
    assert merged(below, "{optimizer: {name: adamw, lr: 0.001}}") == {"optimizer": {"name": "adamw", "lr": 0.001}}


def test_null_removes_a_key_and_must_find_it() -> None:
    assert merged("{a: 1, b: {c: 2, d: 3}}", "{a: null, b: {c: ~}}") == {"b": {"d": 3}}
    _, [problem] = laid_over("{epochs: 1}", "{epoch: null}")
    assert (
        str(problem) == "delta:1:2: epoch: null removes a key, but there is none to remove here; did you mean 'epochs'?"
    )


def test_an_overlay_scales_the_number_below() -> None:
    assert merged("{a: 30, b: 0.1}", "{a: {times: 0.3}, b: {times: 0.5}}", overlay=True) == {"a": 9, "b": 0.05}


def test_a_scaled_whole_number_stays_whole_and_at_least_1_but_0_stays_0() -> None:
    assert merged("{a: 4, b: 0}", "{a: {times: 0.1}, b: {times: 3}}", overlay=True) == {"a": 1, "b": 0}


def test_times_is_a_plain_key_outside_an_overlay() -> None:
    assert merged("{a: 30}", "{a: {times: 2}}") == {"a": {"times": 2}}


def test_a_key_with_a_question_mark_is_set_only_where_the_component_has_it() -> None:
    delta = "{optimizer: {'nesterov?': true, 'depth?': 3}}"
    assert merged("{optimizer: sgd}", delta, overlay=True) == {"optimizer": {"name": "sgd", "nesterov": True}}
    assert merged("{optimizer: adamw}", delta, overlay=True) == {"optimizer": {"name": "adamw"}}


def test_a_merged_value_remembers_the_layer_it_came_from() -> None:
    found: list[Problem] = []
    tree = merge(parse_yaml("{a: {b: 1, c: 2}}", "base"), parse_yaml("{a: {c: 3}}", "delta"), found)
    assert (tree.at(("a", "b")).location.source, tree.at(("a", "c")).location.source) == ("base", "delta")


# Studies


def test_an_arm_states_what_differs_from_the_baseline_or_from_another_arm(tmp_path: Path) -> None:
    last = "{from: longer, augment: {hflip: null}}"
    study = study_of(tmp_path, f"{HEAD}arms: {{last: {last}, longer: {{epochs: 30}}, baseline: {{epochs: 5}}}}\n")
    assert {arm.name: (arm.parent, arm.recipe.epochs, list(arm.recipe.augment)) for arm in study.arms} == {
        "last": ("longer", 30, []),
        "longer": (None, 30, ["hflip"]),
        "baseline": (None, 5, ["hflip"]),
    }


def test_seeds_are_a_number_or_a_list(tmp_path: Path) -> None:
    assert study_of(tmp_path, TWO_ARMS).seeds == (0, 1, 2, 3, 4)
    assert study_of(tmp_path, f"{TWO_ARMS}seeds: 2\n").seeds == (0, 1)
    assert study_of(tmp_path, f"{TWO_ARMS}seeds: [7, 3]\n").seeds == (7, 3)


def test_a_published_figure_is_a_number_or_has_a_note(tmp_path: Path) -> None:
    published = study_of(
        tmp_path, f"{TWO_ARMS}published: {{baseline: 82, longer: {{accuracy: 88.3, note: best epoch}}}}\n"
    ).published
    assert (published["baseline"].accuracy, published["baseline"].note) == (82.0, "")
    assert (published["longer"].accuracy, published["longer"].note) == (88.3, "best epoch")


def test_the_order_of_augmentations_does_not_matter(tmp_path: Path) -> None:
    text = HEAD.replace("{hflip: {p: 0.2}}", "{}") + "arms:\n  baseline:\n  a: {augment: %s}\n"
    one, other = (study_of(tmp_path, text % augment) for augment in ("{hflip: {}, crop: {}}", "{crop: {}, hflip: {}}"))
    assert list(one.arm("a").recipe.augment) == list(other.arm("a").recipe.augment) == ["crop", "hflip"]


def test_a_list_becomes_a_pair(tmp_path: Path) -> None:
    study = study_of(tmp_path, HEAD + "arms: {baseline: , b: {optimizer: {name: adamw, lr: 0.1, betas: [0.5, 0.9]}}}\n")
    assert study.arm("b").recipe.optimizer.kwargs()["betas"] == (0.5, 0.9)


# Overlays


def test_an_overlay_comes_after_the_arms_and_scaling_keeps_what_differs(tmp_path: Path) -> None:
    study = study_of(tmp_path, TWO_ARMS, set_=("epochs={times: 0.3}", "optimizer.lr=0.05"))
    assert [arm.recipe.epochs for arm in study.arms] == [3, 9]
    assert {arm.recipe.optimizer.kwargs()["lr"] for arm in study.arms} == {0.05}
    assert study.label == "tiny@epochs={times: 0.3},optimizer.lr=0.05"


def test_a_study_without_overlay_is_no_variant(tmp_path: Path) -> None:
    assert study_of(tmp_path, TWO_ARMS).label == "tiny"


def test_options_are_laid_over_the_profile_in_their_order(tmp_path: Path) -> None:
    study = study_of(tmp_path, TWO_ARMS, "smoke", ("seeds=[4]", "batch_size=32", "batch_size={times: 2}"))
    assert study.label == "tiny@smoke,seeds=[4],batch_size=32,batch_size={times: 2}"
    assert study.seeds == (4,)
    assert {arm.recipe.batch_size for arm in study.arms} == {64}


def test_a_profile_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    profile = tmp_path / "own.yaml"
    profile.write_text("profile: quick\nseeds: [9]\nrecipe: {model: {'width?': 4}, epochs: {times: 0.5}}\n")
    study = study_of(tmp_path, TWO_ARMS, str(profile))
    assert (study.label, study.seeds) == ("tiny@quick", (9,))
    assert [arm.recipe.epochs for arm in study.arms] == [5, 15]
    assert {arm.recipe.model.kwargs()["width"] for arm in study.arms} == {4}


def test_a_timm_model_has_no_width_and_takes_the_smoke_profile_all_the_same(tmp_path: Path) -> None:
    text = TWO_ARMS.replace("{name: resnet18-compact, width: 8}", "test_vit")
    model = study_of(tmp_path, text, "smoke").arm("longer").recipe.model
    assert (model.name, "width" in model.kwargs()) == ("test_vit", False)


def test_an_option_may_remove_an_augmentation_from_every_arm(tmp_path: Path) -> None:
    study = study_of(tmp_path, TWO_ARMS, set_=("augment.hflip=null",))
    assert [arm.recipe.augment for arm in study.arms] == [{}, {}]


def test_the_options_of_a_model_are_checked() -> None:
    assert model_options("resnet18", ["width=16"]) == {"width": 16, "dropout": 0.0}
    with pytest.raises(ValueError, match=r"--set widht=8: unknown key 'widht'; did you mean 'width'\?"):
        model_options("resnet18", ["widht=8"])


# What differs


def said(folder: Path, arm: str) -> list[str]:
    study = study_of(folder, f"{HEAD}arms: {{baseline: , other: {arm}}}\n")
    return [str(difference) for difference in differences(study.arm("baseline").recipe, study.arm("other").recipe)]


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("{epochs: 30}", ["epochs 10 -> 30"]),
        ("{augment: {mixup: {alpha: 0.4}}}", ["+ mixup (alpha 0.4, p 1)"]),
        ("{augment: {hflip: null}}", ["- hflip"]),
        ("{augment: {hflip: {p: 0.5}}}", ["hflip.p 0.2 -> 0.5"]),
        ("{optimizer: {lr: 5e-4}}", ["optimizer.lr 0.1 -> 0.0005"]),
        ("{loss: {label_smoothing: 0.1}}", ["loss.label_smoothing 0 -> 0.1"]),
        ("{train_size: 500}", ["train_size none -> 500"]),
        ("{schedule: {name: step, every_epochs: 8}}", ["schedule constant -> step (every_epochs 8, gamma 0.1)"]),
        ("{model: {width: 16}, epochs: 3}", ["model.width 8 -> 16", "epochs 10 -> 3"]),
    ],
)
def test_a_difference_is_told_in_few_words(arm: str, words: list[str], tmp_path: Path) -> None:
    assert said(tmp_path, arm) == words


def test_what_is_only_recorded_is_no_difference(tmp_path: Path) -> None:
    assert said(tmp_path, "{epochs: 30, eval_every: 5, checkpoint_every: 5}") == ["epochs 10 -> 30"]


# Shipped studies


@pytest.mark.parametrize("profile", [None, *profile_names()])
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_shipped_study_loads_plain_and_under_every_profile(path: Path, profile: str | None) -> None:
    plain, study = load_study(path), load_study(path, load_overlay(profile, []))
    assert study.name == path.stem
    assert [arm.name for arm in study.arms] == [arm.name for arm in plain.arms]
    assert set(study.published) <= {arm.name for arm in study.arms}


def test_the_shipped_studies_have_names_of_their_own() -> None:
    assert len(load_studies(EXPERIMENTS)) == len(EXPERIMENTS) >= 4


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_recipe_without_its_defaults_is_the_same_recipe(path: Path) -> None:
    for arm in load_study(path).arms:
        assert Recipe.model_validate(arm.recipe.as_dict(defaults=False)) == arm.recipe
        assert Recipe.model_validate(arm.recipe.as_dict()) == arm.recipe


def test_the_readme_study_is_what_the_readme_says() -> None:
    [path] = [path for path in EXPERIMENTS if path.stem == "readme-augmentation"]
    study = load_study(path)
    assert study.baseline == "baseline"
    rows = {
        arm.name: (
            arm.recipe.epochs,
            {name: part.kwargs()["p"] for name, part in arm.recipe.augment.items()},
            arm.recipe.loss.label_smoothing > 0,
            study.published[arm.name].accuracy,
        )
        for arm in study.arms
    }
    mixed = {"affine": 0.2, "cutmix": 1.0, "hflip": 0.2, "mixup": 1.0}
    assert rows == {
        "baseline": (10, {}, False, 82.43),
        "mixup+affine": (30, {"affine": 0.2, "hflip": 0.2, "mixup": 1.0}, False, 88.3),
        "+cutmix": (30, mixed, False, 88.7),
        "aggressive": (30, mixed | {"affine": 0.5, "hflip": 0.5}, False, 87.8),
        "label-smoothing": (30, mixed, True, 88.6),
    }
    assert {(arm.recipe.data.name, arm.recipe.model.name, arm.recipe.batch_size) for arm in study.arms} == {
        ("cifar10", "resnet18-compact", 16)
    }


# Anything at all

TOP_KEYS = ["study", "question", "seeds", "margin", "recipe", "baseline", "arms", "published"]
RECIPE_KEYS = ["data", "model", "epochs", "optimizer", "schedule", "augment", "loss", "batch_size", "train_size"]
KEYS = st.sampled_from(
    [*TOP_KEYS, *RECIPE_KEYS, "from", "name", "lr", "hflip", "p", "times", "width?", "a", "", "\x1b"]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**31),
    st.floats(),
    st.sampled_from(["digits", "resnet18", "sgd", "step", "cosine", "a", "baseline", "x" * 90, "\x1b"]),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5))
DELTAS = st.none() | st.dictionaries(st.sampled_from([*RECIPE_KEYS, "from"]), VALUES, max_size=3)
STUDIES = st.fixed_dictionaries(
    {
        "study": st.just("tiny"),
        "question": st.just("why"),
        "recipe": st.just(yaml.safe_load(HEAD)["recipe"]) | VALUES,
        "arms": st.fixed_dictionaries({"baseline": st.none() | DELTAS}, optional={"a": DELTAS, "b": DELTAS}),
    },
    optional={"seeds": VALUES, "baseline": SCALARS, "published": VALUES, "margin": SCALARS},
)


def problems_in(load: Callable[[], object]) -> Sequence[Problem] | None:
    """What a StudyError lists, None where there is none; any other exception is a failure of the test."""
    try:
        load()
    except StudyError as error:
        return error.problems
    return None


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(study=STUDIES | VALUES, overlaid=st.booleans())
def test_anything_at_all_is_a_study_or_a_study_error(
    study: Any, overlaid: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(study, allow_unicode=True), encoding="utf-8")
    found = problems_in(lambda: load_study(path, load_overlay("smoke" if overlaid else None, [])))
    assert found is None or len(found) > 0
    for problem in found or ():
        assert str(problem).isprintable()
        assert problem.location.source in (str(path), "profile smoke")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.text(st.sampled_from("ab:,{}[]'\"!&*?|>-#%@ \n\t\x07\x85\ud800"), max_size=30))
def test_any_text_is_a_tree_or_a_study_error(text: str) -> None:
    found = problems_in(lambda: parse_yaml(text, "any.yaml"))
    assert all(str(problem).isprintable() for problem in found or ())


# Editing a study

COMMENTED = """\
# Why this study exists.
study: small   # its name
question: "Does it help?"

recipe:
  data: digits
  optimizer: {name: sgd, lr: 5e-2}   # assumed

tune:   # not copied
  space: {optimizer.lr: [0.1, 0.2]}
# About the arms.
arms:
  baseline:   # as published
  'no': {augment: {hflip: null, crop: }}
  flip:
    # more of it
    augment:
      hflip: {p: 0.5}   # half

  # The last one.
  other: {epochs: 3}

# Figures of others.
published: {flip: 88.0}
"""


def test_an_edited_study_keeps_comments_order_and_quotes() -> None:
    text = without_sections(COMMENTED, parse_yaml(COMMENTED, "x"), ("tune", "published"))
    document = read_document(text)
    set_value(document["arms"], "baseline", {}, {"optimizer": {"lr": 0.1}})
    flip = {"augment": {"hflip": {"p": 0.5}}}
    set_value(document["arms"], "flip", flip, {"augment": {"hflip": {"p": 0.7}}, "schedule": {"name": "cosine"}})
    set_value(document["arms"], "other", {"epochs": 3}, {"epochs": 3, "augment": {"hflip": None}, "lr": 1e-5})
    assert (
        write_document(document)
        == """\
# Why this study exists.
study: small   # its name
question: "Does it help?"

recipe:
  data: digits
  optimizer: {name: sgd, lr: 5e-2}   # assumed

# About the arms.
arms:
  baseline: {optimizer: {lr: 0.1}} # as published
  'no': {augment: {hflip: null, crop: null}}
  flip:
    # more of it
    augment:
      hflip: {p: 0.7}   # half
    schedule: {name: cosine}

  # The last one.
  other: {epochs: 3, augment: {hflip: null}, lr: 1e-05}
"""
    )


@pytest.mark.parametrize("value", ["5", "null", "1e3", "a: b", "#x", "- a", "", " x", "true", "*x", "no", "a\nb", "ä"])
def test_text_in_an_edited_study_stays_text(value: str) -> None:
    document = read_document("study: small\n")
    document["tuned"] = as_node({"a": value, value: [value, 1, None, True, 0.5, {"b": value}]})
    again = parse_yaml(write_document(document), "x").value
    assert again == {"study": "small", "tuned": {"a": value, value: [value, 1, None, True, 0.5, {"b": value}]}}


def test_a_mapping_that_two_arms_share_is_changed_in_one_of_them_only() -> None:
    text = "tune: {a: &t 5}\narms:\n  a: &a {optimizer: &o {lr: 0.1}}\n  b: *a\n  c: {optimizer: *o, epochs: *t}\n"
    document = read_document(without_sections(text, parse_yaml(text, "x"), ("tune",)))
    del document["tune"]
    set_value(document["arms"], "a", {"optimizer": {"lr": 0.1}}, {"optimizer": {"lr": 0.2}})
    set_value(document["arms"], "c", {"optimizer": {"lr": 0.1}, "epochs": 5}, {"optimizer": {"lr": 0.3}, "epochs": 5})
    arms = parse_yaml(write_document(document), "x").value["arms"]
    assert [arms[name]["optimizer"]["lr"] for name in "abc"] == [0.2, 0.1, 0.3]
    assert arms["c"]["epochs"] == 5


def test_a_block_that_is_replaced_keeps_the_comments_that_follow_it() -> None:
    document = read_document("arms:\n  a:\n    optimizer:\n      name: sgd\n      lr: 1   # high\n\n  # next\n  b:\n")
    before = {"optimizer": {"name": "sgd", "lr": 1}}
    set_value(document["arms"], "a", before, {"optimizer": {"name": "adamw"}})
    assert write_document(document) == "arms:\n  a:\n    optimizer: {name: adamw} # high\n\n  # next\n  b:\n"


def test_a_study_in_flow_style_can_be_edited() -> None:
    text = '{"study": "small", "tune": {"trials": 5}, "arms": {"a": null, "b": {"epochs": 5}}}'
    document = read_document(without_sections(text, parse_yaml(text, "x"), ("tune",)))
    del document["tune"]
    set_value(document["arms"], "a", {}, {"epochs": 7})
    again = parse_yaml(write_document(document), "x").value
    assert again == {"study": "small", "arms": {"a": {"epochs": 7}, "b": {"epochs": 5}}}
