"""The picture of README.md: what a teacher and its student see in a street.

    python tests/benchmarks/readme_picture.py FOLDER WEIGHTS docs/features.png [--data DIR]

WEIGHTS are DINOv2 ViT-S/14's (tests/real_teacher.py). With --data the street is real: the student learns from the 33
training frames of DIR/semantickitti_11 and from frame 00 of DIR/pandaset, and is drawn on PandaSet's frame 01, a tenth
of a second later; FOLDER/real is the folder of real_study.py, whose store it reads. Without --data, streets are
simulated, and the one that is drawn is none that the student learnt from. What is in FOLDER is not made again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from real_study import IMAGE_SIZE, STUDENTS, TEACHER, make_store, streets
from studies import distil, extract, synth

from scalr.distill.checkpoint import load_student
from scalr.evaluate.cosines import unit
from scalr.evaluate.pictures import similarity_colours, softened
from scalr.evaluate.scan_features import ScanFeatures, scan_features
from scalr.evaluate.similarity import chosen_query, pca_colours
from scalr.evaluate.stored_scans import rows_in_scan
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.files import read_image
from scalr.extract.datasets.frame import Frame
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.store import StoredView, open_store

DRAWN_SIZE = (448, 896)  # of the teacher that is shown; the student learnt at IMAGE_SIZE
SEED = 0
WIDTH_PX, TITLE_PX, DPI, COLOURS = 1600, 36, 106, 160
POINT_M, POINT_PX = 0.12, (3.0, 10.0)  # how wide a point is, and its bounds in the picture
FADED = 0.4  # what is left of the image's contrast below the points


@dataclass(frozen=True)
class Street:
    """A frame to draw, with a teacher's targets of it, and the student that is asked about it."""

    student: Path
    dataset: str
    root: Path
    split: str
    token: str
    camera: str
    store: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--data", type=Path, help="folder with semantickitti_11 and pandaset")
    arguments = parser.parse_args()
    if arguments.data is None:
        street = simulated_street(arguments.folder / "picture", arguments.weights)
    else:
        street = real_street(arguments.folder / "real", arguments.weights, arguments.data)
    draw(street, arguments.picture)


def simulated_street(folder: Path, weights: Path) -> Street:
    world, run = folder / "world", folder / "run"
    synth(world, "--train-scenes", 8, "--val-scenes", 4, "--keyframes", 3, "--seed", SEED)
    stores = {split: folder / f"{split}.zarr" for split in ("train", "val")}
    for split, store in stores.items():
        extract(store, {TEACHER: weights}, DRAWN_SIZE, "--root", world, "--split", split)
    distil(run, [stores["train"]], SEED, epochs=160)
    token = open_dataset("nuscenes", world, "val").frames[0].token
    return Street(run / "student.safetensors", "nuscenes", world, "val", token, "CAM_FRONT", stores["val"])


def real_street(folder: Path, weights: Path, data: Path) -> Street:
    kitti, run = streets(folder, data, SEED), folder / "picture"
    make_store(weights, kitti, "train")
    roots = {number: folder / f"pandaset-{number}" for number in ("00", "01")}
    stores = {number: folder / f"pandaset-{number}.zarr" for number in roots}
    for (number, root), size in zip(roots.items(), (IMAGE_SIZE, DRAWN_SIZE), strict=True):
        link_frame(data / "pandaset", number, root)
        extract(stores[number], {TEACHER: weights}, size, "--dataset", "pandaset_64", "--root", root)
    student = run / "student.safetensors"
    if not student.exists():
        overrides = (f"training.batch_size={kitti.batch_size}", *STUDENTS["contrastive"])
        distil(run, [kitti.store("train"), stores["00"]], SEED, kitti.epochs, overrides=overrides)
    return Street(student, "pandaset_64", roots["01"], "train", "002/01", "front", stores["01"])


def link_frame(pandaset: Path, number: str, root: Path) -> None:
    """A folder of PandaSet with one frame alone of scene 002; its tables, which serve all frames, are whole."""
    for path in (pandaset / "002").rglob("*.*"):
        if path.suffix == ".json" or path.name.split(".")[0] == number:
            link = root / path.relative_to(pandaset)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(path.resolve())


def draw(street: Street, picture: Path) -> None:
    student, dataset = load_student(street.student), open_dataset(street.dataset, street.root, street.split)
    frame = next(frame for frame in dataset.frames if frame.token == street.token)
    view = next(view for view in frame.views if view.camera == street.camera)
    scan = scan_features(student, dataset, frame, street.dataset, labelled=True)
    stored, rows = stored_view(street, frame, scan)
    targets = unit(stored.targets)
    with torch.inference_mode():
        answers = unit(student.project(scan.tokens).cpu().numpy())[scan.nearest][rows]
    in_view = replace(scan, labels=np.where(np.isin(np.arange(len(scan.points)), rows), scan.labels, IGNORE_LABEL))
    query, vector = chosen_query(in_view, dataset.class_names, None, None)
    similar = similarity_colours(scan.similarity_to(vector, centre=True))[rows]
    columns = {
        "a teacher's features of an image (DINOv2)": softened(pca_colours(targets)),
        "its student's, from points alone": softened(pca_colours(as_spread(answers, targets), like=targets)),
        "the student's similarity to the ringed point": similar,
    }
    image = read_image(dataset.root, view)
    height, width = image.shape[:2]
    column_px = WIDTH_PX / len(columns)
    depth_m = np.linalg.norm(stored.points[stored.point_index, :3], axis=1)
    focal_px = view.calibration.intrinsics[0, 0] * column_px / width
    size = (np.clip(focal_px * POINT_M / depth_m, *POINT_PX) * 72 / DPI) ** 2
    order = np.argsort(-depth_m)  # near points over far ones
    row_of_query, column_of_query = stored.pixel[rows == query.point][0] + 0.5
    figure = Figure(figsize=(WIDTH_PX / DPI, (column_px * height / width + TITLE_PX) / DPI), layout="constrained")
    for axes, (title, colours) in zip(figure.subplots(1, len(columns)), columns.items(), strict=True):
        axes.imshow(255 - FADED * (255 - image.mean(axis=2)), cmap="gray", vmin=0, vmax=255)
        across, down = stored.pixel[order, 1] + 0.5, stored.pixel[order, 0] + 0.5
        axes.scatter(across, down, s=size[order], c=colours[order], linewidths=0)
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        axes.set_title(title, fontsize=12, loc="left")
    for colour, ring_width in (("white", 4), ("black", 2)):
        axes.plot(column_of_query, row_of_query, "o", ms=13, mfc="none", mec=colour, mew=ring_width)
    figure.savefig(picture, dpi=DPI)
    with Image.open(picture) as drawn:
        drawn.convert("RGB").quantize(COLOURS).save(picture, optimize=True)
    print(f"{picture}: {picture.stat().st_size / 1e3:.0f} kB, {frame.token} in {view.camera}, {query.text}")


def as_spread(features: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Features (N, D) on the three leading components of others (M, D), with the others' mean and deviation on each.

    A student that was trained so shortly answers far nearer to its mean than its teacher does, and to another mean.
    """
    mean = like.mean(axis=0)
    axes = np.linalg.svd(like - mean, full_matrices=False)[2][:3]
    theirs, ours = (like - mean) @ axes.T, (features - features.mean(axis=0)) @ axes.T
    return mean + (ours * (theirs.std(axis=0) / ours.std(axis=0))) @ axes


def stored_view(street: Street, frame: Frame, scan: ScanFeatures) -> tuple[StoredView, np.ndarray]:
    """The store's view of the street's camera, and the row in the scan of each of its pairs."""
    store = open_store(street.store)
    views = store.views.select(["token", "camera"]).to_pylist()
    view = store.read_view(views.index({"token": street.token, "camera": street.camera}), TEACHER)
    return view, rows_in_scan(view.points, scan.points, frame, store.path)[view.point_index]


if __name__ == "__main__":
    main()
