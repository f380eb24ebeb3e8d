"""Lidar backbones by name, each in a folder of its own. `backbone.py` defines their interface."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import StudentError, did_you_mean
from ...own_class import own_class
from ...settings import Settings, checked

if TYPE_CHECKING:
    from .backbone import Backbone, BackboneConfig, ScanInputs

DEFAULT = "waffleiron"  # for recipes, and for files that do not name a backbone
BACKBONES = {  # name: module, class
    "waffleiron": (".waffleiron.network", "WaffleIron"),
    "minkunet": (".minkunet.network", "MinkUNet"),
}


def backbone_class(name: Any, where: object = "student.backbone") -> type[Backbone]:
    """The class of a backbone, whose module is imported by this call.

    Args:
        name: a key of `BACKBONES`, or `package.module:Class` for a user-defined backbone.
        where: the setting or file that names it, for errors.

    Raises:
        StudentError: no such name, module or class, or a class that lacks a member of a backbone.
    """
    name = checked(name, str, str(where), StudentError)
    if ":" not in name and name not in BACKBONES:
        raise StudentError(
            f"unknown backbone '{name}'{did_you_mean(name, BACKBONES)}",
            where=where,
            fix=f"Use one of: {', '.join(BACKBONES)}; or package.module:Class.",
        )
    if ":" in name:
        found = own_class(name, f"backbone {name}", StudentError, where)
    else:
        module, attribute = BACKBONES[name]
        found = getattr(importlib.import_module(module, __name__), attribute)
    for lacking in _lacking(found):
        raise StudentError(
            f"the backbone {name} has no {lacking}",
            where=where,
            fix="Add it to the class; docs/backbones.md lists what a backbone has.",
        )
    return found


def settings_of(student: Any, inputs: Any) -> tuple[BackboneConfig, ScanInputs]:
    """The sections `student` and `inputs` of a recipe, in the classes of the backbone that `student` names.

    Args:
        student, inputs: mappings or settings; an empty mapping means all defaults.

    Raises:
        StudentError: an unknown backbone, values that it does not take, or settings of another backbone.
    """
    from .backbone import BackboneConfig

    name = student.get("backbone", DEFAULT) if isinstance(student, Mapping) else DEFAULT
    name = student.backbone if isinstance(student, BackboneConfig) else name
    backbone = backbone_class(name)
    for given, wanted in ((student, backbone.Config), (inputs, backbone.Inputs)):
        if isinstance(given, Settings) and not isinstance(given, wanted):
            raise StudentError(
                f"{type(given).__name__} is not the configuration of the backbone {name}",
                where="student.backbone",
                fix=f"Use {wanted.__name__}.",
            )
    return (
        checked(student, backbone.Config, "student", StudentError),
        checked(inputs, backbone.Inputs, "inputs", StudentError),
    )


def _lacking(found: Any) -> Iterator[str]:
    """Required members that a class lacks."""
    from .backbone import Backbone, BackboneConfig, ScanInputs

    if not (isinstance(found, type) and issubclass(found, Backbone)):
        yield "base class Backbone"
        return
    for name, base in (("Config", BackboneConfig), ("Inputs", ScanInputs)):
        settings = getattr(found, name, None)
        is_derived = isinstance(settings, type) and issubclass(settings, base)
        if not (is_derived and "__dataclass_fields__" in vars(settings)):  # a base's @dataclass does not count
            yield f"{name}, a frozen dataclass derived from {base.__name__}"
            return
    yield from (f"method {name}" for name in sorted(found.__abstractmethods__))
    yield from (f"method {name} in its Inputs" for name in sorted(found.Inputs.__abstractmethods__))
    try:
        inspect.signature(found).bind("config", "inputs")
        takes_them = found.__init__ is not Backbone.__init__  # torch's takes no arguments, whatever its signature says
    except TypeError:
        takes_them = False
    if not takes_them:
        yield "__init__ that takes (config, inputs)"
