from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalr.errors import ScalrError
from scalr.extract.plan import BLOCK_BYTES, FRAMES_PER_BLOCK, Block, Part, frames_digest, plan_blocks


@given(num_frames=st.integers(0, 500), frames_per_block=st.integers(1, 40), first=st.integers(0, 100))
def test_blocks_cover_every_frame_once_and_in_order(num_frames, frames_per_block, first):
    blocks = plan_blocks(num_frames, frames_per_block, first)
    assert [frame for block in blocks for frame in range(block.start, block.stop)] == list(range(num_frames))
    assert [block.index for block in blocks] == list(range(first, first + len(blocks)))
    assert all(block.num_frames == frames_per_block for block in blocks[:-1])


@given(num_blocks=st.integers(0, 200), count=st.integers(1, 50))
def test_parts_share_the_blocks_out(num_blocks, count):
    blocks = plan_blocks(num_blocks, 1)
    parts = [Part(index, count).select(blocks) for index in range(count)]
    assert sorted(block.index for part in parts for block in part) == list(range(num_blocks))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["8/8", "-1/8", "1", "1/0", "a/b", "1/2/3", ""])
def test_what_is_no_part_is_said(text):
    with pytest.raises(ScalrError, match=r"--part: .*(0/8|K/N)"):
        Part.parse(text)


def test_digest_tells_other_frames_and_other_orders_apart():
    assert len({frames_digest(tokens) for tokens in (["a", "b"], ["b", "a"], ["a"], ["a", "c"], ["ab"])}) == 5


def test_a_part_is_written_as_it_is_read():
    assert str(Part.parse("2/8")) == "2/8"
    assert Part(2, 8).folder_name == "part-2-of-8"


def test_blocks_are_as_large_as_docs_say():
    """16 frames of points, 64 of patches; at most a GiB of one teacher."""
    assert (FRAMES_PER_BLOCK, BLOCK_BYTES) == ({"point": 16, "patch": 64, "segments": 64}, 2**30)


def test_a_run_that_is_not_shared_is_one_part():
    assert Part() == Part.parse("0/1")
    assert Part().select(plan_blocks(3, 1)) == plan_blocks(3, 1)


def test_a_block_is_new_unless_it_replaces_one():
    assert not Block(0, 0, 1).anew
    assert Block(3, 32, 40).num_frames == 8
