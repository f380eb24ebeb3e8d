"""A published result with its setting, and the comparison of a run's setting with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..extract.datasets.simulated import SIMULATED
from .origin import OF_NETWORK, text_of

# Frames and classes of the complete datasets: a run on a part of a dataset, or on a simulated one, differs.
TRAINING_FRAMES = {"nuscenes": 28130, "semantic_kitti": 19130, "pandaset_64": 3920, "pandaset_gt": 3920}
SCORED_FRAMES = {"nuscenes": 6019, "semantic_kitti": 4071, "pandaset_64": 2160, "pandaset_gt": 2160}
CLASSES = {"nuscenes": 16, "semantic_kitti": 19, "pandaset_64": 17, "pandaset_gt": 17}
DATASETS = tuple(TRAINING_FRAMES)
# Settings of finetuning, with the number of labelled frames; None where no source says it.
FINETUNED = {
    "nuscenes 1%": None,  # 7 scenes
    "nuscenes 10%": None,
    "nuscenes 100%": TRAINING_FRAMES["nuscenes"],
    "semantic_kitti 1%": 192,
    "semantic_kitti 100%": TRAINING_FRAMES["semantic_kitti"],
    "pandaset_64 100%": TRAINING_FRAMES["pandaset_64"],
    "pandaset_gt 100%": TRAINING_FRAMES["pandaset_gt"],
}
NO_DISTILLATION = {"teachers": [], "pretrained on": []}

# Settings of a backbone that another backbone does not have begin with these names.
OF_BACKBONE = (*OF_NETWORK, "stochastic_depth", "stem_width", "blocks", "bn_momentum", "inputs.")
FIRST = ("width", "depth", "teachers", "teacher's weights", "image size", "pretrained on")  # what people look for
NAMES = {  # of values of a protocol, for people
    "frames": "scored frames",
    "split": "scored split",
    "training_frames": "training frames",
    "training_split": "training split",
    "schedule_of": "schedule of",
    "mean_over": "mean over classes",
}


class Differences(NamedTuple):
    """How the setting of a run differs from that of a published result."""

    differing: list[str]  # the run's value, and the published one
    unknown: list[str]  # names of values that the run's result file does not have
    unsaid: list[str]  # names of values that the source does not say

    @property
    def of_run(self) -> list[str]:
        """Texts for people; empty if the run has this setting as far as the source says it."""
        return [*self.differing, *([f"unknown: {', '.join(self.unknown)}"] if self.unknown else [])]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published result.

    Attributes:
        who: method or model that the result belongs to.
        sources: tables or READMEs that report it.
        setting: what was measured, by the name that a result file has for it.
        model: the model by the names of `origin.origin_of`; a value is None if the source does not say it.
        protocol: likewise, by the names of a result file's protocol.
        figures: published values by the names of a result file [%].
        std: standard deviation of the mIoU over three pretrainings [%], if the source has it.
    """

    who: str
    sources: tuple[str, ...]
    setting: str
    model: Mapping[str, Any]
    protocol: Mapping[str, Any]
    figures: Mapping[str, float]
    std: float | None = None

    @property
    def name(self) -> str:
        """Text for people: method, source, student, teachers, pretraining sets."""
        return f"{self.who} ({' and '.join(sorted(self.sources))}: {self.student}, {self.pretraining})"

    @property
    def student(self) -> str:
        """Text for people: the network."""
        if self.model["backbone"] == "minkunet":
            return "MinkUNet"
        if self.model["backbone"] != "waffleiron":  # a network that scalr does not have
            return self.model["backbone"]
        width = self.model["width"]
        return "network not stated" if width is None else f"WI-{self.model['depth']}-{width}"

    @property
    def pretraining(self) -> str:
        """Text for people: teachers, pretraining sets, and what tells apart the rows of a table that share both."""
        teachers = self.model["teachers"]
        if not teachers:
            return "without distillation"
        sets = [text.split(" (")[0].removesuffix(" train") for text in self.model["pretrained on"]]
        parts = [" + ".join(teachers), "all four datasets" if len(sets) == len(DATASETS) else " + ".join(sets)]
        if self.model["backbone"] == "minkunet" and self.model.get("sampling.views_per_sample") == 1:
            parts.append("one camera")
        if self.model.get("objective.loss") == "contrastive":
            head = "no" if self.model["objective.target_head"] == "none" else "a"
            parts.append(f"contrastive, {head} head on the targets")
        return ", ".join(parts)

    @property
    def unsaid(self) -> list[str]:
        """Names of values of the setting that the source does not say."""
        return self.differences({}, {}).unsaid

    def is_setting_of(self, model: Mapping[str, Any], protocol: Mapping[str, Any]) -> bool:
        """Whether a run has this setting, as far as the source says it: no run has one whose network is not said."""
        network_is_said = self.model.get("width", "said") is not None
        comparable = not reasons_not_comparable(model, protocol)
        return network_is_said and comparable and not self.differences(model, protocol).of_run

    def differences(self, model: Mapping[str, Any], protocol: Mapping[str, Any]) -> Differences:
        """Differences of the model and protocol of a result file from this setting."""
        pairs = zip(*self._differences(model, protocol), strict=True)
        return Differences(*(of_model + of_protocol for of_model, of_protocol in pairs))

    def otherwise(self, model: Mapping[str, Any], protocol: Mapping[str, Any], deviations: Sequence[str] = ()) -> str:
        """Text for people: how the model differs, then how the run that measured it does; empty if nothing differs.

        `deviations` are further ones of the run.
        """
        of_model, of_protocol = self._differences(model, protocol)
        parts = {"model and pretraining": of_model.of_run, "this run": [*deviations, *of_protocol.of_run]}
        return "; and in ".join(f"{part}: {'; '.join(found)}" for part, found in parts.items() if found)

    def _differences(self, model: Mapping[str, Any], protocol: Mapping[str, Any]) -> tuple[Differences, Differences]:
        # Result files from before there were other backbones do not name theirs.
        of_model = _differences(self.model, {"backbone": "waffleiron", **model})
        of_protocol = _differences(self.protocol, protocol)
        if model.get("backbone", "waffleiron") != self.model.get("backbone"):  # which has other settings
            unknown = [name for name in of_model.unknown if not name.startswith(OF_BACKBONE)]
            of_model = of_model._replace(unknown=unknown)
        if "teachers" in of_model.unknown:
            file = f"a file converted from {model['converted from']}" if "converted from" in model else "its file"
            kept = [name for name in of_model.unknown if name in (*OF_NETWORK, "labels")]
            of_model = of_model._replace(unknown=[*kept, f"what it was distilled from and how ({file} does not say)"])
        return of_model, of_protocol


def reasons_not_comparable(model: Mapping[str, Any], protocol: Mapping[str, Any]) -> list[str]:
    """Why no published result can stand beside a run, whatever its setting: for people, empty if nothing is known."""
    weights = model.get("teacher's weights")
    is_random = "random" in (weights if isinstance(weights, list) else [weights])
    simulated = ["simulated data"] if protocol.get("data") == SIMULATED else []
    return [*simulated, *(["random teacher weights"] if is_random else [])]


def rows_of_setting(
    rows: Sequence[Published], model: Mapping[str, Any], protocol: Mapping[str, Any]
) -> list[Published]:
    """The rows that have the setting of a run, several only if sources report it several times.

    If a run has the settings of rows that say more and less of theirs, the rows that say most are the run's.
    """
    found = [row for row in rows if row.is_setting_of(model, protocol)]
    least = min((len(row.unsaid) for row in found), default=0)
    return [row for row in found if len(row.unsaid) == least]


def nearest(rows: Sequence[Published], model: Mapping[str, Any], protocol: Mapping[str, Any]) -> Published:
    """The row that a run differs least from, the first of several; distilled if the run's model was.

    A row of the run's loss is nearer than any row of another loss, whatever else the two have in common.
    """
    loss = model.get("objective.loss")

    def distance(row: Published) -> tuple[bool, bool, bool, bool, int]:
        is_other_kind = bool(model.get("teachers", True)) != bool(row.model["teachers"])
        is_other_loss = loss is not None and loss != row.model.get("objective.loss")
        is_other_backbone = model.get("backbone", "waffleiron") != row.model["backbone"]
        found = row.differences(model, protocol)
        # What a source does not say brings its row no nearer, unless there is nothing else.
        return is_other_kind, is_other_loss, is_other_backbone, bool(found.of_run), sum(map(len, found))

    return min(rows, key=distance)


def scored_on(dataset: str, schedule: str | None, training_frames: int | None, **changes: Any) -> dict[str, Any]:
    """The protocol of a probing or finetuning that is scored on a complete validation set."""
    frames = {} if training_frames is None else {"training_frames": training_frames}
    values = {"classes": CLASSES[dataset], "frames": SCORED_FRAMES[dataset], "schedule_of": schedule}
    return {**values, "mean_over": "present or predicted", **frames, **changes}


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> Differences:
    first = sorted(wanted, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    said = {name: wanted[name] for name in first if wanted[name] is not None}
    known = {name: value for name, value in said.items() if found.get(name) is not None}
    return Differences(
        [
            f"{NAMES.get(name, name)} {text_of(found[name])}, not {text_of(value)}"
            for name, value in known.items()
            if found[name] != value
        ],
        [NAMES.get(name, name) for name in said if name not in known],
        [NAMES.get(name, name) for name in wanted if name not in said],
    )
