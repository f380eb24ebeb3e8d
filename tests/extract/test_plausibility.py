"""What cannot be of a dataset, or hardly, is found on a few frames, and nothing is said of a sound one."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from scalr.errors import DatasetError, DoubtfulError
from scalr.extract.datasets import open_dataset
from scalr.extract.intensity import IntensityStatistics
from scalr.extract.misalignment import AXES, Evidence, judged
from scalr.extract.plan import Part
from scalr.extract.plausibility import findings
from scalr.extract.projection import inverse_rigid, rigid_transform
from scalr.extract.store import open_store
from tiny import TinyDataset, extract_with, tiny_teachers


class Changed:
    """A dataset with something done to its frames or points; all else is its own."""

    def __init__(self, dataset, frames=lambda frames: frames, points=lambda points: points):
        self._dataset, self._points = dataset, points
        self.frames = frames(list(dataset.frames))

    def __getattr__(self, name):
        return getattr(self._dataset, name)

    def read_points(self, frame):
        return self._points(self._dataset.read_points(frame).copy())


def found(dataset, **options) -> list[str]:
    return [f"{type(each).__name__}: {each}" for each in findings(dataset, dataset.frames, **options)]


# --- a calibration, scan or image that is odd in itself --------------------------------------------------------------


def of_views(change):
    """A change of frames from one of views."""
    return lambda frames: [replace(frame, views=tuple(map(change, frame.views))) for frame in frames]


def with_cam_from_lidar(change):
    def changed(view):
        matrix = change(view.calibration.cam_from_lidar)
        return replace(view, calibration=replace(view.calibration, cam_from_lidar=matrix))

    return of_views(changed)


def with_intrinsics(change):
    def changed(view):
        return replace(view, calibration=replace(view.calibration, intrinsics=change(view.calibration.intrinsics)))

    return of_views(changed)


def transposed(matrix):
    return rigid_transform(matrix[:3, :3].T, matrix[:3, 3])


def times(*factors):
    return lambda points: (points * np.array(factors)).astype(np.float32)


def looking_back(view):
    matrix = view.calibration.cam_from_lidar @ np.diag([-1.0, -1, 1, 1])  # about the lidar's z axis
    return replace(view, calibration=replace(view.calibration, cam_from_lidar=matrix))


def ahead_only(points):
    points[:, 0] = np.abs(points[:, 0])
    return points


MISUSES = {  # what is done, then what is told
    "transposed": (
        {"frames": with_cam_from_lidar(transposed)},
        "lower edge of the camera's images is 90 degrees from the lidar's down",
    ),
    "inverted": ({"frames": with_cam_from_lidar(inverse_rigid)}, "lower edge of the camera's images is 90 degrees"),
    "left-handed": (
        {"frames": with_cam_from_lidar(lambda matrix: np.diag([1.0, -1, 1, 1]) @ matrix)},
        "DatasetError: .*has the determinant -1, and a rotation's 1 is expected",
    ),
    "millimetres": ({"points": times(1000, 1000, 1000, 1)}, "DatasetError: .*farther than 3., ?[0-9]{3} m|than 4"),
    "in a unit cube": ({"points": times(0.01, 0.01, 0.01, 1)}, "99 % of the points are within 0.4"),
    "without returns": (
        {"points": lambda points: points * (np.arange(len(points)) % 3 > 0)[:, None]},
        r"34% of the points are at \(0, 0, 0\)",
    ),
    "z across": ({"points": lambda points: points[:, [2, 1, 0, 3]]}, "is expected to spread least but not by 0"),
    "flat": ({"points": times(1, 1, 0, 1)}, "0 m in z"),
    "intensities x 255": (
        {"points": times(1, 1, 1, 255)},
        r"intensities have mean 3\.\d+e\+04 .* about 128 and 74 are expected of nuscenes",
    ),
    "intensities / 255": ({"points": times(1, 1, 1, 1 / 255)}, r"intensities have mean 0\.5\d+ .* about 128 and 74"),
    "one intensity": ({"points": times(1, 1, 1, 0)}, "all intensities are 0, and different ones"),
    "identity as intrinsics": (
        {"frames": with_intrinsics(lambda matrix: np.eye(3))},
        "DatasetError: .*a focal length of 1 px for an image 64 px wide, and more than 3.2 px",
    ),
    "too long a focal length": (
        {"frames": with_intrinsics(lambda matrix: np.diag([100.0, 100, 1]) @ matrix)},
        "DoubtfulError: .*a focal length of 3000 px",
    ),
    "images of half the size": (
        {"frames": with_intrinsics(lambda matrix: np.diag([2.0, 2, 1]) @ matrix)},
        r"principal point is \(64, 48\) px, and about \(32, 24\) px is expected in an image of 48x64 px",
    ),
    "translation in millimetres": (
        {"frames": with_cam_from_lidar(lambda matrix: rigid_transform(matrix[:3, :3], np.array([0, 300.0, 0])))},
        "300 m between lidar and camera",
    ),
    "a camera that sees nothing": (
        {
            "frames": of_views(lambda view: looking_back(view) if view.camera == "LEFT" else view),
            "points": ahead_only,
        },
        "DoubtfulError: .*camera LEFT: the camera sees no point of 3 sampled frames",
    ),
    "no camera that sees anything": (
        {"frames": of_views(looking_back), "points": ahead_only},
        "DatasetError: .*no camera sees any point of 3 sampled frames",
    ),
    "timestamps out of order": (
        {"frames": lambda frames: [replace(each, timestamp=-each.timestamp) for each in frames]},
        "frame frame1 has the timestamp -1, which is before 0 of the frame above it, frame0",
    ),
    "the same image of two cameras": (
        {"frames": of_views(lambda view: replace(view, image=view.image.replace("RIGHT", "LEFT")))},
        "frame0_LEFT.png: camera RIGHT of frame frame0 has the same image as camera LEFT of frame frame0",
    ),
}


@pytest.mark.parametrize("name", MISUSES)
def test_each_misuse_has_its_own_finding(tiny_dataset, name):
    change, told = MISUSES[name]
    lines = found(Changed(tiny_dataset, **change))
    assert any(re.search(told, line) for line in lines), lines
    assert all(" expected" in line for line in lines)


def test_nothing_is_said_of_a_sound_set_nor_of_frames_that_cannot_be_read(tiny_dataset, tmp_path):
    assert found(tiny_dataset) == []
    (tmp_path / "other").mkdir()
    broken = TinyDataset(tmp_path / "other")
    for frame in broken.frames:
        (broken.root / frame.views[0].image).unlink()
    assert found(broken) == []  # whoever reads all frames says what is missing
    assert findings(tiny_dataset, []) == []


def test_cameras_of_published_sets_are_upright_and_others_may_not_be(tiny_dataset):
    """Some rigs have cameras on their sides."""
    for name, kind in (("nuscenes", DatasetError), ("mine", DoubtfulError)):
        changed = Changed(tiny_dataset, frames=with_cam_from_lidar(transposed))
        changed.name = name
        assert {type(each) for each in findings(changed, changed.frames) if "lower edge" in str(each)} == {kind}


def test_cameras_of_a_rig_may_look_up_or_down_but_not_along_forgotten_axes(tiny_dataset):
    up = rigid_transform(np.array([[1.0, 0, 0], [0, 0.0, -1], [0, 1, 0]]), np.zeros(3))
    for frames, number in (
        (lambda matrix: up @ matrix, 0),
        (lambda matrix: up.T @ matrix, 0),
        (lambda _: np.eye(4), 2),
    ):
        changed = Changed(tiny_dataset, frames=with_cam_from_lidar(frames))
        changed.name = "mine"
        assert len([line for line in found(changed) if "lower edge" in line]) == number


def test_small_rooms_and_scans_of_few_points_are_sound(tiny_dataset):
    rng = np.random.default_rng(0)
    room = np.hstack([rng.uniform(-1, 1, (2000, 3)) * (2, 2, 1.5), rng.uniform(0, 255, (2000, 1))]).astype(np.float32)
    for points in (room, room[:20]):
        changed = Changed(tiny_dataset, points=lambda _, points=points: points)
        assert not [line for line in found(changed) if "to spread least" in line]


def test_a_camera_that_looks_over_the_points_is_doubtful(tiny_dataset):
    def over(matrix):  # pitched up by 50 degrees
        cosine, sine = np.cos(np.radians(50)), np.sin(np.radians(50))
        return rigid_transform(np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]]), np.zeros(3)) @ matrix

    def on_the_ground(points):  # but for a few, which are in the images
        height = 0.6 * np.linalg.norm(points[:, :2], axis=1)
        points[:, 2] = np.where(np.arange(len(points)) % 60 == 0, height, -np.abs(points[:, 2]))
        return points

    lines = found(Changed(tiny_dataset, frames=with_cam_from_lidar(over), points=on_the_ground))
    assert any("of the points in the camera's horizontal field of view are in its images" in line for line in lines), (
        lines
    )


def test_statistics_that_are_not_known_say_nothing_of_the_scale(tiny_dataset):
    changed = Changed(tiny_dataset, points=times(1, 1, 1, 255))
    changed.intensity = None
    assert found(changed) == []
    changed.intensity = IntensityStatistics(128 * 255.0, 74 * 255.0)
    assert found(changed) == []


def save_turned(array, path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(path, exif=exif)


def save_12_bits_a_colour(array, path):
    """A PNG of 16 bits a colour, which Pillow reads but does not write."""
    height, width, _ = array.shape
    rows = (array.astype(np.uint16) * 16).astype(">u2").reshape(height, -1)
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0),
        b"IDAT": zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)),
        b"IEND": b"",
    }
    parts = [
        struct.pack(">I", len(of)) + name + of + struct.pack(">I", zlib.crc32(name + of)) for name, of in chunks.items()
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.mark.parametrize(
    ("save", "told"),
    [
        (save_turned, "EXIF says orientation 6, and 1 is expected: the pixels are taken as they are stored"),
        (
            lambda array, path: Image.fromarray(np.dstack([array, np.full(array.shape[:2], 200, np.uint8)])).save(path),
            "100.0% of the pixels are transparent, and none is expected",
        ),
        (
            lambda array, path: Image.fromarray(array[..., 0].astype(np.uint16) * 16).save(path),
            "16-bit values up to 40[0-9]+, and up to 65535 are expected",
        ),
        (save_12_bits_a_colour, "16-bit values up to 40[0-9]+, and up to 65535 are expected"),
        (
            lambda array, path: Image.fromarray(np.full_like(array, 7)).save(path),
            r"all pixels have the colour \(7, 7, 7\), and an image of a street is expected",
        ),
    ],
)
def test_an_image_that_is_odd_is_told(tiny_dataset, save, told):
    path = tiny_dataset.root / "frame1_LEFT.png"
    with Image.open(path) as image:
        array = np.array(image)
    save(array, path)
    lines = found(tiny_dataset)
    assert len(lines) == 1
    assert re.search(f"DoubtfulError: .*frame1_LEFT.png: {told}", lines[0]), lines


# --- images and scans against each other -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nuscenes(simulated):
    """Two keyframes of six cameras."""
    return open_dataset("nuscenes", simulated("nuscenes"), "train")


@pytest.fixture(scope="module")
def kitti(simulated):
    return open_dataset("semantic_kitti", simulated("semantic_kitti"), "train")


def exchanged_frames(frames):
    images = [{view.camera: view.image for view in frame.views} for frame in frames[::-1]]
    return [
        replace(frame, views=tuple(replace(view, image=other[view.camera]) for view in frame.views))
        for frame, other in zip(frames, images, strict=True)
    ]


def exchanged_cameras(frames):
    def changed(frame):
        one, two, *others = frame.views
        return replace(frame, views=(replace(one, image=two.image), replace(two, image=one.image), *others))

    return [changed(frame) for frame in frames]


def test_nothing_is_said_of_the_simulated_twins(nuscenes, kitti):
    assert (found(nuscenes), found(kitti)) == ([], [])


@pytest.mark.parametrize(
    ("points", "told"),
    [
        (lambda points: points[:, [1, 0, 2, 3]], "with the scans' points with x and y exchanged"),
        (times(1, -1, 1, 1), "with the scans' points with the sign of y changed|with the images mirrored"),
    ],
)
def test_scans_with_other_axes_fit_better_turned_back(kitti, points, told):
    (line,) = found(Changed(kitti, points=points))
    assert re.search(f"DoubtfulError: .*times as well ({told}), and best as they are is expected", line)


def test_images_of_other_frames_or_cameras_fit_better_put_back(nuscenes):
    (line,) = found(Changed(nuscenes, frames=exchanged_frames))
    assert "times as well with the images of the frame " in line
    (line,) = found(Changed(nuscenes, frames=exchanged_cameras))
    assert "images of CAM_FRONT and CAM_FRONT_RIGHT fit the scans" in line


def mirror(dataset, folder, cameras):
    def changed(view):
        if view.camera not in cameras:
            return view
        with Image.open(dataset.root / view.image) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / view.image.replace("/", "-"), quality=95)
        return replace(view, image=str(folder / view.image.replace("/", "-")))

    return of_views(changed)


def test_mirrored_images_are_told(kitti, nuscenes, tmp_path, monkeypatch):
    monkeypatch.setenv("SCALR_FOLDERS", str(tmp_path))
    (line,) = found(Changed(kitti, frames=mirror(kitti, tmp_path, ["image_2"])))
    assert "times as well with the images mirrored" in line
    (line,) = found(Changed(nuscenes, frames=mirror(nuscenes, tmp_path, ["CAM_BACK"])))
    assert "camera CAM_BACK: the images of the camera fit the scans" in line
    assert "times as well mirrored" in line


def test_what_chance_may_give_is_not_told(tiny_dataset):
    """A mirrored image that fits 1.6 times as well, where images moved aside differ as much, says something of many."""

    def evidence(chance):
        return Evidence(
            {"front": 0.0}, {"front": chance}, {"front": 0.5}, {name: {} for name in AXES}, {-1: {}, 1: {}}, {}
        )

    few, many = [evidence(0.25)] * 3, [evidence(0.25)] * 24
    assert [len(list(judged(tiny_dataset, each))) for each in (few, many, [evidence(0.01)] * 3)] == [0, 1, 1]


def test_labels_of_another_scan_are_told(kitti):
    """As many as the scan has points, so that their number says nothing."""
    changed = Changed(kitti)
    changed.read_labels = lambda frame: np.random.default_rng(0).permutation(kitti.read_labels(frame))
    lines = found(changed)
    assert len(lines) == 2
    assert "of the points have the label of a point next to them, and more than 75% are expected to" in lines[0]
    changed.read_labels = lambda frame: np.zeros(1, np.uint8)  # a problem of the frame, which reading all of it tells
    assert found(changed) == []


# --- before an extraction --------------------------------------------------------------------------------------------


def test_an_extraction_tells_what_is_doubtful_and_records_it(tiny_dataset, extract_tiny, tmp_path, caplog):
    changed = Changed(tiny_dataset, points=times(1, 1, 1, 0))
    store = extract_with(changed, tiny_teachers(), tmp_path / "doubtful.zarr", teachers=("coordinates",))
    (warning,) = store.sources[0].attributes["record"]["warnings"]
    assert "all intensities are 0" in warning
    assert [record.message for record in caplog.records if "all intensities" in record.message] == [warning]
    caplog.clear()
    extract_with(changed, tiny_teachers(), tmp_path / "doubtful.zarr", teachers=("doubled",))
    assert not [record for record in caplog.records if "all intensities" in record.message]  # told and recorded before
    assert "warnings" not in extract_tiny().sources[0].attributes["record"]


def test_an_extraction_refuses_what_cannot_be_before_a_teacher_runs(tiny_dataset, tmp_path):
    teachers, seen = tiny_teachers(), []
    teachers["coordinates"].patch_maps = lambda images: seen.append(images)
    changed = Changed(tiny_dataset, frames=with_cam_from_lidar(transposed))
    with pytest.raises(DatasetError, match="lower edge of the camera's images is 90 degrees"):
        extract_with(changed, teachers, tmp_path / "s.zarr", teachers=("coordinates",))
    assert not seen
    assert not open_store(tmp_path / "s.zarr").sources


def test_each_part_of_an_extraction_looks_at_its_own_first_block(tiny_dataset, tmp_path):
    def last_is_transposed(frames):
        return [*frames[:2], *with_cam_from_lidar(transposed)(frames[2:])]

    changed = Changed(tiny_dataset, frames=last_is_transposed)
    options = {"teachers": ("coordinates",), "frames_per_block": 1}
    with pytest.raises(DatasetError, match="lower edge of the camera's images is 90 degrees"):
        extract_with(changed, tiny_teachers(), tmp_path / "s.zarr", part=Part(2, 3), **options)
    extract_with(changed, tiny_teachers(), tmp_path / "s.zarr", part=Part(0, 3), **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "folder", "split"),
    [
        ("nuscenes", "nuscenes", "mini_train"),
        ("semantic_kitti", "semantickitti_11", "train"),
        ("semantic_kitti", "semantickitti_11", "val"),
        ("pandaset_64", "pandaset", "002"),
        ("pandaset_gt", "pandaset", "002"),
    ],
)
def test_nothing_is_said_of_real_frames_and_misuses_of_them_are_told(real_data, name, folder, split):
    dataset = open_dataset(name, real_data(folder), split)
    assert found(dataset) == []
    changes = [{"points": lambda points: points[:, [1, 0, 2, 3]]}, {"points": times(1, 1, 1, 255)}]
    if name != "pandaset_gt":  # whose points, with x and y exchanged, are all outside of the image
        assert "x and y exchanged" in found(Changed(dataset, **changes[0]))[0]
    assert "intensities have mean" in found(Changed(dataset, **changes[1]))[0]
