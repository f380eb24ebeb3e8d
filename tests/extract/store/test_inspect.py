"""What a store is said to hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scalr.extract.store import create_store, open_store
from scalr.extract.store.inspect import inspect_store
from small_store import a_block, filled_store, write_block


def test_a_report_counts_each_vector_once_in_its_mean_cosine(tmp_path):
    """Whatever views and blocks they are in; a view without pairs has no say."""
    path = filled_store(tmp_path / "s.zarr", blocks=()).path
    writer, cosines = create_store(path, "part-0-of-1"), []
    for block in (0, 1):
        scans, targets = a_block(block)
        counts = scans.views["pairs_stop"].to_numpy() - scans.views["pairs_start"].to_numpy()
        mean, worst = np.array([[0.9, 0.5, 0.7], [0.8, 0.4, 0.6]], np.float32)
        cosines += [value for value, count in zip(mean, counts, strict=True) for _ in range(count)]
        views = targets.views.set_column(5, "mean_cosine", [mean]).set_column(6, "worst_cosine", [worst + block / 100])
        write_block(writer, block, scans, t=replace(targets, views=views))
    report = inspect_store(open_store(path)).teachers["t"]
    assert report.mean_cosine == pytest.approx(sum(cosines) / len(cosines))
    assert report.worst_cosine == pytest.approx(0.4)
    assert report.vectors == len(cosines)


def test_a_report_counts_what_is_on_disk(tmp_path):
    """Files and bytes as the file system has them, each with what it belongs to."""
    store = filled_store(tmp_path / "s.zarr", blocks=(0,))
    for folder, size in (("part-1-of-2/a", 5), ("part-1-of-2/b", 7), ("repair/c", 1)):
        (store.path / "tmp" / folder).mkdir(parents=True)
        (store.path / "tmp" / folder / "points").write_bytes(bytes(size))
    report = inspect_store(store)
    scans, targets = a_block(0)
    assert (report.frames, report.views, report.points) == (3, 3, len(scans.points))
    assert report.pairs == {"CAM": len(scans.pixel)}
    assert (report.scans.committed_blocks, report.scans.missing_blocks) == (1, [1])
    of_targets = [*store.path.glob("blocks/*/targets/t/**/*"), *store.path.glob("index/t/*")]
    of_scans = [path for path in store.path.glob("blocks/**/*") if "targets/t/" not in str(path)]
    of_scans = [path for path in of_scans if path != store.path / "blocks/zarr.json"]
    of_scans += store.path.glob("index/scans/*")
    everything = store.path.rglob("*")
    for found, paths in ((report.teachers["t"], of_targets), (report.scans, of_scans), (report, everything)):
        sizes = [path.stat().st_size for path in paths if path.is_file()]
        assert (found.files, found.bytes) == (len(sizes), sum(sizes))
    assert report.teachers["t"].bytes_per_pair == pytest.approx(report.teachers["t"].bytes / len(targets.vectors))
    assert report.leftovers == {"part-1-of-2": 12, "repair": 1}
