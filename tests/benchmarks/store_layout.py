"""Chunk size, shuffle and compression level: size on disk, time to write, time to read one view.

    python tests/benchmarks/store_layout.py

Arrays are those of a block of six-camera frames with 1,024 dimensions; vectors are normal, points lie on surfaces as a
spinning lidar sees them. The page cache is warm: on shared storage every read costs a round trip more.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import zarr

from scalr.extract.store import arrays as store_arrays

FRAMES, VIEWS, DIM = 16, 6, 1024
PATCHES, PAIRS, RINGS, AZIMUTHS = 350, 3700, 32, 1080
READS = 40


def arrays() -> dict[str, tuple[np.ndarray, int]]:
    """Each array with the rows of one view."""
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(FRAMES * VIEWS * PATCHES, DIM)).astype(np.float32)
    scale = np.abs(patches).max(axis=1, keepdims=True) / 127
    return {
        "points float32": (np.concatenate([_scan(rng) for _ in range(FRAMES)]), RINGS * AZIMUTHS),
        "point_index uint32": (_sorted_index(rng), PAIRS),
        "patch float16": (patches.astype(np.float16), PATCHES),
        "patch int8": (np.round(patches / scale).astype(np.int8), PATCHES),
        "point float16": (rng.normal(size=(2 * VIEWS * PAIRS, DIM)).astype(np.float16), PAIRS),
    }


def _scan(rng: np.random.Generator) -> np.ndarray:
    azimuth = np.repeat(np.linspace(-np.pi, np.pi, AZIMUTHS), RINGS)
    elevation = np.tile(np.linspace(-0.53, 0.18, RINGS), AZIMUTHS)
    wall = 15 + 10 * np.sin(3 * azimuth) + rng.normal(0, 0.02, len(azimuth))
    distance = np.where(elevation < -0.1, np.minimum(1.8 / np.maximum(-np.sin(elevation), 0.02), wall), wall)
    flat = distance * np.cos(elevation)
    xyz = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), distance * np.sin(elevation)], axis=1)
    intensity = np.floor(rng.gamma(1.5, 12, len(xyz))).clip(0, 255)
    return np.hstack([xyz, intensity[:, None]]).astype(np.float32)


def _sorted_index(rng: np.random.Generator) -> np.ndarray:
    points = RINGS * AZIMUTHS
    return np.concatenate([np.sort(rng.choice(points, PAIRS, replace=False)) for _ in range(FRAMES * VIEWS)]).astype(
        np.uint32
    )


def measure(values: np.ndarray, rows: int, folder: Path) -> tuple[float, float, float]:
    """Bytes on disk per raw byte, MB/s of writing with its check, milliseconds to read one view."""
    path = folder / "array"
    start = time.perf_counter()
    writer = store_arrays.ArrayWriter(path, values.shape[1:], values.dtype)
    writer.append(values)
    writer.finish()
    write_seconds = time.perf_counter() - start
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    array, rng, seconds = zarr.open_array(path, mode="r"), np.random.default_rng(0), []
    for first in rng.integers(0, len(values) // rows, READS) * rows:
        start = time.perf_counter()
        array[first : first + rows]
        seconds.append(time.perf_counter() - start)
    shutil.rmtree(path)
    return size / values.nbytes, values.nbytes / write_seconds / 1e6, float(np.median(seconds)) * 1e3


def main() -> None:
    default = {name: getattr(store_arrays, name) for name in ("CHUNK_BYTES", "shuffle_of", "COMPRESSION_LEVEL")}
    variants = [{"CHUNK_BYTES": 1 << power} for power in (16, 17, 18, 20, 22)]
    variants += [{"shuffle_of": lambda _, name=name: name} for name in ("noshuffle", "shuffle", "bitshuffle")]
    variants += [{"COMPRESSION_LEVEL": level} for level in (1, 6, 9)]
    print("| array | setting | size / raw | write MB/s | read one view, ms |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, (values, rows) in arrays().items():
            for variant in variants:
                for constant, value in (default | variant).items():
                    setattr(store_arrays, constant, value)
                size, write, read = measure(values, rows, Path(folder))
                ((constant, value),) = variant.items()
                shown = f"{constant.lower()} {value(None) if constant == 'shuffle_of' else value}"
                print(f"| {name} | {shown} | {size:.3f} | {write:.0f} | {read:.1f} |", flush=True)


if __name__ == "__main__":
    main()
