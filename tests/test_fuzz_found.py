"""What fuzzing found: files that made the program run for minutes, fall over or say nothing that helps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cifar_ablate.errors import AblateError, StudyError, UsageError
from cifar_ablate.spec.load import load_study
from cifar_ablate.spec.overlay import load_overlay
from cifar_ablate.spec.schema import Study
from tests.fuzzing import import_everything
from tests.timing import assert_read_quickly


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    import_everything()


HEAD = "study: tiny\nquestion: Does it help?\n"
RECIPE = "recipe: {data: digits, model: resnet18-compact, epochs: 4, optimizer: {name: sgd, lr: 0.1}}\n"
LISTED = ", ".join(f"{number + 1}.0" for number in range(100))
WHEN = f"when: {{optimizer.lr: [{LISTED}]}}"


def arms(num: int, line: Callable[[int], str]) -> str:
    return "arms:\n  baseline:\n" + "".join(f"  a{number}: {line(number)}\n" for number in range(num))


def longer(number: int) -> str:
    return f"{{epochs: {number + 5}}}"


def told(folder: Path, text: str, settings: tuple[str, ...] = ()) -> list[str]:
    """The lines of the refusal, which is made quickly."""
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    refusal, _ = assert_read_quickly(path, settings=settings)
    assert isinstance(refusal, StudyError)
    lines = str(refusal).removesuffix("\n").split("\n")
    assert all(line.isprintable() and len(line) < 600 for line in lines)
    return [line.removeprefix(f"{path}") for line in lines]


def test_nine_hundred_arms_may_each_build_on_the_next(tmp_path: Path) -> None:
    last = "{epochs: 9999, batch_size: 64}"
    path = tmp_path / "study.yaml"
    path.write_text(
        HEAD + RECIPE + arms(900, lambda i: f"{{epochs: {i + 5}, from: a{i + 1}}}" if i < 899 else last), "utf-8"
    )
    study, _ = assert_read_quickly(path)
    assert isinstance(study, Study)
    assert study.arm("a0").recipe.epochs == 5
    assert study.arm("a0").recipe.batch_size == 64


def test_of_three_thousand_arms_that_build_on_the_next_the_first_too_many_is_told(tmp_path: Path) -> None:
    last = "{epochs: 9999, batch_size: 64}"
    text = HEAD + RECIPE + arms(3000, lambda i: f"{{epochs: {i + 5}, from: a{i + 1}}}" if i < 2999 else last)
    [line] = told(tmp_path, text)
    assert line == ":1668:31: holds more than 10,000 values; divide the study"


def test_a_circle_of_nine_hundred_arms_is_told_once_at_its_first_arm_and_not_with_all_names(tmp_path: Path) -> None:
    [line] = told(tmp_path, HEAD + RECIPE + arms(900, lambda i: f"{{epochs: {i + 5}, from: a{(i + 1) % 900}}}"))
    assert line.startswith(":6:19: arms.a0.from: forms a circle: a0 -> a1 -> a2 -> a3 -> a4 -> ... -> a0;")


def test_arms_whose_values_are_too_many_together_are_refused_at_the_first_too_many(tmp_path: Path) -> None:
    [line] = told(tmp_path, HEAD + RECIPE + arms(2500, longer))
    assert line == ":2500:10: holds more than 10,000 values; divide the study"


def test_of_hundreds_of_wrong_names_the_first_fifty_are_told(tmp_path: Path) -> None:
    text = HEAD + RECIPE + arms(500, longer) + "published:\n" + "".join(f"  b{i}x: 5\n" for i in range(500))
    lines = told(tmp_path, text)
    assert len(lines) == 51
    assert lines[-1] == "and 450 more; fix these first"


def test_wrong_keys_of_a_recipe_that_many_arms_share_are_told_once(tmp_path: Path) -> None:
    wrong = ", ".join(f"epoch{number}: 1" for number in range(40))
    lines = told(tmp_path, HEAD + RECIPE.replace("epochs: 4", f"epochs: 4, {wrong}") + arms(200, longer))
    assert len(lines) == 40
    assert lines[0].endswith("recipe.epoch0: unknown key 'epoch0'; did you mean 'epochs'?")


def test_a_recipe_of_thousands_of_values_is_refused_before_it_is_copied_into_every_arm(tmp_path: Path) -> None:
    many = ", ".join("a" for _ in range(5000))
    [line] = told(tmp_path, HEAD + RECIPE.replace("epochs: 4", f"epochs: 4, augment: [{many}]") + arms(100, longer))
    assert line.startswith(":6:3: arms.a0: with this arm, the merged arms have over 10,000 values; remove what")


def test_arms_that_inherit_more_and_more_are_refused_where_they_become_too_many(tmp_path: Path) -> None:
    def more(number: int) -> str:
        keys = ", ".join(f"k{number}x{i}: 1" for i in range(9))
        return f"{{{keys}{f', from: a{number - 1}' if number else ''}}}"

    [line] = told(tmp_path, HEAD + RECIPE + arms(400, more))
    assert "with this arm, the merged arms have over 10,000 values; remove what is no field" in line


def test_a_misspelt_timm_model_of_each_of_fifty_arms_is_told_quickly(tmp_path: Path) -> None:
    lines = told(tmp_path, HEAD + RECIPE + arms(50, lambda i: f"{{model: resnt50_{i}}}"))
    assert len(lines) == 50
    assert "did you mean" in lines[0]


def test_names_of_sixty_thousand_characters_are_not_compared(tmp_path: Path) -> None:
    name = "x" * 60_000
    text = f"{HEAD}{RECIPE}arms:\n  baseline:\n  ? {name}\n  : {{from: {name}y}}\npublished:\n  ? {name}z\n  : 5\n"
    assert len(told(tmp_path, text)) == 3


def test_a_key_of_fifty_thousand_dots_is_not_repeated(tmp_path: Path) -> None:
    dots = "." * 50_000
    [line] = told(tmp_path, f"{HEAD}{RECIPE}arms:\n  baseline:\n  a:\n    ? model.{dots}\n    : 5\n")
    assert line.startswith(":7:7: arms.a.")


def test_a_space_with_too_many_combinations_to_try_is_refused(tmp_path: Path) -> None:
    epochs = ", ".join(str(number + 1) for number in range(100))
    space = f"tune:\n  space:\n    optimizer.lr: [{LISTED}]\n    epochs: [{epochs}]\n"
    space += f"    batch_size: {{low: 8, high: 64, when: {{optimizer.lr: [{LISTED}], epochs: [{epochs}]}}}}\n"
    [line] = told(tmp_path, HEAD + RECIPE + arms(1, longer) + space)
    assert line.startswith(":8:3: tune.space: has over 5,000 combinations of values, conditions and arms;")


def test_a_condition_with_thousands_of_values_is_compared_with_thousands_of_choices_quickly(tmp_path: Path) -> None:
    values = ", ".join(str(number + 1) for number in range(2000))
    space = f"tune:\n  space:\n    epochs: [{values}]\n"
    space += f"    optimizer.lr: {{low: 0.1, high: 0.2, when: {{epochs: [{values}, 0]}}}}\n"
    [line] = told(tmp_path, HEAD + RECIPE + arms(1, longer) + space)
    assert "`when` asks for epochs to be 0, which it never is; it is one of 1, 10, 100, 1000, " in line


@pytest.mark.parametrize(
    ("text", "at"),
    [('study: "\\UFFFFFFFF"\n', ":1:11"), (f"%YAML 1.{'1' * 5000}\n---\n{HEAD}", ":1:9")],
    ids=["a character beyond Unicode", "a version of 5,000 digits"],
)
def test_what_yaml_itself_cannot_read_is_told_at_its_place(text: str, at: str, tmp_path: Path) -> None:
    [line] = told(tmp_path, text)
    assert line.startswith(f"{at}: is not valid YAML: there is no such character or version;")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("!\\x4", "put text with such signs in quotes"),
        (HEAD + RECIPE + arms(1, lambda _: "{augment: {alternating-flip: {p: 1}}}"), "unknown key 'p'; did you mean"),
        (HEAD + RECIPE + arms(1, lambda _: "{augment: {alternating-flip: {zz: 1}}}"), "remove it, since there are no"),
    ],
    ids=["an odd tag", "an option of others", "an option where there are none"],
)
def test_each_refusal_says_what_to_do(text: str, says: str, tmp_path: Path) -> None:
    [line] = told(tmp_path, text)
    assert ";" in line
    assert says in line


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("{low: -1.0e308, high: 1.0e308, step: 1}", "high: is too far from low for floating-point numbers; write one"),
        ("{low: -1.0e308, high: 1.0e308}", "high: is too far from low for floating-point numbers; write one"),
        ("{low: 0, high: 1.0e308, step: 1.0e-10}", "step: is too small for so wide a range (got 1e-10); write a"),
        ("{low: 0, high: 9000000000000000000, step: 1.0e-300}", "step: is too small for so wide a range (got 1e-300)"),
    ],
)
def test_a_range_that_is_too_wide_for_numbers_is_refused(entry: str, says: str, tmp_path: Path) -> None:
    space = f"tune:\n  space:\n    optimizer.lr: {entry}\n"
    [line] = told(tmp_path, HEAD + RECIPE + arms(1, longer) + space)
    assert says in line


@pytest.mark.parametrize("sign", ["*", "!", "!!"])
def test_an_alias_or_a_tag_of_a_hundred_thousand_characters_is_not_repeated(sign: str, tmp_path: Path) -> None:
    [line] = told(tmp_path, f"a: {sign}{'x' * 100_000} b\n")
    assert ";" in line


def test_a_handle_of_a_hundred_thousand_characters_is_not_repeated(tmp_path: Path) -> None:
    [line] = told(tmp_path, f"a: !{'x' * 100_000}!y b\n")
    assert ";" in line


def many_aliases(num_arms: int) -> str:
    """Each arm builds on the one before, and states a mapping of 98 keys ten times more."""
    keys = ", ".join(f"k{number}: 1" for number in range(98))
    text = f"{HEAD}recipe: {{m: &m {{{keys}}}}}\narms:\n  baseline:\n"
    for number in range(num_arms):
        states = ", ".join(f"x{number}_{again}: *m" for again in range(10))
        text += f"  a{number}: {{from: {f'a{number - 1}' if number else 'baseline'}, {states}}}\n"
    return text


def flat_aliases(num_arms: int) -> str:
    """Each arm states the 995 values of the recipe once more."""
    keys = ", ".join(f"k{number}: 1" for number in range(995))
    listed = "".join(f"  a{number}: *a\n" for number in range(num_arms))
    return f"{HEAD}recipe: &a {{{keys}}}\narms:\n  baseline:\n{listed}"


@pytest.mark.parametrize(
    ("text", "num"),
    [(many_aliases(5), 1), (many_aliases(9), 1), (flat_aliases(8), 51)],
    ids=["nested", "more", "flat"],
)
def test_arms_that_state_a_thousand_values_by_aliases_are_told_quickly(text: str, num: int, tmp_path: Path) -> None:
    assert len(told(tmp_path, text)) == num


def test_ten_thousand_open_brackets_are_told_where_they_become_too_deep(tmp_path: Path) -> None:
    assert told(tmp_path, "a: " + "[" * 10_000) == [":1:44: is nested too deeply; close the brackets"]


def test_a_file_of_more_than_ten_thousand_values_is_told_where_they_become_too_many(tmp_path: Path) -> None:
    [line] = told(tmp_path, HEAD + "".join(f"k{number}: {number}\n" for number in range(30_000)))
    assert line == ":5000:8: holds more than 10,000 values; divide the study"


def test_a_device_that_never_ends_is_not_read_to_its_end() -> None:
    with pytest.raises(StudyError, match=r"/dev/zero: is over 500,000 bytes; name a study file"):
        load_study(Path("/dev/zero"))


def test_a_setting_of_a_thousand_parts_is_refused() -> None:
    with pytest.raises(UsageError, match="no recipe field is this deep; write one such as"):
        load_overlay(None, ["optimizer" + ".a" * 1500 + "=1"])


@pytest.mark.parametrize("profile", ["p" * 300, "a\0b"], ids=["too long for a file", "a null character"])
def test_a_profile_that_no_file_can_be_is_unknown(profile: str) -> None:
    with pytest.raises(AblateError, match="there is no such profile"):
        load_overlay(profile, [])
