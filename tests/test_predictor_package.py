"""A packaged network: a folder that runs anywhere, and says what it is."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml
from safetensors.numpy import load_file

from cifar_ablate.data.types import DataSet
from cifar_ablate.predictor import load, onnx_file
from cifar_ablate.predictor.package import package
from tests.conftest import Workshop
from tests.predicting import LABEL, altered, artifact, content, digits, picture, run_of
from tests.serving import served

pytestmark = pytest.mark.slow

NEEDED = ("numpy", "pillow", "onnxruntime", "gradio")
CHECK = """
import importlib.util, sys
found = [name for name in ("cifar_ablate", "torch", "mlflow") if importlib.util.find_spec(name)]
sys.exit(f"there is {found}" if found else 0)
"""


@pytest.fixture(scope="module")
def packaged(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of the first seed of ``larger``, with its page."""
    folder = tmp_path_factory.mktemp("packages") / "space"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained_folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained_folder / 'mlflow.db'}")
        package(folder, run=run_of("larger"), space=True)
    return folder


@pytest.fixture(scope="module")
def elsewhere(packaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a fresh environment that has what ``requirements.txt`` names, and nothing of ours."""
    place = tmp_path_factory.mktemp("elsewhere") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, timeout=120)
    python = place / "bin" / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", "requirements.txt"]
    done = subprocess.run(command, cwd=packaged, capture_output=True, text=True, timeout=500, check=False)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("no package index can be reached, so no environment can be made")
    assert done.returncode == 0, done.stderr
    subprocess.run([str(python), "-I", "-c", CHECK], check=True, timeout=60)
    return python


def outside(**more: str) -> dict[str, str]:
    """An environment that knows nothing of where the tests run."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | more


def test_a_folder_has_everything_that_is_needed(packaged: Path) -> None:
    assert {path.name for path in packaged.iterdir()} == {
        *("README.md", "ABOUT.md", "predictor.json", "requirements.txt", "weights.safetensors", "model.onnx"),
        *("predict.py", "app.py", "portable", "examples"),
    }
    card = json.loads((packaged / "predictor.json").read_text())
    assert card["classes"] == list(digits().classes)
    assert card["preprocessing"]["image_size_px"] == 32
    assert card["origin"]["recipe"]["optimizer"]["lr"] == 0.02
    assert set(card["sha256"]) == {"weights.safetensors", "model.onnx"}
    recorded = load_file(packaged / "weights.safetensors")
    assert sum(value.size for value in recorded.values()) > 10_000
    assert len(list((packaged / "examples").iterdir())) == 10
    wanted = {line.split(">=")[0] for line in (packaged / "requirements.txt").read_text().splitlines()}
    assert wanted == set(NEEDED)


def test_onnx_answers_as_torch_does(packaged: Path, trained: Workshop) -> None:
    session = onnxruntime.InferenceSession(str(packaged / "model.onnx"), providers=["CPUExecutionProvider"])
    images = digits().test_images
    plain = onnx_file.OnnxExport(load(run=run_of("larger"))).eval()
    checked = onnx_file.check_onnx(plain, packaged / "model.onnx", images, "test images")
    assert (checked.num_same_class, checked.num_images) == (360, 360)
    assert checked.largest_difference < 1e-4
    for num in (1, 2, 7, 360):  # any number at once
        (found,) = session.run(None, {"images": images[:num]})
        assert found.shape == (num, 10)
        assert np.allclose(found.sum(1), 1, atol=1e-5)


@pytest.mark.real
def test_on_1000_real_images_and_with_flip_averaging(
    workshop: Workshop, cifar_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR_ABLATE_DATA", str(cifar_root))
    workshop.write("real.yaml", REAL)
    assert workshop("run", "real.yaml").code == 0
    assert workshop("promote", "real", "--arm", "mirrored").code == 0
    answer = workshop("package", "out")
    assert answer.code == 0, answer.err
    assert "on 1,000 test images of cifar10: the same class for 1,000" in answer.out
    card = json.loads(Path("out/predictor.json").read_text())
    assert card["preprocessing"]["flip_averaging"] is True
    predictor, session = load("real"), onnxruntime.InferenceSession("out/model.onnx")
    from cifar_ablate.data import load_data

    images = load_data("cifar10", {}).test_images[:1000]
    (found,) = session.run(None, {"images": images})
    assert (found.argmax(1) == predictor.probabilities(images).argmax(1)).mean() > 0.99  # bf16 against fp32


REAL = """
    study: real
    question: Does it run on real images?
    seeds: [0]
    recipe:
      data: cifar10
      train_size: 200
      model: {name: resnet18-compact, width: 8}
      epochs: 1
      batch_size: 50
      optimizer: {name: sgd, lr: 0.05}
    arms: {baseline: , mirrored: {flip_averaging: true}}
"""


def test_a_file_that_does_not_answer_as_torch_does_is_not_packaged(
    trained: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "TOLERANCE", 0.0)
    answer = trained("package", str(tmp_path / "out"), "--run", run_of("larger"))
    assert answer.code == 1
    assert "does not answer as torch does" in answer.err
    assert list(tmp_path.iterdir()) == []  # whole or not at all


def test_the_model_card_is_written_from_the_record(packaged: Path, trained: Workshop) -> None:
    text = (packaged / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    fields = yaml.safe_load(front)
    assert (fields["sdk"], fields["app_file"]) == ("gradio", "app.py")
    assert fields["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    for part in (
        "Does a larger step help a tiny network on digits?",
        "larger is better than baseline by",
        "digits: 500 of 1,437 training images, all 360 test images",
        digits().digest,
        "lr: 0.02",
        "95% CI",
        "## Limits",
        "ONNX against torch (fp32) on 360 test images of digits",
    ):
        assert part in body, part


def test_it_predicts_in_a_fresh_environment_without_this_program(
    packaged: Path, elsewhere: Path, trained: Workshop, tmp_path: Path
) -> None:
    """Predictions are those that the run recorded."""
    away = tmp_path / "away"
    shutil.copytree(packaged, away)
    for index in range(40):
        (tmp_path / f"{index:02}.png").write_bytes(content(picture(index)))
    (tmp_path / "bad.png").write_bytes(b"hello")
    paths = [str(path) for path in sorted(tmp_path.glob("*.png"))]
    command = [str(elsewhere), "-I", str(away / "predict.py"), "--json", *paths]
    command.remove("-I")  # the script's own folder is where it finds its parts
    done = subprocess.run(command, cwd="/", env=outside(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1  # of the bad one
    assert "bad.png is not an image in a known format" in done.stderr
    found = [one["label"] for one in json.loads(done.stdout)]
    recorded = np.load(artifact(run_of("larger"), "test_logits.npy")).argmax(1)[:40]
    assert found == [digits().classes[label] for label in recorded]
    table = subprocess.run(
        [str(elsewhere), str(away / "predict.py"), paths[0]],
        cwd="/",
        env=outside(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert table.returncode == 0
    assert "32x32 as it is" in table.stdout


def test_its_page_starts_there_with_python_app_py(packaged: Path, elsewhere: Path, tmp_path: Path) -> None:
    import gradio_client

    picture(0).save(tmp_path / "digit.png")
    environment = {"GRADIO_SERVER_PORT": "7897", "GRADIO_TEMP_DIR": str(tmp_path / "uploads"), "PYTHONPATH": ""}
    with served([str(elsewhere), "app.py"], packaged, tmp_path / "log", **environment) as address:
        client = gradio_client.Client(address, verbose=False, analytics_enabled=False)
        answer = client.predict(gradio_client.handle_file(str(tmp_path / "digit.png")), "nobody", api_name="/predict")
        assert answer[2]["label"] in digits().classes
        config = json.dumps(client.config)
        assert "Study" in config
        assert "larger" in config


@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors"])
def test_an_altered_file_is_refused(packaged: Path, name: str) -> None:
    path = packaged / name
    with altered(path, path.stat().st_size // 2):
        done = subprocess.run(
            [sys.executable, str(packaged / "predict.py"), "x.png"], capture_output=True, text=True, check=False
        )
        if name == "model.onnx":
            assert (done.returncode, "is not the file that predictor.json was written for" in done.stderr) == (1, True)
        with pytest.raises(Exception, match="SHA-256"):
            load(packaged)
    assert load(packaged).card.origin.arm == "larger"


def test_a_packaged_folder_is_a_model_like_any_other(packaged: Path, workshop: Workshop) -> None:
    (workshop.folder / "digit.png").write_bytes(content(picture(2)))
    shutil.copytree(packaged, workshop.folder / "net")
    answer = workshop("predict", "digit.png", "--model", "net", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["pictures"][0]["label"] == load(packaged)(picture(2)).label
    (workshop.folder / "again").mkdir()
    workshop.monkeypatch.chdir(workshop.folder / "again")
    answer = workshop("package", ".", "--model", "../net")  # without the record: its card says what there is to say
    assert answer.code == 0, answer.err
    assert "larger is better than baseline by" in (workshop.folder / "again" / "README.md").read_text()
    assert not (workshop.folder / "again" / "app.py").exists()


def test_a_folder_that_is_not_empty_is_left_alone(trained: Workshop, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    answer = trained("package", str(tmp_path), "--run", run_of("larger"))
    assert (answer.code, "is there already; name a new or an empty folder" in answer.err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    answer = trained("package", str(tmp_path / "mine.txt" / "x"), "--run", run_of("larger"))
    assert (answer.code, "cannot write" in answer.err) == (1, True)


def test_interrupted_it_leaves_nothing(trained: Workshop, tmp_path: Path) -> None:
    begun = subprocess.Popen(
        [sys.executable, "-m", "cifar_ablate.cli", "package", str(tmp_path / "out"), "--run", run_of("larger")],
        stderr=subprocess.DEVNULL,
    )
    while not list(tmp_path.iterdir()):
        assert begun.poll() is None
        time.sleep(0.01)
    begun.send_signal(signal.SIGTERM)  # a SIGINT is not heard below a shell that ignores it
    assert begun.wait(timeout=30) == 130
    assert list(tmp_path.iterdir()) == []


def test_without_the_data_it_is_checked_on_noise_and_says_so(
    packaged: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = digits()
    changed = DataSet(**{**vars(other), "digest": "0" * 32})
    monkeypatch.setattr("cifar_ablate.predictor.load.load_data", lambda *_, **__: changed)
    answer = workshop("package", "out", "--model", str(packaged))
    assert answer.code == 0, answer.err
    assert "1,000 images of noise (the data are not here)" in answer.out
    assert "the data here are not those that the network was trained on" in answer.out


def test_nothing_of_the_program_is_imported_by_what_is_packaged() -> None:
    folder = Path(str(importlib.util.find_spec("cifar_ablate.portable").submodule_search_locations[0]))  # type: ignore[union-attr, index]
    for path in folder.glob("*.py"):
        text = path.read_text()
        assert "import torch" not in text, path
        assert "from cifar_ablate" not in text, path


def test_what_is_missing_is_said_before_anything_is_done(trained: Workshop, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['onnxruntime'] = None\n")
    where = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    answer = trained.process("package", str(tmp_path / "out"), "--model", LABEL, PYTHONPATH=where)
    assert (answer.code, "pip install 'cifar-ablate[package]'" in answer.err) == (2, True)
