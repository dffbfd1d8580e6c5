"""``load``: from a run, a registered network or a packaged folder to a callable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cifar_ablate.errors import UsageError
from cifar_ablate.predictor.card import CARD, WEIGHTS, check_files, read_card
from cifar_ablate.predictor.from_run import Trained, find_run, from_run
from cifar_ablate.predictor.network import Predictor
from cifar_ablate.process import temporary_folder
from cifar_ablate.tracking import Tracking, existing
from cifar_ablate.tracking.models import CHAMPION, fetch_network, find_registered, registered


def load(
    model: str | Path | None = None, *, run: str | None = None, device: str = "cpu", tracking: Tracking | None = None
) -> Predictor:
    """A trained network as a callable for paths, arrays and PIL images.

    >>> predictor = load("onecycle@champion")   # registered by ``cifar-ablate promote``
    >>> predictor("frog.jpg").label
    'frog'

    Args:
        model: ``NAME@ALIAS`` or ``NAME/VERSION`` of MLflow's model registry, ``NAME`` for its champion, or a folder
            that ``cifar-ablate package`` wrote. None, and no ``run``: the only champion there is.
        run: An MLflow run id instead.
        device: Where it computes, such as ``cpu`` or ``cuda``.
        tracking: The tracking store; None: MLFLOW_TRACKING_URI, else this folder's.

    Raises:
        UnknownNameError: No registered model, version or alias of this name.
        RecordError: A run without weights, or files that are missing, damaged or altered.
        TrackingError: MLflow does not answer.
        UsageError: Both are given, or neither, and there is not exactly one champion.
    """
    with located(model, run=run, tracking=tracking) as found:
        return Predictor(found.card, found.weights, device=device)


@contextmanager
def located(
    model: str | Path | None = None,
    *,
    run: str | None = None,
    tracking: Tracking | None = None,
    with_verdicts: bool = False,
) -> Iterator[Trained]:
    """Card and weights for the block, of what ``load`` takes; raises as it does.

    ``with_verdicts``: the card of a run says what the study's verdicts are, which takes a second.
    """
    if model is not None and run is not None:
        raise UsageError("both a run and a model are given; name one of them")
    if model is not None and (isinstance(model, Path) or _is_folder(model)):
        yield in_folder(Path(model))
        return
    tracking = tracking or existing()
    with temporary_folder() as place:
        if run is not None:
            record, recorded = find_run(tracking, run)
            yield from_run(tracking, record, recorded, place, with_verdicts=with_verdicts)
        else:
            network = find_registered(tracking, str(model) if model is not None else only_champion(tracking))
            yield in_folder(fetch_network(tracking, network, place))


def _is_folder(model: str) -> bool:
    """Is a folder meant, there or not? No study has such a name."""
    return (
        (Path(model) / CARD).is_file() or model.startswith((".", "/", "~")) or ("/" in model and Path(model).exists())
    )


def in_folder(folder: Path) -> Trained:
    """Of a folder with a card and weights that belong together; raises RecordError."""
    card = read_card(folder)
    check_files(card, folder)
    return Trained(card, folder / WEIGHTS)


def only_champion(tracking: Tracking) -> str:
    """The one network that needs no name; raises UsageError where there is none, or more than one."""
    found = registered(tracking)
    champions = [name for name, aliases in found.items() if CHAMPION in aliases]
    if not champions and any(found.values()):
        listed = ", ".join(f"--model {name}@{alias}" for name, aliases in found.items() for alias in aliases)
        raise UsageError(f"no network has the alias {CHAMPION}; name one: {listed}")
    if not champions:
        raise UsageError("no network is promoted yet; run `cifar-ablate promote STUDY`, or name a run with --run ID")
    if len(champions) > 1:
        listed = ", ".join(f"--model {name}@{CHAMPION}" for name in champions)
        raise UsageError(f"{len(champions)} networks are promoted; name one: {listed}")
    return f"{champions[0]}@{CHAMPION}"
