"""Published results of MinkUNets that are probed and finetuned by the protocol of SLidR.

Sources: Tables 1, 2 and 8 of ScaLR, and LiMA's README, whose authors ran ScaLR on MinkUNet again. ScaLR took the
results of PPKT, SLidR, ST-SLidR and Seal with ResNet-50 from the literature: their pretraining is taken from the
configurations of valeoai/SLidR and TRAILab/ST-SLidR.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .origin import set_name
from .published_result import FINETUNED, NO_DISTILLATION, TRAINING_FRAMES, Published, scored_on

NETWORK = {
    "backbone": "minkunet",
    "stem_width": 32,
    "widths": [32, 64, 128, 256, 256, 128, 96, 96],
    "blocks": [2, 3, 4, 6, 2, 2, 2, 2],
}
NEW_WEIGHTS = {**NETWORK, **NO_DISTILLATION}
# slidr_minkunet.yaml and ppkt_nuscenes.yaml of valeoai/SLidR, by the names of a recipe.
SLIDR = {
    **NETWORK,
    "bn_momentum": 0.05,
    "head": "linear",
    "teacher's weights": "published",
    "image size": "224x416",
    "image augmentation": "random crops and flips",
    "pretrained on": [set_name("nuscenes", "slidr_train", 24109)],
    "occlusion": "keep",
    "inputs.voxels": "cylindrical",
    "inputs.voxel_size_m": 0.1,
    "inputs.features": "intensity",
    "inputs.intensity_offset": 0.0,
    "sampling.views_per_sample": "all",
    "sampling.points": "all",
    "sampling.store_weights": "none",
    "augmentation.max_rotation_rad": math.pi,
    "augmentation.flips": "each",
    "augmentation.flip_probability": 0.5,
    "augmentation.max_scale_change": 0.0,
    "augmentation.drop_cuboid": 0.2,
    "objective.standardise": "none",
    "training.epochs": 50,
    "training.batch_size": 4,
    "training.optimiser": "sgd",
    "training.momentum": 0.9,
    "training.dampening": 0.1,
    "training.learning_rate": 0.5,
    "training.weight_decay": 1e-4,
    "training.schedule": "cosine_epochs",
}
# ScaLR's own runs: SLidR's code with 12 scans in a batch, 25 epochs and a learning rate scaled "accordingly".
BY_SCALR = {
    **SLIDR,
    "teachers": ["dino_vits8"],
    "feature": None,
    "image size": None,
    "image augmentation": None,
    "training.epochs": 25,
    "training.batch_size": 12,
    "training.learning_rate": None,
}
# Losses, with the settings that only they have.
SIMILARITY = {"objective.loss": "similarity", "objective.target_head": "none"}
IN_64_CHANNELS = {
    "objective.target_head": "linear",
    "objective.target_head_channels": 64,
    "objective.temperature": 0.07,
}
PPKT = {**IN_64_CHANNELS, "objective.loss": "contrastive", "objective.contrastive_pairs": 4096}
PPKT_WITHOUT_HEAD = {
    **{name: value for name, value in PPKT.items() if name != "objective.target_head_channels"},
    "objective.target_head": "none",
}
SUPERPIXELS = {**IN_64_CHANNELS, "objective.loss": "slidr", "superpixels": "slic"}
TOLERANT = {
    **SUPERPIXELS,
    "objective.loss": "st_slidr",
    "objective.tolerance_quantile": 0.01,
    "objective.balanced": True,
    "objective.balance_threshold": 0.5,
    "training.batch_size": 16,
}
# With losses between scans of different times, which scalr does not have, and with segments of SEEM.
SEAL = {
    "objective.loss": "seal",
    "objective.target_head": None,
    "superpixels": "SEEM",
    **dict.fromkeys(("training.epochs", "training.batch_size", "training.learning_rate", "image augmentation")),
}
AT_STRIDE_32 = {"teachers": ["resnet50_moco_v2"], "feature": "layer4"}
AT_STRIDE_4 = {"teachers": ["resnet50_moco_v2_stride4"], "feature": "layer4"}
OF_RESNET = {
    "PPKT": {**SLIDR, **PPKT, **AT_STRIDE_32},
    "SLidR": {**SLIDR, **SUPERPIXELS, **AT_STRIDE_4},
    "ST-SLidR": {**SLIDR, **TOLERANT, **AT_STRIDE_4},
    "Seal": {**SLIDR, **SEAL, **AT_STRIDE_4},
}

# Table 1 is trained and scored on parts of nuScenes' train.
MINI = {"training_frames": 24109, "frames": 4021, "training_split": "slidr_train", "split": "slidr_val"}
TABLE_1 = (
    ({**BY_SCALR, **PPKT}, 39.3),
    ({**BY_SCALR, **PPKT_WITHOUT_HEAD}, 43.4),
    ({**BY_SCALR, **SIMILARITY}, 43.6),
    ({**BY_SCALR, **SIMILARITY, "sampling.views_per_sample": 1, "sampling.points": "seen"}, 42.1),
)
# Probing, and finetuning with 1 % of the labels.
TABLE_2 = ("probe nuscenes", "finetune nuscenes 1%")
TABLE_2_OF_RESNET = {"PPKT": (36.4, 37.5), "SLidR": (38.8, 39.0), "ST-SLidR": (40.5, 40.8), "Seal": (45.0, 45.8)}
TABLE_2_OF_DINO = {"PPKT": (PPKT, 38.6, 40.6), "SLidR": (SUPERPIXELS, 39.3, 39.0), "ScaLR": (SIMILARITY, 42.4, 40.5)}
# Also finetuning with more labels, and on SemanticKITTI.
TABLE_8 = (*TABLE_2, "finetune nuscenes 10%", "finetune nuscenes 100%", "finetune semantic_kitti 1%")
TABLE_8_OF_RESNET = {
    "PPKT": (35.9, 37.8, 60.3, 74.5, 44.0),
    "SLidR": (38.8, 38.3, 59.8, 74.8, 44.6),
    "ST-SLidR": (40.5, 40.8, 60.8, 75.1, 44.7),
    "Seal": (45.0, 45.8, 63.0, 75.6, 46.6),
}
TABLE_8_OF_NEW_WEIGHTS = (8.1, 30.3, 56.2, 74.7, 39.5)  # the first probes a random backbone
LIMA = {
    "dinov2_vits14": (49.66, 45.89, 61.07, 73.39, 46.06),
    "dinov2_vitb14": (51.90, 48.90, 62.88, 74.15, 47.77),
    "dinov2_vitl14": (51.77, 49.13, 62.75, 74.16, 48.64),
}
# LiMA's README says no more of the pretraining, and not how the students were measured.
OF_LIMA = {
    **NETWORK,
    "objective.loss": "similarity",
    "pretrained on": [set_name("nuscenes", "train", 28130)],
    "all else of the pretraining": None,
}


def minkunet_results() -> Iterator[Published]:
    """Rows, those of the models with most results first."""
    for who, figures in TABLE_8_OF_RESNET.items():
        yield from _rows(who, "ScaLR's Table 8", OF_RESNET[who], TABLE_8, figures)
    scratch = [setting.replace("finetune", "scratch") for setting in TABLE_8]
    yield from _rows("MinkUNet", "ScaLR's Table 8", NEW_WEIGHTS, scratch, TABLE_8_OF_NEW_WEIGHTS)
    for who, figures in TABLE_2_OF_RESNET.items():
        yield from _rows(who, "ScaLR's Table 2", OF_RESNET[who], TABLE_2, figures)
    for who, (loss, *figures) in TABLE_2_OF_DINO.items():
        source = "Table 2" if who == "ScaLR" else "ScaLR's Table 2"
        yield from _rows(who, source, {**BY_SCALR, **loss}, TABLE_2, figures)
    for model, miou in TABLE_1:
        yield from _rows("ScaLR", "Table 1", model, TABLE_2[:1], [miou], MINI)
    for teacher, figures in LIMA.items():
        model = {**OF_LIMA, "teachers": [teacher]}
        yield from _rows("ScaLR", "README of LiMA", model, TABLE_8, figures, {"schedule_of": None})


def _rows(
    who: str,
    source: str,
    model: Mapping[str, Any],
    settings: Sequence[str],
    miou: Sequence[float],
    changes: Mapping[str, Any] = {},
) -> Iterator[Published]:
    """A row for each setting of a model.

    How absent classes count makes no difference if no class is absent, as in complete validation sets; if one is, the
    result file of a run lists a mean that leaves it out among its deviations.
    """
    for setting, value in zip(settings, miou, strict=True):
        _, dataset, *labels = setting.split()
        frames = FINETUNED[f"{dataset} {labels[0]}"] if labels else TRAINING_FRAMES[dataset]
        protocol = {**scored_on(dataset, "slidr", frames), **changes}
        del protocol["mean_over"]
        figures = {"mIoU": value}
        of_slidr = f"{setting} by slidr"
        yield Published(who=who, sources=(source,), setting=of_slidr, model=model, protocol=protocol, figures=figures)
