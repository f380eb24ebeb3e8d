"""Students with any backbone: named, checked, saved, distilled and resumed; what is refused, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import toy_backbone
from in_children import command_of_two, free_port, together
from scalr.cli import main
from scalr.distill.backbones import BACKBONES, backbone_class
from scalr.distill.backbones.backbone import Backbone, BackboneConfig, PackedBatch, PreparedScan, ScanInputs
from scalr.distill.backbones.calls import packed
from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.backbones.waffleiron.inputs import WaffleIronInputs
from scalr.distill.checkpoint import load_student, save_student
from scalr.distill.convert import convert
from scalr.distill.inputs import evaluation_input, training_input
from scalr.distill.interruption import Signals, StoppedError
from scalr.distill.recipe import Recipe, load_recipe, recipe_values
from scalr.distill.run import DistillConfig, distill
from scalr.distill.sampling import _ErrorsAside
from scalr.distill.student import Student
from scalr.distill.training_log import read_log
from scalr.errors import StudentError
from scalr.evaluate.finetune import layer_scale
from scalr.evaluate.labelled_scans import LabelledCollate
from scalr.extract.intensity import IntensityStatistics
from tiny import TinyDataset, extract_with, tiny_teachers
from toy_backbone import NAME, Toy, ToyConfig, ToyInputs

UNIT = IntensityStatistics(0.0, 1.0)
SHORT = ("training.epochs=2", "training.batch_size=2")
# Small networks of each backbone, as --set has them.
SMALL = {
    "waffleiron": ("student.width=8", "student.depth=2", "inputs.num_neighbours=4"),
    NAME: (f"student.backbone={NAME}", "student.width=8"),
    "minkunet": (
        "student.backbone=minkunet", "student.stem_width=4", "student.widths=[4, 4, 4, 4, 4, 4, 4, 8]",
        "student.blocks=[1, 1, 1, 1, 1, 1, 1, 1]",
    ),
}  # fmt: skip
each_backbone = pytest.mark.parametrize("name", SMALL)


def points_of(seed: int, count: int = 300) -> np.ndarray:
    return np.random.default_rng(seed).uniform([-20, -20, -3, 0], [20, 20, 3, 9], (count, 4)).astype(np.float32)


def small_student(name: str) -> Student:
    torch.manual_seed(0)
    recipe = load_recipe("scalr_wi256", (*SMALL[name], "student.out_channels=6"))
    return Student(recipe.student, recipe.inputs)


@each_backbone
def test_every_point_has_the_features_of_its_row_and_scans_do_not_mix(name):
    student, scans = small_student(name).eval(), [points_of(seed, 200 + 50 * seed) for seed in range(3)]
    found = list(student.extract_all(scans, UNIT))
    for points, features in zip(scans, found, strict=True):
        prepared = evaluation_input(points, UNIT, student.input_config)
        rows = student.tokens(student.input_config.pack([prepared.input]))
        assert features.shape == (len(points), student.width)
        torch.testing.assert_close(features, rows[torch.from_numpy(prepared.row)].detach(), rtol=1e-4, atol=1e-5)
        assert (prepared.row[prepared.kept] == np.arange(len(rows))).all()
        assert student.project(features).shape == (len(points), 6)
    assert not torch.allclose(found[0][:200], found[1][:200])


@each_backbone
def test_a_file_gives_the_same_student(name, tmp_path):
    student = small_student(name).eval()
    save_student(student, tmp_path / "student.safetensors", {})
    again = load_student(tmp_path / "student.safetensors")
    assert (again.config, again.input_config) == (student.config, student.input_config)
    assert torch.equal(again.extract(points_of(0), UNIT), student.extract(points_of(0), UNIT))


def test_layers_that_share_a_tensor_are_written_and_read(tmp_path):
    student = small_student(NAME).eval()
    student.backbone.again = next(student.backbone.children())
    save_student(student, tmp_path / "student.safetensors", {})
    with safe_open(tmp_path / "student.safetensors", "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    assert found.keys() == student.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in student.state_dict().items())


@each_backbone
def test_tensors_have_the_backbone_s_own_names_also_inside_another_module(name):
    student = small_student(name)
    names = {*student.backbone.state_dict(), "classif.weight", "classif.bias"}
    assert student.state_dict().keys() == names
    around = nn.ModuleDict({"student": student})
    assert around.state_dict().keys() == {f"student.{each}" for each in names}
    other = nn.ModuleDict({"student": Student(student.config, student.input_config)})
    other.load_state_dict(around.state_dict())
    assert all(map(torch.equal, other.state_dict().values(), around.state_dict().values()))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict({**around.state_dict(), "student.more": torch.zeros(1)})


@each_backbone
def test_a_batch_goes_whole_to_a_device(name):
    student = small_student(name)
    inputs = student.input_config
    batch = inputs.pack([training_input(points_of(seed, 50), UNIT, inputs).input for seed in range(2)]).to("meta")
    assert type(batch) is type(inputs.pack([training_input(points_of(0, 50), UNIT, inputs).input]))
    assert {tensor.device.type for tensor in tensors_in(vars(batch))} == {"meta"}
    assert batch.num_scans == 2


def tensors_in(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def test_tensors_anywhere_in_a_batch_are_moved():
    @dataclass(frozen=True)
    class Inner:
        x: torch.Tensor

    @dataclass(frozen=True, eq=False)
    class Batch(PackedBatch):
        inner: Inner
        several: tuple
        named: PreparedScan
        other: dict

    x = torch.zeros(2)
    batch = Batch(torch.tensor([0, 2]), Inner(x), (x, [x, 3]), PreparedScan(x, None, "text"), {"x": x, 1: (4, 5)})
    moved = batch.to("meta")
    inside = [moved.inner.x, moved.several[0], moved.several[1][0], moved.named.input, moved.other["x"]]
    assert {each.device.type for each in inside} == {"meta"}
    assert (type(moved.inner), type(moved.named), moved.named.row) == (Inner, PreparedScan, "text")
    assert (moved.several[1][1], moved.other[1]) == (3, (4, 5))
    assert (batch.num_points, batch.num_scans) == (2, 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("backbones")
    (folder / "images").mkdir()
    frames = TinyDataset(folder / "images", num_frames=3)
    return extract_with(frames, tiny_teachers(), folder / "s.zarr", teachers=("coordinates",)).path


def run(store: Path, out: Path, name: str, *overrides: str, resume: bool = False) -> list[float]:
    recipe = load_recipe("scalr_wi256", (*SMALL[name], *SHORT, *overrides))
    return distill(DistillConfig(caches=(store,), out=out, recipe=recipe, device="cpu", resume=resume)).losses


def stop(store: Path, out: Path, name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Signals, "stop", property(lambda self: True, lambda self, value: None), raising=False)
        with pytest.raises(StoppedError, match="after step 1 of 2"):
            run(store, out, name)


def test_a_stopped_run_ends_with_the_weights_of_one_that_ran_through(store, tmp_path):
    """test_resume.py stops WaffleIron, test_baselines.py MinkUNet."""
    whole = run(store, tmp_path / "whole", NAME, "sampling.views_per_sample=all")
    stop(store, tmp_path / "stopped", NAME)
    assert run(store, tmp_path / "stopped", NAME, resume=True) == run(store, tmp_path / "one camera", NAME) != whole
    students = [load_student(tmp_path / each / "student.safetensors") for each in ("one camera", "stopped", "whole")]
    first, second, third = (student.state_dict() for student in students)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)
    assert students[0].config.backbone == NAME


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SMALL if name != "waffleiron"])  # test_processes.py has WaffleIron
def test_two_processes_are_one_with_twice_the_batch(store, tmp_path, children, name):
    """Of three frames a step, one process has all, two have one and two; batch norm and the loss span them all."""
    overrides = (*SMALL[name], "training.epochs=4", "training.batch_size=3", "training.warmup_steps=1")
    words = ["-q", "distill", "--cache", str(store), "--device", "cpu", *(w for o in overrides for w in ("--set", o))]
    main([*words, "--out", str(tmp_path / "one")], standalone_mode=False)
    of_two = [*words, "--out", str(tmp_path / "two")]
    assert together(children, command_of_two, free_port(), of_two, tmp_path / "log") == [0, 0]
    curves = [[float(row["loss"]) for row in read_log(tmp_path / each / "log.csv")] for each in ("one", "two")]
    assert len(curves[0]) == 4
    assert curves[0][0] != curves[0][-1]
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-4)


@pytest.mark.slow
def test_workers_know_a_backbone_in_the_working_folder(store, tmp_path, monkeypatch):
    """Whose module is neither installed nor on Python's path."""
    monkeypatch.chdir(tmp_path)
    source = Path(toy_backbone.__file__).read_text()
    (tmp_path / "in_this_folder.py").write_text(source.replace(NAME, "in_this_folder:Toy"))
    recipe = load_recipe("scalr_wi256", ("student.backbone=in_this_folder:Toy", *SHORT, "training.workers=1"))
    result = distill(DistillConfig(caches=(store,), out=tmp_path / "run", recipe=recipe, device="cpu"))
    assert load_student(result.student).config.title == "Toy"


@pytest.mark.parametrize("kind", ["finished", "stopped"])
def test_a_run_goes_on_with_its_own_backbone_alone(store, tmp_path, kind):
    run(store, tmp_path, NAME) if kind == "finished" else stop(store, tmp_path, NAME)
    with pytest.raises(StudentError, match=r"other settings: recipe.student.backbone was toy_backbone:Toy and is waff"):
        run(store, tmp_path, "waffleiron", resume=True)


# What a class is when something of a backbone is missing or no such thing.
def without(name: str, base: type = Toy) -> type:
    return type("Lacking", (base,), {name: getattr(Backbone, name, None), "__module__": __name__})


class TorchsInit(Toy):  # which would take nothing, whatever its signature says
    __init__ = nn.Module.__init__


class OtherInit(Toy):
    def __init__(self, config):
        super().__init__(config, None)


@dataclass(frozen=True)
class NoPack(ScanInputs):
    def prepare(self, points, intensity, feature_xyz=None): ...


class Lacking(Toy):
    Inputs = NoPack


class PlainConfig(ToyConfig):  # without @dataclass its fields are none
    more: int = 3


plain_config = type("Lacking", (Toy,), {"Config": PlainConfig})
lacks_forward, lacks_width, lacks_config = without("forward"), without("width"), without("Config")
other_inputs = type("Lacking", (Toy,), {"Inputs": ToyConfig})
HERE = "scalr_test_backbones"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wafleiron", r"unknown backbone 'wafleiron', did you mean 'waffleiron'\? Use one of: waffleiron"),
        ("no_such_module:Net", r"the backbone no_such_module:Net cannot be imported \(ModuleNotFoundError"),
        ("toy_backbone:Tot", r"the backbone toy_backbone:Tot cannot be imported \(AttributeError"),
        ("broken_module:Net", r"cannot be imported \(ZeroDivisionError: division by zero\)"),
        ("pathlib:Path", "the backbone pathlib:Path has no base class Backbone. Add it to the class"),
        (f"{HERE}:UNIT", "has no base class Backbone"),
        (f"{HERE}:lacks_forward", "has no method forward. Add it to the class; docs/backbones.md"),
        (f"{HERE}:lacks_width", "has no method width"),
        (f"{HERE}:lacks_config", "has no Config, a frozen dataclass derived from BackboneConfig"),
        (f"{HERE}:plain_config", "has no Config, a frozen dataclass derived from BackboneConfig"),
        (f"{HERE}:other_inputs", "has no Inputs, a frozen dataclass derived from ScanInputs"),
        (f"{HERE}:Lacking", "has no method pack in its Inputs"),
        (f"{HERE}:OtherInit", r"has no __init__ that takes \(config, inputs\)"),
        (f"{HERE}:TorchsInit", r"has no __init__ that takes \(config, inputs\)"),
        ("3", "student.backbone: 3 cannot be used. Give text"),
    ],
)
def test_a_class_that_is_no_backbone_is_said_in_a_line(tmp_path, monkeypatch, name, message):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, HERE, SimpleNamespace(**globals()))
    (tmp_path / "broken_module.py").write_text("1 / 0")
    with pytest.raises(StudentError, match=message) as caught:
        load_recipe("scalr_wi256", [f"student.backbone={name}"])
    assert "\n" not in str(caught.value)


def test_bundled_backbones_are_whole():
    for name in BACKBONES:
        found = backbone_class(name)
        assert found.Config().backbone == name
        assert issubclass(found, Backbone)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "student.norm=layer",
            "section student of the backbone toy_backbone:Toy: unknown key 'norm'. Use one of: backbone",
        ),
        (
            "inputs.planes=[]",
            "section inputs of the backbone toy_backbone:Toy: unknown key 'planes'. Use one of: voxel_",
        ),
        ("student.head=probe_linear", "student.head: 'probe_linear' cannot be used. Use linear or mlp"),
        ("student.width=wide", "student.width: 'wide' cannot be used. Give a whole number"),
    ],
)
def test_keys_are_those_of_the_backbone(override, message):
    with pytest.raises(StudentError, match=message):
        load_recipe("scalr_wi256", [f"student.backbone={NAME}", override])


def test_another_backbone_begins_with_its_own_defaults(tmp_path):
    """Whatever the base says of the old one, in a file and after --set, in any order; training stays the base's."""
    (tmp_path / "mine.yaml").write_text(f"base: scalr_wi768\nstudent: {{backbone: '{NAME}', depth: 3}}\n")
    (tmp_path / "same.yaml").write_text("base: scalr_wi768\nstudent: {backbone: waffleiron}\n")
    of_file = load_recipe(str(tmp_path / "mine.yaml"), ["inputs.voxel_size_m=1"])
    assert (of_file.student, of_file.inputs) == (ToyConfig(depth=3), ToyInputs(voxel_size_m=1.0))
    assert of_file.training == load_recipe("scalr_wi768").training
    changed = load_recipe("demo", ["student.depth=3", "inputs.voxel_size_m=1", f"student.backbone={NAME}"])
    assert (changed.student, changed.inputs) == (of_file.student, of_file.inputs)
    assert load_recipe(str(tmp_path / "same.yaml")) == load_recipe("scalr_wi768")
    back = load_recipe(str(tmp_path / "mine.yaml"), ["student.backbone=waffleiron"])
    assert (back.student, back.inputs) == (WaffleIronConfig(), WaffleIronInputs())
    assert load_recipe("demo", ["student.backbone=waffleiron"]) == load_recipe("demo")


def test_settings_of_two_backbones_are_refused():
    for make in (Student, lambda student, inputs: Recipe(student=student, inputs=inputs)):
        with pytest.raises(
            StudentError, match=r"WaffleIronInputs is not the configuration of the backbone toy_b.*. Use ToyInputs"
        ):
            make(ToyConfig(), WaffleIronInputs())
        with pytest.raises(
            StudentError, match=r"ToyConfig is not the configuration of the backbone waffleiron. Use WaffleIronConfig"
        ):
            make(ToyConfig(backbone="waffleiron"), ToyInputs())
    recipe = Recipe(student=ToyConfig(width=4))
    assert recipe.inputs == ToyInputs()
    assert Recipe(**recipe_values(recipe)) == recipe
    assert replace(recipe, student=ToyConfig(width=5)).student.width == 5


class Clashing(Toy):
    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.classif = nn.Linear(2, 2)


@dataclass(frozen=True)
class OwnConfig(ToyConfig):
    backbone: str = f"{HERE}:Own"


@dataclass(frozen=True)
class OwnInputs(ToyInputs):
    """Each of its methods is changed by a test."""


class Own(Toy):
    Config, Inputs = OwnConfig, OwnInputs


@pytest.fixture
def changed(monkeypatch):
    """Let a method of Own or OwnInputs give what a function makes of the sound value."""
    monkeypatch.setitem(__import__("sys").modules, HERE, SimpleNamespace(**globals()))

    def change(owner: type, method: str, function) -> None:
        sound = getattr(owner, method)
        if isinstance(sound, property):
            monkeypatch.setattr(owner, method, property(lambda self: function(sound.fget(self))))
        else:
            monkeypatch.setattr(owner, method, lambda self, *a, **k: function(sound(self, *a, **k)), raising=False)

    return change


PREPARED = {
    "None": (lambda scan: None, "returned None, not a PreparedScan"),
    "tuple": (tuple, "returned a tuple, not a PreparedScan"),
    "row -1": (lambda scan: scan._replace(row=scan.row - 1), r"returned 'row' from -1 to \d+, not from 0 to \d+"),
    "row too high": (lambda scan: scan._replace(row=scan.row + 1), r"returned 'row' from 1 to \d+, not from 0 to"),
    "row missing": (lambda scan: scan._replace(row=scan.row[1:]), "returned 39 rows in 'row', not one for each of 40"),
    "row list": (lambda scan: scan._replace(row=scan.row.tolist()), "returned 'row' as a list, not int64 of one axis"),
    "row float": (lambda scan: scan._replace(row=scan.row * 1.0), r"returned 'row' as float64 of shape"
    r" \(40,\), not int64"),
    "row None": (lambda scan: scan._replace(row=None), "returned 'row' as None"),
    "kept high": (lambda scan: scan._replace(kept=scan.kept + 40), r"returned 'kept' from 4\d to \d+, not"
    r" from 0 to 39"),
    "kept none": (lambda scan: scan._replace(kept=scan.kept[:0]), "returned no row in 'kept', not one at least"),
    "kept column": (lambda scan: scan._replace(kept=scan.kept[:, None]), r"returned 'kept' as int64 of"
    r" shape \(\d+, 1\)"),
    "kept bool": (lambda scan: scan._replace(kept=scan.kept > 3), "returned 'kept' as bool"),
}  # fmt: skip


@pytest.mark.parametrize("fault", PREPARED)
def test_a_prepared_scan_whose_rows_are_not_of_the_points_is_refused(changed, fault):
    """A row of -1 would be the last one's feature."""
    function, message = PREPARED[fault]
    changed(OwnInputs, "prepare", function)
    for make in (evaluation_input, training_input):
        with pytest.raises(StudentError, match=rf"test_backbones:OwnInputs: the method prepare {message}"):
            make(points_of(0, 40), UNIT, OwnInputs())
    changed(OwnInputs, "prepare_whole", function)
    with pytest.raises(StudentError, match=r"OwnInputs: the method prepare returned"):
        training_input(points_of(0, 40), UNIT, OwnInputs())


def test_rows_of_any_whole_numbers_are_int64(changed):
    """Those of a batch are counted on from these: uint8 would begin anew at 256."""
    sound = evaluation_input(points_of(0, 40), UNIT, OwnInputs())
    changed(OwnInputs, "prepare", lambda scan: scan._replace(kept=scan.kept.astype("u1"), row=scan.row.astype(">i2")))
    found = training_input(points_of(0, 40), UNIT, OwnInputs())
    for rows, wanted in ((found.kept, sound.kept), (found.row, sound.row)):
        assert rows.dtype == np.int64
        assert rows.tolist() == wanted.tolist()


class PlainBatch(PackedBatch):
    """Without @dataclass: what it has beside scan_offsets would stay behind."""


PACKED = {
    "None": (lambda batch: None, "returned None, not a frozen dataclass derived from PackedBatch"),
    "dict": (vars, "returned a dict, not a frozen dataclass"),
    "plain": (lambda batch: PlainBatch(batch.scan_offsets), "returned a PlainBatch, not a frozen dataclass"),
    "short": (lambda batch: replace(batch, scan_offsets=batch.scan_offsets[:-1]), r"returned scan_offsets \[0\], not "),
    "more": (lambda batch: replace(batch, scan_offsets=batch.scan_offsets * 2), r"returned scan_offsets .* sizes of"),
    "later": (lambda batch: replace(batch, scan_offsets=batch.scan_offsets + 1), r"returned scan_offsets \[1, "),
    "array": (lambda batch: replace(batch, scan_offsets=batch.scan_offsets.numpy()), "returned scan_offsets"
    " as int64 of"),
    "float": (lambda batch: replace(batch, scan_offsets=batch.scan_offsets.float()), "returned scan_offsets"
    " as float32 of"),
}  # fmt: skip


@pytest.mark.parametrize("fault", PACKED)
def test_a_batch_that_is_not_of_its_scans_is_refused(changed, fault):
    function, message = PACKED[fault]
    changed(OwnInputs, "pack", function)
    with pytest.raises(StudentError, match=rf"test_backbones:OwnInputs: the method pack {message}"):
        packed(OwnInputs(), [evaluation_input(points_of(0), UNIT, OwnInputs())])


FORWARD = {
    "None": (lambda features: None, "None"),
    "tuple": (lambda features: (features,), "a tuple"),
    "array": (lambda features: features.detach().numpy(), r"float32 of shape \(\d+, 12\)"),
    "int": (lambda features: features.long(), r"int64 of shape \(\d+, 12\)"),
    "rows": (lambda features: features[:-1], r"float32 of shape \(\d+, 12\)"),
    "channels": (lambda features: features[:, 1:], r"float32 of shape \(\d+, 11\)"),
}


@pytest.mark.parametrize("fault", FORWARD)
def test_features_that_are_not_of_the_rows_are_refused(changed, fault):
    function, found = FORWARD[fault]
    changed(Own, "forward", function)
    with pytest.raises(
        StudentError, match=rf"Own: the method forward returned {found}, not floating-point numbers of shape"
    ):
        Student(OwnConfig()).extract(points_of(0), UNIT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_features_of_another_precision_are_taken_to_the_head_s(changed, dtype):
    changed(Own, "forward", lambda features: features.to(dtype))
    student = Student(OwnConfig(out_channels=5))
    batch = packed(OwnInputs(), [evaluation_input(points_of(0), UNIT, OwnInputs())])
    assert student.tokens(batch).dtype == student(batch).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert student.tokens(batch).dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
        assert student(batch).dtype == torch.bfloat16


@pytest.mark.parametrize("width", [None, 0, -3, 12.0, "12", True])
def test_a_width_is_a_whole_number(changed, width):
    changed(Own, "width", lambda sound: width)
    with pytest.raises(StudentError, match=rf"Own: the method width returned {width!r}, not a whole number from 1 on"):
        Student(OwnConfig())


@pytest.mark.parametrize("layer", [None, -1, 3, 1.0])
def test_a_layer_is_one_of_the_backbone(changed, layer):
    changed(Own, "layer_of", lambda sound: layer)
    with pytest.raises(
        StudentError, match=f"Own: the method layer_of returned {layer}, not a layer from 0 to below num_l"
    ):
        layer_scale(0.9, Own(OwnConfig(), OwnInputs()))("model.backbone.stem.weight")


@pytest.mark.parametrize("function", [lambda self: None, lambda self: setattr(self, "stem", nn.Linear(4, 12))])
def test_a_backbone_that_is_no_module_yet_is_refused(changed, monkeypatch, function):
    monkeypatch.setattr(Own, "__init__", lambda self, config, inputs: function(self))
    changed(Own, "width", lambda sound: 12)
    with pytest.raises(
        StudentError,
        match="Own: __init__ of the backbone has not called"
        r" super\(\).__init__\(\). Put the call super\(\).__init__\(\) first",
    ):
        Student(OwnConfig())


def test_what_the_code_of_a_backbone_raises_stays_as_it_is(changed):
    changed(Own, "__init__", lambda _: torch.zeros(1).no_such_method())
    with pytest.raises(AttributeError, match="no_such_method"):
        Student(OwnConfig())


RUNS = {
    "prepare": (
        lambda scan: scan._replace(kept=np.append(scan.kept, 0)),
        r"pack returned scan_offsets .* the sizes of 'kept'",
    ),
    "drawn": (lambda rows: rows * 1.0, r"drawn returned rows as float64 of shape \(\d+,\), not int64 of one axis"),
    "inside": (lambda mask: mask[1:], r"inside returned bool of shape \(\d+,\), not bool of shape \(\d+,\)"),
    "for_distillation": (lambda inputs: None, "for_distillation returned None, not a OwnInputs"),
    "for_dataset": (lambda inputs: ToyInputs(), "for_dataset returned a ToyInputs, not a OwnInputs"),
}


@pytest.mark.parametrize("method", [name for name in RUNS if name != "for_dataset"])
def test_distillation_says_what_a_method_gave(changed, store, tmp_path, method):
    """Of a batch, too, which is packed in a worker: an error that was raised there would arrive as a traceback."""
    function, message = RUNS[method]
    changed(OwnInputs, method, function)
    recipe = load_recipe("scalr_wi256", (f"student.backbone={HERE}:Own", *SHORT))
    with pytest.raises(StudentError, match=f"test_backbones:OwnInputs: the method {message}"):
        distill(DistillConfig(caches=(store,), out=tmp_path, recipe=recipe, device="cpu"))
    assert not (tmp_path / "student.safetensors").exists()


@pytest.mark.parametrize("method", ["prepare", "for_dataset"])
def test_extraction_says_what_a_method_gave(changed, method):
    function, message = RUNS[method]
    changed(OwnInputs, method, function)
    with pytest.raises(StudentError, match=f"OwnInputs: the method {message}"):
        Student(OwnConfig()).extract(points_of(0))


def test_samples_of_labels_say_what_a_method_gave(changed):
    scan = evaluation_input(points_of(0), UNIT, OwnInputs())
    labels = np.zeros(len(scan.kept), np.uint8)
    assert len(LabelledCollate(OwnInputs())([(scan, labels)] * 2).labels) == 2 * len(labels)
    changed(OwnInputs, "pack", PACKED["more"][0])
    refused = _ErrorsAside(LabelledCollate(OwnInputs()))([(scan, labels)])
    assert isinstance(refused, StudentError)
    assert "the method pack returned scan_offsets" in str(refused)


def test_a_training_scan_without_points_is_refused_for_all_backbones():
    for inputs in (ToyInputs(), WaffleIronInputs()):
        with pytest.raises(StudentError, match="no point of the scan is inside the field of view"):
            training_input(points_of(0)[:0], UNIT, inputs)


def test_names_of_the_head_are_refused(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, HERE, SimpleNamespace(**globals()))
    with pytest.raises(StudentError, match=r"the backbone's tensor classif.bias has a name that is reserved"):
        Student(ToyConfig(backbone=f"{HERE}:Clashing"))


def test_what_a_backbone_cannot_do_is_said(store, tmp_path):
    with pytest.raises(StudentError, match=r"training.compile: Toy has no layers for torch.compile"):
        run(store, tmp_path, NAME, "training.compile=true")
    with pytest.raises(
        StudentError, match=r"training.activation_checkpointing: Toy does not support activation checkpointing"
    ):
        run(store, tmp_path, NAME, "training.activation_checkpointing=true")
    path = tmp_path / "student.safetensors"
    save_student(small_student(NAME), path, {})
    with pytest.raises(
        StudentError, match=r"Toy: the backbone cannot be exported to a program that runs without scalr. Use the"
    ):
        convert(path, tmp_path / "student.pt2")
    with pytest.raises(StudentError, match=r"student.pth: the backbone toy_backbone:Toy has no official file format"):
        convert(path, tmp_path / "student.pth")
    torch.save({"model_point": small_student("waffleiron").state_dict()}, tmp_path / "official.pth")
    toy = load_recipe("scalr_wi256", SMALL[NAME])
    with pytest.raises(StudentError, match=r"official.pth: the backbone toy_backbone:Toy has no official file format"):
        convert(tmp_path / "official.pth", tmp_path / "new.safetensors", toy)
    assert {each.name for each in tmp_path.iterdir()} == {"student.safetensors", "official.pth"}


def test_a_file_whose_backbone_is_not_here_names_it_and_the_file(tmp_path):
    student = small_student(NAME)
    student.config = replace(student.config, backbone="gone:Net")
    save_student(student, tmp_path / "student.safetensors", {})
    with pytest.raises(StudentError, match=r"student.safetensors: the backbone gone:Net cannot be imported"):
        load_student(tmp_path / "student.safetensors")


def test_a_backbone_without_an_order_of_layers_is_one_layer():
    plain = type("Plain", (Toy,), {"num_layers": Backbone.num_layers, "layer_of": Backbone.layer_of})
    found = plain(ToyConfig(), ToyInputs())
    assert found.num_layers == 1
    assert {found.layer_of(name) for name, _ in found.named_parameters()} == {0}


def test_trainings_set_what_a_network_has():
    network = WaffleIronConfig(width=8, stochastic_depth=0.1)
    assert network.with_own(stochastic_depth=0.2, bn_momentum=0.5) == replace(network, stochastic_depth=0.2)
    assert network.with_own(stochastic_depth=None) == network
    assert ToyConfig().with_own(stochastic_depth=0.2) == ToyConfig()


def test_the_title_names_a_student():
    assert WaffleIronConfig(depth=12, width=48).title == "WI-12-48"
    assert ToyConfig().title == ToyConfig().description == "Toy"
    assert BackboneConfig(backbone="minkunet").title == "minkunet"
