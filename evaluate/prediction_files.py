"""The files of a scan's predictions or features, one value or vector for each row of the scan's file, in its order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..checkpoint_files import written_aside
from ..errors import ScalrError
from ..extract.datasets.labels import IGNORE_LABEL
from .class_sets import OWN
from .pictures import NO_CLASS, class_colours
from .raw_scans import RawScan

ClassFormat = Literal["label", "npy", "parquet"]
FeatureFormat = Literal["npy", "zarr"]
FeatureType = Literal["float16", "float32"]
ZARR_ROWS = 16_384  # of a chunk
PLY_POINT = np.dtype(
    [(name, "<f4") for name in ("x", "y", "z", "intensity")]
    + [(name, "u1") for name in ("red", "green", "blue", "class")]
)


@dataclass(frozen=True)
class ClassFiles:
    """Predicted classes: one format, and on request coloured points.

    Attributes:
        names: of the classes, by their index.
        form: `label`: uint32 ids as SemanticKITTI's, 0 for points that are not finite. `npy`: uint8 indexes,
            255 for points that are not finite. `parquet`: the columns index (uint8), name and confidence (float32, the
            probability of the class), null for points that are not finite.
        colours: write .ply, too: the finite points with intensity, the colour of the class, and its index.
    """

    names: tuple[str, ...]
    form: ClassFormat
    colours: bool

    @property
    def endings(self) -> tuple[str, ...]:
        return (f".{self.form}", *([".ply"] if self.colours else []))

    @property
    def settings(self) -> dict:
        """What values in the files depend on, as plain values; files of other formats can be added later."""
        return {"results": "classes", "classes": list(self.names)}

    @cached_property
    def ids(self) -> np.ndarray:
        """(classes,) uint32 of .label files: the first raw id of each class of SemanticKITTI or SemanticPOSS, if the
        classes are those; else the index plus one, as nuScenes' benchmark counts.
        """
        kitti = next((OWN[name] for name in ("semantic_kitti", "semantic_poss") if self._are_of(name)), None)
        if kitti is None:
            return np.arange(1, len(self.names) + 1, dtype=np.uint32)
        return np.array([ids[0] for ids in kitti.raw_ids.values()], dtype=np.uint32)

    def _are_of(self, dataset: str) -> bool:
        return self.names == OWN[dataset].class_names

    @cached_property
    def legend(self) -> list[dict]:
        """Index, name, id and colour of each class, as plain values."""
        colours = np.rint(255 * class_colours(len(self.names))).astype(int).tolist()
        return [
            {"index": index, "name": name, "id": int(self.ids[index]), "colour": colours[index]}
            for index, name in enumerate(self.names)
        ]

    def write(self, stem: Path, scan: RawScan, of_rows: np.ndarray) -> list[int]:
        """Write the files of a scan, each complete or not at all; gives its points by class.

        Args:
            stem: the path of the files without their endings.
            scan: of N rows, P of them finite.
            of_rows: (M, classes) float32 logits of the network's rows; `scan.prepared.row` (P,) names the row of each
                finite point.

        Raises:
            ScalrError: a file cannot be written.
        """
        predicted = of_rows.argmax(axis=1).astype(np.uint8)[scan.prepared.row]
        with written_aside(_path(stem, f".{self.form}"), ScalrError) as path:
            if self.form == "parquet":
                confidence = _confidence(of_rows)[scan.prepared.row]
                with path.open("wb") as file:  # pyarrow refuses names that are not UTF-8
                    pq.write_table(self._table(predicted, confidence, scan.is_finite), file)
            elif self.form == "npy":
                with path.open("wb") as file:
                    np.save(file, _in_all_rows(predicted, scan.is_finite, IGNORE_LABEL))
            else:
                path.write_bytes(_in_all_rows(self.ids[predicted], scan.is_finite, 0).astype("<u4").tobytes())
        if self.colours:
            with written_aside(_path(stem, ".ply"), ScalrError) as path:
                path.write_bytes(coloured_ply(scan.points, predicted, len(self.names)))
        return np.bincount(predicted, minlength=len(self.names)).tolist()

    def _table(self, predicted: np.ndarray, confidence: np.ndarray, is_finite: np.ndarray) -> pa.Table:
        nothing = ~is_finite
        index = pa.array(_in_all_rows(predicted, is_finite, 0), mask=nothing)
        names = pa.DictionaryArray.from_arrays(index, pa.array(self.names, pa.string()))
        confidences = pa.array(_in_all_rows(confidence, is_finite, 0), mask=nothing)
        return pa.table({"index": index, "name": names, "confidence": confidences})


@dataclass(frozen=True)
class FeatureFiles:
    """Features (N, C), nan for points that are not finite: as an array file, or as a zarr array in chunks of rows."""

    form: FeatureFormat
    dtype: FeatureType
    legend: Sequence[dict] = field(default=(), init=False)

    @property
    def endings(self) -> tuple[str, ...]:
        return (f".{self.form}",)

    @property
    def settings(self) -> dict:
        """The values of `ClassFiles.settings`, for features."""
        return {"results": "features", "dtype": self.dtype}

    def write(self, stem: Path, scan: RawScan, of_rows: np.ndarray) -> list[int]:
        """Write files as `ClassFiles.write`, with features (M, C) of the network's rows; there are no classes to count.

        Raises:
            ScalrError: a file cannot be written, or a feature is too large for the number type.
        """
        path = _path(stem, f".{self.form}")
        with np.errstate(over="ignore"):
            rounded = of_rows.astype(self.dtype)
        if not np.isfinite(rounded).all():
            raise ScalrError(
                f"features of up to {np.abs(of_rows).max():.3g} do not fit into {self.dtype}",
                where=path,
                fix="Pass --dtype float32.",
            )
        features = _in_all_rows(rounded[scan.prepared.row], scan.is_finite, np.nan)
        if self.form == "zarr":
            _write_zarr(path, features)
        else:
            with written_aside(path, ScalrError) as temporary, temporary.open("wb") as file:
                np.save(file, features)
        return []


def coloured_ply(points: np.ndarray, predicted: np.ndarray, num_classes: int) -> bytes:
    """A binary PLY file of points (P, 4) with the colours of their classes (P,).

    Its header has ten lines; no library that is installed with scalr writes one without reading it all back.
    """
    vertices = np.empty(len(points), PLY_POINT)
    for axis, name in enumerate(("x", "y", "z", "intensity")):
        vertices[name] = points[:, axis]
    colours = np.rint(255 * np.vstack([class_colours(num_classes), NO_CLASS])).astype(np.uint8)[predicted]
    for axis, name in enumerate(("red", "green", "blue")):
        vertices[name] = colours[:, axis]
    vertices["class"] = predicted
    kinds = {"f": "float", "u": "uchar"}
    properties = [f"property {kinds[PLY_POINT[name].kind]} {name}" for name in PLY_POINT.names]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}", *properties, "end_header", ""]
    return "\n".join(header).encode() + vertices.tobytes()


def _path(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)  # a name may have dots of its own


def _in_all_rows(values: np.ndarray, is_finite: np.ndarray, otherwise: float) -> np.ndarray:
    """(N, ...) of values (P, ...) of the finite rows."""
    if is_finite.all():
        return values
    of_all = np.full((len(is_finite), *values.shape[1:]), otherwise, values.dtype)
    of_all[is_finite] = values
    return of_all


def _confidence(logits: np.ndarray) -> np.ndarray:
    """(M,) the softmax of the largest logit."""
    return (1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)).astype(np.float32)


def _write_zarr(path: Path, values: np.ndarray) -> None:
    """Write an array's folder under another name and rename it, so that it is complete if it exists."""
    import zarr

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        for left_over in (temporary, path):
            with suppress(FileNotFoundError):
                shutil.rmtree(left_over)
        array = zarr.create_array(
            temporary, shape=values.shape, chunks=(min(len(values), ZARR_ROWS), values.shape[1]), dtype=values.dtype
        )
        array[:] = values
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
