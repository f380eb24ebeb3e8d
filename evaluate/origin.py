"""What a model is and what it was trained on, as far as its file says, by the names that published results have.

A missing name means that the value is not known: a converted official file says only what its network is.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # finished runs are compared without torch
    from ..distill.backbones.backbone import BackboneConfig

OF_NETWORK = ("depth", "width", "norm", "activation")  # WaffleIron's settings that published results have
REPLACED = ("head", "stochastic_depth", "bn_momentum")  # settings of a student that probing and finetuning replace
OF_TEACHER = ("model", "weights_sha256", "feature", "image_size", "pos_embed")  # what defines a teacher's feature
TRAININGS = {"probing": "probed", "finetuning": "finetuned"}  # on labels, by the key in a model file's provenance
NEW_WEIGHTS = {"starts_from": "new weights"}  # replaces a student's provenance if there was no student
WEIGHTS = {"hub": "published", "random": "random"}  # weights from a file are unknown


def origin_of(network: BackboneConfig, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Network, distillation and labels of a student or model, as plain JSON values.

    Args:
        network: configuration of the student or model.
        provenance: provenance in its file.
    """
    trainings, source = _unwound(provenance)
    left_out = ("out_channels", *(REPLACED if network.tells_classes else ()))
    values = json.loads(json.dumps(asdict(network)))  # a tuple is a list in a result file
    origin = _pretraining(source) | {name: value for name, value in values.items() if name not in left_out}
    origin["student"] = network.title
    if trainings or not network.tells_classes or source == NEW_WEIGHTS:
        origin["labels"] = trainings
    return origin


def description(origin: Mapping[str, Any]) -> str:
    """The origin in one line for people."""
    if origin.get("converted from"):
        source = f"converted from {origin['converted from']}"
    elif origin.get("teachers") is None:
        source = "of unknown pretraining"
    elif not origin["teachers"]:
        source = "from new weights"
    else:
        weights = origin.get("teacher's weights") or "a file's"
        source = f"distilled from {text_of(origin['teachers'])} ({weights} weights, {text_of(origin['image size'])})"
        source += f" on {text_of(origin['pretrained on'])}"
    labels = origin.get("labels", ["trained on labels that its file does not name"])
    # Result files from before there were other backbones do not have the student's name.
    title = origin.get("student") or f"WI-{origin['depth']}-{origin['width']}"
    return "; ".join([f"{title}, {source}", *labels])


def text_of(value: Any) -> str:
    """A value of an origin or a protocol, for people."""
    if isinstance(value, list | tuple):
        return " + ".join(map(text_of, value)) or "none"
    if isinstance(value, Mapping):  # a plane of the student
        return f"{''.join('xyz'[axis] for axis in value['axes'])} {'x'.join(map(str, value['shape']))}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def teacher_summary(provenance: Mapping[str, Any]) -> dict[str, dict]:
    """The feature and image size of each teacher that a student, or the student of a model, was distilled from."""
    _, source = _unwound(provenance)
    teachers = source.get("teachers") or {}
    return {name: {key: values.get(key) for key in OF_TEACHER} for name, values in teachers.items()}


def _unwound(provenance: Mapping[str, Any]) -> tuple[list[str], Mapping[str, Any]]:
    """The trainings on labels, first to last, and the provenance of the student before them."""
    trainings = []
    while found := next((key for key in TRAININGS if key in provenance), None):
        trainings.insert(0, _training(TRAININGS[found], provenance[found]))
        provenance = provenance.get("distillation") or {}
    return trainings, provenance


def _training(done: str, protocol: Mapping[str, Any]) -> str:
    dataset, split, frames = (protocol.get(f"training_{name}", "?") for name in ("dataset", "split", "frames"))
    text = f"{done} on {set_name(dataset, split, frames)} by the schedule of {protocol.get('schedule_of', '?')}"
    departures = protocol.get("departures")
    return f"{text} with deviations: {' and '.join(departures)}" if departures else text


def _pretraining(source: Mapping[str, Any]) -> dict[str, Any]:
    if source == NEW_WEIGHTS:
        return {"teachers": [], "pretrained on": []}
    if converted := source.get("converted_from"):
        return {"converted from": f"{converted['file']} (SHA-256 {converted['sha256'][:12]})"}
    recipe, teachers = source.get("recipe"), source.get("teachers")
    origin = _of_recipe(recipe) if isinstance(recipe, Mapping) else {}
    if not teachers:
        return origin
    sets = [
        # The frames that were trained on: an extraction may have skipped frames.
        {**attributes, "num_frames": frames}
        for store in source.get("stores", ())
        for attributes, frames in zip(store["sources"], store.get("frames_in_use", itertools.repeat("?")), strict=False)
    ]
    sizes = ("x".join(map(str, values["image_size"])) for values in teachers.values())
    return origin | {
        "teachers": sorted(teachers),
        "teacher's weights": _common(WEIGHTS.get(values.get("weights")) for values in teachers.values()),
        "image size": _common(sizes),
        "image augmentation": "none",  # a store has features of complete images
        "feature": _common(values.get("feature") for values in teachers.values()),
        "pos_embed": _common(values.get("pos_embed") for values in teachers.values()),
        "pretrained on": sorted(set_name(each["dataset"], each["split"], each["num_frames"]) for each in sets),
        "occlusion": _common(each.get("occlusion") for each in sets),
        "superpixels": _common(_superpixels(each) for each in sets),
    }


def _superpixels(source: Mapping[str, Any]) -> str:
    """How the superpixels of a store's source were made."""
    return (source.get("superpixels") or {}).get("method", "none")


def set_name(dataset: str, split: str, frames: int | str) -> str:
    """A training set; its number of frames distinguishes a part from the complete set."""
    return f"{dataset} {split} ({frames} frames)"


def _of_recipe(recipe: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The recipe's keys as `--set` takes them; keys of the student are without their section."""
    return {
        key if section == "student" else f"{section}.{key}": "none" if value is None else value
        for section, options in recipe.items()
        for key, value in options.items()
    }


def _common(values: Iterable[Any]) -> Any:
    """The value that all have in common, or else the list of values; None if a value is not known."""
    values = list(values)
    if None in values:
        return None
    return values[0] if values and all(value == values[0] for value in values) else values
