"""Superpixels from the image or a folder into a store, and back."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import skimage
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.segmentation import slic

from scalr.errors import DatasetError, ScalrError, StoreError
from scalr.extract import recompute, run
from scalr.extract.datasets import open_dataset
from scalr.extract.plan import Part
from scalr.extract.store import FeatureStore, ScanBlock, Segments, TargetBlock, create_store, open_store, reader
from scalr.extract.store.format import root_attributes, write_record
from scalr.extract.store.repair import repair_store
from scalr.extract.store.verify import verify_store
from scalr.extract.superpixels import SuperpixelFolder, open_superpixels, read_map, resized
from small_store import PROVENANCE, SETTINGS, a_block, add_inputs, write_block
from store_comparison import assert_same_store
from tiny import CoordinateTeacher, TinyDataset, extract_with, tiny_teachers

SHAPE = (48, 64)  # of the tiny dataset's images


def tiled(seed: int = 0, ids: int = 9) -> np.ndarray:
    """A map of blobs, uint16."""
    blobs = np.random.default_rng(seed).integers(0, ids, (SHAPE[0] // 8, SHAPE[1] // 8))
    return blobs.repeat(8, 0).repeat(8, 1).astype(np.uint16)


def write_maps(dataset: TinyDataset, folder: Path, seed: int = 0, compress_level: int = 0) -> Path:
    """A map of 16 bits for each image, named as the image is. Not compressed, all have one size."""
    views = [view for frame in dataset.frames for view in frame.views]
    for number, view in enumerate(views):
        path = folder / view.image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tiled(seed + number)).save(path, compress_level=compress_level)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> TinyDataset:
    return TinyDataset(tmp_path_factory.mktemp("tiny"), num_frames=3)


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
    assert of_slic.sources[0].superpixels == {
        "method": "slic", "n_segments": 150, "compactness": 6, "sigma": 3, "start_label": 0,
        "scikit-image": skimage.__version__,
    }  # fmt: skip
    recorded = of_maps.sources[0].superpixels
    assert (recorded["method"], recorded["names"], len(recorded["sample_sha256"])) == ("folder", "path", 64)


def test_parts_in_any_order_give_one_store(dataset, maps, of_maps, tmp_path):
    for index in (1, 0):
        store = extracted(dataset, tmp_path / "s.zarr", superpixels=str(maps), part=Part(index, 2))
    assert_same_store(store, of_maps)


def test_a_teacher_that_comes_later_finds_the_same_superpixels(dataset, of_slic, tmp_path):
    for teachers in (("coordinates",), ("doubled",)):
        store = extracted(dataset, tmp_path / "s.zarr", *teachers, superpixels="slic")
    assert_same_store(store, of_slic)


def test_segments_alone_can_be_kept(dataset, maps, of_maps, tmp_path, monkeypatch):
    store = extracted(dataset, tmp_path / "s.zarr", superpixels=str(maps), encoding="segments")
    assert verify_store(store).whole
    assert (store.encoding("coordinates").layout, store.teachers["coordinates"]["dtype"]) == ("segments", "float16")
    assert not (store.path / "blocks/000000/targets/coordinates/vectors").exists()
    for row in range(store.views.num_rows):
        ours, theirs = store.read_segments(row, "coordinates"), of_maps.read_segments(row, "coordinates")
        for mine, other in zip(ours.arrays, theirs.arrays, strict=True):
            np.testing.assert_array_equal(mine, other)
    message = r"the store holds only segments of coordinates, and no targets of points\. Use a store of another teacher"
    with pytest.raises(StoreError, match=rf"{message}, or extract with --encoding patch into another --out$"):
        store.read_view(0, "coordinates")
    monkeypatch.setattr(reader, "keeps_only_segments", lambda teacher: teacher == "coordinates")  # as of stride 4
    with pytest.raises(StoreError, match=f"{message}$"):
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
    assert [store.read_view(row).superpixel is None for row in (0, 5, 6, 9)] == [True, True, False, False]
    assert store.views["superpixels_sha256"].null_count == 6
    assert len(store.read_segments(6, "coordinates")) > 0


def test_a_release_that_does_not_know_superpixels_refuses_the_store(tmp_path):
    """By its version, which is raised when the first split with superpixels is begun, and not before."""
    writer, versions = create_store(tmp_path / "s.zarr", "part-0-of-1"), []
    for split, superpixels in (("train", None), ("val", {"method": "slic"}), ("test", None)):
        writer.add_inputs({**SETTINGS, "split": split, "superpixels": superpixels}, {}, {})
        versions.append(open_root(writer.path)["format_version"])
    assert versions == [3, 4, 4]
    assert [source.superpixels for source in writer.store.sources] == [None, {"method": "slic"}, None]
    assert "superpixels" not in writer.store.sources[0].attributes  # as earlier releases wrote it


def test_a_root_that_another_job_wrote_meanwhile_is_raised_again(tmp_path):
    """Two jobs begin a store at once, one with superpixels: the other writes its root last."""
    with_them, without = (create_store(tmp_path / "s.zarr", owner) for owner in ("a", "b"))
    with_them.add_inputs({**SETTINGS, "superpixels": {"method": "slic"}}, {}, {})
    write_record(tmp_path / "late", root_attributes(with_superpixels=False))
    os.replace(tmp_path / "late/zarr.json", tmp_path / "s.zarr/zarr.json")
    without.add_inputs({**SETTINGS, "split": "val"}, {}, {})
    assert open_root(tmp_path / "s.zarr")["format_version"] == 4


def open_root(path: Path) -> dict:
    return json.loads((path / "zarr.json").read_text())["attributes"]


# --- going on, mending, verifying ----------------------------------------------------------------------------------


def test_what_superpixels_depend_on_may_not_change(dataset, maps, of_slic, of_maps, tmp_path, monkeypatch):
    """With them, without, by other means, by another release of scikit-image: the two values side by side."""
    paths = [shutil.copytree(each.path, tmp_path / name) for name, each in (("slic", of_slic), ("maps", of_maps))]
    extracted(dataset, tmp_path / "plain")
    for path, option, message in (
        (tmp_path / "plain", "slic", r"superpixels is None in the store and \{'method': 'slic', .* now"),
        (paths[0], None, r"superpixels is \{'method': 'slic', .*\} in the store and None now"),
        (paths[1], "slic", "superpixels.method is 'folder' in the store and 'slic' now; .*n_segments is None in"),
    ):
        with pytest.raises(StoreError, match=message):
            extracted(dataset, path, "doubled", superpixels=option)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.18.2")
    with pytest.raises(
        StoreError, match=r"superpixels\.scikit-image is '[\d.]+' in the store and '0\.18\.2' now\. Use"
    ):
        extracted(dataset, paths[0], "doubled", superpixels="slic")
    assert open_store(paths[0]).committed_blocks("doubled") == {0, 1, 2}


@pytest.mark.parametrize("compress_level", [0, 9])  # files of the same sizes, or of others
def test_another_folder_is_noticed(dataset, maps, tmp_path, compress_level):
    """Also where the teacher is the same and the run is to make the blocks that are missing."""
    extracted(dataset, tmp_path / "s.zarr", superpixels=str(maps), part=Part(0, 3))
    others = write_maps(dataset, tmp_path / "others", seed=99, compress_level=compress_level)
    message = r"frame0_\w+\.png: the superpixel map has changed since frame frame0, camera \w+, was stored\. Pass"
    with pytest.raises(StoreError, match=message):
        extracted(dataset, tmp_path / "s.zarr", superpixels=str(others))


def test_the_same_folder_may_be_elsewhere(dataset, maps, copied, tmp_path):
    shutil.copytree(maps, tmp_path / "moved")
    store = extracted(dataset, copied, "coordinates", "doubled", superpixels=str(tmp_path / "moved"))
    assert verify_store(store).whole


def test_a_map_that_changed_under_a_stored_view_is_noticed(dataset, maps, copied, tmp_path, monkeypatch):
    """Not one of those that are compared first: when the view's images are read for another teacher."""
    monkeypatch.setattr(run, "COMPARED_MAPS", 1)
    changed = Path(shutil.copytree(maps, tmp_path / "changed"))
    path = changed / "frame2_RIGHT.png"
    ids = np.array(Image.open(path))
    Image.fromarray(ids[::-1].copy()).save(path, compress_level=0)
    with pytest.raises(StoreError, match="the superpixels have changed since frame frame2, camera RIGHT, was stored"):
        extracted(dataset, copied, "doubled", superpixels=str(changed))
    assert 2 not in open_store(copied).committed_blocks("doubled")


def test_a_map_that_is_missing_stops_or_skips_its_frame_and_comes_later(dataset, maps, of_maps, tmp_path):
    folder = Path(shutil.copytree(maps, tmp_path / "maps"))
    (folder / "frame1_LEFT.png").unlink()
    with pytest.raises(DatasetError, match=r"frame1_LEFT\.png: the superpixel map is missing\. Make"):
        extracted(dataset, tmp_path / "s.zarr", superpixels=str(folder))
    store = extracted(dataset, tmp_path / "s.zarr", superpixels=str(folder), on_error="skip")
    assert list(store.skipped_frames(1)) == ["frame1"]
    shutil.copy(maps / "frame1_LEFT.png", folder)
    store = extracted(dataset, tmp_path / "s.zarr", superpixels=str(folder), on_error="skip")
    assert store.skipped_frames(1) == {}
    for row in range(store.views.num_rows):
        np.testing.assert_array_equal(store.read_view(row).superpixel, of_maps.read_view(row).superpixel)


def recomputed(dataset, monkeypatch, store, **options):
    monkeypatch.setattr(recompute, "open_dataset", lambda *_, **__: dataset)
    monkeypatch.setattr(recompute, "load_teacher", lambda name, **_: tiny_teachers()[name])
    return list(recompute.recompute_targets(store, 8, root=None, weights=(), device=torch.device("cpu"), **options))


@pytest.mark.parametrize("encoding", ["patch", "segments"])
def test_a_sample_is_recomputed_with_its_superpixels(dataset, maps, tmp_path, monkeypatch, encoding):
    store = extracted(dataset, tmp_path / "s.zarr", superpixels=str(maps), encoding=encoding)
    found = recomputed(dataset, monkeypatch, store)
    assert len(found) == 6
    assert all(view.as_stored and view.segments > 0 and view.segments_cosine > 0.999999 for view in found)
    assert [("loss differs by" in str(view)) for view in found] == [encoding == "patch"] * 6
    assert "segments, mean cosine 1.000000" in str(found[0])
    others = write_maps(dataset, tmp_path / "others", seed=99)
    found = recomputed(dataset, monkeypatch, store, superpixels=others)
    assert not any(view.as_stored or view.same_superpixels for view in found)
    cosine = ", cosine" if encoding == "patch" else "$"
    assert re.search(f"pairs, OTHER SUPERPIXELS than the store was made from{cosine}", str(found[0]))
    monkeypatch.setattr(
        CoordinateTeacher, "patch_maps", lambda self, images: torch.eye(3)[0].expand(len(images), 6, 8, 3)
    )
    found = recomputed(dataset, monkeypatch, store)
    assert not any(view.as_stored for view in found)
    assert "OTHER TARGETS than the teacher gives" in str(found[0])


def test_superpixels_of_another_kind_than_the_store_s_are_refused(of_maps, of_slic, maps, monkeypatch, dataset):
    fix = "Leave out --superpixels, or pass the folder of maps that the store was made from"
    for store, given, what in (
        (of_maps, "slic", "the superpixels of the store are from a folder of maps, and --superpixels names SLIC"),
        (of_slic, str(maps), "the superpixels of the store are from SLIC, and --superpixels names a folder of maps"),
    ):
        with pytest.raises(StoreError) as caught:
            recomputed(dataset, monkeypatch, store, superpixels=given)
        assert str(caught.value) == f"{store.path}: {what}. {fix}"
    assert all(view.as_stored for view in recomputed(dataset, monkeypatch, of_slic, superpixels="slic"))


def test_slic_of_another_release_is_said_where_a_sample_is_recomputed(dataset, of_slic, monkeypatch, caplog):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.18.2")
    found = recomputed(dataset, monkeypatch, of_slic)
    assert all(view.as_stored for view in found)  # it is the same release after all
    assert "were made by SLIC with scikit-image" in caplog.text
    assert "compared with SLIC with scikit-image 0.18.2" in caplog.text


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("array", "damage"),
    [("pairs/superpixel", flip_a_bit), ("segments/mean", flip_a_bit), ("segments/pixels", Path.unlink)],
)
def test_damage_is_found_named_mended_and_made_anew(dataset, maps, of_maps, copied, array, damage):
    kind = "scans" if array.startswith("pairs") else "coordinates"
    group = copied / "blocks/000002" / ("" if kind == "scans" else "targets/coordinates") / array
    (chunk,) = [file for file in group.rglob("*") if file.is_file() and file.name != "zarr.json"]
    damage(chunk)
    store = open_store(copied)
    with pytest.raises(StoreError, match=str(chunk)):
        store.read_view(4) if kind == "scans" else store.read_segments(4, "coordinates")
    found = verify_store(open_store(copied))
    assert [(each.block, each.kind) for each in found.damage] == [(2, kind)]
    repair_store(open_store(copied), found)
    store = extracted(dataset, copied, superpixels=str(maps))
    assert_same_store(store, of_maps)
    assert verify_store(store).whole


def test_segments_that_belong_to_another_view_are_not_read(copied):
    """Blocks have views of other pairs; the whole files of one in the place of another's."""
    for name in ("segments", "index.parquet"):
        target = copied / "blocks/000002/targets/coordinates" / name
        source = copied / "blocks/000001/targets/coordinates" / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    shutil.copy(copied / "index/coordinates/000001.parquet", copied / "index/coordinates/000002.parquet")
    with pytest.raises(StoreError):
        open_store(copied).read_segments(4, "coordinates")
    assert {each.block for each in verify_store(open_store(copied)).damage} == {2}


def with_segments(block: int) -> tuple[ScanBlock, TargetBlock]:
    """A block whose pairs are of segments 5, 6 and 7."""
    scans, targets = a_block(block)
    superpixel = (5 + np.arange(len(scans.pixel)) % 3).astype(np.uint16)
    starts = [(row["pairs_start"], row["pairs_stop"]) for row in scans.views.to_pylist()]
    ids = [np.unique(superpixel[slice(*pairs)]) for pairs in starts]
    count = sum(map(len, ids))
    vectors = np.full((count, 3), 0.5, np.float16)
    segments = Segments(np.concatenate(ids), np.full(count, 9, np.uint32), vectors, vectors)
    stops = np.cumsum([len(each) for each in ids])
    views = targets.views.append_column("segments_start", [[0, *stops[:-1].tolist()]])
    views = views.append_column("segments_stop", [stops.tolist()])
    digests = pa.array([bytes(32)] * 3, pa.binary(32))
    scans = replace(scans, superpixel=superpixel, views=scans.views.append_column("superpixels_sha256", digests))
    return scans, replace(targets, views=views, segments=segments)


def changed_segments(**change) -> Callable[[Segments], Segments]:
    return lambda segments: replace(segments, **{name: make(getattr(segments, name)) for name, make in change.items()})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"id": lambda ids: ids + 1}, "segments of frame 0-0 are not those of its pairs"),
        ({"id": lambda ids: ids[::-1].copy()}, "segments of frame 0-0 are not those of its pairs"),
        ({"mean": lambda mean: mean * np.float16(np.nan)}, "mean of a segment is not finite, or longer than 1"),
        ({"mean": lambda mean: mean * 0 + 1}, "mean of a segment is not finite, or longer than 1"),
        ({"direction": lambda mean: mean * 0 + 1}, "direction of a segment is not finite, or longer than 1"),
        ({"pixels": lambda pixels: pixels * 0}, "the mean of a segment is not zero, though it has no pixel"),
    ],
)
def test_segments_that_cannot_be_are_found(tmp_path, change, what):
    """Written that way, so that every checksum is right."""
    writer = create_store(tmp_path / "s.zarr", "part-0-of-1")
    add_inputs(writer, {**SETTINGS, "superpixels": {"method": "slic"}}, t=PROVENANCE)
    scans, targets = with_segments(0)
    write_block(writer, 0, scans, t=replace(targets, segments=changed_segments(**change)(targets.segments)))
    (found,) = verify_store(open_store(tmp_path / "s.zarr")).damage
    assert (found.block, found.kind, found.what) == (0, "t", what)


def test_a_store_whose_root_does_not_tell_of_superpixels_is_mended(copied):
    """An older release would read it, and add blocks without superpixels."""
    write_record(copied / "old", root_attributes(with_superpixels=False))
    os.replace(copied / "old/zarr.json", copied / "zarr.json")
    (copied / "old").rmdir()
    found = verify_store(open_store(copied))
    assert [(each.kind, each.what) for each in found.damage] == [
        ("zarr.json", "it lets releases read the store that do not know superpixels")
    ]
    repair_store(open_store(copied), found)
    assert json.loads((copied / "zarr.json").read_text())["attributes"]["format_version"] == 4
    assert verify_store(open_store(copied)).whole


# --- input that cannot be used -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((48, 63), np.uint8), "the superpixel map is 48x63 pixels, its image 48x64. Make the maps at"),
        (
            np.zeros((*SHAPE, 3), np.uint8),
            r"the superpixel map holds colours \(RGB\), not ids\. Write the map with one channel of 8 or 16"
            r" bits, or with a palette",
        ),
        (
            np.full(SHAPE, 65_535, np.uint16),
            "the superpixel map has the id 65535, and the largest valid id is 65534. Count",
        ),
        (b"", r"the superpixel map is not a PNG that can be decoded \(cannot identify image file"),
        (b"no image", "the superpixel map is not a PNG that can be decoded"),
        ("cut", "the superpixel map is not a PNG that can be decoded"),
        ("jpeg", "the superpixel map is not a PNG that can be decoded"),
        (None, "the superpixel map is missing. Make the map, or check that the folder of --superpixels is complete"),
        (
            "loop",
            r"the superpixel map cannot be read \(Too many levels of symbolic links\)\. Check that the map is a file",
        ),
        (
            "folder",
            r"the superpixel map cannot be read \(Is a directory\)\. Check that the map is a file, and its permissions",
        ),
    ],
)
def test_maps_that_cannot_be_used_are_said_in_a_line(tmp_path, content, message):
    path = tmp_path / "map.png"
    if isinstance(content, np.ndarray):
        Image.fromarray(content).save(path)
    elif content == "cut":
        Image.fromarray(tiled()).save(path)
        os.truncate(path, path.stat().st_size // 2)
    elif content == "folder":
        path.mkdir()
    elif content == "jpeg":
        Image.fromarray(tiled().astype(np.uint8)).save(path, format="JPEG")
    elif content == "loop":
        path.symlink_to(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=message) as caught:
        read_map(path, SHAPE)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "palette", "one bit", "largest id"])
def test_a_map_is_read_by_its_ids_however_it_is_kept(tmp_path, kind):
    ids = tiled()
    image = Image.fromarray(ids if kind == "16 bits" else ids.astype(np.uint8))
    if kind == "palette":  # of colours that have nothing to do with the ids
        image = Image.fromarray(ids.astype(np.uint8), mode="P")
        image.putpalette(np.random.default_rng(0).integers(0, 256, 3 * 256).tolist())
    if kind == "one bit":
        ids = ids % 2
        image = Image.fromarray(ids.astype(bool))
    if kind == "largest id":
        ids[0, 0] = 65_534
        image = Image.fromarray(ids)
    image.save(tmp_path / "map.png")
    found = read_map(tmp_path / "map.png", SHAPE)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, ids)


def test_a_folder_that_cannot_be_used_is_said(dataset, tmp_path):
    with pytest.raises(
        ScalrError,
        match=r"nowhere: the folder of superpixel maps does not exist\. Pass --superpixels slic, or a folder",
    ):
        open_superpixels(str(tmp_path / "nowhere"), dataset)
    message = (
        r"the folder has no map of 6 sampled images; tried for the first: frame0_LEFT\.png\. Name the maps as docs"
    )
    with pytest.raises(DatasetError, match=message):
        open_superpixels(str(tmp_path), dataset)


def test_slic_without_scikit_image_is_said(dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    message = (
        r"--superpixels slic: SLIC needs scikit-image, which is not installed\. Install scikit-image:"
        r" pip install 'scalr-distill\[sup"
    )
    with pytest.raises(ScalrError, match=message):
        open_superpixels("slic", dataset)
    assert open_superpixels(None, dataset) is None


def test_maps_may_be_named_by_path_by_stem_or_by_token(synthetic_world, tmp_path):
    """nuScenes' images, as they lie; all in one folder; and as SLidR and Seal name them, by the token of the image."""
    world = open_dataset("nuscenes", synthetic_world, "train")
    views = [view for frame in world.frames for view in frame.views]
    tables = json.loads(next(synthetic_world.glob("v1.0-*/sample_data.json")).read_text())
    token_of = {record["filename"]: record["token"] for record in tables}
    names = {
        "path": lambda view: str(Path(view.image).with_suffix(".png")),
        "stem": lambda view: f"{Path(view.image).stem}.png",
        "token": lambda view: f"{token_of[view.image]}.png",
    }
    for rule, name in names.items():
        for number, view in enumerate(views):
            path = tmp_path / rule / name(view)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full(view.image_shape, number, np.uint8)).save(path, compress_level=1)
        folder = SuperpixelFolder(tmp_path / rule, world)
        assert folder.settings["names"] == rule
        for number, view in enumerate(views):
            assert (folder.map_of(view, np.empty((*view.image_shape, 3))) == number).all()


def test_an_image_that_is_named_by_its_whole_path_has_its_map_below_the_folder(dataset, tmp_path):
    """And is not taken for its own map, as a PNG would be."""
    image = dataset.root / dataset.frames[0].views[0].image
    view = replace(dataset.frames[0].views[0], image=str(image))
    path = tmp_path / image.relative_to("/")
    path.parent.mkdir(parents=True)
    Image.fromarray(tiled()).save(path)
    folder = SuperpixelFolder(tmp_path, SimpleNamespace(frames=[replace(dataset.frames[0], views=[view])]))
    assert (folder.settings["names"], folder.path_of(view)) == ("path", path)


def test_no_map_is_read_outside_of_its_folder(dataset, tmp_path):
    """An image may be outside of the dataset where the user allows it; a token never leads out."""
    (tmp_path / "maps").mkdir()
    for path in (tmp_path / "LEFT.png", tmp_path / "x.png"):
        Image.fromarray(tiled()).save(path)
    view = replace(dataset.frames[0].views[0], image="../LEFT.png")
    alone = SimpleNamespace(frames=[replace(dataset.frames[0], views=[view])])
    with pytest.raises(
        DatasetError, match=r"maps: the folder has no map of 1 sampled images; tried for the first: LEFT\.png\. Name"
    ):
        SuperpixelFolder(tmp_path / "maps", alone)
    Image.fromarray(tiled()).save(tmp_path / "maps/LEFT.png")
    assert SuperpixelFolder(tmp_path / "maps", alone).settings["names"] == "stem"
    alone.frames[0].views[0] = replace(view, image="a.png", image_token="../x")
    with pytest.raises(
        DatasetError,
        match=r"maps: the name '\.\./x\.png' in the dataset's tables leads out"
        " of the folder",
    ):
        SuperpixelFolder(tmp_path / "maps", alone)


def test_stems_that_two_images_share_are_said(dataset, tmp_path):
    """As of SemanticKITTI: 000000.png in each sequence."""
    frames = [
        replace(frame, views=[replace(view, image=f"{frame.token}/{view.camera}.png") for view in frame.views])
        for frame in dataset.frames
    ]
    Image.fromarray(tiled()).save(tmp_path / "LEFT.png")
    message = (
        "the images frame0/LEFT.png and frame1/LEFT.png would have the same map, because maps are"
        " named after images. Put"
    )
    with pytest.raises(DatasetError, match=message):
        SuperpixelFolder(tmp_path, SimpleNamespace(frames=frames))


def test_a_map_is_resized_to_the_nearest_pixel_in_integers():
    """torch's `nearest`, where its float32 is exact enough."""
    ids = np.random.default_rng(0).integers(0, 2**15, (90, 160)).astype(np.uint16)
    for size in ((24, 32), (90, 160), (7, 11), (180, 200)):
        expected = F.interpolate(torch.from_numpy(ids.astype(np.float64))[None, None], size, mode="nearest-exact")
        rows = [row * 90 // size[0] for row in range(size[0])]
        columns = [column * 160 // size[1] for column in range(size[1])]
        np.testing.assert_array_equal(resized(ids, size), ids[np.ix_(rows, columns)])
        assert resized(ids, size).shape == expected.shape[2:]
    tall = np.arange(900, dtype=np.uint16)[:, None]
    assert resized(tall, (224, 1))[56, 0] == 225  # 56 * 900 / 224 is 225 exactly, and 224.99999 in float32
