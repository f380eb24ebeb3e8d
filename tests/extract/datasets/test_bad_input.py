"""Whatever is wrong with a dataset's files, one line names file and cause, and other frames go on if asked to."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalr.errors import DatasetError
from scalr.extract import run
from scalr.extract.check import check
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.frame import Frame
from scalr.extract.run import ExtractConfig, extract
from scalr.extract.store import open_store
from scalr.extract.store.verify import verify_store
from tiny import tiny_teachers

BROKEN = 1  # the frame that is damaged


@dataclass(frozen=True)
class World:
    """A dataset that a test may damage."""

    name: str
    root: Path
    split: str

    @property
    def frame(self) -> Frame:
        return open_dataset(self.name, self.root, self.split).frames[BROKEN]

    @property
    def scan(self) -> Path:
        return self.root / self.frame.scan

    @property
    def labels(self) -> Path:
        return self.root / str(self.frame.labels)

    @property
    def image(self) -> Path:
        return self.root / self.frame.views[0].image

    @property
    def images(self) -> Path:
        return self.image.parent


def as_robo3d(source: Path, corrupted: Path, parts: dict[str, str]) -> Path:
    """Lay out a clean world as one corruption of it."""
    for part, place in parts.items():
        shutil.copytree(source / part, corrupted / "fog/light" / place)
    return corrupted


def as_frames(source: Path, root: Path) -> Path:
    """A table over the scans and images of the simulated SemanticKITTI."""
    shutil.copytree(source, root)
    rows = [
        {
            "scene": frame.scene,
            "token": frame.token,
            "timestamp": frame.timestamp,
            "scan": frame.scan,
            "labels": frame.labels,
            "camera": view.camera,
            "image": view.image,
            "cam_from_lidar": view.calibration.cam_from_lidar[:3].ravel().tolist(),
            "intrinsics": view.calibration.intrinsics.ravel().tolist(),
        }
        for frame in open_dataset("semantic_kitti", root, "train").frames
        for view in frame.views
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "frames.parquet")
    known = sorted({*range(10, 100), *range(252, 260)} - {77})
    (root / "dataset.yaml").write_text(json.dumps({"classes": {"any": known}, "intensity": {"mean": 0.3, "std": 0.1}}))
    return root


@pytest.fixture
def world(request, simulated, tmp_path) -> World:
    name, root = request.param, tmp_path / "world"
    if name == "frames":
        return World(name, as_frames(simulated("semantic_kitti"), root), "train")
    if name == "nuscenes_c":
        parts = {"samples/LIDAR_TOP": "samples/LIDAR_TOP", "lidarseg": "lidarseg"}
        as_robo3d(simulated("nuscenes"), root, parts)
        shutil.copytree(simulated("nuscenes") / "v1.0-trainval", root / "v1.0-trainval")
        return World(name, root, "fog/light")
    if name == "semantic_kitti_c":
        parts = {f"sequences/08/{each}": each for each in ("velodyne", "labels")}
        return World(name, as_robo3d(simulated("semantic_kitti"), root, parts), "fog/light")
    layout = "pandaset" if name.startswith("pandaset") else name
    return World(name, Path(shutil.copytree(simulated(layout), root)), "train")


WITH_CAMERAS = ["nuscenes", "semantic_kitti", "pandaset_64", "pandaset_gt", "frames"]
ALL = [*WITH_CAMERAS, "semantic_poss", "nuscenes_c", "semantic_kitti_c"]
PANDASET = ["pandaset_64", "pandaset_gt"]


def change_table(path: Path, change: Callable) -> None:
    import pandas

    table = pandas.read_pickle(path)
    path.write_bytes(gzip.compress(pickle.dumps(change(table))))


def without_points(world: World) -> None:
    if world.name in PANDASET:
        change_table(world.scan, lambda table: table[table.d > 1])
    else:
        world.scan.write_bytes(b"")


def with_a_nan(world: World) -> None:
    if world.name in PANDASET:
        change_table(world.scan, lambda table: table.assign(y=np.where(np.arange(len(table)) % 97, table.y, np.nan)))
    else:
        world.scan.write_bytes(np.float32("nan").tobytes() + world.scan.read_bytes()[4:])


def with_fewer_labels(world: World) -> None:
    if world.name in PANDASET:
        change_table(world.labels, lambda table: table[8:])
    else:
        world.labels.write_bytes(world.labels.read_bytes()[:-8])


def with_an_unknown_id(world: World) -> None:
    if world.name in PANDASET:
        change_table(world.labels, lambda table: table.assign(**{"class": 77}))
    else:
        wide = not world.name.startswith("nuscenes")
        content = np.frombuffer(world.labels.read_bytes(), np.uint32 if wide else np.uint8).copy()
        content[5] = 77
        world.labels.write_bytes(content.tobytes())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 1])


class Forbidden:
    def __reduce__(self):
        return os.system, ("touch executed",)


def write_forbidden(path: Path) -> None:
    path.write_bytes(gzip.compress(pickle.dumps(Forbidden())))


@dataclass(frozen=True)
class Damage:
    """What is done to a world, the file that is named for it, and the cause."""

    do: Callable[[World], object]
    file: str
    cause: str
    worlds: tuple[str, ...] = tuple(ALL)
    stops_extraction: bool = True


NOT_WHOLE = "not a whole number of|the pickle cannot be read"
DAMAGES = {
    "no scan": Damage(lambda world: world.scan.unlink(), "scan", "the file is missing"),
    "cut scan": Damage(lambda world: cut(world.scan), "scan", NOT_WHOLE),
    "empty scan": Damage(without_points, "scan", "empty or truncated|of one point or more"),
    "NaN points": Damage(with_a_nan, "scan", r"\d+ of \d+ points are not finite"),
    "no labels": Damage(lambda world: world.labels.unlink(), "labels", "the file is missing", stops_extraction=False),
    "cut labels": Damage(
        lambda world: cut(world.labels), "labels", f"{NOT_WHOLE}|labels, and the scan", stops_extraction=False
    ),
    "fewer labels": Damage(
        with_fewer_labels, "labels", r"\d+ labels, and the scan .* has \d+ points", stops_extraction=False
    ),
    "unknown id": Damage(
        with_an_unknown_id, "labels", "label ids that the dataset does not define: 77", stops_extraction=False
    ),
    "no image": Damage(lambda world: world.image.unlink(), "image", "the file is missing", tuple(WITH_CAMERAS)),
    "empty image": Damage(
        lambda world: world.image.write_bytes(b""), "image", "cannot be decoded", tuple(WITH_CAMERAS)
    ),
    "cut image": Damage(lambda world: cut(world.image), "image", "cannot be decoded", tuple(WITH_CAMERAS)),
    "no folder of images": Damage(
        lambda world: shutil.rmtree(world.images), "images", "the file is missing", tuple(WITH_CAMERAS)
    ),
    "forbidden pickle": Damage(
        lambda world: write_forbidden(world.scan), "scan", r"the pickle names (posix|nt)\.system", tuple(PANDASET)
    ),
    "forbidden labels": Damage(
        lambda world: write_forbidden(world.labels), "labels", "the pickle names", tuple(PANDASET), False
    ),
    "no table": Damage(
        lambda world: world.scan.write_bytes(gzip.compress(pickle.dumps([1, 2]))),
        "scan",
        "not a table of numbers with the columns x, y, z, i, d",
        tuple(PANDASET),
    ),
}
CASES = [  # both lidars of PandaSet have one reader
    pytest.param(world, damage, id=f"{world}-{damage}", marks=[pytest.mark.slow] if world == "pandaset_gt" else [])
    for damage, each in DAMAGES.items()
    for world in each.worlds
]
STOPPING = {name: damage for name, damage in DAMAGES.items() if damage.stops_extraction}
EXTRACTED = [  # each damage in one world, each world several times; the others are slow
    pytest.param(
        world,
        damage,
        id=f"{world}-{damage}",
        marks=[] if world == with_cameras[number % len(with_cameras)] else pytest.mark.slow,
    )
    for number, (damage, each) in enumerate(STOPPING.items())
    for with_cameras in [[world for world in each.worlds if world in WITH_CAMERAS]]
    for world in with_cameras
]


def extracted(world: World, out: Path, **options):
    """`scalr extract` with a teacher that costs nothing."""
    teachers = tiny_teachers()
    with mock.patch.object(run, "load_teacher", lambda name, **_: teachers[name]):
        config = ExtractConfig(
            dataset=world.name, root=world.root, split=world.split, out=out, teachers=("coordinates",), **options
        )
        return extract(config)


def assert_one_line(text: str, file: Path, cause: str) -> None:
    assert "\n" not in text
    assert str(file) in text
    assert re.search(cause, text), text


@pytest.mark.parametrize(("world", "damage"), CASES, indirect=["world"])
def test_check_names_file_and_cause(world, damage):
    damage = DAMAGES[damage]
    file = getattr(world, damage.file)
    damage.do(world)
    problems = check(world.name, world.root, world.split).problems
    assert problems
    assert_one_line(problems[0], file, damage.cause)
    assert not (Path.cwd() / "executed").exists()


@pytest.mark.parametrize(("world", "damage"), EXTRACTED, indirect=["world"])
def test_extraction_names_file_and_cause_and_other_frames_go_on(world, damage, tmp_path):
    damage = DAMAGES[damage]
    file = getattr(world, damage.file)
    tokens = [frame.token for frame in open_dataset(world.name, world.root, world.split).frames]
    damage.do(world)
    with pytest.raises(DatasetError) as stopped:
        extracted(world, tmp_path / "s.zarr")
    assert_one_line(str(stopped.value), file, damage.cause)
    summary = extracted(world, tmp_path / "s.zarr", on_error="skip")
    assert tokens[BROKEN] in [frame.token for frame in summary.skipped]
    assert_one_line(summary.skipped[-1].reason, file, damage.cause)
    kept = set(open_store(tmp_path / "s.zarr").views["token"].to_pylist())
    assert kept == set(tokens) - {frame.token for frame in summary.skipped}
    assert verify_store(open_store(tmp_path / "s.zarr")).whole


@pytest.mark.parametrize("world", ALL, indirect=True)
def test_a_missing_folder_is_named(world):
    with pytest.raises(DatasetError, match="nowhere: the dataset folder is missing"):
        open_dataset(world.name, world.root / "nowhere", world.split)
    (world.root / "empty").mkdir()
    with pytest.raises(DatasetError) as caught:
        open_dataset(world.name, world.root / "empty", world.split)
    assert_one_line(str(caught.value), world.root / "empty", "")


@pytest.mark.parametrize("world", ALL, indirect=True)
def test_a_split_that_is_none(world):
    with pytest.raises(DatasetError, match=r"no split|no row of split"):
        open_dataset(world.name, world.root, "no-such-split")


def change_json(path: Path, change: Callable) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


CALIBRATIONS = {
    "KITTI, 11 numbers": (
        "semantic_kitti", "sequences/00/calib.txt", lambda path: path.write_text("P2: 1 2\nTr: " + "1 " * 12),
        "the file is not a calibration of KITTI odometry, with P2 and Tr of 3x4 numbers",
    ),
    "KITTI, no P2": ("semantic_kitti", "sequences/00/calib.txt", lambda path: path.write_text("P0: 1"), "no row 'P2'"),
    "KITTI, singular": (
        "semantic_kitti", "sequences/00/calib.txt", lambda path: path.write_text(f"P2: {'0 ' * 12}\nTr: {'0 ' * 12}"),
        "cannot be inverted",
    ),
    "KITTI, none": ("semantic_kitti", "sequences/00/calib.txt", Path.unlink, "the file is missing"),
    "PandaSet, intrinsics": (
        "pandaset_64", "001/camera/left_camera/intrinsics.json", lambda path: path.write_text('{"fx": 1}'),
        "KeyError: 'fy'",
    ),
    "PandaSet, no pose": (
        "pandaset_64", "001/lidar/poses.json", lambda path: change_json(path, lambda poses: poses.pop()), "IndexError",
    ),
    "PandaSet, broken pose": (
        "pandaset_gt", "001/camera/front_camera/poses.json",
        lambda path: change_json(path, lambda poses: poses[1]["heading"].pop("w")), "KeyError: 'w'",
    ),
    "PandaSet, cut JSON": ("pandaset_gt", "001/lidar/timestamps.json", cut, "not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("world", "file", "damage", "cause"), CALIBRATIONS.values(), ids=CALIBRATIONS, indirect=["world"]
)
def test_a_calibration_that_cannot_be_used(world, file, damage, cause, tmp_path):
    """Frames that need it are skipped if asked; their scans are still good for evaluation."""
    damage(world.root / file)
    with pytest.raises(DatasetError) as stopped:
        extracted(world, tmp_path / "s.zarr")
    assert_one_line(str(stopped.value), world.root / file, cause)
    summary = extracted(world, tmp_path / "s.zarr", on_error="skip")
    assert 1 <= len(summary.skipped) <= 2
    assert_one_line(summary.skipped[-1].reason, world.root / file, cause)
    dataset = open_dataset(world.name, world.root, world.split)
    if world.name == "semantic_kitti":
        assert len(dataset.read_points(dataset.frames[BROKEN])) > 0


@pytest.mark.parametrize("world", ["nuscenes"], indirect=True)
def test_nuscenes_intrinsics_of_wrong_shape(world):
    table = world.root / "v1.0-trainval/calibrated_sensor.json"

    def shorten(records: list) -> None:
        for record in records:
            record["camera_intrinsic"] = record["camera_intrinsic"][:2]

    change_json(table, shorten)
    with pytest.raises(
        DatasetError,
        match=r"calibrated_sensor\.json: the intrinsics of calibrated sensor [0-9a-f]+ are not 3x3 numbers",
    ):
        open_dataset(world.name, world.root, world.split)


@pytest.mark.parametrize("world", PANDASET, indirect=True)
def test_broken_gps_data_leaves_no_split(world):
    (world.root / "001/meta/gps.json").write_text("[]")
    with pytest.raises(DatasetError, match=r"001/meta/gps\.json: the file does not have PandaSet's format"):
        open_dataset(world.name, world.root, world.split)


@pytest.mark.parametrize("world", ["semantic_poss"], indirect=True)
def test_a_dataset_without_images_is_not_extracted(world, tmp_path):
    with pytest.raises(DatasetError, match=r"no frame of the dataset has an image\. Choose a dataset with cameras"):
        extracted(world, tmp_path / "s.zarr")
