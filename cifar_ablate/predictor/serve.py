"""``cifar-ablate serve``: a page for a network, with the study's other arms to compare and test images as examples."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from cifar_ablate.errors import AblateError, UsageError
from cifar_ablate.portable.answers import Answer
from cifar_ablate.portable.page import LOOPBACK, PageNetwork, build_page, launch
from cifar_ablate.portable.pictures import Picture
from cifar_ablate.predictor.card import Card
from cifar_ablate.predictor.load import first_seed, load, test_images, write_examples
from cifar_ablate.predictor.network import Predictor
from cifar_ablate.process import temporary_folder
from cifar_ablate.record.mlflow_store import Tracking, existing


@dataclass(frozen=True)
class ServerAddress:
    """Where the page is served."""

    host: str
    port: int
    """0: any free port."""
    share: bool
    """Whether gradio.live gets a public link to the page."""


class LazyPredictor:
    """The network of a run, which is loaded at its first use."""

    def __init__(self, run_id: str, tracking: Tracking, device: str) -> None:
        self.run_id, self.tracking, self.device = run_id, tracking, device
        self._lock = threading.Lock()

    @cached_property
    def _loaded(self) -> Predictor:
        return load(run=self.run_id, device=self.device, tracking=self.tracking)

    @property
    def predictor(self) -> Predictor:
        """The network; raises as ``load``."""
        with self._lock:
            return self._loaded

    def answer(self, picture: Picture) -> Answer:
        """Answer for an image at the network's size; raises as ``load``."""
        return self.predictor.answer(picture)

    def about(self) -> str:
        """The network and its accuracy as markdown; raises as ``load``."""
        return self.predictor.card.about()


def serve_page(
    model: str | None, run: str | None, where: ServerAddress, *, device: str, say: Callable[[str], None]
) -> None:
    """Serve the page of a network until interrupted.

    Args:
        model: As for ``load``.
        run: As for ``load``.
        where: Host and port of the page.
        device: Device of the networks.
        say: Called with each line for the user.

    Raises:
        UsageError: The host or the port cannot be used; otherwise as ``load``.
    """
    predictor = load(model, run=run, device=device)
    card = predictor.card
    others = _other_arms(card, device)
    with temporary_folder() as place:
        os.environ.setdefault("GRADIO_TEMP_DIR", str(place / "uploads"))  # deleted with the command
        data = test_images(card, say)
        examples = write_examples(data, place) if data is not None else []
        shown = PageNetwork(card.origin.arm, card.about, predictor.image_size_px, predictor.answer)
        title = f"{card.origin.study}: {card.origin.arm}"
        page = build_page(shown, others, examples, title=title, question=card.question)
        try:
            address = launch(page, host=where.host, port=where.port, share=where.share)
        except OSError:
            raise UsageError(
                f"cannot serve at {where.host}:{where.port}: the port is taken, or the host is not this machine; "
                "try --port 0"
            ) from None
        say(card.headline())
        say(f"Open {address} (Ctrl-C ends it)")
        if where.host not in LOOPBACK:
            say("Everyone who can reach this machine can open it.")
        page.block_thread()


def _other_arms(card: Card, device: str) -> list[PageNetwork]:
    """The study's other arms, each with its finished first seed; none if the record is not here."""
    try:
        tracking = existing()
        record = tracking.load(card.origin.study)
    except AblateError:  # such as a packaged folder on another machine
        return []
    if not any(run.run_id == card.origin.run_id for run in record.runs):  # another study of that name
        return []
    found = []
    for document in record.document["arms"]:
        try:
            run = first_seed(record, document["name"])
        except AblateError:
            continue
        if run.outcome == "finished" and run.run_id != card.origin.run_id:
            now = ", as it is now" if run.arm == card.origin.arm and run.seed == card.origin.seed else ""
            network = LazyPredictor(run.run_id, tracking, device)
            name = f"{run.arm} (seed {run.seed}{now})"
            found.append(PageNetwork(name, network.about, card.preprocessing.image_size_px, network.answer))
    return found
