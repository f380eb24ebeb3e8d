"""Students on disk: safetensors with the resolved configuration in the header."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..checkpoint_files import shortened, written_aside
from ..errors import StudentError
from ..json_text import json_text
from .inputs import InputConfig
from .waffleiron import Student, WaffleIronConfig

FORMAT = "scalr-student"
PASS_ONE = "Pass the student.safetensors of a 'scalr distill' run."


def save_student(student: Student, path: str | Path, provenance: dict) -> None:
    """Write a student aside and rename it into place.

    Args:
        student: any device; stored from the CPU.
        path: of the `.safetensors` file.
        provenance: what it was trained on and how, plain JSON values.

    Raises:
        StudentError: the file cannot be written.
    """
    path = Path(path)
    header = {
        "format": FORMAT,
        "student": json.dumps(asdict(student.config)),
        "inputs": json.dumps(asdict(student.input_config)),
        "provenance": json_text(provenance),
    }
    with written_aside(path, StudentError) as temporary:
        save_file({key: value.cpu().contiguous() for key, value in student.state_dict().items()}, temporary, header)


def load_student(path: str | Path) -> Student:
    """Read a student that `save_student` wrote, in eval mode on the CPU.

    Raises:
        StudentError: missing file, not a student, or tensors that do not fit its configuration.
    """
    header, tensors = _read(Path(path))
    try:
        student = Student(
            WaffleIronConfig(**json.loads(header["student"])), InputConfig(**json.loads(header["inputs"]))
        )
        student.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StudentError(
            f"its tensors and its configuration do not fit ({shortened(error)})",
            where=path,
            fix="Train or convert it again.",
        ) from None
    return student.eval()


def student_provenance(path: str | Path) -> dict:
    """What the student at `path` was trained on and how."""
    header, _ = _read(Path(path), tensors=False)
    return json.loads(header["provenance"])


def _read(path: Path, tensors: bool = True) -> tuple[dict, dict]:
    if not path.is_file():
        raise StudentError("no student here", where=path, fix=PASS_ONE)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            values = {key: file.get_tensor(key) for key in file.keys()} if tensors else {}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as error:
        raise StudentError(f"the file cannot be read ({error})", where=path, fix="Copy or train it again.") from None
    if header.get("format") != FORMAT:
        raise StudentError("a safetensors file, but not a student of scalr", where=path, fix=PASS_ONE)
    return header, values
