"""Files from elsewhere that hold a pickle, which would write a file when it is read, or links, which lead elsewhere."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import optuna
import pytest
import torch
from safetensors.torch import save_file

from tests.comparing import runs_of
from tests.conftest import Answer, Workshop
from tests.predicting import LABEL, artifact, picture, run_of
from tests.recording import edited_record
from tests.tuning import TUNE, write


class Evil:
    """Unpickled, it writes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.proof, "unpickled")


@pytest.fixture
def evil(tmp_path: Path) -> Iterator[Evil]:
    proof = tmp_path / "proof"
    pickle.loads(pickle.dumps(Evil(proof)))
    assert proof.exists()  # it does what it says
    proof.unlink()
    yield Evil(proof)
    assert not proof.exists()


def with_pickle(kind: str, evil: Evil) -> bytes:
    """The content of a file of some kind with the pickle in it."""
    file = io.BytesIO()
    array = np.empty(1, dtype=object)
    array[0] = evil
    if kind == "torch":
        torch.save({"weights": evil}, file)
    elif kind == "npy":
        np.save(file, array, allow_pickle=True)
    elif kind == "npz":
        np.savez(file, test_logits=array, labels=array, fingerprints=array, predicted=array, loss=array)
    else:
        pickle.dump(evil, file)
    return file.getvalue()


KINDS = ("plain", "torch", "npy", "npz")


def is_one_sentence(answer: Answer, code: int = 1) -> None:
    assert answer.code == code, answer
    assert answer.err.count("\n") == 1, answer.err
    assert "Traceback" not in answer.out + answer.err


STUDY = """
    study: sent
    question: Is a run folder from elsewhere safe?
    seeds: 1
    recipe:
      data: digits
      train_size: 60
      model: {name: resnet18-compact, width: 4}
      epochs: 2
      batch_size: 20
      optimizer: {name: sgd, lr: 0.02}
    arms: {baseline: null, flip: {augment: {hflip: {}}}}
"""


@pytest.fixture
def run_folder(workshop: Workshop) -> Path:
    """The folder of a run as it could be sent: begun, and not delivered."""
    workshop.write("sent.yaml", STUDY)
    assert workshop("run", "sent.yaml", "--offline", "--arm", "baseline").code == 0
    (folder,) = (workshop.folder / "mlruns" / "runs").iterdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_holds_a_pickle_is_passed_over(
    kind: str, workshop: Workshop, run_folder: Path, evil: Evil
) -> None:
    for name in ("result.json", "weights.safetensors"):
        (run_folder / name).unlink()
    for name in ("checkpoint.safetensors", "checkpoint-before.safetensors"):
        (run_folder / name).write_bytes(with_pickle(kind, evil))
    answer = workshop("run", "sent.yaml", "--offline", "--arm", "baseline")
    assert answer.code == 0  # it is trained from its beginning, and says so
    assert "checkpoint.safetensors" in answer.out


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["weights.safetensors", "test_logits.npy", "test_labels.npy", "recipe.yaml"])
def test_an_artifact_in_mlflow_that_holds_a_pickle_is_a_sentence(
    kind: str, name: str, trained: Workshop, evil: Evil
) -> None:
    path = artifact(run_of("larger"), name)
    kept = path.read_bytes()
    picture().save(trained.folder / "picture.png")
    try:
        path.write_bytes(with_pickle(kind, evil))
        is_one_sentence(trained("predict", "picture.png", "--run", run_of("larger")))
        is_one_sentence(trained("promote", LABEL, "--arm", "larger"))
        if name.startswith("test_"):
            is_one_sentence(trained("export", LABEL, "exported"))
            assert trained("report", LABEL).code == 0  # which says what it could not read
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_record_that_holds_a_pickle_is_not_unpickled(kind: str, workshop: Workshop, evil: Evil) -> None:
    record = edited_record(workshop.folder)
    (record / "predictions.npz").write_bytes(with_pickle(kind, evil))
    answer = workshop("report", "--record", "record")
    assert answer.code == 0
    assert "**Predictions**: not used: predictions.npz cannot be read" in answer.out


@pytest.mark.parametrize("member", ["fingerprints", "labels", "predicted", "loss", "confidence"])
def test_one_array_of_a_record_that_holds_a_pickle_is_not_unpickled(
    member: str, workshop: Workshop, evil: Evil
) -> None:
    record = edited_record(workshop.folder)
    path = record / "predictions.npz"
    with np.load(path, allow_pickle=False) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    array = np.empty(3, dtype=object)
    array[:] = evil
    np.savez(path, **(kept | {member: array}))
    answer = workshop("report", "--record", "record")
    assert answer.code == 0
    assert "**Predictions**: not used" in answer.out


def test_predictions_that_unpack_to_gigabytes_are_refused(workshop: Workshop) -> None:
    record = edited_record(workshop.folder)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 31,)})
    with zipfile.ZipFile(record / "predictions.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name in ("fingerprints", "labels", "predicted", "loss"):
            with file.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(header.getvalue())
                for _ in range(300):
                    member.write(bytes(1 << 20))
    answer = workshop("report", "--record", "record")
    assert answer.code == 0
    assert "unpacks to over 1,024 MiB" in answer.out


def test_an_array_that_says_it_is_larger_than_the_memory_is_a_sentence(trained: Workshop) -> None:
    path = artifact(run_of("larger"), "test_logits.npy")
    kept = path.read_bytes()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 58, 10)})
    try:
        path.write_bytes(header.getvalue() + bytes(100))
        is_one_sentence(trained("promote", LABEL, "--arm", "larger"))
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize("shape", [f"({'-' * 3000}1,)", f"({1 << 70},)", "(1,", "(1 2,)", "({}.x,)"])
def test_an_array_whose_header_is_no_header_is_a_sentence(shape: str, trained: Workshop) -> None:
    path = artifact(run_of("larger"), "test_logits.npy")
    kept = path.read_bytes()
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    try:
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(100))
        is_one_sentence(trained("promote", LABEL, "--arm", "larger"))
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize("text", ["epoch,test_accuracy\n1,1e-", "epoch\ninf\n", "epoch,lr\n1,\x80"])
def test_a_history_that_was_cut_off_is_a_sentence(text: str, trained: Workshop) -> None:
    path = artifact(run_of("larger"), "history.csv")
    kept = path.read_bytes()
    try:
        path.write_bytes(text.encode("latin-1"))
        is_one_sentence(trained("export", LABEL, "exported"))
        answer = trained("report", LABEL)
        assert answer.code == 0, answer
        assert "artifact 'history.csv' of run" in answer.out
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize(
    "content", ["a: &a [x,x,x,x,x,x,x,x,x]", "deep", "!!python/object/apply:os.system ['touch evil']"]
)
def test_a_recipe_that_is_a_bomb_or_a_command_is_a_sentence(content: str, trained: Workshop) -> None:
    path = artifact(run_of("larger"), "recipe.yaml")
    kept = path.read_bytes()
    if content.startswith("a:"):
        for before, one in zip("abcdefgh", "bcdefghi", strict=True):
            content += f"\n{one}: &{one} [{', '.join([f'*{before}'] * 9)}]"
    try:
        path.write_text("[" * 100_000 if content == "deep" else content)
        is_one_sentence(trained("promote", LABEL, "--arm", "larger"))
        assert not (trained.folder / "evil").exists()
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize("name", ["optuna.db", "journal.log"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tuning_storage_that_holds_a_pickle_is_a_sentence(
    kind: str, name: str, workshop: Workshop, evil: Evil
) -> None:
    write(workshop)
    storage = f"sqlite:///{name}" if name.endswith("db") else name
    (workshop.folder / name).write_bytes(with_pickle(kind, evil))
    is_one_sentence(workshop(*TUNE, "--trials", "1", "--storage", storage))


@pytest.mark.parametrize(
    "content",
    [
        *(b"\x80\x05" + bytes([length]) + b"\x00\x00\n" for length in (0, 1, 0x7B, 0x95, 0xFF)),
        b"study: mine\nseeds: 5\n",
        b"text",
        b"1\n",
        b"[]\n",
        b"{}\n",
        b'{"op_code":0,"worker_id":"w"}\n',
        b'{"op_code":99,"worker_id":"w"}\n',
        b'{"op_code":0,"worker_id":"w","study_name":"s","directions":[9]}\n',
        b'{"op_code":' + b"[" * 100_000 + b"\n",
        b'{"op_code":4,"worker_id":"\xff"}\n{"op_code":4,"worker_id":"w"}\n',
    ],
    ids=lambda content: repr(content[:30]),
)
def test_a_tuning_storage_that_is_another_file_is_a_sentence_and_stays_as_it_is(
    content: bytes, workshop: Workshop
) -> None:
    write(workshop)
    journal = workshop.folder / "journal.log"
    journal.write_bytes(content)
    answer = workshop(*TUNE, "--trials", "1", "--storage", "journal.log")
    is_one_sentence(answer)
    assert "journal.log" in answer.err
    assert journal.read_bytes() == content


def test_attributes_in_a_tuning_storage_that_hold_a_pickle_stay_text(workshop: Workshop, evil: Evil) -> None:
    write(workshop)
    assert workshop(*TUNE, "--trials", "2").code == 0
    content = pickle.dumps(evil).decode("latin1")
    (name,) = optuna.get_all_study_names("sqlite:///optuna.db")
    study = optuna.load_study(study_name=name, storage="sqlite:///optuna.db")
    study.set_user_attr("note", content)
    study._storage.set_study_system_attr(study._study_id, "cma:optimizer", content.encode("latin1").hex())
    assert workshop(*TUNE, "--trials", "3").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["weights.safetensors", "predictor.json"])
def test_a_packaged_network_that_holds_a_pickle_is_a_sentence(
    kind: str, file: str, trained: Workshop, evil: Evil, tmp_path: Path
) -> None:
    folder = trained.folder / "packaged-for-pickles"
    if not folder.exists():
        assert trained("package", str(folder), "--run", run_of("larger")).code == 0
    sent = tmp_path / "sent"
    shutil.copytree(folder, sent)
    content = with_pickle(kind, evil)
    (sent / file).write_bytes(content)
    if file != "predictor.json":
        import hashlib

        card = json.loads((sent / "predictor.json").read_text())
        card["sha256"][file] = hashlib.sha256(content).hexdigest()
        (sent / "predictor.json").write_text(json.dumps(card))
    picture().save(tmp_path / "picture.png")
    is_one_sentence(trained("predict", str(tmp_path / "picture.png"), "--model", str(sent)))


@pytest.mark.parametrize("name", ["model.onnx", "../../weights.safetensors", "/etc/passwd"])
def test_a_card_names_no_file_outside_of_its_folder(name: str, trained: Workshop, tmp_path: Path) -> None:
    folder = trained.folder / "packaged-for-pickles"
    if not folder.exists():
        assert trained("package", str(folder), "--run", run_of("larger")).code == 0
    sent = tmp_path / "sent"
    shutil.copytree(folder, sent)
    card = json.loads((sent / "predictor.json").read_text())
    card["sha256"] = {**card["sha256"], name: "0" * 64}
    (sent / "predictor.json").write_text(json.dumps(card))
    picture().save(tmp_path / "picture.png")
    is_one_sentence(trained("predict", str(tmp_path / "picture.png"), "--model", str(sent)))


def test_pretrained_weights_are_never_fetched(workshop: Workshop) -> None:
    workshop.write("sent.yaml", STUDY.replace("width: 4", "width: 4, pretrained: true"))
    answer = workshop("run", "sent.yaml")
    assert answer.code == 2
    assert "model.pretrained" in answer.err
    workshop.write("sent.yaml", STUDY.replace("{name: resnet18-compact, width: 4}", "hf-hub:someone/evil"))
    answer = workshop("run", "sent.yaml")
    assert answer.code == 2
    assert "unknown model 'hf-hub:someone/evil'" in answer.err


# --- links in run folders ---


@pytest.mark.parametrize("name", [".lock", "history.jsonl"])
def test_a_link_in_a_run_folder_that_somebody_sent_changes_no_file_elsewhere(
    name: str, workshop: Workshop, run_folder: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("precious\n")
    for gone in ("result.json", name):
        (run_folder / gone).unlink()
    (run_folder / name).symlink_to(mine)
    answer = workshop("run", "sent.yaml", "--offline", "--arm", "baseline")
    assert "Traceback" not in answer.out + answer.err
    assert mine.read_text() == "precious\n"


def test_a_link_in_a_run_folder_that_somebody_sent_is_not_sent_on_to_mlflow(
    workshop: Workshop, run_folder: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "id_ed25519"
    mine.write_text("precious")
    (run_folder / "failure.txt").symlink_to(mine)
    (run_folder / "weights-epoch-0001.safetensors").symlink_to(mine)
    assert workshop("sync").code == 0
    (run,) = runs_of("sent")
    sent = {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert "weights.safetensors" in sent
    assert not {"failure.txt", "weights-epoch-0001.safetensors"} & sent


def test_a_link_that_waits_for_a_report_to_be_written_leads_nowhere(workshop: Workshop, tmp_path: Path) -> None:
    """In a folder that others may write to, they can guess how a file is called before it is whole."""
    mine = tmp_path / "mine.txt"
    mine.write_text("precious\n")
    edited_record(workshop.folder)
    reports = workshop.folder / "reports"
    reports.mkdir()
    (reports / "summary.json").symlink_to(mine)
    (reports / f".summary.json.{os.getpid()}").symlink_to(mine)
    assert workshop("report", "--record", "record", "--output", "reports/summary.json").code == 0
    assert mine.read_text() == "precious\n"
    assert not (reports / "summary.json").is_symlink()
    assert json.loads((reports / "summary.json").read_text())["studies"]


def test_weights_of_another_shape_are_a_sentence(trained: Workshop) -> None:
    path = artifact(run_of("larger"), "weights.safetensors")
    kept = path.read_bytes()
    picture().save(trained.folder / "picture.png")
    try:
        save_file({"x": torch.zeros(1)}, path, metadata={"model": "{}", "preprocessing": "{}"})
        is_one_sentence(trained("predict", "picture.png", "--run", run_of("larger")))
    finally:
        path.write_bytes(kept)
