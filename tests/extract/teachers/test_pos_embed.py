from __future__ import annotations

import pytest
import torch

from plain_vit import cubic
from scalr.extract.teachers.pos_embed import resize_officially


@pytest.mark.parametrize(("way", "offset"), [("scale_factor", 0.1), ("size", 0.0)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(("old", "new"), [((7, 7), (5, 12)), ((4, 6), (8, 6)), ((6, 4), (6, 5))])
def test_positions_are_read_where_the_official_code_reads_them(way, offset, prefix, old, new):
    """DINO's scale is that of a tenth of a patch more; without antialiasing, corners not aligned, the prefix kept."""
    embedding = torch.randn(1, prefix + old[0] * old[1], 3, generator=torch.Generator().manual_seed(0))
    found = resize_officially(embedding, old, new, way)
    grid = embedding[0, prefix:].reshape(*old, 3).double()
    rows, columns = (cubic(before, after, (after + offset) / before) for before, after in zip(old, new, strict=True))
    expected = torch.einsum("rh,cw,hwd->rcd", rows, columns, grid).flatten(0, 1).float()
    assert found.shape == (1, prefix + new[0] * new[1], 3)
    torch.testing.assert_close(found[0, prefix:], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, :prefix], embedding[:, :prefix], atol=0, rtol=0)


@pytest.mark.parametrize("way", ["scale_factor", "size"])
def test_the_size_of_the_pretraining_is_left_as_it_is(way):
    embedding = torch.randn(1, 1 + 12, 3)
    assert resize_officially(embedding, (3, 4), (3, 4), way) is embedding
    assert resize_officially(embedding.half(), (3, 4), (4, 3), way).dtype == torch.float32
