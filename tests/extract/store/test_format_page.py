"""docs/store_format.md is enough to write another reader: this one follows the page, and takes nothing from scalr."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr

from doc_examples import DOCS
from scalr.extract.run import ExtractConfig, extract
from scalr.extract.store import open_store
from scalr.extract.store.format import SCANS_SCHEMA, TARGETS_SCHEMA
from scalr.extract.targets import footprint
from small_store import KEPT_AS

TEACHER = "dinov2_vits14"


def views_by_the_page(path: Path, teacher: str) -> Iterator[dict[str, np.ndarray]]:
    """Points, pairs and targets of each view that has this teacher's targets, in the order of the blocks."""
    root = zarr.open_group(path, mode="r")
    assert (root.attrs["format"], root.attrs["format_version"] in (3, 4)) == ("scalr-store", True)
    kept = root[f"teachers/{teacher}"].attrs
    for index in sorted((path / "index" / teacher).glob("*.parquet")):
        block = root[f"blocks/{index.stem}"]
        scans, targets = (pq.read_table(path / "index" / kind / index.name) for kind in ("scans", teacher))
        for scan, target in zip(scans.to_pylist(), targets.to_pylist(), strict=True):
            pairs = slice(scan["pairs_start"], scan["pairs_stop"])
            pixel = block["pairs/pixel"][pairs]
            rows = slice(target["start"], target["stop"])
            of_segments = block[f"targets/{teacher}/segments"] if "superpixel" in block["pairs"] else None
            extra = {}
            if of_segments is not None:
                segments = slice(target["segments_start"], target["segments_stop"])
                extra = {name: of_segments[name][segments] for name in ("id", "pixels", "mean", "direction")}
                extra["superpixel"] = block["pairs/superpixel"][pairs]
            vectors = np.empty((0, 0), np.float32)
            if kept["encoding"] != "segments":
                vectors = block[f"targets/{teacher}/vectors"][rows].astype(np.float32)
            if kept["dtype"] == "int8":
                scale, channels = block[f"targets/{teacher}/scale"][rows], block[f"targets/{teacher}/channels"][:]
                vectors = np.where(scale[:, None] > 0, vectors * scale[:, None] * channels[1] + channels[0], 0)
            if kept["encoding"] == "patch":
                image_shape = (scan["image_height"], scan["image_width"])
                vectors = of_pairs(vectors, pixel, image_shape, kept["image_size"], kept["patch_size"])
            yield {
                "points": block["points"][scan["points_start"] : scan["points_stop"]],
                "point_index": block["pairs/point_index"][pairs],
                "pixel": pixel,
                "targets": vectors,
                **extra,
            }


def of_pairs(vectors, pixel, image_shape, image_size, patch_size) -> np.ndarray:
    """The targets (R, D) of pairs at `pixel` (R, 2), of the vectors of the patches that they read."""
    (y0, y1, v), (x0, x1, u) = (
        neighbours(pixel[:, axis].astype(np.int64), image_shape[axis], image_size[axis], patch_size) for axis in (0, 1)
    )
    w = image_size[1] // patch_size
    patches = np.stack([y0 * w + x0, y0 * w + x1, y1 * w + x0, y1 * w + x1], axis=1)
    weights = np.stack([(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u], axis=1)
    stored, rows = np.unique(patches, return_inverse=True)
    assert len(stored) == len(vectors)
    return np.einsum("rk,rkd->rd", weights, vectors[rows.reshape(patches.shape)])


def neighbours(index, side, resized_side, patch_size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two patches on one axis, and the weight of the second."""
    patches = resized_side // patch_size
    position = (index * resized_side // side) * ((patches - 1) / (resized_side - 1))
    first = np.floor(position).astype(np.int64)
    return first, np.minimum(first + 1, patches - 1), position - first


def extracted(root: Path, out: Path, encoding: str, dtype: str) -> Path:
    options = {"image_size": (42, 70), "weights": ("random",), "frames_per_block": 1, "batch_size": 6}
    extract(ExtractConfig(root=root, out=out, teachers=(TEACHER,), encoding=encoding, dtype=dtype, **options))
    return out


@pytest.mark.parametrize(("encoding", "dtype"), KEPT_AS)
def test_a_reader_written_from_the_page_reads_the_same(synthetic_world, tmp_path, encoding, dtype):
    path = extracted(synthetic_world, tmp_path / "s.zarr", encoding, dtype)
    store, views = open_store(path), list(views_by_the_page(path, TEACHER))
    assert len(views) == store.views.num_rows == 12
    for row, view in enumerate(views):
        ours = store.read_view(row, TEACHER)
        for name in ("points", "point_index", "pixel"):
            np.testing.assert_array_equal(view[name], getattr(ours, name))
        np.testing.assert_allclose(view["targets"], ours.targets, rtol=1e-4, atol=1e-5)


def test_checksums_are_those_of_the_page(synthetic_world, tmp_path):
    """CRC32C of a view's rows of each array, one after the other; a teacher's goes on from that of the scan."""
    path = extracted(synthetic_world, tmp_path / "s.zarr", "patch", "int8")
    for index in sorted((path / "index/scans").glob("*.parquet")):
        block = zarr.open_group(path / "blocks" / index.stem, mode="r")
        scans, targets = (pq.read_table(path / "index" / kind / index.name).to_pylist() for kind in ("scans", TEACHER))
        for scan, target in zip(scans, targets, strict=True):
            pairs, rows = slice(scan["pairs_start"], scan["pairs_stop"]), slice(target["start"], target["stop"])
            parts = [block["points"][scan["points_start"] : scan["points_stop"]]]
            parts += [block["pairs/point_index"][pairs], block["pairs/pixel"][pairs]]
            assert scan["crc32c"] == checksum(0, parts)
            parts = [block[f"targets/{TEACHER}/{name}"][rows] for name in ("vectors", "scale")]
            parts.append(block[f"targets/{TEACHER}/channels"][:])
            assert target["crc32c"] == checksum(scan["crc32c"], parts)


def checksum(start: int, parts: list[np.ndarray]) -> int:
    for part in parts:
        start = google_crc32c.extend(start, part.tobytes())
    return start


@pytest.mark.parametrize("encoding", ["patch", "segments"])
def test_superpixels_are_read_by_the_page(extract_tiny, encoding):
    store = extract_tiny(superpixels="slic", encoding=encoding, frames_per_block=2)
    path, teacher = store.path, "coordinates"
    views = list(views_by_the_page(path, teacher))
    assert len(views) == store.views.num_rows == 6
    for row, view in enumerate(views):
        ours, segments = store.read_view(row), store.read_segments(row, teacher)
        np.testing.assert_array_equal(view["superpixel"], ours.superpixel)
        for name in ("id", "pixels", "mean", "direction"):
            np.testing.assert_array_equal(view[name], getattr(segments, name))
    for index in sorted((path / "index/scans").glob("*.parquet")):
        block = zarr.open_group(path / "blocks" / index.stem, mode="r")
        scans, targets = (pq.read_table(path / "index" / kind / index.name).to_pylist() for kind in ("scans", teacher))
        for scan, target in zip(scans, targets, strict=True):
            pairs = slice(scan["pairs_start"], scan["pairs_stop"])
            parts = [block["points"][scan["points_start"] : scan["points_stop"]]]
            parts += [block[f"pairs/{name}"][pairs] for name in ("point_index", "pixel", "superpixel")]
            assert scan["crc32c"] == checksum(0, parts)
            rows = slice(target["segments_start"], target["segments_stop"])
            names = ("id", "pixels", "mean", "direction")
            parts = [block[f"targets/{teacher}/segments/{name}"][rows] for name in names]
            assert target["segments_crc32c"] == checksum(scan["crc32c"], parts)
            if encoding == "segments":
                assert (target["start"], target["stop"], target["crc32c"]) == (0, 0, scan["crc32c"])


@pytest.mark.parametrize(
    ("heading", "schema"), [("Index of scans", SCANS_SCHEMA), ("Index of targets", TARGETS_SCHEMA)]
)
def test_the_page_has_every_column_with_its_type(heading, schema):
    table = (DOCS / "store_format.md").read_text().split(f"**{heading}**")[1].split("\n\n")[1]
    found = {}
    for line in table.splitlines()[2:]:
        names, types = (cell.strip() for cell in line.split("|")[1:3])
        names, types = re.findall(r"`(\w+)`", names), types.split(", ")
        found |= dict(zip(names, types * len(names) if len(types) == 1 else types, strict=len(types) > 1))
    spelled = {"fixed_size_binary[32]": "binary(32)", "float": "float32"}
    assert found == {field.name: spelled.get(str(field.type), str(field.type)) for field in schema}


@pytest.mark.parametrize("patches", [2, 8, 16, 64])
def test_the_order_of_operations_decides_which_patches_are_read(patches):
    """Of 8 and of 64 patches of 14 px, the last pixel would read other ones if the product came before the quotient."""
    side = 14 * patches
    rows = np.arange(side)
    first, second, _ = neighbours(rows, side, side, 14)
    pixel = torch.from_numpy(np.stack([rows, rows * 0], axis=1))
    read = footprint(pixel, (side, 28), (patches, 2), 14).patches.numpy() // 2
    np.testing.assert_array_equal(read[:, [0, 2]], np.stack([first, second], axis=1))


def test_what_a_version_may_add_is_ignored(synthetic_world, tmp_path):
    """Attributes, columns and metadata that this release does not know."""
    path = extracted(synthetic_world, tmp_path / "s.zarr", "patch", "int8")
    shutil.copytree(path, tmp_path / "newer.zarr")
    for file in (tmp_path / "newer.zarr").glob("index/*/*.parquet"):
        table = pq.read_table(file)
        more = table.schema.metadata | {b"scalr.more": b"1"}
        said = {key: json.loads(more[key]) for key in (b"scalr.group", b"scalr.files", b"scalr.record")}
        said[b"scalr.record"]["more"] = 1
        signed = json.dumps({key.decode(): value for key, value in said.items()}, sort_keys=True)
        said[b"scalr.sha256"] = hashlib.sha256(signed.encode()).hexdigest()
        more |= {key: json.dumps(value) for key, value in said.items()}
        pq.write_table(table.append_column("more", pa.array(range(len(table)))).replace_schema_metadata(more), file)
    for name in ("", f"teachers/{TEACHER}", "sources/000"):
        file = tmp_path / "newer.zarr" / name / "zarr.json"
        group = json.loads(file.read_text())
        attributes = {key: value for key, value in group["attributes"].items() if key != "sha256"} | {"more": 1}
        signed = attributes | {"sha256": hashlib.sha256(json.dumps(attributes, sort_keys=True).encode()).hexdigest()}
        file.write_text(json.dumps(group | {"attributes": signed}))
    ours, theirs = open_store(path), open_store(tmp_path / "newer.zarr")
    for block in sorted(ours.committed_blocks()):
        assert theirs.read_scans(block).views.equals(ours.read_scans(block).views)
    for row in range(ours.views.num_rows):
        np.testing.assert_array_equal(theirs.read_view(row, TEACHER).targets, ours.read_view(row, TEACHER).targets)
