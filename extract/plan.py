"""Divide frames into blocks and blocks into parts: a pure plan, the same for every job of a run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import ScalrError
from .encoding import Layout

# With six cameras and 1,024 dimensions, a block then has about 700 MB of raw float16 targets in memory and on disk, or
# about 130 MB of int8 patches: few files on shared storage, and little work to repeat if a job is killed.
BLOCK_BYTES = 1 << 30  # maximum of raw scans and one teacher's targets; larger frames make shorter blocks
FRAMES_PER_BLOCK: dict[Layout, int] = {"point": 16, "patch": 64, "segments": 64}


@dataclass(frozen=True)
class Block:
    """Frames `start` to `stop` - 1 of a split: the unit that is computed, committed, verified and repaired."""

    index: int  # the block's number in the store
    start: int
    stop: int
    anew: bool = False  # it replaces a committed block that lacks frames

    @property
    def num_frames(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Part:
    """The blocks of one job of a job array: block b belongs to part b mod `count`.

    >>> Part.parse("2/8")
    Part(index=2, count=8)
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ScalrError(
                f"part {self.index} of {self.count} does not exist",
                where="--part",
                fix=f"Count parts from 0: 0/{self.count} to {max(0, self.count - 1)}/{self.count}.",
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def folder_name(self) -> str:
        return f"part-{self.index}-of-{self.count}"

    @classmethod
    def parse(cls, text: str) -> Part:
        """Parse K/N."""
        match = re.fullmatch(r"(\d+)/([1-9]\d*)", text)
        if not match:
            raise ScalrError(
                f"'{text}' is not K/N", where="--part", fix="Pass K/N, for example 0/8 for the first of eight parts."
            )
        return cls(*map(int, match.groups()))

    def select(self, blocks: Sequence[Block]) -> list[Block]:
        return [block for block in blocks if block.index % self.count == self.index]


def plan_blocks(num_frames: int, frames_per_block: int, first_block: int = 0) -> list[Block]:
    """Cut `num_frames` frames into consecutive blocks; only the last may be shorter.

    >>> plan_blocks(num_frames=5, frames_per_block=2)[-1]
    Block(index=2, start=4, stop=5, anew=False)
    """
    starts = range(0, num_frames, frames_per_block)
    return [
        Block(index, start, min(start + frames_per_block, num_frames))
        for index, start in enumerate(starts, first_block)
    ]


def spread(num_frames: int) -> list[int]:
    """Return all frame numbers in van der Corput's order: the first k are spread evenly over the split, for every k.

    >>> spread(num_frames=6)
    [0, 4, 2, 1, 5, 3]
    """
    bits = max(1, (num_frames - 1).bit_length())
    reversed_bits = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(1 << bits))
    return [number for number in reversed_bits if number < num_frames]


def frames_digest(tokens: Iterable[str]) -> str:
    """SHA-256 over frame IDs in their order, which identifies the frames of a training or an evaluation.

    >>> frames_digest(["a", "b"]) == hashlib.sha256(b"a\\nb").hexdigest()
    True
    """
    digest = hashlib.sha256()
    for number, token in enumerate(tokens):
        digest.update(f"\n{token}".encode() if number else token.encode())
    return digest.hexdigest()
