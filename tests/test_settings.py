"""Every field of every configuration, given what is no value of it: one line, and never anything else."""

from __future__ import annotations

import contextlib
import math
import types
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from scalr.distill.augmentation import AugmentConfig
from scalr.distill.backbones.backbone import BackboneConfig, ScanInputs
from scalr.distill.backbones.minkunet.config import MinkUNetConfig
from scalr.distill.backbones.minkunet.inputs import MinkUNetInputs
from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.backbones.waffleiron.inputs import Plane, WaffleIronInputs
from scalr.distill.dataset import SamplingConfig
from scalr.distill.objective import ObjectiveConfig
from scalr.distill.recipe import Recipe, load_recipe, recipe_values, sections
from scalr.distill.run import DistillConfig
from scalr.distill.standardisation import StandardisationConfig
from scalr.distill.training import TrainingConfig
from scalr.errors import ScalrError, StudentError
from scalr.evaluate.corrupt import CorruptConfig
from scalr.evaluate.finetune import FinetuneConfig
from scalr.evaluate.predict import PredictConfig
from scalr.evaluate.probe import ProbeConfig
from scalr.evaluate.robustness import RobustnessConfig
from scalr.evaluate.schedules import Schedule
from scalr.evaluate.score import ScoreConfig
from scalr.evaluate.similarity import SimilarityConfig
from scalr.evaluate.teacher import TeacherProbeConfig
from scalr.evaluate.transfer import TransferConfig
from scalr.extract.config import ExtractConfig, Pixels
from scalr.extract.verification import VerifyConfig
from scalr.settings import (
    Amount,
    Count,
    CountOrZero,
    PositiveAmount,
    Seed,
    Settings,
    Weight,
    Workers,
    above,
    at_least,
    below,
    checked,
    up_to,
)

PATHS = {name: Path(name) for name in ("student", "model", "root", "clean_root", "out", "cache", "store")}
NEEDED = PATHS | {
    "axes": (0, 1), "shape": (4, 4), "caches": (Path("s.zarr"),), "teachers": ("t",), "epochs": 1, "warmup_epochs": 0,
    "learning_rate": 1e-3, "min_learning_rate": 0, "weight_decay": 0, "kind": "centre", "dims": (4,), "weights": (1.0,),
    "scans": (Path("scans"),),
}  # fmt: skip
ONE_OF_TWO = {PredictConfig: {"model": Path("model")}}  # what a config cannot be made without, and has a default
CONFIGS = (
    WaffleIronConfig, Plane, WaffleIronInputs, MinkUNetConfig, MinkUNetInputs, AugmentConfig, SamplingConfig,
    ObjectiveConfig, TrainingConfig, Recipe, DistillConfig, Schedule, ProbeConfig, FinetuneConfig, TeacherProbeConfig,
    ScoreConfig, RobustnessConfig, TransferConfig, SimilarityConfig, CorruptConfig, ExtractConfig, VerifyConfig,
    StandardisationConfig, PredictConfig,
)  # fmt: skip

NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 2.0, 2.5, 0.5, -0.5, 1e-3, 1e-320, -1e-3, 1e300, 10**9, 10**20, 10**400]),
    st.sampled_from([math.nan, math.inf, -math.inf, True, False, np.float32(0.5), np.int64(3), np.bool_(True)]),
    st.integers(-3, 70_000),
    st.floats(allow_nan=False, width=32),
)
TEXTS = st.sampled_from(["", "nan", "1e-3", "3", "all", "random", "float32", "cosine", "1%", "a\nb", "\0", "x" * 5000])
ANYTHING = st.recursive(
    NUMBERS | TEXTS | st.sampled_from([None, b"1", Path("p"), object(), {1, 2}, range(3), np.zeros(2), int, len, 1j]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(TEXTS | st.sampled_from([1, None, (1,), "axes", "shape"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def of_config(config: type) -> dict[str, Any]:
    """What it cannot be made without."""
    needed = [each for each in fields(config) if each.default is MISSING and each.default_factory is MISSING]
    return {each.name: NEEDED[each.name] for each in needed} | ONE_OF_TWO.get(config, {})


def within(value: Any, words: str, limit: float) -> bool:
    size = value if isinstance(value, int | float) else len(value)
    return {"at least": size >= limit, "above": size > limit, "at most": size <= limit, "below": size < limit}[words]


def is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotation, to the letter: written anew, without any conversion."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return is_of(value, parts[0]) and all(within(value, bound.words, bound.limit) for bound in parts[1:])
    if origin in (Union, types.UnionType):
        return any(is_of(value, part) for part in parts)
    if origin is Literal:
        return type(value) is str and value in parts
    if origin is tuple and type(value) is not tuple:
        return False
    if origin is tuple:
        each = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(value) == len(each) and all(map(is_of, value, each))
    if origin is dict:
        return type(value) is dict and all(is_of(k, parts[0]) and is_of(v, parts[1]) for k, v in value.items())
    if origin is Callable:
        return callable(value)
    if kind is float:
        return type(value) is float and math.isfinite(value)
    # A path is of its system's class, and the settings of a backbone are of its own.
    return isinstance(value, kind) if kind in (Path, BackboneConfig, ScanInputs) else type(value) is kind


def made_or_refused(make: Callable[[], Any]) -> Any:
    """What is made; None where it is refused, which is said well."""
    try:
        return make()
    except ScalrError as error:
        refusal = error
    assert "\n" not in str(refusal)
    assert len(str(refusal)) < 800
    assert refusal.fix
    return None


def require_whole(config: Settings) -> None:
    """All of its values are of their kinds."""
    for name, kind in get_type_hints(type(config), include_extras=True).items():
        if name in {each.name for each in fields(config)}:
            value = getattr(config, name)
            assert is_of(value, kind), (name, value, kind)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
@settings(max_examples=80, derandomize=True, deadline=None)
@given(data=st.data())
def test_any_value_of_any_field_is_of_its_kind_or_refused_in_a_line(config, data):
    name = data.draw(st.sampled_from([each.name for each in fields(config)]))
    value = data.draw(ANYTHING)
    made = made_or_refused(lambda: config(**{**of_config(config), name: value}))
    if made is not None:
        require_whole(made)
    if made is not None and config in sections().values():  # it is saved beside a student
        assert yaml.safe_load(yaml.safe_dump(recipe_values(made))) == recipe_values(made)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_defaults_are_of_their_kinds(config):
    require_whole(config(**of_config(config)))


def test_every_number_has_bounds():
    """A number of thousands of digits fits no counter and no float."""
    for config in CONFIGS:
        for each in fields(config):
            for value in (10**5000, -(10**5000), math.inf, math.nan):
                with pytest.raises(ScalrError):
                    config(**{**of_config(config), each.name: value})


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    section=st.sampled_from(sorted(sections())),
    data=st.data(),
    text=st.one_of(
        st.text(max_size=20),
        ANYTHING.map(repr).filter(lambda text: len(text) < 300),
        st.sampled_from(
            ["-1", "nan", ".nan", ".inf", "1e-3", "2.5", "true", "[1, 2]", "9" * 20, "{a: b}", "*a", "&a [*a]"]
        ),
    ),
)
def test_any_text_after_set_is_taken_or_refused_in_a_line(section, data, text):
    name = data.draw(st.sampled_from([each.name for each in fields(sections()[section])]))
    recipe = made_or_refused(lambda: load_recipe("demo", [f"{section}.{name}={text}"]))
    for each in sections() if recipe else ():
        require_whole(getattr(recipe, each))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.weight_decay=-1", "training.weight_decay: -1 cannot be used. Give a number, at least 0 and"),
        ("training.batch_size=2.5", "training.batch_size: 2.5 cannot be used. Give a whole number"),
        ("training.seed=1.5", "training.seed: 1.5"),
        ("training.seed=99999999999999999999", "training.seed: 99999999999999999999 cannot be used"),
        ("training.warmup_steps=nan", "training.warmup_steps: 'nan'"),
        ("training.warmup_steps=.nan", "training.warmup_steps: nan"),
        ("training.learning_rate=[1e-3]", r"training.learning_rate: \[0.001\]"),
        ("training.workers=1000000", "training.workers: 1000000"),
        ("training.compile=1", "training.compile: 1 cannot be used. Give true or false"),
        ("sampling.views_per_sample=true", "sampling.views_per_sample: True"),
        ("student.width=1000000000", "student.width"),
        ("inputs.num_neighbours=1000000000", "inputs.num_neighbours"),
        (
            "inputs.planes=[{axes: [0, 1], shape: [10000, 10000]}]",
            r"planes.shape: .* Give at most 67,108,864 cells",
        ),
        ("inputs.planes=[{axes: [0, 1], depth: 3}]", "inputs.planes: .*each item a mapping of axes, shape"),
        ("objective.teachers={1: 2}", "objective.teachers: .*each key text"),
    ],
)
def test_settings_that_once_ended_in_a_traceback_are_said(override, message):
    with pytest.raises(StudentError, match=message):
        load_recipe("demo", [override])


def test_values_become_those_of_their_kinds():
    """Numbers of NumPy and whole numbers that were written with a point; lists and mappings as YAML has them."""
    training = TrainingConfig(epochs=3.0, batch_size=np.int64(4), learning_rate=np.float32(0.5), weight_decay=0)
    assert (training.epochs, training.batch_size, training.learning_rate) == (3, 4, 0.5)
    assert [type(each) for each in (training.epochs, training.batch_size, training.weight_decay)] == [int, int, float]
    assert DistillConfig(caches=["s.zarr"], out="o").caches == (Path("s.zarr"),)
    assert WaffleIronInputs(planes=[{"axes": [0, 1], "shape": [4, 4.0]}]).planes == (Plane((0, 1), (4, 4)),)
    recipe = load_recipe("demo", ["training.epochs=1e1", "sampling.store_weights=[1e-3, 2]"])
    assert recipe.training.epochs == 10
    assert recipe.sampling.store_weights == (0.001, 2.0)


@dataclass(frozen=True)
class Settled(Settings, section="tea"):
    """One field of each kind of bound."""

    cups: Annotated[int, at_least(1), up_to(4)] = 1
    share: Annotated[float, above(0), below(1)] = 0.5
    names: Annotated[tuple[str, ...], at_least(1)] = ("green",)
    kind: Literal["green", "black"] | None = None
    milk: bool = False


@pytest.mark.parametrize(
    ("values", "what", "fix"),
    [
        ({"cups": 0}, "0", "Give a whole number, at least 1 and at most 4"),
        ({"cups": 5}, "5", "Give a whole number, at least 1 and at most 4"),
        ({"share": 0}, "0", "Give a number, above 0 and below 1"),
        ({"share": 1.0}, "1.0", "Give a number, above 0 and below 1"),
        ({"names": []}, "[]", "Give a list, each item text; at least 1 of them"),
        ({"names": "green"}, "'green'", "Give a list, each item text; at least 1 of them"),
        ({"kind": "red"}, "'red'", "Give one of green, black or null"),
        ({"milk": 1}, "1", "Give true or false"),
    ],
)
def test_what_is_wanted_is_said(values, what, fix):
    with pytest.raises(StudentError) as caught:
        Settled(**values)
    error = caught.value
    assert (error.what, error.where, error.fix) == (f"{what} cannot be used", f"tea.{next(iter(values))}", fix)


def test_bounds_belong_to_what_they_include():
    for values in ({"cups": 1}, {"cups": 4}, {"share": 1e-9}, {"share": 0.999}, {"kind": "black"}):
        Settled(**values)


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        (Count, 1, 1_000_000_000),
        (CountOrZero, 0, 1_000_000_000),
        (Workers, 0, 1024),
        (Seed, 0, 2**63 - 1),
        (Amount, 0.0, 1e9),
        (Weight, 1e-6, 1e6),
        (Pixels, 1, 65536),
    ],
)
def test_shared_kinds_have_these_bounds(kind, least, most):
    for value in (least, most):
        assert checked(value, kind, "--here") == value
    beyond = (
        (least - 1, most + 1) if isinstance(least, int) else (math.nextafter(least, -1), math.nextafter(most, 1e10))
    )
    for value in beyond:
        with pytest.raises(ScalrError, match="cannot be used"):
            checked(value, kind, "--here")


def test_a_positive_amount_is_above_0():
    assert checked(1e-300, PositiveAmount, "--here") == 1e-300
    for value in (0, 1e9 + 1):
        with pytest.raises(ScalrError, match="above 0 and at most 1,000,000,000"):
            checked(value, PositiveAmount, "--here")


def test_options_are_named_as_they_are_typed():
    with pytest.raises(ScalrError, match=r"^--eval-frames: 0 cannot be used"):
        checked(0, Annotated[int, at_least(1)], "--eval-frames")
    with pytest.raises(ScalrError, match=r"^--checkpoint-minutes: -1 cannot be used") as caught:
        DistillConfig(caches=("s",), out="o", checkpoint_minutes=-1)
    assert type(caught.value) is ScalrError
    with pytest.raises(ScalrError, match=r"^--part: 1 cannot be used. Give a value of type Part$"):
        ExtractConfig(root="r", teachers=("t",), part=1)


def test_a_value_of_any_size_is_shown_in_a_few_words():
    for value in ("x" * 10**6, [[[[[[[[1]]]]]]]] * 1000, 10**5000, np.zeros(10**5), {"a": 10**5000}):
        with pytest.raises(ScalrError) as caught:
            Settled(cups=value)
        assert len(caught.value.what) < 200
    endless: list = []
    endless.append(endless)
    with contextlib.suppress(StudentError):
        Settled(names=endless)
