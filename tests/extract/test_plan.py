from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scalr.extract.plan import frames_digest, plan_blocks


@given(num_frames=st.integers(0, 500), frames_per_block=st.integers(1, 40))
def test_blocks_cover_every_frame_once_and_in_order(num_frames, frames_per_block):
    blocks = plan_blocks(num_frames, frames_per_block)
    assert [frame for block in blocks for frame in range(block.start, block.stop)] == list(range(num_frames))
    assert [block.index for block in blocks] == list(range(len(blocks)))
    assert all(block.stop - block.start == frames_per_block for block in blocks[:-1])


def test_digest_tells_other_frames_and_other_orders_apart():
    assert len({frames_digest(tokens) for tokens in (["a", "b"], ["b", "a"], ["a"], ["a", "c"], ["ab"])}) == 5
