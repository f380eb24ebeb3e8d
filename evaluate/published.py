"""What the papers report, by setting: the figures that a run is put beside.

Sources: the tables of ScaLR (CVPR 2024) as in valeoai/ScaLR's README, those of its branch scalr_plus, and Robo3D's
README for WaffleIron without distillation. All students are WI-48-768, distilled from DINOv2 ViT-L/14 on four datasets.
"""

from __future__ import annotations

# Setting of a result card -> who -> figures [%].
PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    "probe nuscenes": {"ScaLR": {"mIoU": 67.8}, "ScaLR+": {"mIoU": 70.4}},
    "probe semantic_kitti": {"ScaLR": {"mIoU": 55.8}, "ScaLR+": {"mIoU": 61.0}},
    "probe pandaset_64": {"ScaLR": {"mIoU": 37.9}, "ScaLR+": {"mIoU": 43.5}},
    "probe pandaset_gt": {"ScaLR": {"mIoU": 34.5}, "ScaLR+": {"mIoU": 40.7}},
    "finetune nuscenes 1%": {"ScaLR": {"mIoU": 50.7}, "ScaLR+": {"mIoU": 54.1}},
    "finetune nuscenes 10%": {"ScaLR": {"mIoU": 69.2}, "ScaLR+": {"mIoU": 70.7}},
    "finetune nuscenes 100%": {"ScaLR": {"mIoU": 78.4}, "ScaLR+": {"mIoU": 78.4}},
    "finetune semantic_kitti 1%": {"ScaLR": {"mIoU": 55.8}, "ScaLR+": {"mIoU": 57.4}},
    "finetune semantic_kitti 100%": {"ScaLR": {"mIoU": 65.8}, "ScaLR+": {"mIoU": 65.2}},
    "finetune pandaset_64 100%": {"ScaLR": {"mIoU": 48.3}},
    "finetune pandaset_gt 100%": {"ScaLR": {"mIoU": 41.1}},
    "scratch nuscenes 100%": {"WaffleIron": {"mIoU": 78.7}},
    "robustness nuscenes_c": {
        "ScaLR": {"mCE": 87.4, "mRR": 83.8},
        "WaffleIron": {"mCE": 106.73, "mRR": 72.78, "mIoU clean": 76.07},
    },
    "robustness semantic_kitti_c": {"WaffleIron": {"mCE": 109.54, "mRR": 72.18, "mIoU clean": 66.04}},
}
