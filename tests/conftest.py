"""Fixtures that several test files share."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import textwrap
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from tests.disturbing import Begin, SmallDisk, Undisturbed

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch: two threads beside another busy process are 4 times slower
os.environ.setdefault("CIFAR_ABLATE_JOBS", "1")  # nothing is measured in each of a thousand commands


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", metavar="K/N", help="Of N parts of the tests, run part K (1 to N), by each test's name.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if given := config.getoption("--part"):
        part, num_parts = (int(number) for number in str(given).split("/"))
        if not 1 <= part <= num_parts:
            raise pytest.UsageError(f"--part {given}: write K/N with K from 1 to N")
        left_out = [item for item in items if zlib.crc32(item.nodeid.encode()) % num_parts != part - 1]
        items[:] = [item for item in items if zlib.crc32(item.nodeid.encode()) % num_parts == part - 1]
        config.hook.pytest_deselected(items=left_out)


def shared_by_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that all workers of this session have in common."""
    place = tmp_path_factory.getbasetemp()
    return place.parent if os.environ.get("PYTEST_XDIST_WORKER") else place


@pytest.fixture(scope="session")
def real_archives() -> list[Path]:
    """The two archives of the real CIFAR-10 in image-folder layout, from ``$CIFAR_ABLATE_TEST_DATA``; skips without."""
    folder = os.environ.get("CIFAR_ABLATE_TEST_DATA")
    if not folder:
        pytest.skip("set CIFAR_ABLATE_TEST_DATA to a folder with cifar10-1.tar.xz and cifar10-2.tar.xz")
    archives = [Path(folder) / f"cifar10-{part}.tar.xz" for part in (1, 2)]
    missing = [str(archive) for archive in archives if not archive.is_file()]
    if missing:
        pytest.fail(f"CIFAR_ABLATE_TEST_DATA is set, but there is no {', '.join(missing)}")
    return archives


@pytest.fixture(scope="session")
def cifar_root(real_archives: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root where ``cifar10`` is the real one; its images are decoded once in a session (some 15 s)."""
    root = shared_by_workers(tmp_path_factory) / "cifar_root"  # the package sees to it that one of them decodes
    root.mkdir(exist_ok=True)
    for archive in real_archives:
        with suppress(FileExistsError):
            (root / archive.name).symlink_to(archive.absolute())
    return root


@dataclass(frozen=True)
class Answer:
    """What a command answered."""

    code: int
    out: str
    err: str


class Workshop:
    """A folder of its own, with a fresh tracking database, in which commands are run as a user would."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.capsys, self.monkeypatch = folder, capsys, monkeypatch

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def __call__(self, *arguments: str) -> Answer:
        """Run ``cifar-ablate ARGUMENTS`` in this process: a tenth of a second, where a fresh one takes four."""
        from cifar_ablate.cli import main

        self.capsys.readouterr()
        self.monkeypatch.setattr("sys.argv", ["cifar-ablate", *arguments])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = self.capsys.readouterr()
        return Answer(code, out, err)

    def process(self, *arguments: str, **environment: str) -> Answer:
        """Run ``cifar-ablate ARGUMENTS`` as a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "cifar_ablate.cli", *arguments],
            cwd=self.folder,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: making one takes 1.5 s, copying it nothing."""
    from cifar_ablate.record.mlflow_store import Tracking

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        Tracking()
    return path


@pytest.fixture
def workshop(
    tmp_path: Path, empty_database: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Workshop:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return Workshop(tmp_path, capsys, monkeypatch)


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the study of ``tests.predicting`` has run: trained once, and a copy for each worker."""
    from tests.moving import settle
    from tests.predicting import train

    place = shared_by_workers(tmp_path_factory)
    made_at, finished = place / "being-trained", place / "trained"
    with FileLock(place / "trained.lock"):
        if not finished.exists():
            shutil.rmtree(made_at, ignore_errors=True)
            made_at.mkdir()
            train(made_at)
            made_at.rename(finished)
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    settle(folder, made_at)
    return folder


@pytest.fixture
def trained(trained_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """Commands in the folder of a study that has run; what one test promotes, the next ones find."""
    monkeypatch.chdir(trained_folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained_folder / 'mlflow.db'}")
    return Workshop(trained_folder, capsys, monkeypatch)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Undisturbed:
    """What the study of ``tests.disturbing`` leaves behind where nothing happens."""
    from tests.disturbing import train_undisturbed

    return train_undisturbed(tmp_path_factory.mktemp("undisturbed"), empty_database)


@pytest.fixture
def begin(workshop: Workshop) -> Iterator[Begin]:
    """Starts commands in the folder of a test, where the study is; what is left of them is ended with the test."""
    from tests.disturbing import commands_in

    yield from commands_in(workshop)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    from tests.disturbing import MEGABYTES, SmallDisk

    disk = SmallDisk(tmp_path / "small")
    disk.path.mkdir()
    if (done := disk.mount()).returncode:
        pytest.skip(f"a file system of {MEGABYTES} MB takes the right to mount one ({done.stderr.strip()})")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk.path)], check=True)


FAULT_SEED = os.environ.get("CIFAR_ABLATE_FAULT_SEED", "1")
"""Where faults are inflicted at random moments, the moments follow from this and the name of the test."""
FAULTS: Counter[tuple[str, bool]] = Counter()
"""Faults that the tests of this session inflicted, and whether the test passed."""
SECONDS: dict[str, list[float]] = {}
"""What took how long after a fault, where that was measured."""


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Random moments of a test that come again where the seed is the same."""
    return random.Random(f"{FAULT_SEED} {request.node.name}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    inflicted: Tried | None = getattr(item, "inflicted", None)
    if inflicted is not None:
        report.user_properties.extend(("fault", fault) for fault in inflicted.faults)
        report.user_properties.extend(("took", f"{seconds} {fault}") for fault, seconds in inflicted.seconds)
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Called where the summary is printed, with the reports of every worker."""
    if report.when == "call":
        for name, text in report.user_properties:
            if name == "measured":
                figure, _, what = str(text).partition(" ")
                MEASURED[what] = figure
        FAULTS.update((str(fault), report.passed) for name, fault in report.user_properties if name == "fault")
        for name, text in report.user_properties:
            if name == "took":
                seconds, _, fault = str(text).partition(" ")
                SECONDS.setdefault(fault, []).append(float(seconds))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how often each fault was tried, in how many of these all was well in the end, and what was measured."""
    if MEASURED:
        terminalreporter.section("measured")
        for what, figure in MEASURED.items():
            terminalreporter.line(f"| {what} | {figure} |")
    if FAULTS:
        terminalreporter.section("faults")
        terminalreporter.line(f"moments by CIFAR_ABLATE_FAULT_SEED={FAULT_SEED}")
        terminalreporter.line("| fault | tried | mended | seconds |")
        for fault in sorted({name for name, _ in FAULTS}):
            num_well = FAULTS[fault, True]
            seconds = f"{min(SECONDS[fault]):.1f} to {max(SECONDS[fault]):.1f}" if fault in SECONDS else ""
            terminalreporter.line(f"| {fault} | {num_well + FAULTS[fault, False]} | {num_well} | {seconds} |")
        page = (Path(__file__).parent.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
        if lacking := sorted({fault for fault, _ in FAULTS if f"| {fault} |" not in page}):
            terminalreporter.line(f"docs/reliability.md has no row for: {'; '.join(lacking)}", red=True)


MEASURED: dict[str, str] = {}
"""What tests measured for a page, by what it is."""
Measured = Callable[[str, str], None]


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Called with what was measured and its figure; printed at the end."""

    def note(what: str, figure: str) -> None:
        request.node.user_properties.append(("measured", f"{figure} {what}"))

    return note


class Tried:
    """Called with the name of each fault that a test inflicts; the names are those of docs/reliability.md."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.seconds: list[tuple[str, float]] = []

    def __call__(self, fault: str) -> None:
        self.faults.append(fault)

    def took(self, fault: str, seconds: float) -> None:
        """What the table shows beside the fault."""
        self.seconds.append((fault, round(seconds, 2)))


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Tried:
    """Counts the faults that a test inflicts."""
    request.node.inflicted = Tried()
    return request.node.inflicted
