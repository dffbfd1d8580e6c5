"""Networks in MLflow's model registry: a registered model for each study, its versions, and its aliases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifar_ablate.errors import RecordError, UnknownNameError, UsageError
from cifar_ablate.record.mlflow_errors import translate_errors
from cifar_ablate.record.mlflow_store import Tracking

CHAMPION = "champion"
"""The default alias."""
FOLDER = "predictor"
"""Artifact folder of a run that holds registered networks."""
KIND = "ablate.kind"
"""Tag of registered models that this program made."""


@dataclass(frozen=True)
class RegisteredNetwork:
    """One version of a registered model."""

    name: str
    version: str
    run_id: str
    folder: str
    """Folder of its files among the artifacts of the run."""


def register(
    tracking: Tracking,
    name: str,
    run_id: str,
    folder: Path,
    *,
    digest: str,
    alias: str,
    tags: Mapping[str, str],
    description: str,
    question: str,
) -> str:
    """Upload a folder to a run's artifacts, register it as a version, and set the alias; returns the version.

    ``digest``: of the files in the folder. Files that were registered before are not registered again: their version
    gets the alias. Raises UsageError if the name belongs to a model that this program did not make.
    """
    from mlflow.exceptions import MlflowException

    client = tracking.client
    with translate_errors():
        try:
            client.create_registered_model(name, tags={KIND: "network"}, description=question)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            if client.get_registered_model(name).tags.get(KIND) != "network":
                raise UsageError(
                    f"MLflow has a registered model {name!r} that is none of ours; rename that one, and promote again"
                ) from None
        place = f"{FOLDER}/{digest[:12]}"
        source = f"runs:/{run_id}/{place}"
        known = next((one for one in _versions(client, name) if one.source == source), None)
        if known is None:
            client.log_artifacts(run_id, str(folder), place)
            made = client.create_model_version(
                name, source=source, run_id=run_id, tags=dict(tags), description=description
            )
            version = str(made.version)
        else:
            version = str(known.version)
        client.set_registered_model_alias(name, alias, version)
    return version


def find_registered(tracking: Tracking, wanted: str) -> RegisteredNetwork:
    """``NAME@ALIAS``, ``NAME/VERSION``, or ``NAME`` for its champion; raises UnknownNameError.

    A study's variant has an ``@`` in its name, too, so a whole name that is registered comes first.
    """
    with translate_errors():
        models = {model.name: model for model in _models(tracking)}
        name, alias, version = _parted(wanted, set(models))
        if name not in models:
            raise UnknownNameError("registered model", name, models)
        if version is not None:
            for one in _versions(tracking.client, name):
                if str(one.version) == version:
                    return _network(one)
            raise UnknownNameError(
                f"version of {name!r}", version, [str(one.version) for one in _versions(tracking.client, name)]
            )
        aliases = {str(key): str(value) for key, value in models[name].aliases.items()}
        if alias not in aliases:
            raise UnknownNameError(f"alias of {name!r}", alias, aliases)
        return _network(tracking.client.get_model_version(name, aliases[alias]))


def registered(tracking: Tracking) -> dict[str, list[str]]:
    """Aliases of each network that this program registered, by name."""
    with translate_errors():
        return {model.name: sorted(model.aliases) for model in _models(tracking)}


def fetch_network(tracking: Tracking, network: RegisteredNetwork, into: Path) -> Path:
    """The folder of a registered network, downloaded if it is not on this machine; raises RecordError."""
    try:
        return tracking.artifact(network.run_id, network.folder, into)
    except RecordError:
        raise RecordError(
            f"the files of {network.name!r} version {network.version} are gone from run {network.run_id}; if mlruns/ "
            "was moved, move it back to where it was made, else promote again"
        ) from None


def _parted(wanted: str, names: set[str]) -> tuple[str, str, str | None]:
    """Name, alias and version."""
    if wanted in names:
        return wanted, CHAMPION, None
    name, slash, version = wanted.rpartition("/")
    if slash:
        return name, "", version
    name, at, alias = wanted.rpartition("@")
    # an unregistered name with an @ is taken as a whole
    return (name, alias, None) if at and (name in names or alias == CHAMPION) else (wanted, CHAMPION, None)


def _models(tracking: Tracking) -> list[Any]:
    return list(tracking.pages(tracking.client.search_registered_models, filter_string=f"tags.`{KIND}` = 'network'"))


def _versions(client: Any, name: str) -> list[Any]:
    quoted = name.replace("'", "''")
    found = client.search_model_versions(f"name = '{quoted}'")
    return sorted(found, key=lambda one: -int(one.version))


def _network(version: Any) -> RegisteredNetwork:
    folder = str(version.source).removeprefix(f"runs:/{version.run_id}/")
    return RegisteredNetwork(version.name, str(version.version), version.run_id, folder)
