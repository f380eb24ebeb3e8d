"""Export of a student to one file that torch runs without scalr, by `torch.export`.

The exported program takes one prepared scan of any size; the preparation is not part of the program. The backbone
defines the input (`backbones.waffleiron.export.exported_input`).
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import torch

from ..checkpoint_files import written_aside
from ..errors import StudentError
from .student import Student


def export_student(student: Student, path: Path) -> None:
    """Write a `.pt2` file.

    `torch.export.load(path).module()(*inputs)` gives point features (M, C) and their `Student.project` (M, D).

    Args:
        student: on the CPU; exported in eval mode.
        path: of the file, which is replaced when the new one is complete.

    Raises:
        StudentError: the backbone has no such program, or the file cannot be written.
    """
    program, example, dynamic_shapes = student.backbone.exported(student)
    with torch.no_grad():
        exported = torch.export.export(program.eval(), example, dynamic_shapes=dynamic_shapes)
    content = BytesIO()  # on a full disk, torch's own writer ends the process
    torch.export.save(exported, content)
    with written_aside(path, StudentError) as temporary:
        temporary.write_bytes(content.getbuffer())
