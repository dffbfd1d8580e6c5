"""The run folder: nothing is half written, and a place that cannot be written is named with its cure."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from cifar_ablate.errors import OutputError, RecordError
from cifar_ablate.record.folder import DESCRIBED, RunFolder, RunResult, atomic, write_atomically

ENVIRONMENT = dict.fromkeys(DESCRIBED, "so")
RESULT = RunResult("finished", 3, 1.5, 0.5, {"test_accuracy": 91.25})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "0123456789abcdef0123")
    folder.create({"epochs": 3, "model": {"name": "résnet"}}, ENVIRONMENT)
    return folder


def line_of(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "time_ms": 1000 * epoch, "train_loss": 1 / epoch}


def add_lines(folder: RunFolder, num_epochs: int) -> list[dict[str, Any]]:
    lines = [line_of(epoch) for epoch in range(1, num_epochs + 1)]
    for line in lines:
        folder.append_epoch(line)
    return lines


def full_disk(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_written_is_read_back(folder: RunFolder) -> None:
    assert folder.recipe() == {"epochs": 3, "model": {"name": "résnet"}}
    assert folder.environment() == ENVIRONMENT
    assert folder.fingerprint == "0123456789abcdef0123"
    assert folder.history() == []
    assert folder.result() is None
    add_lines(folder, RESULT.epochs)
    folder.write_result(RESULT)
    assert folder.result() == RESULT
    folder.clear_result()
    folder.clear_result()
    assert folder.result() is None


def test_making_a_folder_again_keeps_what_is_in_it(folder: RunFolder) -> None:
    folder.append_epoch(line_of(1))
    folder.create({"epochs": 3}, ENVIRONMENT | {"device": "cuda"})
    assert folder.history() == [line_of(1)]
    assert folder.environment() == ENVIRONMENT | {"device": "cuda"}


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_write_that_stops_in_the_middle_leaves_the_old_content(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def interrupted() -> None:
        with atomic(path) as temporary:
            temporary.write_text("ne")
            assert path.read_text() == "old", "readers must not see a file that is being written"
            raise failure

    with pytest.raises(failure):
        interrupted()
    assert path.read_text() == "old"
    assert names_in(tmp_path) == {"file.txt"}


def test_a_full_disk_leaves_the_old_content_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OutputError, match=r"cannot write .*result\.json: No space left on device; free space, or"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert names_in(tmp_path) == {"result.json"}


def test_a_place_that_cannot_be_written_is_named_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below_a_file = RunFolder(tmp_path / "file" / "run")
    with pytest.raises(OutputError, match=r"cannot write .*/file/run: Not a directory; .*move it away"):
        below_a_file.create({}, {})
    with pytest.raises(OutputError, match=r"cannot write .*/absent/x\.txt: No such file.*its folder was removed"):
        write_atomically(tmp_path / "absent" / "x.txt", "text")


def test_every_write_of_a_read_only_folder_is_an_output_error(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: Path, mode: str = "r", **_: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", read_only)
        patch.setattr("io.open", read_only)
        patch.setattr("builtins.open", read_only)
        for write in (
            lambda: folder.append_epoch(line_of(1)),
            lambda: folder.write_result(RESULT),
            lambda: folder.create({}, {}),
        ):
            with pytest.raises(OutputError, match=r"cannot write .*: Read-only file system; .*run where you may write"):
                write()
    assert folder.recipe()["epochs"] == 3
    assert folder.result() is None
    assert folder.history() == []


def test_a_line_cut_short_by_a_crash_is_left_out(folder: RunFolder) -> None:
    lines = add_lines(folder, 3)
    path = folder.path / "history.jsonl"
    whole = path.read_bytes()
    last = whole.rindex(b"{")
    for end in range(last, len(whole) - 2):  # without its last brace at the latest
        path.write_bytes(whole[:end])
        assert folder.history() == lines[:2]


def test_a_history_goes_on_after_a_cut_line(folder: RunFolder) -> None:
    folder.append_epoch(line_of(1))
    folder.append_epoch(line_of(2))
    path = folder.path / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    folder.keep_history(1)
    folder.append_epoch(line_of(2))
    assert folder.history() == [line_of(1), line_of(2)]


def test_epochs_that_will_be_trained_again_are_dropped(folder: RunFolder) -> None:
    lines = add_lines(folder, 4)
    folder.keep_history(9)
    assert folder.history() == lines
    folder.keep_history(2)
    assert folder.history() == lines[:2]
    folder.keep_history(0)
    assert folder.history() == []


def test_a_run_that_may_be_tried_again_keeps_its_checkpoint(folder: RunFolder) -> None:
    for status, kept in (("failed", True), ("diverged", False), ("finished", False)):
        folder.checkpoint.touch()
        folder.write_result(RunResult(status, 1, 0, 0, {}, "why"))  # type: ignore[arg-type]
        assert folder.checkpoint.exists() == kept


def test_a_damaged_record_says_which_folder_to_remove(folder: RunFolder) -> None:
    (folder.path / "result.json").write_text('{"status": "fini')
    with pytest.raises(RecordError, match=r"result\.json is damaged; remove the folder"):
        folder.result()


def test_numbers_of_a_result_survive_as_they_are(folder: RunFolder) -> None:
    metrics = {"test_accuracy": 100 / 3, "test_nll": 0.1 + 0.2, "test_ece": 1e-17}
    add_lines(folder, 1)
    folder.write_result(RunResult("finished", 1, 1 / 7, 0.0, metrics))
    read = folder.result()
    assert read is not None
    assert read.metrics == metrics
    assert read.train_seconds == 1 / 7
    assert json.loads((folder.path / "result.json").read_text())["status"] == "finished"


def test_a_result_whose_history_is_gone_is_damaged(folder: RunFolder) -> None:
    add_lines(folder, RESULT.epochs - 1)
    folder.write_result(RESULT)
    with pytest.raises(RecordError, match=r"history\.jsonl is damaged"):
        folder.result()
