from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scalr.errors import DatasetError
from scalr.extract.datasets import open_dataset
from scalr.extract.datasets.files import read_image
from scalr.extract.datasets.labels import IGNORE_LABEL
from scalr.extract.datasets.scans import read_labelled_scan
from scalr.extract.datasets.semantic_kitti import LABELS, SPLITS, SemanticKitti, read_calibration
from scalr.extract.preparation import Selection, prepare_frame


def moved(source: Path, root: Path, places: dict[str, str]) -> Path:
    """A copy of the sequences with each kind of file below a folder of its own."""
    for sequence in sorted((source / "sequences").iterdir()):
        for name, place in places.items():
            target = root / place / "sequences" / sequence.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (sequence / name).is_dir() else shutil.copy
            copy(sequence / name, target)
    return root


LAYOUTS = {
    "plain": dict.fromkeys(("velodyne", "labels", "image_2", "calib.txt"), ""),
    "dataset/": dict.fromkeys(("velodyne", "labels", "image_2", "calib.txt"), "dataset"),
    "as ScaLR wants it": {
        **dict.fromkeys(("velodyne", "labels", "image_2"), "dataset"),
        "calib.txt": "calib/dataset",
    },
    "an archive a folder": {
        "velodyne": "data_odometry_velodyne/dataset",
        "labels": "data_odometry_labels/dataset",
        "image_2": "data_odometry_color/dataset",
        "calib.txt": "data_odometry_calib/dataset",
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wherever_the_archives_are_unpacked(layout, simulated, tmp_path):
    source = simulated("semantic_kitti")
    root = moved(source, tmp_path / "kitti", LAYOUTS[layout])
    expected, found = (open_dataset("semantic_kitti", each, "train") for each in (source, root))
    assert [frame.token for frame in found.frames] == ["00/000000", "00/000001"]
    for ours, theirs in zip(found.frames, expected.frames, strict=True):
        for mine, other in zip(read_labelled_scan(found, ours), read_labelled_scan(expected, theirs), strict=True):
            np.testing.assert_array_equal(mine, other)
        (mine,) = prepare_frame(found, ours, [], Selection()).views
        (other,) = prepare_frame(expected, theirs, [], Selection()).views
        np.testing.assert_array_equal(mine.pixel, other.pixel)


@pytest.fixture
def many(tmp_path):
    """Sequences with empty files: 130 scans in 00, 120 in 01, 7 in 08."""
    for sequence, count in (("00", 130), ("01", 120), ("08", 7)):
        (tmp_path / f"sequences/{sequence}/velodyne").mkdir(parents=True)
        for number in range(count):
            (tmp_path / f"sequences/{sequence}/velodyne/{number:06d}.bin").touch()
    return lambda split: [frame.token for frame in open_dataset("semantic_kitti", tmp_path, split).frames]


def test_splits_and_shares(many):
    everything = many("train")
    assert len(everything) == 250
    assert everything == sorted(everything)
    assert many("train-1%") == [
        "00/000000",
        "00/000100",
        "01/000070",
    ]  # every 100th of the sorted list, the first first
    assert len(many("train-10%")) == 25
    assert len(many("val")) == 7
    assert many("01,08") == many("01") + many("08")
    with pytest.raises(DatasetError, match="no scan of split 'test'"):
        many("test")


def test_other_files_are_no_scans(many, tmp_path):
    for name in ("._000000.bin", "readme.txt", "000000.bin.part"):
        (tmp_path / "sequences/08/velodyne" / name).touch()
    assert len(many("val")) == 7


def test_without_labels_there_is_extraction_but_no_probing(simulated, tmp_path):
    root = moved(simulated("semantic_kitti"), tmp_path / "k", dict.fromkeys(("velodyne", "image_2", "calib.txt"), ""))
    dataset = open_dataset("semantic_kitti", root, "train")
    assert len(prepare_frame(dataset, dataset.frames[0], [], Selection()).views[0].pixel) > 1000
    with pytest.raises(DatasetError, match="frame 00/000000 has no labels"):
        dataset.read_labels(dataset.frames[0])


def test_the_calibration_s_product_is_p2_tr(simulated):
    path = simulated("semantic_kitti") / "sequences/00/calib.txt"
    rows = dict(line.split(":") for line in path.read_text().splitlines())
    matrix = {name: np.array(row.split(), float).reshape(3, 4) for name, row in rows.items()}
    expected = matrix["P2"] @ np.vstack([matrix["Tr"], [0, 0, 0, 1]])
    calibration = read_calibration(path)
    found = calibration.intrinsics @ calibration.cam_from_lidar[:3]
    np.testing.assert_allclose(found / found[2, 2], expected / expected[2, 2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_a_calibration_that_an_editor_has_saved_again_is_the_same(simulated, tmp_path, encoding):
    """Byte-order mark, Windows' line ends, blank lines and another order of rows."""
    path = simulated("semantic_kitti") / "sequences/00/calib.txt"
    rows = sorted(path.read_text().splitlines(), key=lambda row: not row.startswith("Tr"))
    mark = "\ufeff" if encoding == "utf-16-be" else ""  # the other two write their own
    (tmp_path / "calib.txt").write_bytes((mark + "\r\n\r\n".join(rows)).encode(encoding))
    found, expected = read_calibration(tmp_path / "calib.txt"), read_calibration(path)
    np.testing.assert_array_equal(found.cam_from_lidar, expected.cam_from_lidar)
    np.testing.assert_array_equal(found.intrinsics, expected.intrinsics)


def test_images_may_be_jpeg(simulated, tmp_path):
    """Each by the ending that it has; of two with the same number the PNG, which is KITTI's own, is taken."""
    root = Path(shutil.copytree(simulated("semantic_kitti"), tmp_path / "kitti"))
    folder = root / "sequences/00/image_2"
    with Image.open(folder / "000001.png") as image:
        image.save(folder / "000001.jpg", quality=95)
    dataset = open_dataset("semantic_kitti", root, "train")
    assert [Path(frame.views[0].image).name for frame in dataset.frames] == ["000000.png", "000001.png"]
    expected = read_image(root, dataset.frames[1].views[0])
    (folder / "000001.png").unlink()
    (view,) = open_dataset("semantic_kitti", root, "train").frames[1].views
    assert Path(view.image).name == "000001.jpg"
    assert np.abs(read_image(root, view).astype(float) - expected).mean() < 5
    (folder / "000000.png").unlink()
    (folder / "000001.jpg").rename(folder / "000001.jpeg")
    names = [Path(frame.views[0].image).name for frame in open_dataset("semantic_kitti", root, "train").frames]
    assert names == ["000000.jpeg", "000001.jpeg"]  # one that is missing is named as the others are


def test_only_points_ahead_of_the_lidar_count(simulated):
    """The official reader asks for x > 1 m in the lidar's frame, whatever the camera sees."""
    dataset = open_dataset("semantic_kitti", simulated("semantic_kitti"), "train")
    prepared = prepare_frame(dataset, dataset.frames[0], [], Selection())
    assert prepared.points[prepared.views[0].point_index, 0].min() > 1
    assert prepared.points[:, 0].min() < -5


# config/semantic-kitti.yaml of the benchmark's API, single scans: raw id -> class, counted from 1, 0 for none.
LEARNING_MAP = {
    0: 0, 1: 0, 10: 1, 11: 2, 13: 5, 15: 3, 16: 5, 18: 4, 20: 5, 30: 6, 31: 7, 32: 8, 40: 9, 44: 10, 48: 11, 49: 12,
    50: 13, 51: 14, 52: 0, 60: 9, 70: 15, 71: 16, 72: 17, 80: 18, 81: 19, 99: 0, 252: 1, 253: 7, 254: 6, 255: 8, 256: 5,
    257: 5, 258: 4, 259: 5,
}  # fmt: skip
# Its learning_map_inv, the id that its server takes for each class.
LEARNING_MAP_INV = [10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81]


def test_classes_are_those_of_the_benchmark():
    expected = [IGNORE_LABEL if each == 0 else each - 1 for each in LEARNING_MAP.values()]
    np.testing.assert_array_equal(LABELS.train_ids(np.array(list(LEARNING_MAP)), Path("a.label")), expected)
    assert [ids[0] for ids in LABELS.raw_ids.values()] == LEARNING_MAP_INV
    assert LABELS.class_names == (
        *("car", "bicycle", "motorcycle", "truck", "other-vehicle", "person", "bicyclist", "motorcyclist", "road"),
        *("parking", "sidewalk", "other-ground", "building", "fence", "vegetation", "trunk", "terrain", "pole"),
        "traffic-sign",
    )


def test_other_ids_are_none_of_its():
    known = {*LABELS.ignored, *(raw for ids in LABELS.raw_ids.values() for raw in ids)}
    assert known == {*LEARNING_MAP}
    with pytest.raises(DatasetError, match="does not define: 2, 260"):
        LABELS.train_ids(np.array([260, 2]), Path("a.label"))


def test_splits_are_those_of_the_benchmark():
    expected = {"train": [0, 1, 2, 3, 4, 5, 6, 7, 9, 10], "val": [8], "test": [*range(11, 22)]}
    assert {name: sorted(map(int, sequences)) for name, sequences in SPLITS.items()} == expected


def test_the_reader_s_conventions_are_the_official_ones():
    """datasets/semantic_kitti.py of valeoai/ScaLR: x > 1 m in the lidar's frame, an image smaller by one pixel."""
    visibility, intensity = SemanticKitti.visibility, SemanticKitti.intensity
    assert (visibility.min_depth_m, visibility.border_px, visibility.min_x_m) == (0.0, 1, 1.0)
    assert (intensity.mean, intensity.std) == (0.28613698, 0.14090556)


def test_the_class_is_in_the_low_sixteen_bits(simulated, tmp_path):
    root = Path(shutil.copytree(simulated("semantic_kitti"), tmp_path / "kitti"))
    dataset = open_dataset("semantic_kitti", root, "train")
    path = root / dataset.frames[1].labels
    raw, before = np.fromfile(path, np.uint32), dataset.read_labels(dataset.frames[1])
    (raw | np.uint32(0xFFFF0000)).tofile(path)  # another instance for each point
    np.testing.assert_array_equal(dataset.read_labels(dataset.frames[1]), before)


def test_frames_are_a_tenth_of_a_second_apart(many, tmp_path):
    frame = open_dataset("semantic_kitti", tmp_path, "01").frames[7]
    assert (frame.scene, frame.token, frame.timestamp) == ("01", "01/000007", 700_000)
    assert (frame.scan, frame.labels) == ("sequences/01/velodyne/000007.bin", None)
    assert str(frame.error).startswith(f"{tmp_path}/sequences/01/calib.txt: the file is missing")


def test_a_frame_is_a_number_that_any_of_its_files_has(many, tmp_path):
    for folder, name in (("labels", "000007.label"), ("image_2", "000008.png"), ("image_2", "000009.jpg")):
        (tmp_path / "sequences/08" / folder).mkdir(exist_ok=True)
        (tmp_path / "sequences/08" / folder / name).touch()
    assert many("val")[-3:] == ["08/000007", "08/000008", "08/000009"]
    assert open_dataset("semantic_kitti", tmp_path, "val").frames[0].labels == "sequences/08/labels/000000.label"


def test_a_folder_without_sequences_is_said(tmp_path):
    (tmp_path / "sequences/readme").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"sequences: the folder has no sequences\. Pass --root"):
        open_dataset("semantic_kitti", tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("P2: 1 0 0 0 0 1 0 0 0 0 1 0", "no row 'Tr'"),
        ("Tr: 1 0 0 0 0 1 0 0 0 0 1 0", "no row 'P2'"),
        ("P2: 1 0 0\nTr: 1 0 0 0 0 1 0 0 0 0 1 0", "cannot reshape array of size 3"),
        ("P2: 1 0 0 0 0 1 0 0 0 0 1 0\nTr: a 0 0 0 0 1 0 0 0 0 1 0", "could not convert"),
        ("P2: 0 0 0 0 0 0 0 0 0 0 0 0\nTr: 1 0 0 0 0 1 0 0 0 0 1 0", "it is not a projection"),
    ],
)
def test_what_is_no_calibration_is_said(tmp_path, text, message):
    (tmp_path / "calib.txt").write_text(text)
    with pytest.raises(
        DatasetError,
        match=rf"the file is not a calibration of KITTI odometry, with P2 and Tr of 3x4 numbers \({message}",
    ):
        read_calibration(tmp_path / "calib.txt")
