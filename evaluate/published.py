"""What the papers report: each figure with the setting that it belongs to.

Sources: the tables of ScaLR (Puy et al., CVPR 2024), the READMEs of valeoai/ScaLR's branches main and scalr_plus, and
Robo3D's README for WaffleIron without distillation. Rows are of what scalr can run; those of MinkUNet are in
`published_minkunet`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .origin import OF_NETWORK, set_name, text_of
from .published_minkunet import reported


class Differences(NamedTuple):
    """In what a run is not of a published figure's setting."""

    differing: list[str]  # what was found, and what it would have to be
    unknown: list[str]  # of the run
    unsaid: list[str]  # by the source

    @property
    def of_run(self) -> list[str]:
        """For people, empty where the run is known to be of this setting, as far as the source says."""
        return [*self.differing, *([f"not known of it: {', '.join(self.unknown)}"] if self.unknown else [])]


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published result.

    Attributes:
        who: whose.
        source: table or README.
        setting: what was measured, as a result card names it.
        model: what a run's model must be, by the names of `origin.origin_of`; None where the source does not say.
        protocol: likewise, by the names of a result card's protocol.
        figures: by the names of a result card [%].
    """

    who: str
    source: str
    setting: str
    model: Mapping[str, Any]
    protocol: Mapping[str, Any]
    figures: Mapping[str, float]

    @property
    def name(self) -> str:
        """For people: whose, of which model."""
        is_minkunet, teachers = self.model.get("backbone") == "minkunet", self.model["teachers"]
        sets = [text.split(" (")[0].removesuffix(" train") for text in self.model["pretrained on"]]
        source = f"{' + '.join(teachers)}, {ON_ALL if len(sets) == len(DATASETS) else ' + '.join(sets)}"
        parts = [source if teachers else "new weights"]
        if is_minkunet:
            parts.insert(0, "MinkUNet")
        elif self.model["width"]:
            parts.insert(0, f"WI-{self.model['depth']}-{self.model['width']}")
        if is_minkunet and self.model.get("sampling.views_per_sample") == 1:
            parts.append("one camera")
        if self.model.get("objective.loss") == "contrastive":
            head = "no" if self.model["objective.target_head"] == "none" else "a"
            parts.append(f"contrastive, {head} head on the targets")
        return f"{self.who} ({self.source}: {', '.join(parts)})"

    def differences(self, model: Mapping[str, Any], protocol: Mapping[str, Any]) -> Differences:
        """Of a result card's model and protocol."""
        pairs = zip(*self._differences(model, protocol), strict=True)
        return Differences(*(of_model + of_protocol for of_model, of_protocol in pairs))

    def otherwise(self, model: Mapping[str, Any], protocol: Mapping[str, Any], departures: Sequence[str] = ()) -> str:
        """For people: in what the model is another, and in what the run that measured it is.

        Empty where nothing is; `departures` are more of the run.
        """
        of_model, of_protocol = self._differences(model, protocol)
        parts = {"model and pretraining": of_model.of_run, "this run": [*departures, *of_protocol.of_run]}
        return "; and in ".join(f"{part}: {'; '.join(found)}" for part, found in parts.items() if found)

    def _differences(self, model: Mapping[str, Any], protocol: Mapping[str, Any]) -> tuple[Differences, Differences]:
        # Cards from before there were other backbones do not name theirs.
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


def published_for(setting: str | None) -> list[Published]:
    """The rows of a setting."""
    return [row for row in PUBLISHED if row.setting == setting]


def nearest(rows: Sequence[Published], model: Mapping[str, Any], protocol: Mapping[str, Any]) -> Published:
    """The row that a run differs least from, the first of several; distilled as the run's model was, or not.

    A row of the run's loss is nearer than any of another loss, whatever else the two have in common.
    """
    loss = model.get("objective.loss")

    def distance(row: Published) -> tuple[bool, bool, bool, int]:
        is_other_kind = bool(model.get("teachers", True)) != bool(row.model["teachers"])
        is_other_loss = loss is not None and loss != row.model.get("objective.loss")
        found = row.differences(model, protocol)
        # What a source does not say brings its row no nearer, unless there is nothing else.
        return is_other_kind, is_other_loss, bool(found.of_run), sum(map(len, found))

    return min(rows, key=distance)


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


# What names of a backbone's own settings begin with.
OF_BACKBONE = (*OF_NETWORK, "stochastic_depth", "stem_width", "blocks", "bn_momentum", "inputs.")
FIRST = ("width", "depth", "teachers", "teacher's weights", "image size", "pretrained on")  # that people look for
NAMES = {  # of a protocol's values, for people
    "frames": "scored frames",
    "split": "scored split",
    "training_frames": "training frames",
    "training_split": "training split",
    "schedule_of": "schedule of",
    "mean_over": "mean over classes",
}

# --- settings --------------------------------------------------------------------------------------------------------

# Frames and classes of the whole datasets: a run on a part of one, or on a simulated one, differs.
TRAINING_FRAMES = {"nuscenes": 28130, "semantic_kitti": 19130, "pandaset_64": 3920, "pandaset_gt": 3920}
SCORED_FRAMES = {"nuscenes": 6019, "semantic_kitti": 4071, "pandaset_64": 2160, "pandaset_gt": 2160}
CLASSES = {"nuscenes": 16, "semantic_kitti": 19, "pandaset_64": 17, "pandaset_gt": 17}
DATASETS = tuple(TRAINING_FRAMES)
ON_ALL = "all four datasets"
SLIDR_TRAIN = set_name("nuscenes", "slidr_train", 24109)  # 600 scenes of nuScenes' train, the paper's "mini"

# Of the official WI_768_pretrain.yaml, by the names of a recipe. Not here: what does not change what is learnt but
# within rounding (processes, precision, seed), and settings of losses and schedules that are not the official ones.
SCALR = {
    "backbone": "waffleiron",
    "depth": 48,
    "activation": "relu",
    "stochastic_depth": 0.0,
    "head": "linear",
    "image augmentation": "none",
    "inputs.voxel_size_m": 0.1,
    "inputs.fov_min_m": [-64.0, -64.0, -8.0],
    "inputs.fov_max_m": [64.0, 64.0, 8.0],
    "inputs.planes": [
        {"axes": [0, 1], "shape": [256, 256]},
        {"axes": [0, 2], "shape": [256, 32]},
        {"axes": [1, 2], "shape": [256, 32]},
    ],
    "inputs.num_neighbours": 16,
    "inputs.max_points": 20000,
    "sampling.views_per_sample": 1,
    "sampling.points": "seen",
    "sampling.voxel_point": "random",
    "sampling.store_weights": "none",
    "augmentation.max_rotation_rad": math.pi,
    "augmentation.flips": "one",
    "augmentation.flip_probability": 2 / 3,
    "augmentation.max_scale_change": 0.1,
    "augmentation.drop_cuboid": 0.0,
    "objective.loss": "similarity",
    "objective.standardise": "none",
    "objective.target_head": "none",
    "training.epochs": 25,
    "training.batch_size": 8,
    "training.optimiser": "adamw",
    "training.learning_rate": 2e-3,
    "training.min_learning_rate": 1e-5,
    "training.weight_decay": 0.03,
    "training.schedule": "cosine",
    "training.warmup_steps": 3500,
    "training.warmup_epochs": "none",
}
# What WI_768-ScaLR_plus.yaml has in the place of the above.
OF_PLUS = {
    "activation": "gelu",
    "stochastic_depth": 0.2,
    "head": "mlp",
    "training.epochs": 65,
    "training.schedule": "reciprocal_sqrt",
    "training.warmup_epochs": 1,
    "training.timescale_epochs": 0.45,
    "training.cooldown_epochs": 2,
}
NOT_OF_PLUS = ("training.min_learning_rate", "training.warmup_steps")
UNSAID_LENGTH = {"training.epochs": None, "training.batch_size": None}


def _student(width: int, teachers: Sequence[str], pretrained_on: Sequence[str], **changes: Any) -> dict[str, Any]:
    """A student of ScaLR; layer norm is that of width 768 alone."""
    of_dinov2 = all(teacher.startswith("dinov2") for teacher in teachers)
    return {
        **SCALR,
        "width": width,
        "norm": "layer" if width == 768 else "batch",
        "teachers": sorted(teachers),
        "teacher's weights": "published",
        "image size": "224x448",
        "feature": "x_prenorm" if of_dinov2 else None,
        "pos_embed": "official" if of_dinov2 else None,
        "pretrained on": sorted(pretrained_on),
        "occlusion": "keep",
        **changes,
    }


def _whole(*datasets: str) -> list[str]:
    return [set_name(dataset, "train", TRAINING_FRAMES[dataset]) for dataset in datasets]


# WaffleIron without distillation.
SUPERVISED = {
    "backbone": "waffleiron",
    "depth": 48,
    "width": 768,
    "norm": "layer",
    "activation": "relu",
    "teachers": [],
    "pretrained on": [],
}


def _finetuned(model: Mapping[str, Any]) -> dict[str, Any]:
    return {**model, "labels": [f"finetuned on {_whole('nuscenes')[0]} by the schedule of scalr"]}


def _scored_on(dataset: str, schedule: str, training_frames: int | None, **changes: Any) -> dict[str, Any]:
    frames = {} if training_frames is None else {"training_frames": training_frames}
    values = {"classes": CLASSES[dataset], "frames": SCORED_FRAMES[dataset], "schedule_of": schedule}
    return {**values, "mean_over": "present or predicted", **frames, **changes}


def _probed(
    source: str, model: Mapping, figures: Mapping[str, float], who: str = "ScaLR", schedule: str = "scalr"
) -> Iterator[Published]:
    """Linear probing, by dataset."""
    for dataset, miou in figures.items():
        protocol = _scored_on(dataset, schedule, TRAINING_FRAMES[dataset])
        yield _row(who, source, f"probe {dataset}", model, protocol, mIoU=miou)


# Of the settings of finetuning: frames with labels, where they are known.
FINETUNED = {
    "nuscenes 1%": None,  # of seven scenes
    "nuscenes 10%": None,
    "nuscenes 100%": TRAINING_FRAMES["nuscenes"],
    "semantic_kitti 1%": 192,
    "semantic_kitti 100%": TRAINING_FRAMES["semantic_kitti"],
    "pandaset_64 100%": TRAINING_FRAMES["pandaset_64"],
    "pandaset_gt 100%": TRAINING_FRAMES["pandaset_gt"],
}


def _trained(
    source: str,
    model: Mapping,
    figures: Mapping[str, float],
    who: str = "ScaLR",
    schedule: str = "scalr",
    verb: str = "finetune",
) -> Iterator[Published]:
    """Finetuning, or training from scratch, by dataset and share of the labels."""
    for what, miou in figures.items():
        protocol = _scored_on(what.split()[0], schedule, FINETUNED[what])
        yield _row(who, source, f"{verb} {what}", model, protocol, mIoU=miou)


def _row(who: str, source: str, setting: str, model: Mapping, protocol: Mapping, **figures: float) -> Published:
    return Published(who=who, source=source, setting=setting, model=model, protocol=protocol, figures=figures)


def _by_dataset(*miou: float) -> dict[str, float]:
    return dict(zip(DATASETS, miou, strict=True))


# --- figures: those of the released student first --------------------------------------------------------------------

DINO, DINOV2_L = ["dino_vits8"], ["dinov2_vitl14"]
ALL_FOUR = _student(768, DINOV2_L, _whole(*DATASETS))
# Longer than on all four: as many steps.
NUSCENES_ALONE = _student(768, DINOV2_L, _whole("nuscenes"), **{"training.epochs": None})
PLUS = {name: value for name, value in ALL_FOUR.items() if name not in NOT_OF_PLUS}
PLUS |= {**OF_PLUS, "image size": "448x896", "pos_embed": "timm"}
README_PLUS = "README of scalr_plus"


def _table_1() -> Iterator[Published]:
    """Losses: pretrained and probed on 600 scenes, scored on 100 others of train; means of three where there are."""
    protocol = _scored_on(
        "nuscenes", "scalr", 24109, frames=4021, training_split="slidr_train", split="slidr_val"
    )  # fmt: skip
    of_contrast = dict.fromkeys(("objective.temperature", "objective.contrastive_pairs"))
    contrastive = {"objective.loss": "contrastive", **of_contrast}
    with_head = {**contrastive, "objective.target_head": "linear", "objective.target_head_channels": None}
    for changes, miou in ((with_head, 50.0), (contrastive, 54.1), ({}, 56.7)):
        model = _student(256, DINO, [SLIDR_TRAIN], **UNSAID_LENGTH, **changes)
        yield _row("ScaLR", "Table 1", "probe nuscenes", model, protocol, mIoU=miou)


def _table_2() -> Iterator[Published]:
    """Pretrained on the 600 scenes, probed on all."""
    for width, probed, finetuned in ((96, 46.8, 38.8), (256, 54.2, 41.4)):
        model = _student(width, DINO, [SLIDR_TRAIN], **UNSAID_LENGTH)
        yield from _probed("Table 2", model, {"nuscenes": probed})
        yield from _trained("Table 2", model, {"nuscenes 1%": finetuned})


def _table_3() -> Iterator[Published]:
    """Widths and teachers."""
    rows = {
        (256, "mae_vitb16"): 47.8,
        (256, "dino_vits8"): 54.4, (384, "dino_vits8"): 57.8, (768, "dino_vits8"): 61.1,
        (256, "dinov2_vits14"): 57.7,
        (256, "dinov2_vitb14"): 60.2,
        (256, "dinov2_vitl14"): 61.6, (384, "dinov2_vitl14"): 63.9, (768, "dinov2_vitl14"): 66.8,
    }  # fmt: skip
    for (width, teacher), miou in rows.items():
        model = _student(width, [teacher], _whole("nuscenes"), **UNSAID_LENGTH)
        yield from _probed("Table 3", model, {"nuscenes": miou})
    for width, miou in {256: 48.3, 384: 50.6, 768: 51.1}.items():
        model = _student(width, DINOV2_L, _whole("semantic_kitti"), **UNSAID_LENGTH)
        yield from _probed("Table 3", model, {"semantic_kitti": miou})


def _table_4() -> Iterator[Published]:
    """Training sets; equal numbers of steps, of 16 frames for width 256."""
    yield from _probed("Table 4", ALL_FOUR, _by_dataset(67.8, 55.8, 37.9, 34.5))
    yield from _probed("Table 4", NUSCENES_ALONE, _by_dataset(67.8, 43.1, 33.9, 29.9))
    rows = {
        ("nuscenes",): (54.4, 28.8, 26.9, 25.2),
        ("semantic_kitti",): (39.5, 46.6, 25.3, 25.7),
        ("pandaset_64",): (39.6, 25.6, 30.0, 24.7),
        ("pandaset_gt",): (29.9, 26.9, 23.5, 28.5),
        ("nuscenes", "semantic_kitti"): (54.4, 50.1, 29.3, 28.9),
        DATASETS: (54.6, 50.6, 33.1, 32.3),
    }
    length = {"training.epochs": None, "training.batch_size": 16}
    for sets, miou in rows.items():
        yield from _probed("Table 4", _student(256, DINO, _whole(*sets), **length), _by_dataset(*miou))


def _table_5() -> Iterator[Published]:
    """Finetuning. README and paper differ where SemanticKITTI has 1 % of its labels."""

    def by_labels(*miou: float) -> dict[str, float]:
        return dict(zip(FINETUNED, miou, strict=True))

    yield from _trained("Table 5", ALL_FOUR, by_labels(50.7, 69.2, 78.4, 56.8, 65.8, 48.3, 41.1))
    yield from _trained("README", ALL_FOUR, {"semantic_kitti 1%": 55.8})
    yield from _trained("Table 5", NUSCENES_ALONE, by_labels(51.0, 70.5, 77.9, 49.7, 63.9, 49.4, 42.1))
    scratch = by_labels(35.2, 62.2, 78.7, 49.6, 63.4, 47.8, 40.0)
    yield from _trained("ScaLR's Table 5", SUPERVISED, scratch, who="WaffleIron", verb="scratch")


def _table_6() -> Iterator[Published]:
    """nuScenes-C. That the models are the finetuned ones is inferred from the rows that they stand beside."""
    rows = (
        ("ScaLR", "Table 6", _finetuned(ALL_FOUR), 87.4, 83.8, 65.7),
        ("ScaLR", "Table 6", _finetuned(NUSCENES_ALONE), 89.1, 83.7, 65.2),
        ("WaffleIron", "ScaLR's Table 6", _finetuned(SUPERVISED), 90.9, 80.6, 63.5),
    )
    for who, source, model, mce, mrr, corrupted in rows:
        figures = {"mCE": mce, "mRR": mrr, "mIoU corrupted": corrupted}
        yield _row(who, source, "robustness nuscenes_c", model, {"frames": SCORED_FRAMES["nuscenes"]}, **figures)


def _robo3d() -> Iterator[Published]:
    """WaffleIron as Robo3D has it, of which its README says neither network nor training."""
    rows = {"nuscenes": (106.73, 72.78, 76.07), "semantic_kitti": (109.54, 72.18, 66.04)}
    for dataset, (mce, mrr, clean) in rows.items():
        figures = {"mCE": mce, "mRR": mrr, "mIoU clean": clean}
        model, protocol = {**SUPERVISED, **dict.fromkeys((*OF_NETWORK, "labels"))}, {"frames": SCORED_FRAMES[dataset]}
        yield _row("WaffleIron", "Robo3D's README", f"robustness {dataset}_c", model, protocol, **figures)


def _table_7() -> Iterator[Published]:
    """Left: other lidars, whose conventions are SALUDA's as far as the paper says. Right: several teachers."""
    rows = (
        ("ScaLR", "Table 7", ALL_FOUR, 36.6, 59.1),
        ("ScaLR", "Table 7", NUSCENES_ALONE, 29.6, 57.1),
        ("WaffleIron", "ScaLR's Table 7", SUPERVISED, 28.6, 54.0),
    )
    for who, source, model, *figures in rows:
        for (target, classes), miou in zip((("semantic_kitti", 10), ("semantic_poss", 6)), figures, strict=True):
            frames = {"frames": SCORED_FRAMES[target]} if target in SCORED_FRAMES else {}
            protocol = {"classes": classes, **frames, "intensity": None}
            yield _row(who, source, f"transfer {target}", _finetuned(model), protocol, mIoU=miou)
    maskclip, of_both = ["maskclip_vitb16"], {"head": "mlp", "objective.teachers": None}
    for width, alone, both in ((256, 59.4, 62.5), (384, 60.9, 65.1)):  # DINOv2 alone: Table 3
        for teachers, changes, miou in ((maskclip, {}, alone), (maskclip + DINOV2_L, of_both, both)):
            model = _student(width, teachers, _whole("nuscenes"), **UNSAID_LENGTH, **changes)
            yield from _probed("Table 7", model, {"nuscenes": miou})


def _plus() -> Iterator[Published]:
    whose = {"who": "ScaLR+", "schedule": "scalr_plus"}
    yield from _probed(README_PLUS, PLUS, _by_dataset(70.4, 61.0, 43.5, 40.7), **whose)
    figures = dict(zip(FINETUNED, (54.1, 70.7, 78.4, 57.4, 65.2, 50.7, 44.0), strict=True))
    yield from _trained(README_PLUS, PLUS, figures, **whose)


def _minkunet() -> Iterator[Published]:
    """By the protocol of SLidR.

    How absent classes count makes no difference where no class is absent, as in whole validation sets; where one is,
    the card of a run names a mean that leaves it out among its departures.
    """
    for row in reported():
        for setting, miou in row.figures.items():
            _, dataset, *labels = setting.split()
            frames = FINETUNED[f"{dataset} {labels[0]}"] if labels else TRAINING_FRAMES[dataset]
            protocol = {**_scored_on(dataset, "slidr", frames), **row.protocol}
            del protocol["mean_over"]
            yield _row(row.who, row.source, f"{setting} by slidr", row.model, protocol, mIoU=miou)


PUBLISHED: tuple[Published, ...] = (
    *_table_4(), *_table_5(), *_plus(), *_table_6(), *_robo3d(), *_table_7(), *_table_3(), *_table_2(), *_table_1(),
    *_minkunet(),
)  # fmt: skip
