"""Archives of images that are cut short, altered or exchanged: nothing is trained on them, and it is one sentence."""

from __future__ import annotations

import io
import os
import shutil
import signal
import tarfile
from pathlib import Path

import pytest

from tests.comparing import bits, runs_of, snapshot
from tests.conftest import Answer, Tried, Workshop
from tests.disturbing import Begin

pytestmark = [pytest.mark.faults, pytest.mark.real]

FAULT = "archive of CIFAR-10 cut short, altered or exchanged"
STUDY = """
    study: tiny
    question: Does mirroring help on photographs?
    seeds: 1
    recipe:
      data: cifar10
      train_size: 200
      model: {name: resnet18-compact, width: 4}
      epochs: 30
      batch_size: 50
      eval_every: 0
      optimizer: {name: sgd, lr: 0.05}
    arms: {baseline: null, flip: {augment: {hflip: {p: 0.5}}}}
"""


def cut_short(archive: Path) -> None:
    content = archive.read_bytes()
    archive.unlink()  # a link to the real one
    archive.write_bytes(content[: len(content) // 8])


def altered(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    archive.unlink()
    content[len(content) // 8] ^= 1
    archive.write_bytes(content)


def exchanged(archive: Path) -> None:
    """Sound in itself, with the pixels of one image changed."""
    from PIL import Image

    other = archive.with_suffix("")
    with tarfile.open(archive, "r|xz") as old, tarfile.open(other, "w") as new:
        is_changed = False
        for member in old:
            file = old.extractfile(member)
            content = file.read() if file else b""
            if file and not is_changed and "/train/" in f"/{member.name}":
                image = Image.open(io.BytesIO(content)).convert("RGB")
                red, green, blue = image.getpixel((0, 0))  # type: ignore[misc]
                image.putpixel((0, 0), (red ^ 1, green, blue))
                changed = io.BytesIO()
                image.save(changed, "PNG")
                content, member.size, is_changed = changed.getvalue(), len(changed.getvalue()), True
            new.addfile(member, io.BytesIO(content))
    archive.unlink()


def is_refused(answer: Answer) -> bool:
    return answer.code == 1 and len(answer.err.strip().splitlines()) == 1 and "Traceback" not in answer.err


def root_with(archives: list[Path], root: Path) -> Path:
    """A data root that holds these archives, and nothing decoded."""
    root.mkdir()
    for archive in archives:
        (root / archive.name).symlink_to(archive.absolute())
    return root


def test_images_that_are_not_all_of_cifar10_are_refused_before_a_study_and_under_it(
    workshop: Workshop, begin: Begin, real_archives: list[Path], cifar_root: Path, tried: Tried
) -> None:
    workshop.write("tiny.yaml", STUDY)
    for number, damage in enumerate((cut_short, altered, exchanged)):
        tried(FAULT)
        root = root_with(real_archives, workshop.folder / f"root-{number}")
        damage(root / real_archives[0].name)
        workshop.monkeypatch.setenv("CIFAR_ABLATE_DATA", str(root))
        answer = workshop("run", "tiny.yaml")
        assert is_refused(answer), answer
        assert str(root) in answer.err
        assert not (workshop.folder / "mlruns" / "runs").exists()  # nothing was trained
    # the right one in its place, kept decoded by an earlier start: the study begins, and is disturbed in its middle
    root = root_with(real_archives, workshop.folder / "root")
    assert workshop.process("plan", "tiny.yaml", CIFAR_ABLATE_DATA=str(cifar_root)).code == 0  # decodes
    shutil.copytree(cifar_root / "decoded", root / "decoded")
    workshop.monkeypatch.setenv("CIFAR_ABLATE_DATA", str(root))
    command = begin("run", "tiny.yaml")
    command.wait_for("epoch 3/", seconds=180)
    tried(FAULT)
    cut_short(root / real_archives[0].name)
    for kept in (root / "decoded").glob("*.safetensors"):
        os.truncate(kept, kept.stat().st_size // 2)
    num_lines = command.said.count("\n")
    command.wait_for(rf"(?s)(.*\n){{{num_lines + 3}}}")  # the images are in memory since its start
    command.send(signal.SIGTERM, to_group=True)
    assert command.end() == 130, command.said
    before = snapshot("tiny")
    answer = workshop("run", "tiny.yaml")
    assert is_refused(answer), answer
    assert snapshot("tiny") == before
    shutil.rmtree(root)
    workshop.monkeypatch.setenv("CIFAR_ABLATE_DATA", str(cifar_root))
    again = workshop("run", "tiny.yaml")
    assert again.code == 0, again
    assert "(from epoch " in again.out
    assert {run.info.status for run in runs_of("tiny")} == {"FINISHED"}
    found = bits(workshop.folder)
    (workshop.folder / "undisturbed").mkdir()
    workshop.monkeypatch.chdir(workshop.folder / "undisturbed")
    assert workshop("run", "../tiny.yaml", "--offline").code == 0
    assert bits(workshop.folder / "undisturbed") == found
