# %% [markdown]
# # First steps in Python
#
# From images to a student and its scores, on simulated streets. No dataset, no GPU and no network are needed, and it
# takes about a minute. Everything is written into a new temporary folder.
#
# The script [first_steps.py](first_steps.py) and the notebook [first_steps.ipynb](first_steps.ipynb), in the folder
# `examples`, have the same cells: run one of them from beginning to end, or cell by cell.

# %%
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import scalr

folder = Path(tempfile.mkdtemp(prefix="scalr-first-steps-"))

# %% [markdown]
# ## A dataset
#
# `write_world` writes simulated streets in nuScenes' own layout. With the real dataset, `root` is its folder. A *frame*
# is one scan with its images.

# %%
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.synthetic import write_world

root = folder / "world"
write_world(root, train_scenes=2, val_scenes=1, keyframes=2)
dataset = open_dataset("nuscenes", root, "train")
frame = dataset.frames[0]
points = dataset.read_points(frame)  # (N, 4) float32: x, y, z [m] in the lidar frame, raw intensity
print(f"{len(dataset.frames)} frames; the first has {len(points):,} points and {len(frame.views)} cameras")

# %% [markdown]
# A *pair* is a lidar point and the pixel that it projects to. Here are the pairs of the first camera, coloured by
# depth.

# %%
from scalr.evaluate.pictures import as_png
from scalr.evaluate.report import overlay_figure
from scalr.extract.datasets.files import read_image
from scalr.extract.projection import project


def picture(source: Path | BytesIO) -> Image.Image:
    """A PNG file, small enough for a page; a notebook shows it below the cell."""
    image = Image.open(source)
    image.thumbnail((800, 800))
    return image


camera = frame.views[0]
pairs = project(points, camera.calibration, camera.image_shape, dataset.visibility)
figure = overlay_figure(read_image(root, camera), pairs.pixel, pairs.depth_m)
picture(BytesIO(as_png(figure)))

# %% [markdown]
# ## Extraction: the teacher runs once
#
# The *target* of a pair is the teacher's feature at its pixel. Here the teacher, DINOv2, has random weights, so that
# nothing is downloaded: for the real weights, leave out `weights`.

# %%
from scalr.extract.run import ExtractConfig, extract

teacher = "dinov2_vits14"
config = ExtractConfig(
    root=root, out=folder / "store.zarr", teachers=(teacher,), weights=("random",), image_size=(56, 112)
)
print(extract(config).store.as_text())

# %% [markdown]
# A *view* is one camera image of a frame. The store has a row for each view: its scan, its pairs and their targets.

# %%
store = scalr.open_store(config.out)
print(store.views.select(["scene", "token", "camera", "image"]).slice(0, 3).to_pylist())
view = store.read_view(0, teacher)
print(f"{len(view.point_index):,} of {len(view.points):,} points are seen; targets: {view.targets.shape}")
assert np.array_equal(view.points, points)

# %% [markdown]
# ## Distillation: a student learns the targets from points alone
#
# This training is far too short for good features, and the teacher's weights are random: it only shows the steps.

# %%
from scalr.distill.recipe import load_recipe
from scalr.distill.run import DistillConfig, distill

recipe = load_recipe("demo", ["training.epochs=15", "training.workers=0", "training.warmup_steps=5"])
summary = distill(DistillConfig(caches=(config.out,), out=folder / "run", recipe=recipe))
print(f"loss {summary.losses[0]:.2f} in the first step, {summary.losses[-1]:.2f} in the last")

# %% [markdown]
# A student gives a feature for every raw point. `project` maps features to the teacher's space, where they can be
# compared with the targets.

# %%
student = scalr.load_student(summary.student)
features = student.extract(points, dataset="nuscenes")  # (N, width)
predicted = student.project(features[torch.from_numpy(view.point_index.astype(np.int64))])  # (R, D)
cosine = torch.nn.functional.cosine_similarity(predicted, torch.from_numpy(view.targets))
print(f"features {tuple(features.shape)}; mean cosine of predicted features and targets: {cosine.mean():.2f}")

# %% [markdown]
# ## Pictures
#
# The first three principal components of the features as red, green and blue. Left, the teacher's features; right, the
# student's. Above, in a camera's image; below, the scan from above.

# %%
from scalr.evaluate.similarity import SimilarityConfig, similarity_maps

maps = similarity_maps(
    SimilarityConfig(
        student=summary.student, root=root, split="train", cache=config.out, out=folder / "similarity", area_frames=0
    )
)
picture(maps.pca)

# %% [markdown]
# The cosine similarity of each point's feature to that of one point on a car. The page `similarity/cloud.html` shows
# the same, and there a click chooses another point.

# %%
picture(maps.top_view)

# %% [markdown]
# ## Evaluation: linear probing
#
# A linear layer is trained with labels on the features of the frozen student.

# %%
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
print(f"mIoU {scores.miou:.1%}")

# %% [markdown]
# ## Prediction
#
# The probe wrote a model: the student with the trained layer. It predicts the class of every point of a raw scan.

# %%
model = scalr.load_model(folder / "probe" / "model.safetensors")
classes = model.predict(points)  # (N,) uint8: indexes into model.class_names
for index, count in zip(*np.unique(classes, return_counts=True), strict=True):
    print(f"{count:6,} points: {model.class_names[index]}")
print(f"everything is in {folder}")
