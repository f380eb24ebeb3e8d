"""Frozen vision transformers: images in, patch maps out."""

from .features import Feature
from .pos_embed import PosEmbed
from .registry import TEACHERS, TeacherSpec, list_teachers
from .teacher import Precision, Preprocessing, Teacher, TeacherProvenance, load_teacher, provenance_attributes
from .weights import choose_weights

__all__ = [
    "TEACHERS",
    "Feature",
    "PosEmbed",
    "Precision",
    "Preprocessing",
    "Teacher",
    "TeacherProvenance",
    "TeacherSpec",
    "choose_weights",
    "list_teachers",
    "load_teacher",
    "provenance_attributes",
]
