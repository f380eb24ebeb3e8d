"""The options of a teacher that users choose, checked before torch is loaded."""

from __future__ import annotations

from typing import Literal

from ...errors import TeacherError
from ...paths import expanded

PosEmbed = Literal["timm", "official"]
# scale_factor: bicubic, by a factor computed for a tenth of a patch more; size: bicubic, to the size; neither is
# antialiased. timm: as timm resizes them, or there are no position embeddings to resize.
OfficialPosEmbed = Literal["scale_factor", "size", "timm"]
NO_FILE = ("hub", "random")
Precision = Literal["float32", "bfloat16", "float16"]


def choose_weights(teachers: tuple[str, ...], given: tuple[str, ...]) -> dict[str, str]:
    """Assign weights to each teacher: those given for it as TEACHER=FILE, else those given for all.

    >>> choose_weights(("dinov2_vitl14", "mae_vitb16"), ("hub", "mae_vitb16=mae.pth"))
    {'dinov2_vitl14': 'hub', 'mae_vitb16': 'mae.pth'}

    Raises:
        TeacherError: one file, or several values, for all teachers; several values for one teacher.
    """
    own = {}
    for name, equals, value in (each.partition("=") for each in given):
        if equals and name in teachers and own.setdefault(name, value) != value:
            raise TeacherError(
                f"teacher {name} has two weights: {own[name]} and {value}",
                where="--weights",
                fix="Give each teacher one file.",
            )
    for_all = [each for each in given if each.partition("=")[0] not in own]
    others = [name for name in teachers if name not in own]
    if len(for_all) > 1 or (for_all and for_all[0] not in NO_FILE and len(others) > 1):
        raise TeacherError(
            f"{' and '.join(for_all)} cannot serve {' and '.join(others) or 'all teachers'} alike",
            where="--weights",
            fix="Give each teacher its own: --weights TEACHER=FILE, repeated.",
        )
    chosen = {name: own.get(name, *for_all) for name in teachers if name in own or for_all}
    return {name: value if value in NO_FILE else str(expanded(value, TeacherError)) for name, value in chosen.items()}
