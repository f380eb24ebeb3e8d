"""The picture of README.md: what teacher and student see in a simulated street that neither was trained on.

    python tests/benchmarks/readme_picture.py FOLDER WEIGHTS docs/features.png

WEIGHTS are DINOv2 ViT-S/14's (tests/real_teacher.py). What is in FOLDER is not made again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from studies import distil, extract, synth

from scalr.distill.checkpoint import load_student, student_provenance
from scalr.evaluate.pictures import similarity_colours, softened
from scalr.evaluate.similarity import (
    chosen_query,
    in_space_of,
    pca_colours,
    scan_features,
    stored_features,
    unit,
)
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.files import read_image
from scalr.extract.store import open_store

TEACHER, IMAGE_SIZE = "dinov2_vits14", (448, 896)
SEED, EPOCHS, FRAME = 0, 160, 6
WIDTH_PX, COLOURS = 1600, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--frame", type=int, default=FRAME, help="of the validation split")
    arguments = parser.parse_args()
    student, world, stores = make_student(arguments.folder, arguments.weights)
    draw(student, world, stores["val"], arguments.frame, arguments.picture)


def make_student(folder: Path, weights: Path) -> tuple[Path, Path, dict[str, Path]]:
    """The student's file, its world, and the stores of both splits."""
    world, run = folder / "world", folder / "run"
    synth(world, "--train-scenes", 8, "--val-scenes", 4, "--keyframes", 3, "--seed", SEED)
    stores = {split: folder / f"{split}.zarr" for split in ("train", "val")}
    for split, store in stores.items():
        extract(store, {TEACHER: weights}, IMAGE_SIZE, "--root", world, "--split", split)
    distil(run, [stores["train"]], SEED, EPOCHS)
    return run / "student.safetensors", world, stores


def draw(student_file: Path, world: Path, store: Path, frame_number: int, picture: Path) -> None:
    student, dataset = load_student(student_file), open_dataset("nuscenes", world, "val")
    frame = dataset.frames[frame_number]
    scan = scan_features(student, dataset, frame, "nuscenes", labelled=True)
    stored = stored_features(open_store(store), TEACHER, dataset, frame, scan)
    targets = unit(stored.targets)
    answers = in_space_of(stored, student, scan, student_provenance(student_file))
    _, vector = chosen_query(scan, dataset.class_names, None, None)
    rows = stored.rows[-len(stored.pixel) :]
    view = next(view for view in frame.views if view.camera == stored.camera)
    image = read_image(dataset.root, view)
    height, width = image.shape[:2]
    grey = 255 - 0.5 * (255 - image.mean(axis=2))
    columns = {
        "an image, and a teacher's features of it": softened(pca_colours(targets))[-len(rows) :],
        "a student's, from points alone": softened(pca_colours(answers, like=targets))[scan.nearest][rows],
        "the student's similarity to a point on a car": similarity_colours(scan.similarity_to(vector, centre=True))[
            rows
        ],
    }
    figure = Figure(figsize=(15, 15 / 3 * height / width + 0.35), layout="constrained")
    for axes, (title, colours) in zip(figure.subplots(1, 3), columns.items(), strict=True):
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
        axes.scatter(stored.pixel[:, 1] + 0.5, stored.pixel[:, 0] + 0.5, s=5, c=colours, linewidths=0)
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        axes.set_title(title, fontsize=12, loc="left")
    figure.savefig(picture, dpi=WIDTH_PX / 15)
    with Image.open(picture) as drawn:
        drawn.convert("RGB").quantize(COLOURS).save(picture, optimize=True)
    print(f"{picture}: {picture.stat().st_size / 1e3:.0f} kB, {frame.scene} in {stored.camera}")


if __name__ == "__main__":
    main()
