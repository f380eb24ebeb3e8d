"""Official checkpoints: files in the official layout, built here, become students and come back unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from scalr.cli import main
from scalr.distill import convert as convert_module
from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.backbones.waffleiron.inputs import WaffleIronInputs
from scalr.distill.checkpoint import load_student, save_student, student_provenance
from scalr.distill.convert import convert, read_official, write_official
from scalr.distill.student import Student
from scalr.errors import StudentError
from scalr.extract.intensity import IntensityStatistics
from standardised import standardisation_of, vectors_of

WIDTH, DEPTH, OUT = 8, 2, 6


def bn(prefix: str, width: int) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}.weight": torch.rand(width) + 0.5,
        f"{prefix}.bias": torch.randn(width),
        f"{prefix}.running_mean": torch.randn(width),
        f"{prefix}.running_var": torch.rand(width) + 0.5,
        f"{prefix}.num_batches_tracked": torch.tensor(7),
    }


def conv(prefix: str, *shape: int, bias: bool = True) -> dict[str, torch.Tensor]:
    weight = {f"{prefix}.weight": torch.randn(shape)}
    return weight | ({f"{prefix}.bias": torch.randn(shape[0])} if bias else {})


def official(norm: str = "batch", head: str = "linear", seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict in the shapes of the official modules (DESIGN: "The student, exactly")."""
    torch.manual_seed(seed)
    tensors = bn("embed.norm", 5) | conv("embed.conv1", WIDTH, 5, 1) | bn("embed.conv2.0", 5)
    tensors |= conv("embed.conv2.1", WIDTH, 5, 1, 1, bias=False) | bn("embed.conv2.2", WIDTH)
    tensors |= conv("embed.conv2.4", WIDTH, WIDTH, 1, 1, bias=False) | conv("embed.final", WIDTH, 2 * WIDTH, 1)
    for layer in range(DEPTH):
        for mix, inner, shape in (("spatial", "ffn", (WIDTH, 1, 3, 3)), ("channel", "mlp", (WIDTH, WIDTH, 1))):
            prefix = f"waffleiron.{mix}_mix.{layer}"
            norms = bn(f"{prefix}.norm", WIDTH)
            tensors |= {k: v for k, v in norms.items() if norm == "batch" or k.endswith(("weight", "bias"))}
            tensors |= conv(f"{prefix}.{inner}.0", *shape) | conv(f"{prefix}.{inner}.2", *shape)
            tensors |= conv(f"{prefix}.scale", WIDTH, 1, 1, bias=False)
    heads = {
        "linear": conv("classif", OUT, WIDTH, 1),
        "mlp": conv("classif.0", 2048, WIDTH, 1) | conv("classif.2", OUT, 2048, 1),
        "probe": bn("classif.0", WIDTH) | conv("classif.1", OUT, WIDTH, 1),
    }
    return tensors | heads[head]


@pytest.fixture
def checkpoint(tmp_path):
    def save(tensors: dict, wrapper: str | None = "model_point", prefix: str = "") -> Path:
        named = {prefix + name: value for name, value in tensors.items()}
        path = tmp_path / "ckpt_last.pth"
        torch.save({wrapper: named, "epoch": 24, "optim": {"state": {}}} if wrapper else named, path)
        return path

    return save


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("head", ["linear", "mlp", "probe"])
def test_there_and_back_is_exact(checkpoint, tmp_path, norm, head):
    tensors = official(norm, head)
    convert(checkpoint(tensors), tmp_path / "student.safetensors", None, "relu")
    convert(tmp_path / "student.safetensors", tmp_path / "back.pth", None)
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back["model_point"].keys() == back["net"].keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(back["net"][name], value), name
    student = load_student(tmp_path / "student.safetensors")
    expected = {"norm": norm, "head": head, "width": WIDTH, "depth": DEPTH, "out_channels": OUT}
    assert {name: getattr(student.config, name) for name in expected} == expected
    assert not student.training


@pytest.mark.parametrize("head", ["linear", "mlp", "probe"])
def test_back_and_there_is_exact(tmp_path, head):
    student = Student(WaffleIronConfig(width=WIDTH, depth=DEPTH, head=head, out_channels=OUT))
    write_official(student, tmp_path / "official.pth")
    found = read_official(tmp_path / "official.pth").state_dict()
    assert all(torch.equal(found[name], value) for name, value in student.state_dict().items())


PREFIXES = ["", "module.", "_orig_mod.", "model.", "student.", "encoder.", "module._orig_mod.", "model.student.module."]


@pytest.mark.parametrize("wrapper", ["model_point", "model_points", "net", "state_dict", "model", None])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_wrapping_loads(checkpoint, wrapper, prefix):
    tensors = official()
    student = read_official(checkpoint(tensors, wrapper, prefix))
    assert torch.equal(student.backbone.embed.conv1.weight, tensors["embed.conv1.weight"][:, :, 0])


def named(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def test_two_models_in_one_file_are_told_apart_by_the_user(checkpoint, tmp_path):
    """A student and its average, say; or tensors of which some alone have the prefix."""
    message = r"the file holds several models: names of its tensors begin in several ways \({}\)\. Pass a file with"
    both = named("student.", official()) | named("model.", official(seed=1))
    with pytest.raises(StudentError, match=message.format("student.embed.norm.weight, model.embed.norm.weight")):
        convert(checkpoint(both), tmp_path / "student.safetensors", None)
    some = {("module." if "mlp" in name else "") + name: value for name, value in official().items()}
    first = "module.waffleiron.channel_mix.0.mlp.0.weight"
    with pytest.raises(StudentError, match=message.format(f"embed.norm.weight, {first}")):
        read_official(checkpoint(some))


def test_what_is_beside_a_student_keeps_its_name(checkpoint):
    beside = {"teacher.blocks.0.weight": torch.zeros(1), "model.target_head.weight": torch.zeros(1)}
    with pytest.raises(StudentError, match=r"2 unexpected: model\.target_head\.weight, teacher\.blocks\.0\.weight"):
        read_official(checkpoint(named("student.", official()) | beside))


def test_files_without_counters_of_batch_norms_are_read(checkpoint):
    tensors = {name: value for name, value in official().items() if not name.endswith("num_batches_tracked")}
    student = read_official(checkpoint(tensors))
    assert student.backbone.embed.norm.num_batches_tracked == 0
    assert torch.equal(student.backbone.embed.norm.running_mean, tensors["embed.norm.running_mean"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_converted(checkpoint, tmp_path, value):
    tensors = official()
    tensors["waffleiron.channel_mix.1.mlp.2.bias"][2] = value
    path = checkpoint(tensors, prefix="module.")
    with pytest.raises(
        StudentError, match=r"1 of \d+ tensors .*: waffleiron\.channel_mix\.1\.mlp\.2\.bias\. Pass a checkpoint"
    ) as caught:
        convert(path, tmp_path / "student.safetensors", None)
    assert caught.value.where == str(path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_the_converted_layers_compute_what_the_convolutions_did(checkpoint):
    """The embedding and the head, by torch's own convolutions with the official weights."""
    tensors = official()
    student = read_official(checkpoint(tensors))
    rng = np.random.default_rng(0)
    points = np.hstack([rng.uniform(-5, 5, (40, 3)), rng.uniform(0, 50, (40, 1))]).astype(np.float32)
    batch = WaffleIronInputs().pack([WaffleIronInputs().prepare(points, IntensityStatistics(18.7, 22.0)).input])
    norms = {name: nn.BatchNorm1d(len(tensors[f"{name}.bias"])).eval() for name in ("embed.norm",)}
    norms |= {name: nn.BatchNorm2d(len(tensors[f"{name}.bias"])).eval() for name in ("embed.conv2.0", "embed.conv2.2")}
    for name, module in norms.items():
        module.load_state_dict({k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")})
    x = norms["embed.norm"](batch.features.T[None])  # (1, 5, M)
    offsets = x[:, :, batch.neighbours] - x.unsqueeze(3)  # (1, 5, M, K)
    around = torch.conv2d(norms["embed.conv2.0"](offsets), tensors["embed.conv2.1.weight"])
    around = torch.conv2d(norms["embed.conv2.2"](around).relu(), tensors["embed.conv2.4.weight"]).amax(dim=3)
    own = torch.conv1d(x, tensors["embed.conv1.weight"], tensors["embed.conv1.bias"])
    merged = torch.cat([own, around], dim=1)
    expected = torch.conv1d(merged, tensors["embed.final.weight"], tensors["embed.final.bias"])
    found = student.backbone.embed(batch.features, batch.neighbours)
    torch.testing.assert_close(found, expected[0].T, rtol=1e-5, atol=1e-5)
    logits = torch.conv1d(expected, tensors["classif.weight"], tensors["classif.bias"])
    torch.testing.assert_close(student.project(found), logits[0].T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["centre", "phi_s"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_an_official_file_points_along_the_teacher_s_vectors_less_their_mean(tmp_path, monkeypatch, head, kind):
    """Of each of two teachers; lengths and mean have no place there, and the student's own file has them."""
    torch.manual_seed(0)
    student = Student(WaffleIronConfig(width=WIDTH, depth=DEPTH, head=head, out_channels=OUT))
    student.standardisation = standardisation_of(kind, vectors_of(4, 0), vectors_of(2, 1))
    save_student(student, tmp_path / "student.safetensors", {})
    said = convert(tmp_path / "student.safetensors", tmp_path / "student.pth", None)
    assert said.endswith("point along the teacher's vectors less their mean, which such a file cannot hold")
    official = read_official(tmp_path / "student.pth")
    assert official.state_dict().keys() == Student(official.config).state_dict().keys()
    features = torch.randn(50, WIDTH)
    centred = student.project(features) - student.standardisation.mean
    for mine, theirs in zip(official.project(features).split([4, 2], 1), centred.split([4, 2], 1), strict=True):
        torch.testing.assert_close(nn.functional.normalize(mine), nn.functional.normalize(theirs), rtol=0, atol=1e-5)
    monkeypatch.setattr(convert_module, "export_student", lambda student, path: None)  # test_export.py has it
    exported = convert(tmp_path / "student.safetensors", tmp_path / "student.pt2", None)
    assert exported.endswith("; its outputs are in the teacher's space, mean included")


def test_what_the_file_does_not_hold(checkpoint):
    plus = read_official(checkpoint(official("layer", "mlp"))).config
    assert (plus.activation, plus.stochastic_depth) == ("gelu", 0.2)
    assert read_official(checkpoint(official())).config.activation == "relu"
    assert read_official(checkpoint(official("batch", "probe"))).config.activation == "relu"
    with pytest.raises(StudentError, match=r"--activation relu .*--activation gelu"):
        read_official(checkpoint(official("layer", "probe")))
    inputs = WaffleIronInputs(fov_min_m=(-50, -50, -3), fov_max_m=(50, 50, 2))
    student = read_official(checkpoint(official()), inputs, "gelu")
    assert student.input_config == inputs
    assert student.config.activation == "gelu"


def test_keys_that_are_missing_or_too_many_are_listed(checkpoint):
    tensors = official()
    del tensors["waffleiron.channel_mix.1.mlp.2.bias"]
    tensors["embed.extra"] = torch.zeros(1)
    tensors["embed.final.weight"] = torch.zeros(WIDTH, WIDTH, 1)
    with pytest.raises(StudentError) as error:
        read_official(checkpoint(tensors))
    assert "1 missing: waffleiron.channel_mix.1.mlp.2.bias; 1 unexpected: embed.extra" in error.value.what
    assert "1 of another shape: embed.final.weight (8, 8, 1), not (8, 16, 1)" in error.value.what


class Payload:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"model_point": {"embed.weight": 1}}, "no model_point, model_points, net, state_dict, model with tensors"),
        ({"blocks.0.attn.qkv.weight": torch.zeros(3)}, "the file has no backbone that scalr knows"),
        (
            {"net": official() | {"embed.conv1.weight": torch.zeros(8, 4, 1)}},
            "the model reads 4 input features per point",
        ),
        ({k: v for k, v in official().items() if not k.startswith("classif")}, "its embedding or head is missing"),
        ({"net": Payload()}, "the file is damaged, or holds objects besides tensors, which could run code"),
        ({0: torch.zeros(1)}, "no model_point, model_points, net, state_dict, model with tensors"),
        (official() | {"classif.weight": torch.tensor(1.0)}, "its embedding or head is missing"),
        (official() | {"classif.weight": torch.zeros(6, 8, 1, device="meta")}, "no model_point, model_points"),
        (official() | {"classif.weight": torch.zeros(6, 8, 1, dtype=torch.complex64)}, "no model_point, model_points"),
        (official() | {"classif.weight": torch.zeros(6, 8).to_sparse()}, "no model_point, model_points"),
        ([1, 2], "no model_point, model_points, net, state_dict, model with tensors"),
        (
            official() | {"classif.weight": torch.zeros(6, 8, 1).bool()},
            "1 not floating-point: classif.weight torch.bool",
        ),
        (
            {name: value.int() for name, value in official().items()},
            "not floating-point: embed.norm.weight torch.int32",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, capsys, content, what):
    torch.save(content, tmp_path / "ckpt.pth")
    with pytest.raises(StudentError) as error:
        convert(tmp_path / "ckpt.pth", tmp_path / "student.safetensors", None)
    assert what in error.value.what
    assert "run" not in capsys.readouterr().out
    assert not (tmp_path / "student.safetensors").exists()


def test_damaged_and_missing_files(tmp_path, checkpoint):
    with pytest.raises(StudentError, match="the weights file is missing"):
        read_official(tmp_path / "none.pth")
    path = checkpoint(official())
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(StudentError, match=r"cannot be read|is damaged"):
        read_official(path)


def test_the_suffix_says_what_a_student_becomes(tmp_path, monkeypatch):
    student = tmp_path / "student.safetensors"
    save_student(Student(WaffleIronConfig(width=WIDTH, depth=1, out_channels=OUT)), student, {})
    for kind in ("export_student", "write_official"):
        monkeypatch.setattr(convert_module, kind, lambda student, path, kind=kind: path.write_text(kind))
    for name, content in (("a.pt2", "export_student"), ("a.pth", "write_official"), ("a.pt", "write_official")):
        convert(student, tmp_path / name, None)
        assert (tmp_path / name).read_text() == content


def test_a_target_that_cannot_be_written(tmp_path):
    student = Student(WaffleIronConfig(width=WIDTH, depth=1, out_channels=OUT))
    (tmp_path / "file").touch()
    for write in (lambda path: save_student(student, path, {}), lambda path: write_official(student, path)):
        with pytest.raises(StudentError, match="cannot be written"):
            write(tmp_path / "file" / "student")
        write(tmp_path / "new" / "student")  # folders are made
        assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "student"]


def test_the_command(checkpoint, tmp_path):
    source, student = checkpoint(official("layer"), prefix="module."), tmp_path / "student.safetensors"
    run = CliRunner().invoke
    result = run(main, ["convert", str(source), str(student), "--set", "inputs.voxel_size_m=0.05"])
    assert result.exit_code == 0, result.output
    made = "WI-2-8, layer norm, relu, linear head with 6 outputs"
    assert result.stdout == f"{student}: {made}; 'module.' was taken off the names of its tensors\n"
    back = run(main, ["convert", str(student), str(tmp_path / "back.pth")])
    lost = "the code of ScaLR or WaffleIron does not learn these inputs from it: voxel_size_m 0.05"
    assert back.stdout == f"{tmp_path / 'back.pth'}: {made}; {lost}\n"
    assert load_student(student).input_config.voxel_size_m == 0.05
    assert student_provenance(student)["converted_from"]["file"] == source.name
    for argument, option, message in (
        (source, "student.width=9", "--set: student.width has no effect here: the network is recorded in the file"),
        (
            student,
            "inputs.voxel_size_m=0.1",
            "student.safetensors: SOURCE is a student, whose file records backbone, inputs and activation",
        ),
    ):
        ignored = run(main, ["convert", str(argument), str(tmp_path / "new.pth"), "--set", option])
        assert (ignored.exit_code, ignored.output.count(message)) == (1, 1)
    again = run(main, ["convert", str(source), str(student)])
    assert (again.exit_code, again.output.count("the file exists already")) == (1, 1)
    same = run(main, ["convert", str(student), str(tmp_path / "x.safetensors")])
    assert (same.exit_code, same.output.count("TARGET has the same format as SOURCE")) == (1, 1)
    other = run(main, ["convert", str(student), str(tmp_path / "x.onnx")])
    assert (other.exit_code, other.output.count("'.onnx' is not the suffix of a format")) == (1, 1)
