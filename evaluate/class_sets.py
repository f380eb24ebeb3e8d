"""Classes that two datasets share, for domain generalisation: SALUDA's mappings, which are those of Complete & Label.

Raw ids without a class are ignored.
"""

from __future__ import annotations

import copy

from ..errors import StudentError, did_you_mean
from ..extract.datasets.frame import Dataset
from ..extract.datasets.labels import LabelMap
from ..extract.datasets.nuscenes import LABELS as NUSCENES
from ..extract.datasets.semantic_kitti import LABELS as SEMANTIC_KITTI
from ..extract.datasets.semantic_poss import LABELS as SEMANTIC_POSS

# Set of classes -> dataset -> class -> raw ids.
RAW_IDS: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {
    "semantic_kitti_10": {
        "nuscenes": {
            "car": (17,),
            "bicycle": (14,),
            "motorcycle": (21,),
            "truck": (23,),
            "other_vehicle": (15, 16, 18, 19, 20, 22),
            "pedestrian": (2, 3, 4, 5, 6),
            "driveable_surface": (24,),
            "sidewalk": (26,),
            "terrain": (27,),
            "vegetation": (30,),
        },
        "semantic_kitti": {
            "car": (10, 252),
            "bicycle": (11,),
            "motorcycle": (15,),
            "truck": (18, 258),
            "other_vehicle": (13, 20, 257, 259),
            "pedestrian": (30, 254),
            "driveable_surface": (40, 44, 60),
            "sidewalk": (48,),
            "terrain": (72,),
            "vegetation": (70, 71),
        },
    },
    "semantic_poss_6": {
        "nuscenes": {
            "person": (2, 3, 4, 6),
            "bike": (14, 21),
            "car": (15, 16, 17, 18, 22, 23),
            "ground": (24, 25, 26, 27),
            "vegetation": (30,),
            "manmade": (9, 12, 28),
        },
        "semantic_poss": {
            "person": (4, 5),
            "bike": (6, 21),
            "car": (7,),
            "ground": (22,),
            "vegetation": (9,),
            "manmade": (10, 11, 12, 13, 14, 15, 16, 17),
        },
    },
}
OWN = {"nuscenes": NUSCENES, "semantic_kitti": SEMANTIC_KITTI, "semantic_poss": SEMANTIC_POSS}


def class_map(classes: str, dataset: str) -> LabelMap:
    """Which raw ids of a dataset make up each class of a set.

    Raises:
        StudentError: no such set, or no mapping for this dataset.
    """
    if classes not in RAW_IDS:
        raise StudentError(
            f"no class set '{classes}'{did_you_mean(classes, RAW_IDS)}",
            where="--classes",
            fix=f"Use one of: {', '.join(RAW_IDS)}.",
        )
    of_dataset = RAW_IDS[classes]
    if dataset not in of_dataset:
        raise StudentError(
            f"class set {classes} is not defined for dataset {dataset}",
            where="--classes",
            fix=f"Use it with {' or '.join(of_dataset)}.",
        )
    mapped = {raw for ids in of_dataset[dataset].values() for raw in ids}
    own = OWN[dataset]
    known = {raw for ids in own.raw_ids.values() for raw in ids} | set(own.ignored)
    return LabelMap(of_dataset[dataset], ignored=sorted(known - mapped))


def with_classes(dataset: Dataset, classes: str | None) -> Dataset:
    """The dataset with the labels of a set of classes; the dataset itself if `classes` is None.

    Raises:
        StudentError: no such set, or no mapping for this dataset.
    """
    if classes is None:
        return dataset
    relabelled = copy.copy(dataset)
    relabelled.label_map = class_map(classes, dataset.name)
    relabelled.class_names = relabelled.label_map.class_names
    return relabelled
