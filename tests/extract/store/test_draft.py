"""What a block's indexes say of what was added to it."""

from __future__ import annotations

import numpy as np
import pytest

from scalr.extract.store import NewTargets, create_store
from small_store import PROVENANCE, SETTINGS, a_block, add_scans


def test_an_index_has_the_ranges_and_cosines_of_each_view(tmp_path):
    """A view without pairs has lost nothing."""
    writer = create_store(tmp_path / "s.zarr", "part-0-of-1")
    writer.add_inputs(SETTINGS, record={}, teachers={"t": PROVENANCE})
    scans, _ = a_block(0, views=8)
    draft = writer.draft(0, ["t"])
    add_scans(draft, scans)
    counts = [row["pairs_stop"] - row["pairs_start"] for row in scans.views.to_pylist()]
    assert 0 in counts
    cosines = [np.linspace(0.5, 0.9, count, dtype=np.float32) for count in counts]
    for cosine in cosines:
        draft.add_targets("t", NewTargets(np.ones((len(cosine), 3), np.float16), None, cosine, cosine / 2))
    assert draft.num_bytes == 0
    assert writer.commit(draft)
    assert draft.num_bytes > 0
    views = writer.store.read_targets(0, "t").views.to_pylist()
    assert [row["stop"] - row["start"] for row in views] == counts
    assert [row["mean_cosine"] for row in views] == pytest.approx([x.mean() if len(x) else 1 for x in cosines])
    assert [row["worst_cosine"] for row in views] == pytest.approx([x.min() if len(x) else 1 for x in cosines])
    for name, least in (("mean_cosine_centred", np.mean), ("worst_cosine_centred", np.min)):
        assert [row[name] for row in views] == pytest.approx([least(x) / 2 if len(x) else 1 for x in cosines])
    stored = writer.store.read_scans(0).views.to_pylist()
    stops = {name: [0, *(row[f"{name}_stop"] for row in stored)] for name in ("points", "pairs")}
    assert all([row[f"{name}_start"] for row in stored] == stops[name][:-1] for name in stops)
    assert [row["block"] for row in stored] == [0] * 8
