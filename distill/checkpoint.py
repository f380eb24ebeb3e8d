"""Student files: safetensors with the resolved configuration in the header, and digests of tensors and header."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..checkpoint_files import LISTED_KEYS, shortened, tensors_digest, written_aside
from ..errors import StudentError, remedy
from ..json_text import json_text
from ..paths import expanded
from .backbones import DEFAULT, backbone_class
from .standardisation import Standardisation, StandardisationConfig
from .student import Student

logger = logging.getLogger(__name__)

FORMAT = "scalr-student-2"
WITHOUT_DIGESTS = "scalr-student"  # the format of files from before digests were introduced
TENSORS_DIGEST, HEADER_DIGEST = "tensors_sha256", "header_sha256"
PASS_ONE = (
    "Pass the student.safetensors of 'scalr distill', or the model.safetensors of 'scalr evaluate probe' or 'finetune'."
)
COPY_OR_TRAIN = "Copy the file again, or train the student again."
MAKE_ONE = "Run 'scalr convert' first: it converts an official file to a student.safetensors."


def save_student(student: Student, path: str | Path, provenance: dict) -> None:
    """Write a student to a temporary file and rename it into place.

    Args:
        student: on any device; its tensors are copied to the CPU.
        path: of the `.safetensors` file.
        provenance: what the student was trained on and how; plain JSON values.

    Raises:
        StudentError: the file cannot be written, or tensors are not finite.
    """
    path = expanded(path, StudentError)
    # Copies, because safetensors refuses tensors that share memory, as layers of a backbone may.
    tensors = {name: value.cpu().contiguous().clone() for name, value in student.state_dict().items()}
    require_finite(tensors, path, "Train it again with a lower learning rate.")
    header = {
        "format": FORMAT,
        "student": json.dumps(asdict(student.config)),
        "inputs": json.dumps(asdict(student.input_config)),
        "provenance": json_text(provenance),
        TENSORS_DIGEST: tensors_digest(tensors),
    }
    if student.standardisation is not None:
        header["standardisation"] = json.dumps(asdict(student.standardisation.config))
    with written_aside(path, StudentError) as temporary:
        save_file(tensors, temporary, header | {HEADER_DIGEST: _header_digest(header)})


def load_student(path: str | Path) -> Student:
    """Read a student that `save_student` wrote; it is in eval mode on the CPU.

    Raises:
        StudentError: a file that is missing, damaged or not a student; tensors that do not fit its configuration or
            are not finite.
    """
    header, tensors = _read(expanded(path, StudentError))
    try:
        config = {"backbone": DEFAULT, **json.loads(header["student"])}
        backbone = backbone_class(config["backbone"], path)
        inputs = backbone.Inputs(**json.loads(header["inputs"]))
        student = Student(backbone.Config(**config), inputs, _standardisation(header))
        student.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StudentError(
            f"the tensors of the file do not fit its configuration ({shortened(error)})",
            where=path,
            fix="Train or convert the student again.",
        ) from None
    require_finite(tensors, path, "Train or convert the student again.")
    return student.eval()


def _standardisation(header: Mapping[str, str]) -> Standardisation | None:
    """The standardisation, its buffers not yet filled; None for a student of targets without standardisation."""
    values = header.get("standardisation")
    return None if values is None else Standardisation(StandardisationConfig(**json.loads(values)))


def student_provenance(path: str | Path) -> dict:
    """What the student at `path` was trained on and how.

    Raises:
        StudentError: a file that is missing or not a student, or a damaged header. Tensors are not checked.
    """
    header, _ = _read(expanded(path, StudentError), tensors=False)
    try:
        return json.loads(header["provenance"])
    except (KeyError, ValueError) as error:
        raise StudentError(
            f"the file does not record what the student was trained on ({shortened(error)})",
            where=path,
            fix=COPY_OR_TRAIN,
        ) from None


def require_finite(tensors: Mapping[str, torch.Tensor], path: str | Path, fix: str) -> None:
    """Refuse weights that are not finite, from a training that diverged or from a damaged file.

    Raises:
        StudentError: names the first tensors that have a value that is not finite in float32.
    """
    names = [name for name, value in tensors.items() if not value.float().isfinite().all()]
    if names:
        raise StudentError(
            f"{len(names)} of {len(tensors)} tensors hold NaN or infinite values: {', '.join(names[:LISTED_KEYS])}"
            f"{' …' if len(names) > LISTED_KEYS else ''}",
            where=path,
            fix=fix,
        )


def _read(path: Path, tensors: bool = True) -> tuple[dict, dict]:
    """Header and tensors of a file, after a check of their digests."""
    if not path.is_file():
        raise StudentError("no student file exists here", where=path, fix=PASS_ONE)
    try:
        with path.open("rb") as opened, safe_open(_name_for_safetensors(path, opened), framework="pt") as file:
            header = file.metadata() or {}
            values = {key: file.get_tensor(key) for key in file.keys()} if tensors else {}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError) as error:
        fix = remedy(error, MAKE_ONE if path.suffix in (".pth", ".pt") else COPY_OR_TRAIN)
        raise StudentError(f"the file cannot be read ({error})", where=path, fix=fix) from None
    if header.get("format") not in (FORMAT, WITHOUT_DIGESTS):
        raise StudentError("the file is a safetensors file, but not a student of scalr", where=path, fix=PASS_ONE)
    _check_digests(header, values if tensors else None, path)
    return header, values


def _name_for_safetensors(path: Path, opened: BinaryIO) -> str:
    """The name to open with safetensors, which refuses paths that are not UTF-8: such a file goes by its descriptor."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return f"/dev/fd/{opened.fileno()}"
    return str(path)


def _check_digests(header: Mapping[str, str], tensors: Mapping[str, torch.Tensor] | None, path: Path) -> None:
    if header["format"] == WITHOUT_DIGESTS:
        if tensors is not None:
            logger.warning(
                "%s: the file has no digest, so that damage cannot be found: an older release wrote it", path
            )
        return
    same = header.get(HEADER_DIGEST) == _header_digest(header)
    if not same or (tensors is not None and header[TENSORS_DIGEST] != tensors_digest(tensors)):
        raise StudentError(
            f"the {'tensors' if same else 'header values'} of the file changed since it was written (other SHA-256)",
            where=path,
            fix=COPY_OR_TRAIN,
        )


def _header_digest(header: Mapping[str, str]) -> str:
    """SHA-256 of all header values except the digest itself."""
    signed = {key: value for key, value in header.items() if key != HEADER_DIGEST}
    return hashlib.sha256(json.dumps(signed, sort_keys=True).encode()).hexdigest()
