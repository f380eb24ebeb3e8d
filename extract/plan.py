"""Frames to blocks: a pure plan, the same for every job of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

FRAMES_PER_BLOCK = 16  # at 1,024 dimensions about 700 MB of raw float16 targets in memory


@dataclass(frozen=True)
class Block:
    """Frames `start` to `stop` - 1: the unit that is computed, committed, verified and redone."""

    index: int
    start: int
    stop: int


def plan_blocks(num_frames: int, frames_per_block: int = FRAMES_PER_BLOCK) -> list[Block]:
    """Cut `num_frames` frames into consecutive blocks; only the last may be shorter."""
    starts = range(0, num_frames, frames_per_block)
    return [Block(index, start, min(start + frames_per_block, num_frames)) for index, start in enumerate(starts)]


def frames_digest(tokens: Sequence[str]) -> str:
    """SHA-256 over the frames' tokens in order: two runs with the same digest have the same plan."""
    return hashlib.sha256("\n".join(tokens).encode()).hexdigest()
