"""From images to a student in Python, cell by cell, on a simulated world: no data, no network, about a minute.

Run it as it is (`python examples/first_steps.py`), or cell by cell in an editor that knows `# %%`.
"""

# %% A folder for everything
import tempfile
from pathlib import Path

import numpy as np
import torch

import scalr

folder = Path(tempfile.mkdtemp(prefix="scalr-first-steps-"))

# %% A world: simulated streets in nuScenes' own layout. With the real dataset, `root` is its folder.
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.synthetic import write_world

root = folder / "world"
write_world(root, train_scenes=2, val_scenes=1, keyframes=2)
dataset = open_dataset("nuscenes", root, "train")
points = dataset.read_points(dataset.frames[0])  # (N, 4) float32: x, y, z [m] in the lidar frame, raw intensity
print(f"{len(dataset.frames)} frames; the first has {len(points):,} points and {len(dataset.frames[0].views)} cameras")

# %% Stage one: a teacher runs once. Random weights stand in for the hub's; leave `weights` out for the real ones.
from scalr.extract.run import ExtractConfig, extract

teacher = "dinov2_vits14"
config = ExtractConfig(
    root=root, out=folder / "store.zarr", teachers=(teacher,), weights=("random",), image_size=(56, 112)
)
print(extract(config).store.as_text())

# %% What is in the store: a row for each camera of each frame, and for each row its points, pixels and targets.
store = scalr.open_store(config.out)
print(store.views.select(["scene", "token", "camera", "image"]).slice(0, 3).to_pylist())
view = store.read_view(0, teacher)
print(f"{len(view.point_index):,} of {len(view.points):,} points are seen; their targets are {view.targets.shape}")
assert np.array_equal(view.points, points)

# %% Stage two: a student learns to say from points what the teacher says from images. Far too short here.
from scalr.distill.recipe import load_recipe
from scalr.distill.run import DistillConfig, distill

recipe = load_recipe("demo", ["training.epochs=15", "training.workers=0", "training.warmup_steps=5"])
summary = distill(DistillConfig(caches=(config.out,), out=folder / "run", recipe=recipe))
print(summary.as_text())

# %% A student gives every raw point a feature, and takes it to the teacher's space.
student = scalr.load_student(summary.student)
features = student.extract(points, dataset="nuscenes")  # (N, width)
answers = student.project(features[torch.from_numpy(view.point_index.astype(np.int64))])  # (R, D)
cosine = torch.nn.functional.cosine_similarity(answers, torch.from_numpy(view.targets))
print(f"features {tuple(features.shape)}; cosine of answers and targets: {cosine.mean():.2f}")

# %% Stage three: what a linear layer reads off the frozen student.
from scalr.evaluate.probe import ProbeConfig, probe

scores = probe(
    ProbeConfig(
        student=summary.student,
        root=root,
        out=folder / "probe",
        fast=True,
        epochs=3,
        warmup_epochs=1,
        learning_rate=0.1,
    )
).scores
print(f"mIoU {scores.miou:.1%}; everything is in {folder}")
