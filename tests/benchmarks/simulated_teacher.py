"""Teachers that know the simulated world, as foundation models know the real one: small ViTs, trained to tell classes.

With random weights a teacher tells little more than colour, and no comparison of losses or teachers means anything.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.files import read_image
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.projection import project
from scalr.extract.targets import footprint, sample_targets
from scalr.extract.teachers.teacher import Preprocessing
from scalr.extract.teachers.timm_import import import_timm
from scalr.progress import progress

BATCH, LEARNING_RATE, WEIGHT_DECAY = 12, 1e-3, 0.05
TEMPERATURE = 0.1


def train_teacher(
    name: str, world: Path, image_size: tuple[int, int], path: Path, classes: Collection[int], epochs: int, seed: int
) -> float:
    """Train timm's `name` from random weights on the images of a simulated nuScenes, and save its state dict.

    Every lidar point says which class its pixel is of; points of other `classes` are not shown.

    Returns:
        The share of points told rightly in the last epoch.
    """
    torch.manual_seed(seed)
    model = import_timm().create_model(name, img_size=image_size).train()  # timm's files have its head
    patch, samples = model.patch_embed.patch_size[0], _samples(world, image_size, model.pretrained_cfg, classes)
    head = torch.nn.Linear(model.num_features, IGNORE_LABEL, bias=False)
    parameters = [*model.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(samples) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps)
    rng, map_shape = np.random.default_rng(seed), tuple(side // patch for side in image_size)
    with progress(steps, f"train {name}", "step") as bar:
        for _ in range(epochs):
            right = total = 0
            for rows in np.array_split(rng.permutation(len(samples)), steps // epochs):
                images, pixels, labels, shapes = zip(*(samples[row] for row in rows), strict=True)
                (maps,) = model.forward_intermediates(
                    torch.stack(images), indices=1, norm=False, intermediates_only=True
                )
                targets = [
                    sample_targets(patch_map.permute(1, 2, 0), footprint(pixel, shape, map_shape, patch))
                    for patch_map, pixel, shape in zip(maps, pixels, shapes, strict=True)
                ]
                # By angles, as under DINO's head: what a student learns of a feature is its direction.
                directions = F.normalize(torch.cat(targets), dim=1)
                scores, wanted = directions @ F.normalize(head.weight).T / TEMPERATURE, torch.cat(labels)
                weight = torch.bincount(wanted, minlength=IGNORE_LABEL).clamp(min=1).float().rsqrt()
                optimiser.zero_grad()
                F.cross_entropy(scores, wanted, weight=weight).backward()
                optimiser.step()
                schedule.step()
                right += (scores.argmax(dim=1) == wanted).sum().item()
                total += len(wanted)
                bar.update()
    torch.save(model.state_dict(), path)
    return right / total


def _samples(world: Path, image_size: tuple[int, int], cfg, classes: Collection[int]) -> list[tuple]:
    """For each view: image (3, h, w), pixel (R, 2), label (R,), and (H, W) of the original image."""
    dataset = open_dataset("nuscenes", world, "train", need="labels")
    preprocessing = Preprocessing(image_size, tuple(cfg["mean"]), tuple(cfg["std"]), torch.device("cpu"))
    samples = []
    for frame in dataset.frames:
        points, labels = dataset.read_points(frame), dataset.read_labels(frame).astype(np.int64)
        for view in frame.views:
            pairs = project(points, view.calibration, view.image_shape, dataset.visibility)
            label = labels[pairs.point_index]
            known = np.isin(label, list(classes))
            if known.any():
                image = preprocessing.apply(read_image(dataset.root, view))
                pixel = torch.from_numpy(pairs.pixel[known].astype(np.int64))
                samples.append((image, pixel, torch.from_numpy(label[known]), view.image_shape))
    return samples
