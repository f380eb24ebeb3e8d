"""Paths as people write them: `~` and `$NAME` are expanded, URLs and archives are refused."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import ScalrError

# One slash is enough: pathlib makes s3:/bucket of s3://bucket.
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")
# A file named model.pth.tar, as in PyTorch's examples, is a checkpoint and no archive.
ARCHIVE = re.compile(
    r".*(\.zip|\.7z|\.rar|\.tgz|(?<!\.pth)(?<!\.pt)\.tar(\.(gz|bz2|xz|zst|lz4))?)", re.IGNORECASE | re.DOTALL
)


def expanded(path: str | os.PathLike, error: type[ScalrError] = ScalrError) -> Path:
    """Expand `~`, `~user`, `$NAME` and `${NAME}` in a path, unless a file or folder of exactly the given name exists.

    >>> expanded("runs/a")
    PosixPath('runs/a')

    Args:
        path: as written in an option, a file or a call.
        error: subclass of ScalrError to raise.

    Raises:
        ScalrError: an empty path, one with a NUL character, a URL, an archive, an unknown variable or home folder.
    """
    written = os.fsdecode(path)
    if "\0" in written:
        raise error(
            "the path holds a NUL character", where=repr(written[:80]), fix="Write the path without this character."
        )
    if not written:
        raise error("the path is empty", where=repr(written), fix="Name a file or folder; . is the current folder.")
    filled = written if os.path.lexists(written) else _with_home(_with_variables(written, error), error)
    _refuse_url(filled, error)
    if ARCHIVE.fullmatch(filled) and not os.path.isdir(filled):
        raise error(
            "archives are not read or written",
            where=filled,
            fix="Unpack the archive and pass its folder; for output, choose another name.",
        )
    return Path(filled)


def below(folder: Path, name: str, error: type[ScalrError] = ScalrError) -> Path:
    """The path of a file in a folder, by a name that a dataset's file gives. The path never leads out of the folder.

    Raises:
        ScalrError: an absolute path, one with "..", an empty one or one with a NUL character.
    """
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise error(
            f"the name {name!r} in the dataset's tables leads out of the folder",
            where=folder,
            fix="Correct the name in the dataset's tables.",
        )
    return folder / name


def _with_variables(written: str, error: type[ScalrError]) -> str:
    for name in (match[1] or match[2] for match in VARIABLE.finditer(written)):
        if not os.environ.get(name):
            raise error(
                f"the environment variable '{name}' is not set",
                where=written,
                fix="Set the variable, or write the full path.",
            )
    return VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], written)


def _with_home(written: str, error: type[ScalrError]) -> str:
    filled = os.path.expanduser(written)
    if filled.startswith("~"):
        raise error(
            "the home folder of ~ is not known",
            where=written,
            fix="Write the full path, or ./~ for a file that is named so.",
        )
    return filled


def _refuse_url(path: str, error: type[ScalrError]) -> None:
    if match := URL.match(path):
        scheme, rest = match[1], path[match.end() :]
        is_file = scheme.lower() == "file"
        rest = rest.removeprefix("localhost/") if is_file else rest
        copy = "Copy the data to a disk, or mount them as a folder; docs/batch.md, 'Object storage', says how."
        raise error(
            "URLs are not read or written",
            where=f"{scheme}://{'/' * is_file}{rest}",
            fix=f"Pass /{rest}." if is_file else copy,
        )
