"""Superpixels from the image or a folder into a store, and back."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.segmentation import slic

from scalr.errors import StoreError
from scalr.extract.plan import Part
from scalr.extract.store import FeatureStore
from scalr.extract.store.verify import verify_store
from store_comparison import assert_same_store
from tiny import TinyDataset, extract_with, tiny_teachers

SHAPE = (48, 64)  # of the tiny dataset's images


def tiled(seed: int = 0, ids: int = 9) -> np.ndarray:
    """A map of blobs, uint16."""
    blobs = np.random.default_rng(seed).integers(0, ids, (SHAPE[0] // 8, SHAPE[1] // 8))
    return blobs.repeat(8, 0).repeat(8, 1).astype(np.uint16)


def write_maps(dataset: TinyDataset, folder: Path, seed: int = 0) -> Path:
    """A map of 16 bits for each image, named as the image is."""
    views = [view for frame in dataset.frames for view in frame.views]
    for number, view in enumerate(views):
        path = folder / view.image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiled(seed + number)).save(path)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> TinyDataset:
    return TinyDataset(tmp_path_factory.mktemp("tiny"), num_frames=4)


@pytest.fixture(scope="module")
def maps(dataset, tmp_path_factory) -> Path:
    return write_maps(dataset, tmp_path_factory.mktemp("maps"))


def extracted(dataset: TinyDataset, out: Path, *teachers: str, **options) -> FeatureStore:
    options = {"frames_per_block": 1, "batch_size": 3, **options}
    return extract_with(dataset, tiny_teachers(), out, teachers=teachers or ("coordinates",), **options)


@pytest.fixture(scope="module")
def of_slic(dataset, tmp_path_factory) -> FeatureStore:
    return extracted(dataset, tmp_path_factory.mktemp("slic") / "s.zarr", "coordinates", "doubled", superpixels="slic")


@pytest.fixture(scope="module")
def of_maps(dataset, maps, tmp_path_factory) -> FeatureStore:
    return extracted(dataset, tmp_path_factory.mktemp("maps") / "s.zarr", superpixels=str(maps))


@pytest.fixture
def copied(of_maps, tmp_path) -> Path:
    return shutil.copytree(of_maps.path, tmp_path / "s.zarr")


# --- what is stored ------------------------------------------------------------------------------------------------


def test_ids_of_pairs_are_scikit_images_at_their_pixels(dataset, of_slic):
    for row in range(of_slic.views.num_rows):
        image = np.array(Image.open(dataset.root / of_slic.views["image"][row].as_py()).convert("RGB"))
        ids = slic(image, n_segments=150, compactness=6, sigma=3, start_label=0)
        view = of_slic.read_view(row)
        np.testing.assert_array_equal(view.superpixel, ids[view.pixel[:, 0], view.pixel[:, 1]])
        assert view.superpixel.dtype == np.uint16
        digest = hashlib.sha256(ids.astype("<u2").tobytes()).digest()
        assert of_slic.views["superpixels_sha256"][row].as_py() == digest


def test_a_view_s_segments_are_those_of_its_pairs_with_the_teacher_s_vectors(dataset, maps, of_maps):
    """Vectors by way of the upsampled map; the coordinates' teacher has (row, column, 1) at each patch of 4 pixels."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    patch_map = torch.stack([rows, columns, torch.ones(6, 8)])[None]
    upsampled = F.normalize(F.interpolate(patch_map, (24, 32), mode="bilinear", align_corners=True), dim=1)[0]
    for row in range(of_maps.views.num_rows):
        ids = np.array(Image.open(maps / of_maps.views["image"][row].as_py()))
        smaller, grid = torch.from_numpy(ids[::2, ::2].astype(int)), ids[::8, ::8]  # 48 rows to 24, to 6
        view, segments = of_maps.read_view(row), of_maps.read_segments(row, "coordinates")
        np.testing.assert_array_equal(view.superpixel, ids[view.pixel[:, 0], view.pixel[:, 1]])
        np.testing.assert_array_equal(segments.id, np.unique(view.superpixel))
        assert (segments.mean.dtype, segments.direction.dtype) == (np.float32, np.float32)
        for position, each in enumerate(segments.id.tolist()):
            assert segments.pixels[position] == (smaller == each).sum()
            expected = upsampled[:, smaller == each].mean(1)
            np.testing.assert_allclose(segments.mean[position], expected, atol=1e-3)
            expected = F.normalize(patch_map[0][:, torch.from_numpy(grid == each)].mean(1), dim=0)
            np.testing.assert_allclose(segments.direction[position], expected, atol=1e-3)
    assert verify_store(of_maps).whole


def test_targets_are_the_same_with_and_without_superpixels(dataset, of_maps, tmp_path):
    plain = extracted(dataset, tmp_path / "s.zarr")
    for row in range(plain.views.num_rows):
        with_them, without = of_maps.read_view(row, "coordinates"), plain.read_view(row, "coordinates")
        np.testing.assert_array_equal(with_them.targets, without.targets)
        assert without.superpixel is None
    assert plain.sources[0].superpixels is None
    with pytest.raises(StoreError, match=r"nuscenes train has no superpixels\. Run 'scalr extract --superpixels slic'"):
        plain.read_segments(0, "coordinates")


def test_a_store_says_how_its_superpixels_were_made(of_slic, of_maps):
    import skimage

    assert of_slic.sources[0].superpixels == {
        "method": "slic", "n_segments": 150, "compactness": 6, "sigma": 3, "start_label": 0,
        "scikit-image": skimage.__version__,
    }  # fmt: skip
    recorded = of_maps.sources[0].superpixels
    assert (recorded["method"], recorded["names"], len(recorded["sample_sha256"])) == ("folder", "path", 64)


@pytest.mark.parametrize("count", [2, 3])
def test_parts_in_any_order_give_one_store(dataset, maps, of_maps, tmp_path, count):
    for index in reversed(range(count)):
        store = extracted(dataset, tmp_path / "s.zarr", superpixels=str(maps), part=Part(index, count))
    assert_same_store(store, of_maps)


def test_a_teacher_that_comes_later_finds_the_same_superpixels(dataset, of_slic, tmp_path):
    for teachers in (("coordinates",), ("doubled",)):
        store = extracted(dataset, tmp_path / "s.zarr", *teachers, superpixels="slic")
    assert_same_store(store, of_slic)


def test_segments_alone_can_be_kept(dataset, maps, of_maps, tmp_path):
    store = extracted(dataset, tmp_path / "s.zarr", superpixels=str(maps), encoding="segments")
    assert verify_store(store).whole
    assert (store.encoding("coordinates").layout, store.teachers["coordinates"]["dtype"]) == ("segments", "float16")
    assert not (store.path / "blocks/000000/targets/coordinates/vectors").exists()
    for row in range(store.views.num_rows):
        ours, theirs = store.read_segments(row, "coordinates"), of_maps.read_segments(row, "coordinates")
        for mine, other in zip(ours.arrays, theirs.arrays, strict=True):
            np.testing.assert_array_equal(mine, other)
    message = r"it keeps segments of coordinates, and no targets of points\. Use a loss of segments"
    with pytest.raises(StoreError, match=message):
        store.read_view(0, "coordinates")


def test_splits_with_and_without_superpixels_stand_in_one_store(dataset, maps, tmp_path):
    extracted(dataset, tmp_path / "s.zarr")
    (tmp_path / "other").mkdir()
    other = TinyDataset(tmp_path / "other", num_frames=2)
    other.split = "val"
    other_maps = write_maps(other, tmp_path / "other_maps", seed=50)
    store = extracted(other, tmp_path / "s.zarr", superpixels=str(other_maps))
    assert verify_store(store).whole
    assert [source.superpixels is None for source in store.sources] == [True, False]
    assert [store.read_view(row).superpixel is None for row in (0, 7, 8, 11)] == [True, True, False, False]
    assert store.views["superpixels_sha256"].null_count == 8
    assert len(store.read_segments(8, "coordinates")) > 0


def test_a_release_that_does_not_know_superpixels_refuses_the_store(dataset, maps, tmp_path):
    """By its version, which is raised when the first split with superpixels is begun, and not before."""
    versions = []
    for split, superpixels in (("train", None), ("val", str(maps)), ("test", None)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dataset, "split", split, raising=False)
            store = extracted(dataset, tmp_path / "s.zarr", superpixels=superpixels)
        versions.append(open_root(store.path)["format_version"])
    assert versions == [3, 4, 4]
    assert verify_store(store).whole


def open_root(path: Path) -> dict:
    import json

    return json.loads((path / "zarr.json").read_text())["attributes"]
