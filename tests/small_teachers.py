"""Teachers of few, narrow layers, whose weights all matter, and a view to look at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from scalr.extract.pipeline import teacher_footprint
from scalr.extract.targets import sample_targets
from scalr.extract.teachers.find import find_teacher
from scalr.extract.teachers.registry import TeacherSpec
from scalr.extract.teachers.teacher import Teacher, load_teacher

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2}


def small_spec(name: str) -> TeacherSpec:
    spec = find_teacher(name)
    return replace(spec, dim=SMALL["embed_dim"], options={**spec.options, **SMALL})


def seeded(teacher: Teacher) -> Teacher:
    """As initialised, many weights are zero or nearly so."""
    generator = torch.Generator().manual_seed(0)
    for parameter in teacher.model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return teacher


def small_teacher(name: str, patches: tuple[int, int] = (3, 5), **options) -> Teacher:
    """A teacher whose spec is small already."""
    size = tuple(side * find_teacher(name).patch_size for side in patches)
    return seeded(load_teacher(name, image_size=size, weights="random", **options))


def a_view() -> tuple[np.ndarray, np.ndarray]:
    """An image (61, 93, 3), and the pixels of 200 pairs in it, corners included."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (61, 93, 3), dtype=np.uint8)
    pixel = np.vstack([rng.integers(0, (61, 93), (196, 2)), [(0, 0), (0, 92), (60, 0), (60, 92)]]).astype(np.uint16)
    return image, pixel


def targets_of(teacher: Teacher) -> torch.Tensor:
    """(200, D) at the pairs of that view."""
    image, pixel = a_view()
    patch_map = teacher.patch_maps(teacher.preprocessing.apply(image)[None])[0]
    return sample_targets(patch_map, teacher_footprint(teacher, pixel, image.shape[:2]))
