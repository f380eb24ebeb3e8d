"""ScaLR in two stages: teacher features are extracted once, students are distilled from the store.

store = scalr.open_store("store.zarr")
view = store.read_view(0, teacher="dinov2_vitl14")
student = scalr.load_student("runs/x/student.safetensors")
features = student.extract(points, dataset="nuscenes")
model = scalr.load_model("runs/finetune/model.safetensors")
classes = model.predict(points, dataset="nuscenes")

`examples/first_steps.py` walks through the whole path.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers and editors see
    from .distill.checkpoint import load_student
    from .distill.student import Student
    from .errors import ScalrError
    from .evaluate.model import Model, load_model
    from .extract.store import FeatureStore, open_store

_HOMES = {
    "FeatureStore": ".extract.store",
    "Model": ".evaluate.model",
    "ScalrError": ".errors",
    "Student": ".distill.student",
    "load_model": ".evaluate.model",
    "load_student": ".distill.checkpoint",
    "open_store": ".extract.store",
}

__all__ = ["FeatureStore", "Model", "ScalrError", "Student", "load_model", "load_student", "open_store"]


def __getattr__(name: str) -> object:
    # Lazy, so that `import scalr` stays fast and a student needs neither zarr nor timm.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
