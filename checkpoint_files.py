"""Files of tensors: atomic writing, and readable errors for everything that can be wrong with a file."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from .errors import ScalrError, remedy
from .folder_lock import require_held

if TYPE_CHECKING:
    import torch

LISTED_KEYS = 12  # names of tensors in an error, of all kinds together


@contextmanager
def explained(path: Path, error: type[ScalrError], *, missing: str) -> Iterator[None]:
    """Turn any exception of torch, zipfile or safetensors while they read `path` into an `error`.

    Args:
        path: the file.
        error: subclass of ScalrError to raise.
        missing: what to do if the file does not exist.
    """
    try:
        yield
    except FileNotFoundError:
        raise error("the weights file is missing", where=path, fix=missing) from None
    except pickle.UnpicklingError as problem:
        raise error(
            f"the file is damaged, or holds objects besides tensors, which could run code{_what_it_names(problem)}",
            where=path,
            fix="Copy the file again, or save only the state_dict of the model.",
        ) from None
    except Exception as problem:  # each library raises its own types
        raise error(
            f"the weights cannot be read ({first_line(problem)})",
            where=path,
            fix=f"{remedy(problem, 'Copy or download the file again')}.",
        ) from None


@contextmanager
def written_aside(
    path: Path, error: type[ScalrError], *, keep: Path | None = None, then: str = "or choose another path"
) -> Iterator[Path]:
    """Yield a temporary path to write to. At the end, the file is flushed to disk and renamed to `path`.

    If anything fails in between, `path` is unchanged, and only its folder may be new.

    Args:
        path: the file.
        error: subclass of ScalrError to raise.
        keep: path to which an existing file is renamed, just before the new file is: at any moment one of the two
            names has a complete file.
        then: the end of the advice if the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # as set by the umask, or by the folder
        yield temporary
        if temporary.stat().st_mode != mode:  # safetensors replaces the file by one that only its owner may read
            temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        require_held(path)
        if keep is not None:
            with suppress(FileNotFoundError):
                os.replace(path, keep)
        os.replace(temporary, path)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as problem:  # raised by the system, by torch's writer, by that of safetensors
        raise error(
            f"the file cannot be written ({first_line(_of_the_system(problem))})",
            where=path,
            fix=f"{remedy(_of_the_system(problem), 'Make room there')}, {then}.",
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file under a temporary name and rename it into place.

    Raises:
        ScalrError: the file cannot be written.
    """
    with written_aside(path, ScalrError) as temporary:
        temporary.write_bytes(data)


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_digest(tensors: Mapping[str, torch.Tensor], dtypes_of: Mapping[str, torch.Tensor] | None = None) -> str:
    """The SHA-256 over names, shapes, dtypes and values of tensors, in hexadecimal; independent of the file format.

    Args:
        tensors: by name, on any device; their order does not matter.
        dtypes_of: tensors of the same names, to whose dtypes the values are converted first.
    """
    import torch  # imported here: most users of this module only read or write small files

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu", dtypes_of[name].dtype if dtypes_of else None)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    """Type and first line of a library's error."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else 'no reason given'}"


def shortened(error: Exception) -> str:
    """The text of a library's error, shortened to one line."""
    return textwrap.shorten(str(error), 400, placeholder=" …") or type(error).__name__


def listed(kinds: Mapping[str, Sequence[str]]) -> str:
    """The number of names of each kind, and the first names: "2 missing: embed.norm.weight, embed.norm.bias"."""
    there = {kind: keys for kind, keys in kinds.items() if keys}
    most = LISTED_KEYS // max(1, len(there))
    return "; ".join(
        f"{len(keys)} {kind}: {', '.join(keys[:most])}{' …' if len(keys) > most else ''}"
        for kind, keys in there.items()
    )


def _of_the_system(problem: Exception) -> Exception:
    """The system's error if torch wrapped it in an error of its own; otherwise the error itself."""
    hidden = problem.__context__ if isinstance(problem, RuntimeError) else None
    return hidden if isinstance(hidden, OSError) else problem


def _what_it_names(error: pickle.UnpicklingError) -> str:
    """The class or function that torch refused. The rest of its message explains how to load the file unsafely."""
    found = re.search(r"(?:GLOBAL|it names) (\S+)", str(error))
    return f" (it names {found[1]})" if found else ""
