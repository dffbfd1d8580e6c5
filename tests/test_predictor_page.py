"""The page of a study as programs and people use it: its API, its limits, who can reach it."""

from __future__ import annotations

import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio_client
import numpy as np
import psutil
import pytest
from PIL import Image

from cifar_ablate.portable.page import plain
from cifar_ablate.predictor import load
from tests.conftest import Workshop
from tests.predicting import LABEL, artifact, content, digits, picture, run_of
from tests.serving import serve_command, served

pytestmark = pytest.mark.slow

OTHER = "larger and longer (seed 0)"


@pytest.fixture(scope="module")
def address(trained_folder: Path) -> Iterator[str]:
    store = f"sqlite:///{trained_folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store)
        patch.chdir(trained_folder)
        command = serve_command("--run", run_of("larger"))
    with served(command, trained_folder, trained_folder / "serve.log", MLFLOW_TRACKING_URI=store) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> gradio_client.Client:
    return gradio_client.Client(address, verbose=False, analytics_enabled=False)


def asked(client: gradio_client.Client, path: Path, other: str = "nobody") -> Any:
    """What the page's API answers: seen, how, label, warning; the rival's label, warning and words."""
    return client.predict(gradio_client.handle_file(str(path)), other, api_name="/predict")


def classes(label: Any) -> dict[str, float]:
    return {one["label"]: one["confidence"] for one in label["confidences"]}


def shown(value: Any) -> str:
    """Text of a component that also has settings."""
    return str(value["value"] if isinstance(value, dict) else value)


def test_the_page_says_what_the_network_says(client: gradio_client.Client, trained: Workshop, tmp_path: Path) -> None:
    predictor = load(run=run_of("larger"))
    for index in (0, 7):
        picture(index).resize((50, 40)).save(tmp_path / "digit.png")
        _, how, label, *_ = asked(client, tmp_path / "digit.png")
        expected = predictor(tmp_path / "digit.png")
        assert label["label"] == expected.label
        assert classes(label) == pytest.approx(dict(expected.classes[: len(classes(label))]), abs=1e-4)
        assert how == "Brought to size: 50x40 resized to 32x32, its centre."


def test_the_picture_is_shown_as_the_network_sees_it(client: gradio_client.Client, tmp_path: Path) -> None:
    picture(3).save(tmp_path / "digit.png")
    seen, *_ = asked(client, tmp_path / "digit.png")
    with Image.open(seen) as image:
        small = np.asarray(image.convert("RGB"))[4::8, 4::8]
    assert abs(small.astype(int) - np.asarray(picture(3)).astype(int)).max() <= 2


def test_two_arms_are_compared_on_one_picture(client: gradio_client.Client, trained: Workshop, tmp_path: Path) -> None:
    picture(5).save(tmp_path / "digit.png")
    answer = asked(client, tmp_path / "digit.png", OTHER)
    theirs = load(run=run_of("larger and longer"))(tmp_path / "digit.png")
    label = answer[4].get("value", answer[4])
    assert label["label"] == theirs.label
    assert "**arm** larger and longer" in answer[6]
    assert ("Both say the same." in answer[6]) == (theirs.label == answer[2]["label"])


def test_a_warning_is_shown_for_what_is_unlike_the_test_images_only(
    client: gradio_client.Client, trained: Workshop, tmp_path: Path
) -> None:
    predictor = load(run=run_of("larger"))
    images = [predictor.picture(Image.fromarray(image.transpose(1, 2, 0))) for image in digits().test_images]
    warned = [bool(answer.warning) for answer in predictor.answers(images)]
    for index, is_warned in ((warned.index(True), True), (warned.index(False), False)):
        picture(index).save(tmp_path / "digit.png")
        assert ("Less sure than of" in shown(asked(client, tmp_path / "digit.png")[3])) == is_warned


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.png", b"hello", "is not an image in a known format"),
        ("a.png", content(Image.new("RGB", (1, 1))), "which is too small"),
        ("a.png", content(Image.new("1", (20_000, 20_000))), "at most 24 megapixels"),
        ("<b>x</b>.png", b"hello", "cannot be used"),
    ],
)
def test_a_bad_picture_is_one_sentence_and_the_page_goes_on(
    client: gradio_client.Client, tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    path = tmp_path / name.replace("/", "_")
    path.write_bytes(data)
    seen, how, label, *_ = asked(client, path)
    assert not seen
    assert not label
    assert said in how
    assert "<b>" not in how
    picture(0).save(tmp_path / "good.png")
    assert asked(client, tmp_path / "good.png")[2]["label"] in digits().classes


def test_files_that_are_no_pictures_by_name_or_too_large_are_not_taken(
    client: gradio_client.Client, tmp_path: Path
) -> None:
    (tmp_path / "a.pkl").write_bytes(content(picture(0)))
    with pytest.raises(gradio_client.exceptions.AppError, match=r"Invalid file type"):
        asked(client, tmp_path / "a.pkl")
    (tmp_path / "large.png").write_bytes(bytes(21_000_000))
    with pytest.raises(Exception, match=r"413|size"):
        asked(client, tmp_path / "large.png")


@pytest.mark.parametrize("path", ["mlflow.db", "shapes.yaml", "/etc/passwd"])
def test_no_file_of_the_machine_can_be_read_through_the_page(address: str, trained_folder: Path, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{address}/gradio_api/file={trained_folder / path}")
    with error.value:
        assert error.value.code in (403, 404)


def test_a_path_on_the_machine_is_no_upload(address: str, trained_folder: Path) -> None:
    """Whoever talks to the API without the client could name any picture on the disk."""
    secret = trained_folder / "secret.png"
    picture(0).save(secret)
    data = {"data": [{"path": str(secret), "meta": {"_type": "gradio.FileData"}}, "nobody"]}
    request = urllib.request.Request(
        f"{address}/gradio_api/call/predict", json.dumps(data).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        event = json.loads(answer.read())["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/predict/{event}") as stream:
        assert b"event: error" in stream.read()


def test_only_this_machine_can_open_it_and_nothing_else_is_asked(address: str, trained_folder: Path) -> None:
    port = int(address.rpartition(":")[2])
    listening = [one.laddr for one in psutil.net_connections() if one.status == "LISTEN" and one.laddr.port == port]
    assert {one.ip for one in listening} == {"127.0.0.1"}
    log = (trained_folder / "serve.log").read_text()
    assert "gradio.live" not in log
    assert "shapes, arm larger, seed 0: " in log
    with urllib.request.urlopen(address) as answer:
        page = answer.read().decode()
    assert "fonts.googleapis.com" not in page


def test_what_was_uploaded_is_gone_with_the_command(trained: Workshop, tmp_path: Path) -> None:
    """Ctrl-C ends the command at once, and its folders were left."""
    place = tmp_path / "tmp"
    place.mkdir()
    picture(0).save(tmp_path / "digit.png")
    environment = {"TMPDIR": str(place), "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    command = serve_command("--run", run_of("larger"))
    with served(command, trained.folder, tmp_path / "log", **environment) as found:
        asked(gradio_client.Client(found, verbose=False, analytics_enabled=False), tmp_path / "digit.png")
        assert list(place.rglob("digit.png"))
    assert list(place.rglob("*.png")) == []
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_names_are_shown_as_they_are() -> None:
    """An arm may have any name; as markdown it would be a picture, which asks somebody for it."""
    assert plain("<img src=x> ![a](http://b) *c*") == r"\<img src=x\> \!\[a\]\(http://b\) \*c\*"


def test_another_name_for_this_machine_is_refused(address: str) -> None:
    """A web site could give its own name this machine's address (DNS rebinding)."""
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "evil.example"}))
    with error.value:
        assert error.value.code == 400


def test_a_port_that_is_taken_is_one_sentence(trained: Workshop) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        answer = trained.process("serve", "--run", run_of("larger"), "--port", port)
    assert answer.code == 2
    assert f"cannot serve at 127.0.0.1:{port}" in answer.err
    assert "Traceback" not in answer.err


def test_without_gradio_it_says_what_to_install(trained: Workshop, tmp_path: Path) -> None:
    without = tmp_path / "sitecustomize.py"
    without.write_text("import sys\nsys.modules['gradio'] = None\n")
    answer = trained.process("serve", PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    assert (answer.code, "pip install 'cifar-ablate[serve]'" in answer.err) == (2, True)


def test_where_the_other_arms_weights_are_gone_the_page_goes_on(
    client: gradio_client.Client, trained: Workshop, tmp_path: Path
) -> None:
    path = artifact(run_of("baseline"), "weights.safetensors")
    hidden = path.rename(path.with_suffix(".hidden"))
    picture(0).save(tmp_path / "digit.png")
    answer = asked(client, tmp_path / "digit.png", "baseline (seed 0)")
    assert "has no artifact 'weights.safetensors'" in answer[6]
    hidden.rename(path)
    assert "**arm** baseline" in asked(client, tmp_path / "digit.png", "baseline (seed 0)")[6]


def test_a_model_of_the_registry_is_served_by_its_name(trained: Workshop, tmp_path: Path) -> None:
    assert trained("promote", LABEL).code == 0
    with served(serve_command(), trained.folder, tmp_path / "log") as found, urllib.request.urlopen(found) as answer:
        page = answer.read().decode()
    assert "shapes: larger" in page
