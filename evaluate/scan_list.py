"""Which scan files a command is given, as files, folders or patterns, and the name of each scan's results."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import DatasetError

RECORD, FINISHED = "predict.json", "scans.jsonl"  # in each folder of results


class FileState(NamedTuple):
    """What changes when a file is written again."""

    num_bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class ScanFile:
    """One scan on disk, and the name of its results."""

    path: Path  # absolute
    name: str  # relative to the list's root, without the file's ending: "00/velodyne/000000"

    def state(self) -> FileState | None:
        """None for a file that is missing."""
        try:
            status = self.path.stat()
        except OSError:
            return None
        return FileState(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class ScanList:
    """Scans, each once, named by their paths below one folder: two scans never have the same name.

    Attributes:
        root: absolute; the folder that all given files and folders are in.
        scans: in the order in which they were given; those of a folder or pattern are sorted.
    """

    root: Path
    scans: tuple[ScanFile, ...]


def list_scans(given: Sequence[Path], endings: Iterable[str], out: Path, root: Path | None = None) -> ScanList:
    """Find the scans and name their results.

    Args:
        given: files; folders, which are searched with all folders in them for files with one of the endings, but for
            names that begin with a dot; and patterns as of a shell, in which ** stands for any number of folders.
        endings: of scans' names, such as ".bin", the longest first where one ends in another.
        out: folder of the results: what is in it is no scan.
        root: the folder that names were relative to in an earlier run; None: the deepest folder that all are in.

    Raises:
        DatasetError: no such file, no scan in a folder, two scans of one name, a scan in `out` or outside of `root`.
    """
    endings = tuple(endings)
    folders: list[Path] = []
    files: dict[Path, None] = {}
    for each in _matches(given):
        if each.is_dir():
            found = _files_below(each, endings, out)
            if not found:
                raise DatasetError(
                    "the folder has no scan",
                    where=each,
                    fix=f"Give a folder with files that end in {', '.join(endings)}.",
                )
            folders.append(each)
            files |= dict.fromkeys(found)
        else:
            folders.append(each.parent)
            files[each] = None
    real_out = Path(os.path.realpath(out))
    if inside := next((path for path in files if Path(os.path.realpath(path)).is_relative_to(real_out)), None):
        raise DatasetError(
            "the scan is in the folder for results, where it could be overwritten",
            where=inside,
            fix="Choose another --out.",
        )
    root = root or Path(os.path.commonpath(folders))
    scans = tuple(ScanFile(path, _name(path, root, endings)) for path in files)
    _require_different(scans)
    return ScanList(root, scans)


def _matches(given: Sequence[Path]) -> Iterator[Path]:
    """Absolute paths of files and folders that exist; a name that exists is not taken for a pattern."""
    for each in given:
        found = [str(each)] if each.exists() else sorted(glob.glob(str(each), recursive=True))
        if not found:
            raise DatasetError(
                "no such file or folder, and no file matches it as a pattern",
                where=each,
                fix="Check the path; put a pattern in quotes, as in 'scans/**/*.bin'.",
            )
        yield from (Path(os.path.abspath(path)) for path in found)


def _files_below(folder: Path, endings: tuple[str, ...], out: Path) -> list[Path]:
    """Sorted; links to folders are followed, each folder once.

    Left out are `out` and folders of earlier results, whose .npy and .ply files would pass for scans.
    """
    found: list[Path] = []
    seen = {_identity(out)} if out.exists() else set()

    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        identity = _identity(parent)
        is_new = identity not in seen and not {RECORD, FINISHED} <= {*names}
        seen.add(identity)
        folders[:] = [name for name in folders if not name.startswith(".")] if is_new else []
        names = [name for name in names if name.lower().endswith(endings) and not name.startswith(".")]
        found += [Path(parent, name) for name in names if is_new]
    return sorted(found)


def _identity(folder: str | Path) -> tuple[int, int]:
    """The same for all paths to a folder."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _name(path: Path, root: Path, endings: tuple[str, ...]) -> str:
    if not path.is_relative_to(root):
        raise DatasetError(
            f"the scan is outside of {root}, and the results in this folder are named by paths below that",
            where=path,
            fix="Choose another --out for it.",
        )
    ending = next((ending for ending in endings if path.name.lower().endswith(ending)), path.suffix)
    stem = path.name[: len(path.name) - len(ending)]
    return str(path.relative_to(root).with_name(stem or path.name))  # a file may be called .bin


def _require_different(scans: Sequence[ScanFile]) -> None:
    first: dict[str, Path] = {}
    for scan in scans:
        other = first.setdefault(scan.name, scan.path)
        if other != scan.path:
            raise DatasetError(
                f"the results of this scan would have the same name as those of {other}",
                where=scan.path,
                fix="Put the two in different folders, or give one of them.",
            )
