"""``cifar-ablate serve``: the page of a study, with its arms to compare and its test images as examples."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from cifar_ablate.errors import AblateError, UsageError
from cifar_ablate.predictor.around import about, record_of, test_images, write_examples
from cifar_ablate.predictor.card import Card
from cifar_ablate.predictor.from_run import first_seed
from cifar_ablate.predictor.load import load
from cifar_ablate.predictor.network import Predictor
from cifar_ablate.predictor.portable.answers import Answer
from cifar_ablate.predictor.portable.page import LOOPBACK, Shown, build_page, launch
from cifar_ablate.predictor.portable.pictures import Picture
from cifar_ablate.process import temporary_folder
from cifar_ablate.records import StudyRecord
from cifar_ablate.tracking import Tracking


@dataclass(frozen=True)
class Where:
    """Who can open the page."""

    host: str
    port: int
    share: bool


class Arm:
    """An arm that is compared; its network is loaded when it is first asked for."""

    def __init__(self, name: str, run_id: str, tracking: Tracking, device: str) -> None:
        self.name, self.run_id, self.tracking, self.device = name, run_id, tracking, device
        self._lock = threading.Lock()

    @cached_property
    def _loaded(self) -> Predictor:
        return load(run=self.run_id, device=self.device, tracking=self.tracking)

    @property
    def predictor(self) -> Predictor:
        """Its network; raises as ``load``."""
        with self._lock:
            return self._loaded

    def answer(self, picture: Picture) -> Answer:
        """Of one picture."""
        return self.predictor.answer(picture)

    def about(self) -> str:
        """What it is worth, as markdown."""
        return about(self.predictor.card)


def serve_page(model: str | None, run: str | None, where: Where, *, device: str, say: Callable[[str], None]) -> None:
    """Serve until interrupted; raises UsageError where the port is taken, else as ``load``."""
    predictor = load(model, run=run, device=device)
    card = predictor.card
    record, tracking = record_of(card)
    others = _others(record, tracking, card, device) if record is not None and tracking is not None else []
    with temporary_folder() as place:
        os.environ.setdefault("GRADIO_TEMP_DIR", str(place / "uploads"))  # gone with the command
        data = test_images(card, say)
        examples = write_examples(data, place) if data is not None else []
        shown = Shown(card.origin.arm, lambda: about(card), predictor.image_size_px, predictor.answer)
        title = f"{card.origin.study}: {card.origin.arm}"
        page = build_page(shown, others, examples, title=title, question=card.question)
        try:
            address = launch(page, host=where.host, port=where.port, share=where.share)
        except OSError:
            raise UsageError(
                f"cannot serve at {where.host}:{where.port}: it is taken, or not ours; try --port 0"
            ) from None
        say(card.headline())
        say(f"Open {address} (Ctrl-C ends it)")
        if where.host not in LOOPBACK:
            say("Everybody who reaches this machine can open it.")
        page.block_thread()


def _others(record: StudyRecord, tracking: Tracking, card: Card, device: str) -> list[Shown]:
    """The study's other arms, each with its first seed, where that has finished."""
    found = []
    for document in record.document["arms"]:
        try:
            run = first_seed(record, document["name"])
        except AblateError:
            continue
        if run.outcome == "finished" and run.run_id != card.origin.run_id:
            now = ", as it is now" if run.arm == card.origin.arm and run.seed == card.origin.seed else ""
            arm = Arm(f"{run.arm} (seed {run.seed}{now})", run.run_id, tracking, device)
            found.append(Shown(arm.name, arm.about, card.preprocessing.image_size_px, arm.answer))
    return found
