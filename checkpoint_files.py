"""Files of tensors: written whole or not at all, and what can be wrong with them said to people."""

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

LISTED_KEYS = 12  # in an error, of all kinds together


@contextmanager
def explained(path: Path, error: type[ScalrError], *, missing: str) -> Iterator[None]:
    """Turn whatever torch, zipfile or safetensors raise while they read `path` into an `error`.

    Args:
        path: of the checkpoint.
        error: which kind of ScalrError.
        missing: what to do where there is no such file.
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
    except Exception as problem:  # each library has its own
        raise error(
            f"the weights cannot be read ({first_line(problem)})",
            where=path,
            fix=f"{remedy(problem, 'Copy or download the file again')}.",
        ) from None


@contextmanager
def written_aside(
    path: Path, error: type[ScalrError], *, keep: Path | None = None, then: str = "or choose another path"
) -> Iterator[Path]:
    """Yield a path to write to; what is there in the end is flushed to disk and renamed to `path`.

    Whatever goes wrong in between, `path` is as it was, and nothing else is left behind but its folder.

    Args:
        path: of the file.
        error: which kind of ScalrError.
        keep: where the file that is replaced goes; it is renamed just before the new one is, so that one of the two
            names has a whole file at any moment.
        then: the end of the advice, where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask, or the folder, asks for
        yield temporary
        if temporary.stat().st_mode != mode:  # safetensors replaces the file by one that only its owner can read
            temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        require_held(path)
        if keep is not None:
            with suppress(FileNotFoundError):
                os.replace(path, keep)
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as problem:  # the system, torch's writer, that of safetensors
        raise error(
            f"the file cannot be written ({first_line(_of_the_system(problem))})",
            where=path,
            fix=f"{remedy(_of_the_system(problem), 'Make room there')}, {then}.",
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file aside and rename it into place.

    Raises:
        ScalrError: it cannot be written.
    """
    with written_aside(path, ScalrError) as temporary:
        temporary.write_bytes(data)


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_digest(tensors: Mapping[str, torch.Tensor], dtypes_of: Mapping[str, torch.Tensor] | None = None) -> str:
    """The SHA-256 over names, shapes, dtypes and values of tensors, in hexadecimal: the same in whatever file they are.

    Args:
        tensors: by name, on any device; their order does not matter.
        dtypes_of: tensors of the same names; each value counts as it is in the dtype that it has there.
    """
    import torch  # here: most of what imports this module only reads or writes small files

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu", dtypes_of[name].dtype if dtypes_of else None)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    """Kind and first line of an error of a library."""
    return f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else 'no reason given'}"


def shortened(error: Exception) -> str:
    """What an error of a library says, in one line that does not fill the screen."""
    return textwrap.shorten(str(error), 400, placeholder=" …") or type(error).__name__


def listed(kinds: Mapping[str, Sequence[str]]) -> str:
    """How many keys are of each kind, and the first of them: "2 missing: embed.norm.weight, embed.norm.bias"."""
    there = {kind: keys for kind, keys in kinds.items() if keys}
    most = LISTED_KEYS // max(1, len(there))
    return "; ".join(
        f"{len(keys)} {kind}: {', '.join(keys[:most])}{' …' if len(keys) > most else ''}"
        for kind, keys in there.items()
    )


def _of_the_system(problem: Exception) -> Exception:
    """The system's error where torch hides it behind one of its own; else the error itself."""
    hidden = problem.__context__ if isinstance(problem, RuntimeError) else None
    return hidden if isinstance(hidden, OSError) else problem


def _what_it_names(error: pickle.UnpicklingError) -> str:
    """The class or function in the way; the rest of torch's message tells how to load the file all the same."""
    found = re.search(r"(?:GLOBAL|it names) (\S+)", str(error))
    return f" (it names {found[1]})" if found else ""
