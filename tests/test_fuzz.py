"""Two thousand damaged inputs: each is refused in one line, warned of, or read as if it were sound.

Which damages cannot be told is said in `mutated_files`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import save_file

from error_record import complaints_about
from mutated_files import (
    CALIBRATION,
    CHUNK,
    FOLDER,
    FRAME_TABLE,
    IMAGE,
    INDEX,
    JSON,
    PNG,
    SCAN,
    WEIGHTS,
    YAML,
    ZARR_JSON,
    Mutations,
    chosen,
    conversions,
    without,
)
from scalr.cli import main
from scalr.errors import ScalrError
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.files import read_image
from scalr.extract.datasets.scans import read_labelled_scan
from scalr.extract.preparation import Selection, prepare_frame
from scalr.extract.store import open_store
from scalr.extract.store.verify import open_to_verify, verify_store
from scalr.extract.targets import largest
from scalr.extract.teachers import registry
from scalr.extract.teachers.teacher import load_teacher
from small_store import filled_store
from small_teachers import small_spec, small_teacher, targets_of

pytestmark = pytest.mark.slow

SEED = 26
Damageable = Sequence[tuple[Sequence[Path], Mutations]]  # files that are damaged alike, and how they may be


class Reading(NamedTuple):
    """What became of an input."""

    numbers: dict[str, str]  # digests of all that is read
    said: str = ""  # warnings


def fuzz(read: Callable[[], Reading], files: Damageable, inputs: int) -> None:
    """Damage a file, or several alike, and read: no traceback, and no other numbers than the sound ones unsaid."""
    sound = read()
    assert sound.numbers
    assert not sound.said
    failures, told = [], 0
    for number in range(inputs):
        random = np.random.default_rng((SEED, number))
        paths, mutations = chosen(random, files)
        name = chosen(random, sorted(mutations))
        with ExitStack() as stack:
            for path in paths:
                stack.enter_context(damaged(path, mutations[name](path.read_bytes(), random)))
            outcome = outcome_of(read, sound)
        told += outcome == ""
        if outcome not in ("", "as sound"):
            failures.append(f"input {number}: {paths[0].name}, {name}: {outcome}")
    assert not failures, "\n".join(failures)
    assert told > inputs / 3  # mutations that change nothing would show nothing
    assert read() == sound


@contextmanager
def damaged(path: Path, content: bytes | None) -> Iterator[None]:
    """The file has another content for a while, is gone, or a folder has its name."""
    sound = path.read_bytes()
    path.unlink()
    try:
        if content is FOLDER:
            path.mkdir()
        elif content is not None:
            path.write_bytes(content)
        yield
    finally:
        if path.is_dir():
            path.rmdir()
        path.write_bytes(sound)


def outcome_of(read: Callable[[], Reading], sound: Reading) -> str:
    """Empty where people are told; else what went wrong, or "as sound"."""
    try:
        found = read()
    except ScalrError as error:
        return "; ".join(complaints_about(error))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {error}"
    if found.said:
        return ""
    if found.numbers == sound.numbers:
        return "as sound"
    other = [name for name in {**sound.numbers, **found.numbers} if sound.numbers.get(name) != found.numbers.get(name)]
    return f"other numbers, and not a word: {', '.join(other)}"


# --- data sets --------------------------------------------------------------------------------------------------------


def check_and_read(name: str, root: Path, split: str = "train") -> Reading:
    """`scalr check`, and where it has nothing to say, all that an extraction and an evaluation read."""
    verb = ["check", "--dataset", name, "--root", str(root), "--split", split, "--json"]
    result = CliRunner().invoke(main, verb)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    report = json.loads(result.stdout) if result.stdout else {}
    said = [*errors, *report.get("problems", ()), *report.get("warnings", ())]
    assert bool(result.exit_code) == bool(errors or report["problems"])
    return Reading({}, "\n".join(said)) if said else Reading(numbers_of(name, root, split))


def numbers_of(name: str, root: Path, split: str) -> dict[str, str]:
    """Of each frame: what is computed of its scan, images and labels."""
    dataset, numbers = open_dataset(name, root, split), {}
    for frame in dataset.frames:
        points, labels = read_labelled_scan(dataset, frame)
        prepared = prepare_frame(dataset, frame, [], Selection())
        views = sorted(prepared.views, key=lambda view: view.record.image)
        arrays = [points, labels, *(each for view in views for each in (view.point_index, view.pixel))]
        images = [read_image(dataset.root, view.record) for view in views]
        numbers[frame.token] = digest_of(frame.timestamp, *arrays, *images)
    return numbers


def digest_of(*values: object) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


@pytest.fixture
def world_of(simulated, tmp_path):
    """Call with a layout for a copy of its world that may be damaged."""
    return lambda layout: Path(shutil.copytree(simulated(layout), tmp_path / layout))


def test_tables_of_nuscenes(world_of):
    root = world_of("nuscenes")
    tables = root / "v1.0-trainval"
    linked = ("calibrated_sensor", "ego_pose", "sample", "sample_data", "sensor", "lidarseg")
    files = [([tables / f"{name}.json"], JSON) for name in linked]
    # With an item less there is a scene less.
    files.append(([tables / "scene.json"], without(JSON, "item missing")))
    fuzz(lambda: check_and_read("nuscenes", root), files, 400)


def test_tables_of_pandaset(world_of):
    root = world_of("pandaset")
    scene = root / open_dataset("pandaset_gt", root, "train").frames[0].scene
    names = (
        "lidar/poses",
        "lidar/timestamps",
        "camera/front_camera/poses",
        "camera/front_camera/intrinsics",
        "meta/gps",
    )
    fuzz(lambda: check_and_read("pandaset_gt", root), [([scene / f"{name}.json"], JSON) for name in names], 250)


def test_calibrations_of_kitti(world_of):
    root = world_of("semantic_kitti")
    scene = open_dataset("semantic_kitti", root, "train").frames[0].scene
    files = [([root / "sequences" / scene / "calib.txt"], CALIBRATION)]
    fuzz(lambda: check_and_read("semantic_kitti", root), files, 200)


@pytest.mark.parametrize(("name", "columns"), [("nuscenes", 5), ("semantic_kitti", 4)])
def test_scans(world_of, name, columns):
    root = world_of(name)
    paths = [root / frame.scan for frame in open_dataset(name, root, "train").frames]
    files = [*(([path], SCAN) for path in paths), (paths, conversions(columns))]
    fuzz(lambda: check_and_read(name, root), files, 100)


@pytest.mark.parametrize(("name", "mutations"), [("nuscenes", IMAGE), ("semantic_kitti", PNG)])
def test_images(world_of, name, mutations):
    root = world_of(name)
    images = [view.image for frame in open_dataset(name, root, "train").frames for view in frame.views]
    fuzz(lambda: check_and_read(name, root), [([root / image], mutations) for image in images], 75)


@pytest.fixture
def rig(world_of) -> Path:
    """A frame table over the scans and images of the simulated nuScenes."""
    root = world_of("nuscenes")
    dataset = open_dataset("nuscenes", root, "train")
    rows = [
        {
            "scene": frame.scene,
            "token": frame.token,
            "timestamp": frame.timestamp,
            "scan": frame.scan,
            "labels": frame.labels,
            "camera": view.camera,
            "image": view.image,
            "image_height": view.image_shape[0],
            "image_width": view.image_shape[1],
            "cam_from_lidar": view.calibration.cam_from_lidar[:3].ravel().tolist(),
            "intrinsics": view.calibration.intrinsics.ravel().tolist(),
        }
        for frame in dataset.frames
        for view in frame.views
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "frames.parquet")
    about = {
        "name": "rig",
        "intensity": {"mean": dataset.intensity.mean, "std": dataset.intensity.std},
        "classes": {name: list(ids) for name, ids in dataset.label_map.raw_ids.items()},
        "ignored": list(dataset.label_map.ignored),
        "visibility": {"min_depth_m": 1.0, "border_px": 1},
    }
    (root / "dataset.yaml").write_text(yaml.safe_dump(about))
    return root


def test_frame_tables(rig):
    fuzz(lambda: check_and_read("frames", rig), [([rig / "frames.parquet"], FRAME_TABLE)], 250)


def test_descriptions_of_rigs(rig):
    fuzz(lambda: check_and_read("frames", rig), [([rig / "dataset.yaml"], YAML)], 150)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_dinov2(monkeypatch) -> dict[str, torch.Tensor]:
    """Weights of a DINOv2 of three narrow layers, which is what its name means for a while."""
    monkeypatch.setitem(registry.TEACHERS, "dinov2_vits14", small_spec("dinov2_vits14"))
    return small_teacher("dinov2_vits14", (37, 37)).model.state_dict()


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_weights(small_dinov2, tmp_path, ending):
    path = tmp_path / f"weights.{ending}"
    save_file(small_dinov2, path) if ending == "safetensors" else torch.save(dict(small_dinov2), path)

    def read() -> Reading:
        teacher = load_teacher("dinov2_vits14", image_size=(42, 70), weights=str(path))
        targets = targets_of(teacher)
        largest(targets)  # which an extraction looks at before it goes on
        return Reading({"targets": digest_of(targets.numpy())})

    fuzz(read, [([path], WEIGHTS)], 75)


# --- stores -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path) -> Path:
    return filled_store(tmp_path / "s.zarr").path


def files_of(store: Path) -> Damageable:
    kinds = {".json": ZARR_JSON, ".parquet": INDEX}
    return [([path], kinds.get(path.suffix, CHUNK)) for path in sorted(store.rglob("*")) if path.is_file()]


def numbers_in(store: Path) -> dict[str, str]:
    """What a training reads of each view, and of the store; names of frames and cameras are for people."""
    opened, numbers = open_store(store), {}
    for row in range(opened.views.num_rows):
        view = opened.read_view(row, teacher="t")
        arrays = (view.points, view.point_index, view.pixel, view.targets)
        numbers[f"view {row}"] = f"{digest_of(*arrays)} {view.dataset} {view.intensity}"
    return numbers | {"statistics": str(opened.statistics("t")), "teacher": str(opened.teachers["t"])}


def test_stores_as_a_training_reads_them(store):
    fuzz(lambda: Reading(numbers_in(store)), files_of(store), 125)


def test_stores_as_verify_reads_them(store):
    def read() -> Reading:
        found = verify_store(open_to_verify(store))
        if not found.whole:
            return Reading({}, str(found))
        return Reading(numbers_in(store) | {"views": str(open_store(store).views.to_pylist())})

    fuzz(read, files_of(store), 125)
