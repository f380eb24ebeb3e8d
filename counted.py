"""Counts with their nouns, as people write them."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun in the right form; `plural` if it is not the noun with an s.

    >>> counted(1, "block"), counted(1200, "block"), counted(0, "copy", "copies")
    ('1 block', '1,200 blocks', '0 copies')
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
