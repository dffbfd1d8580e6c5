"""A trained arm in people's hands: promoted in MLflow's registry, loaded in Python, asked by command."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from cifar_ablate.analysis.contrasts import all_pairs, compare
from cifar_ablate.errors import AblateError, DataError, RecordError, UnknownNameError, UsageError
from cifar_ablate.portable.answers import answer
from cifar_ablate.predictor import load
from cifar_ablate.training.checkpoint import CHECKSUM
from tests.conftest import Workshop
from tests.predicting import LABEL, altered, artifact, content, digits, picture, run_of

NUM = 360
"""Test images of digits: all there are."""


def version(name: str = LABEL, alias: str = "champion") -> mlflow.entities.model_registry.ModelVersion:
    return mlflow.MlflowClient().get_model_version_by_alias(name, alias)


def promoted(alias: str = "champion") -> Path:
    """The folder of what an alias points at."""
    found = version(alias=alias)
    return artifact(found.run_id, found.source.removeprefix(f"runs:/{found.run_id}/"))


# Promoted


@pytest.mark.slow
def test_without_an_arm_the_best_by_the_verdicts_is_promoted_the_cheaper_of_two_that_they_do_not_tell_apart(
    trained: Workshop,
) -> None:
    answer = trained("promote", LABEL)
    assert answer.code == 0, answer.err
    assert (
        "do not tell larger from larger and longer; larger was chosen because it is the cheapest to train" in answer.out
    )
    assert "chosen on this test set" in answer.out
    tags = version().tags
    assert (tags["ablate.arm"], tags["ablate.seed"], tags["ablate.chosen_on_test_set"]) == ("larger", "0", "true")
    ledger = mlflow.MlflowClient().get_experiment_by_name(LABEL)
    assert ledger is not None
    assert any(
        name.startswith("ablate.ledger.promote") for name in ledger.tags
    )  # who chose by the test set is on record


def test_an_arm_that_is_named_is_promoted_with_all_that_is_known_of_it(trained: Workshop) -> None:
    answer = trained("promote", LABEL, "--arm", "baseline", "--alias", "plain")
    assert answer.code == 0, answer.err
    assert "chosen on this test set" not in answer.out
    found = version(alias="plain")
    run = mlflow.MlflowClient().get_run(run_of("baseline"))
    assert found.run_id == run.info.run_id
    assert float(found.tags["ablate.test_accuracy"]) == pytest.approx(run.data.metrics["test_accuracy"], abs=1e-3)
    assert found.tags["ablate.data_digest"] == digits().digest
    assert json.loads(found.tags["ablate.classes"]) == list(digits().classes)
    assert json.loads(found.tags["ablate.recipe"])["optimizer"]["lr"] == 0.0005
    low, high = map(float, found.tags["ablate.test_accuracy_ci95"].split(" to "))
    assert low < run.data.metrics["test_accuracy"] < high
    assert "ablate.mean_ci95" in found.tags


def test_what_is_promoted_is_the_first_seed_and_never_the_luckiest(trained: Workshop) -> None:
    for arm in ("baseline", "larger", "larger and longer"):
        assert trained("promote", LABEL, "--arm", arm, "--alias", "seed").code == 0
        assert version(alias="seed").run_id == run_of(arm, 0)


def test_promoting_again_makes_no_second_version(trained: Workshop) -> None:
    assert trained("promote", LABEL, "--arm", "larger", "--alias", "again").code == 0
    first = version(alias="again").version
    assert trained("promote", LABEL, "--arm", "larger", "--alias", "again").code == 0
    assert version(alias="again").version == first


def test_each_version_keeps_what_was_said_of_it_when_it_was_promoted(trained: Workshop) -> None:
    """Promoted again by name, the run's files were written over, and the champion was no longer said to be chosen."""
    assert trained("promote", LABEL).code == 0
    assert trained("promote", LABEL, "--arm", "larger", "--alias", "named").code == 0
    assert load(f"{LABEL}@champion").card.accuracy.is_chosen_on_test
    assert not load(f"{LABEL}@named").card.accuracy.is_chosen_on_test
    assert version().version != version(alias="named").version


@pytest.mark.slow
def test_what_is_said_of_a_network_is_of_its_own_recipe_after_the_study_was_edited(workshop: Workshop) -> None:
    workshop.write("one.yaml", ONE.replace("seeds: 2", "seeds: 3"))
    assert workshop("run", "one.yaml").code == 0
    assert workshop("promote", "one", "--arm", "flip").code == 0
    run, card = version("one").run_id, load("one").card
    workshop.write("one.yaml", ONE.replace("seeds: 2", "seeds: 3").replace("epochs: 1", "epochs: 2"))
    assert workshop("run", "one.yaml").code == 0
    assert load("one").card == card
    again = load(run=run).card
    assert (again.accuracy.over_seeds, again.origin.epochs) == (card.accuracy.over_seeds, 1)
    assert card.verdicts
    assert workshop("package", "out", "--run", run).code == 0
    assert "What the study says" not in Path("out/README.md").read_text()  # it speaks of another recipe by now


@pytest.mark.parametrize("alias", ["a b", "latest", "v1", "", "x@y", "9"])
def test_an_alias_that_means_something_else_is_refused_before_anything_is_registered(
    trained: Workshop, alias: str
) -> None:
    before = len(mlflow.MlflowClient().search_model_versions(f"name = '{LABEL}'"))
    answer = trained("promote", LABEL, "--arm", "larger and longer", "--alias", alias)
    assert (answer.code, f"--alias {alias}: give letters" in answer.err) == (2, True)
    assert len(mlflow.MlflowClient().search_model_versions(f"name = '{LABEL}'")) == before


def test_a_registered_model_of_somebody_else_is_left_alone(workshop: Workshop) -> None:
    workshop.write("one.yaml", ONE)
    assert workshop("run", "one.yaml", "--arm", "baseline").code == 0
    mlflow.MlflowClient().create_registered_model("one")
    answer = workshop("promote", "one", "--arm", "baseline")
    assert (answer.code, "that is none of ours" in answer.err) == (2, True)
    answer = workshop("promote", "one")
    assert answer.code == 1
    experiment = mlflow.MlflowClient().get_experiment_by_name("one")
    assert experiment is not None
    assert not [name for name in experiment.tags if "promote" in name]  # nothing was chosen


def test_all_pairs_of_two_arms_say_what_their_contrast_says() -> None:
    rows = [(arm, seed, base + (3 * seed) % 5 + (seed * seed) % 3) for arm, base in BASES for seed in range(5)]
    frame = pd.DataFrame(rows, columns=["arm", "seed", "accuracy"])
    frame.loc[frame.arm == "b", "accuracy"] += [0.1, -0.3, 0.4, 0.0, 0.2]
    (contrast,) = compare(frame[frame.arm != "c"], baseline="a")
    pair = all_pairs(frame[frame.arm != "c"], ["a", "b"])["b", "a"]
    assert pair.value == pytest.approx(contrast.estimate)
    assert pair.ci95 == pytest.approx(contrast.ci95)
    every = all_pairs(frame, ["a", "b", "c"])
    assert len(every) == 6
    assert every["a", "b"].value == pytest.approx(-every["b", "a"].value)
    one, other = every["a", "b"].ci95, every["b", "a"].ci95
    assert one is not None
    assert other is not None
    assert one == pytest.approx((-other[1], -other[0]))


BASES = (("a", 60.0), ("b", 61.0), ("c", 61.5))


def test_a_first_seed_that_is_not_there_is_not_replaced_by_another(workshop: Workshop) -> None:
    workshop.write("one.yaml", ONE)
    assert workshop("run", "one.yaml", "--seed", "1").code == 0
    answer = workshop("promote", "one", "--arm", "baseline")
    assert answer.code == 1
    assert "its first seed (0) is not trained yet, and another one is never taken" in answer.err
    answer = workshop("promote", "one")
    assert answer.code == 1
    assert "no verdict yet could name an arm best" in answer.err


ONE = """
    study: one
    question: Is there anything?
    seeds: 2
    recipe:
      data: digits
      train_size: 100
      model: {name: resnet18-compact, width: 4}
      epochs: 1
      batch_size: 50
      optimizer: {name: sgd, lr: 0.05}
    arms: {baseline: , flip: {augment: {hflip: {}}}}
"""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("promote", "shape"), 2, "did you mean 'shapes'?"),
        (("promote", LABEL, "--arm", "larg"), 2, "did you mean 'larger'?"),
        (("predict", "x.png", "--model", "shape@champion"), 2, "did you mean 'shapes'?"),
        (("predict", "x.png", "--model", "shapes@champio"), 2, "did you mean 'champion'?"),
        (("predict", "x.png", "--model", "shapes/99"), 2, "unknown version of 'shapes' '99'"),
        (("predict", "x.png", "--run", "0" * 32), 1, "there is no run"),
        (("predict", "x.png", "--run", "no id"), 1, "there is no run 'no id'"),
        (("predict", "x.png", "--model", "shapes", "--run", "0"), 2, "name one of them"),
        (("predict", "x.png", "--model", "shapes", "--top", "0"), 2, "greater than or equal to 1"),
        (("predict", "x.png", "--model", "shapes", "--device", "tpu"), 2, "tpu"),
        (("predict", "x.png", "--model", ""), 2, "unknown registered model ''"),
        (("predict", "x.png", "--model", "./nowhere"), 1, "nowhere has no predictor.json"),
        (("predict", "x.png", "--model", "mlruns"), 2, "unknown registered model 'mlruns'"),
    ],
)
def test_a_wrong_name_is_one_sentence_with_what_there_is(
    trained: Workshop, arguments: tuple[str, ...], code: int, said: str
) -> None:
    trained("promote", LABEL, "--arm", "larger")
    answer = trained(*arguments)
    assert answer.code == code, answer.err
    assert said in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.slow
def test_where_nothing_is_promoted_or_too_much_the_way_on_is_said(workshop: Workshop) -> None:
    answer = workshop("predict", "x.png")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "run `cifar-ablate promote STUDY`" in answer.err
    workshop.write("one.yaml", ONE)
    assert workshop("run", "one.yaml").code == 0
    assert workshop("run", "one.yaml", "--set", "epochs=2").code == 0
    labels = [one.name for one in mlflow.MlflowClient().search_experiments() if one.name.startswith("one")]
    for label in labels:
        assert workshop("promote", label, "--arm", "flip").code == 0
    answer = workshop("predict", "x.png")
    assert answer.code == 2
    assert all(f"--model {label}@champion" in answer.err for label in labels)
    (workshop.folder / "x.png").write_bytes(content(picture()))
    for label in labels:  # one of which has an @ of its own
        for name in (label, f"{label}@champion", f"{label}/1"):
            found = json.loads(workshop("predict", "x.png", "--json", "--model", name).out)
            assert found["network"]["study"] == label


# Loaded


@pytest.mark.parametrize("arm", ["baseline", "larger"])
def test_predictions_are_those_that_the_run_recorded(trained: Workshop, arm: str) -> None:
    run = run_of(arm)
    predictor = load(run=run)
    logits = predictor.logits(torch.from_numpy(digits().test_images)).numpy()
    recorded = np.load(artifact(run, "test_logits.npy"))
    assert len(logits) == NUM
    assert (logits.argmax(1) == recorded.argmax(1)).all()
    assert abs((logits - logits.max(1, keepdims=True)).astype(np.float16) - recorded).max() == 0
    assert 100 * (logits.argmax(1) == digits().test_labels).mean() == pytest.approx(predictor.card.accuracy.percent)


@pytest.mark.slow
@pytest.mark.real
def test_on_real_images_too_in_the_precision_that_the_device_chose(
    workshop: Workshop, cifar_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_ABLATE_DATA", str(cifar_root))
    workshop.write("real.yaml", ONE.replace("study: one", "study: real").replace("data: digits", "data: cifar10"))
    answer = workshop("run", "real.yaml", "--arm", "baseline", "--seed", "0")
    assert answer.code == 0, answer.err
    (run,) = mlflow.search_runs(experiment_names=["real"], output_format="list")
    from cifar_ablate.data import load_data

    images = load_data("cifar10", {}).test_images[:1000]
    found = load(run=run.info.run_id).logits(torch.from_numpy(images)).numpy()
    recorded = np.load(artifact(run.info.run_id, "test_logits.npy"))[:1000]
    assert (found.argmax(1) == recorded.argmax(1)).all()
    assert abs((found - found.max(1, keepdims=True)).astype(np.float16) - recorded).max() <= 1e-2


def test_paths_bytes_arrays_and_pil_images_are_all_taken(trained: Workshop, tmp_path: Path) -> None:
    predictor = load(run=run_of("larger"))
    image = picture(3)
    image.save(tmp_path / "digit.png")
    sources = (tmp_path / "digit.png", str(tmp_path / "digit.png"), content(image), image, np.asarray(image))
    answers = [predictor(source) for source in sources]
    assert len({answer.classes for answer in answers}) == 1
    assert sum(value for _, value in answers[0].classes) == pytest.approx(1)
    assert answers[0].label == answers[0].classes[0][0]


def test_images_of_another_shape_or_type_are_refused(trained: Workshop) -> None:
    predictor = load(run=run_of("larger"))
    for wrong in (np.zeros((2, 3, 16, 16), np.uint8), np.zeros((2, 3, 32, 32), np.float32), np.zeros(3, np.uint8)):
        with pytest.raises(DataError, match=r"give uint8 \[N, 3, 32, 32\]"):
            predictor.probabilities(wrong)
    assert predictor.answers([]) == []


def test_a_picture_that_is_unlike_the_test_images_is_told_and_few_test_images_are(trained: Workshop) -> None:
    predictor = load(run=run_of("larger and longer"))
    pictures = [predictor.picture(Image.fromarray(image.transpose(1, 2, 0))) for image in digits().test_images]
    warned = [bool(answer.warning) for answer in predictor.answers(pictures)]
    assert 1 - np.mean(warned) == pytest.approx(predictor.card.usual.share, abs=0.003)  # float16 at the very bound
    assert 0.95 <= predictor.card.usual.share < 1
    least = predictor.answers(pictures)[int(np.argmax(warned))]
    assert "Less sure than of nearly all test images" in least.warning
    even, certain = np.full(10, 0.1), np.eye(10)[3]
    assert "its probability of 10% is below" in answer(even, predictor.classes, predictor.card.usual, "").warning
    assert answer(certain, predictor.classes, predictor.card.usual, "").warning == ""


@pytest.mark.parametrize("part", ["length", "header", "values", "end"])
def test_weights_with_one_byte_altered_are_refused(trained: Workshop, tmp_path: Path, part: str) -> None:
    run = run_of("larger")
    path = artifact(run, "weights.safetensors")
    text = path.read_bytes()
    size = int.from_bytes(text[:8], "little")
    places = {
        "length": [0],
        "header": [*range(8, 8 + size, 97), text.index(b'"mean'), text.index(b"fingerprint") + 14],
        "values": [8 + size, 8 + size + 1001],
        "end": [len(text) - 1],
    }[part]
    for at in places:
        with (
            altered(path, at),
            pytest.raises(AblateError, match=r"not a complete file|changed after|metadata of"),
        ):
            load(run=run)
    load(run=run)


def test_promoted_weights_and_their_card_are_checked_too(trained: Workshop) -> None:
    assert trained("promote", LABEL, "--arm", "larger", "--alias", "checked").code == 0
    folder = promoted("checked")
    with altered(folder / "weights.safetensors", 5000), pytest.raises(RecordError, match="SHA-256"):
        load(f"{LABEL}@checked")
    card = folder / "predictor.json"
    before = card.read_text()
    edits = (('"classes"', '"klasses"'), ('"name": "resnet', '"nome": "resnet'), ('"precision": "', '"precision": "x'))
    for wrong in ("{", "3", *(before.replace(old, new) for old, new in edits)):
        card.write_text(wrong)
        with pytest.raises(RecordError, match="is damaged"):
            load(f"{LABEL}@checked")
    card.write_text(before.replace('"format": 1', '"format": 2'))
    with pytest.raises(RecordError, match="newer cifar-ablate"):
        load(f"{LABEL}@checked")
    card.write_text(before.replace('"weights.safetensors"', '"../weights.safetensors"'))
    with pytest.raises(RecordError, match="outside of its folder"):
        load(f"{LABEL}@checked")
    card.unlink()
    with pytest.raises(RecordError, match=r"has no predictor.json"):
        load(f"{LABEL}@checked")
    card.write_text(before)


def test_weights_from_before_there_were_checksums_can_be_used(trained: Workshop) -> None:
    run = run_of("baseline", 1)
    path = artifact(run, "weights.safetensors")
    before, expected = path.read_bytes(), load(run=run)(picture())
    with safe_open(path, framework="pt") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != CHECKSUM}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata)
    assert load(run=run)(picture()) == expected
    path.write_bytes(before)


def test_weights_of_another_training_are_refused(trained: Workshop) -> None:
    mine, other = (artifact(run_of("larger", seed), "weights.safetensors") for seed in (1, 2))
    assert trained("promote", LABEL, "--arm", "larger", "--alias", "swapped").code == 0
    folder = promoted("swapped")
    kept = folder / "weights.safetensors"
    before = kept.read_bytes()
    shutil.copyfile(other, kept)
    with pytest.raises(RecordError, match="SHA-256"):
        load(f"{LABEL}@swapped")
    kept.write_bytes(before)
    assert mine.read_bytes() != other.read_bytes()


def test_a_run_without_weights_says_what_became_of_it(workshop: Workshop) -> None:
    workshop.write("wild.yaml", ONE.replace("study: one", "study: wild"))
    assert workshop("run", "wild.yaml", "--set", "optimizer.lr=1e30", "--arm", "baseline").code == 0
    label = next(one.name for one in mlflow.MlflowClient().search_experiments() if one.name.startswith("wild"))
    (run, *_) = mlflow.search_runs(experiment_names=[label], output_format="list")
    answer = workshop("predict", "x.png", "--run", run.info.run_id)
    assert answer.code == 1
    assert "has no weights because it is diverged: " in answer.err
    answer = workshop("promote", label, "--arm", "baseline")
    assert (answer.code, "has no weights because it is diverged" in answer.err) == (1, True)


def test_weights_that_were_deleted_are_said_to_be_gone(workshop: Workshop) -> None:
    workshop.write("one.yaml", ONE)
    assert workshop("run", "one.yaml", "--arm", "baseline").code == 0
    (run, _) = mlflow.search_runs(experiment_names=["one"], output_format="list")
    artifact(run.info.run_id, "weights.safetensors").unlink()
    answer = workshop("predict", "x.png", "--run", run.info.run_id)
    assert (answer.code, "has no artifact 'weights.safetensors'" in answer.err) == (1, True)


def test_a_server_that_is_down_is_one_sentence(trained: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for arguments in (("predict", "x.png"), ("promote", LABEL), ("predict", "x.png", "--run", "0" * 32)):
        answer = trained(*arguments)
        assert answer.code == 1
        assert "http://127.0.0.1:9 does not answer" in answer.err
        assert answer.err.count("\n") == 1


def test_an_empty_folder_is_left_empty(tmp_path: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere / 'mlflow.db'}")
    assert workshop("predict", "x.png").code == 1
    assert list(elsewhere.iterdir()) == []


# Asked by command


def test_a_table_says_what_each_picture_shows_and_how_it_was_brought_to_size(trained: Workshop, tmp_path: Path) -> None:
    picture(0).resize((90, 60)).save(tmp_path / "wide.png")
    picture(1).convert("CMYK").save(tmp_path / "print.jpg")
    answer = trained("predict", str(tmp_path), "--run", run_of("larger"), "--top", "2")
    assert answer.code == 0, answer.err
    head, *lines = answer.out.splitlines()
    assert head.startswith("shapes, arm larger, seed 0: ")
    assert "95% CI" in head
    rows = [line for line in lines if "%  " in line]
    assert len(rows) == 2
    assert "(CMYK made RGB, 32x32 as it is)" in rows[0]
    assert "(90x60 resized to 32x32, its centre)" in rows[1]
    assert all(row.count("%") == 2 for row in rows)


def test_json_is_one_document_that_can_be_read(trained: Workshop, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    answer = trained("predict", str(tmp_path / "a.png"), "--run", run_of("larger"), "--json", "--top", "4")
    found = json.loads(answer.out)
    assert found["network"]["arm"] == "larger"
    (one,) = found["pictures"]
    assert one["path"] == str(tmp_path / "a.png")
    assert next(iter(one["classes"])) == one["label"]
    assert len(one["classes"]) == 4
    assert one["how"] == "32x32 as it is"


def test_a_bad_file_among_good_ones_costs_nothing_but_its_own_answer(trained: Workshop, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").write_text("hello")
    picture(1).save(tmp_path / "d.png")
    answer = trained("predict", str(tmp_path), str(tmp_path / "e.png"), "--run", run_of("larger"), "--json")
    assert answer.code == 1
    found = {Path(one["path"]).name: one for one in json.loads(answer.out)["pictures"]}
    assert ["label" in found[f"{name}.png"] for name in "abcde"] == [True, False, False, True, False]
    assert len(answer.err.splitlines()) == 3
    assert "b.png is empty (0 bytes)" in answer.err
    assert "cannot read" in answer.err


def test_many_pictures_are_counted_on_the_way(trained: Workshop, tmp_path: Path) -> None:
    for index in range(520):
        (tmp_path / f"{index:03}.png").write_bytes(content(picture(index % NUM)))
    answer = trained("predict", str(tmp_path), "--run", run_of("larger"), "--json")
    assert answer.code == 0
    assert answer.err.splitlines() == ["250 of 520 pictures", "500 of 520 pictures", "520 of 520 pictures"]
    found = [one["label"] for one in json.loads(answer.out)["pictures"][:NUM]]
    recorded = np.load(artifact(run_of("larger"), "test_logits.npy")).argmax(1)
    assert found == [digits().classes[label] for label in recorded]


def test_names_that_a_terminal_would_take_for_commands_are_shown_as_text(trained: Workshop, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a\x1b[31m\nb.png")
    answer = trained("predict", str(tmp_path), "--run", run_of("larger"))
    assert answer.code == 0
    assert "\x1b" not in answer.out
    assert r"a\x1b[31m\nb.png" in answer.out


def test_a_pipe_or_a_device_is_not_waited_for(trained: Workshop, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    answer = trained("predict", str(tmp_path / "pipe.png"), "/dev/zero", "--run", run_of("larger"))
    assert answer.code == 1
    assert answer.err.count("is not a file; name an image") == 2


def test_a_folder_without_pictures_is_an_error(trained: Workshop, tmp_path: Path) -> None:
    answer = trained("predict", str(tmp_path), "--run", run_of("larger"))
    assert (answer.code, "there is no image in" in answer.err) == (1, True)


def test_a_model_and_a_run_cannot_both_be_named(trained: Workshop) -> None:
    with pytest.raises(UsageError, match="name one of them"):
        load("a", run="b")
    with pytest.raises(UnknownNameError):
        load("nobody")
    with pytest.raises(RecordError, match=r"has no predictor.json"):
        load(Path("mlruns"))


def test_the_registry_is_where_mlflow_ui_shows_it(trained: Workshop) -> None:
    assert trained("promote", LABEL, "--arm", "larger").code == 0
    with closing(sqlite3.connect(trained.folder / "mlflow.db")) as database:
        (names,) = zip(*database.execute("select name from registered_models").fetchall(), strict=True)
    assert names == (LABEL,)
