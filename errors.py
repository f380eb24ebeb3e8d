"""Errors for users: mistakes in their input, or missing files.

Every message has three parts: where the problem is, what is wrong, and what to do next. The command line prints
it as one line and exits with code 1; in Python it is an ordinary exception.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class ScalrError(Exception):
    """A mistake, or something missing, that the user can fix.

    Args:
        what: what is wrong, with the value found ("split 'tran' is unknown").
        where: the file, folder, setting or argument that is concerned.
        fix: the next thing to do, as an imperative sentence.

    >>> str(ScalrError("no scan", where="a.bin", fix="Copy it again."))
    'a.bin: no scan. Copy it again'
    """

    exit_code = 1  # exit code of the command line
    of_all_processes = False  # if several processes train together: raised in each, printed by the first

    def __init__(self, what: str, *, where: object, fix: str) -> None:
        self.what, self.where, self.fix = _one_line(what), _one_line(str(where)), _one_line(fix)
        stop = "" if self.what.endswith("?") else "."
        super().__init__(f"{self.where}: {self.what}{stop} {self.fix}")

    def inside(self, place: str) -> ScalrError:
        """The same error with a larger place, such as a frame, added to `where`.

        >>> str(ScalrError("no scan", where="a.bin", fix="Copy it again.").inside("frame 7"))
        'frame 7: a.bin: no scan. Copy it again'
        """
        return _restore_error(type(self), self.what, f"{place}: {self.where}", self.fix)

    def __reduce__(self) -> tuple:
        # Errors are pickled by worker processes, which would lose keyword arguments.
        return _restore_error, (type(self), self.what, self.where, self.fix)


class DatasetError(ScalrError):
    """A dataset folder, table, scan, image or label file that cannot be used."""


class DoubtfulError(DatasetError):
    """A probable mistake in a dataset, which may be none: reported as a warning; work continues."""


class StoreError(ScalrError):
    """A store that is missing, incomplete, damaged or made with other settings."""


class DamagedError(StoreError):
    """Data of a store that were read and are wrong, or a file that is missing from a folder that could be listed."""


class UnreadableError(StoreError):
    """A file or folder of a store that cannot be read now: no permission, an unmounted disk, an input/output error.

    Its content is unknown, so it does not count as damaged, and nothing may be repaired because of it.
    """


class TeacherError(ScalrError):
    """An unknown teacher, or weights that cannot be found or do not fit."""


class StudentError(ScalrError):
    """A recipe, checkpoint or training setting that cannot be used."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """ ", did you mean …?" for a mistyped name; an empty text if no choice is similar.

    >>> did_you_mean("tran", ["train", "val"])
    ", did you mean 'train'?"
    """
    matches = difflib.get_close_matches(name, list(choices), n=1)
    return f", did you mean '{matches[0]}'?" if matches else ""


REMEDIES = {
    "Make room there": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "Check the permissions there": (errno.EACCES, errno.EPERM, errno.EROFS),
    "Check which part of the path is a file": (errno.ENOTDIR, errno.EEXIST),
    "Give a file: this is a folder": (errno.EISDIR,),
    "Choose a shorter name": (errno.ENAMETOOLONG,),
    "Check the storage there": (errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.ETIMEDOUT),
    "Enlarge the limit of open files (ulimit -n)": (errno.EMFILE, errno.ENFILE),
}


def remedy(problem: BaseException | None, otherwise: str) -> str:
    """The fix for an error of the file system, without a full stop; `otherwise` if its error number is not known.

    >>> remedy(PermissionError(errno.EACCES, "Permission denied"), "Copy the file again")
    'Check the permissions there'
    """
    number = getattr(problem, "errno", None)
    return next((text for text, numbers in REMEDIES.items() if number in numbers), otherwise)


def _restore_error(kind: type[ScalrError], what: str, where: str, fix: str) -> ScalrError:
    return kind(what, where=where, fix=fix)


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
