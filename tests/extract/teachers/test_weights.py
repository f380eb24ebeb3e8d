"""Weights from files in the layouts that their makers publish, and from files that are something else."""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from plain_vit import cubic
from scalr.errors import TeacherError
from scalr.extract.teachers import registry, weights
from scalr.extract.teachers.conversion import Skeleton
from scalr.extract.teachers.registry import TeacherSpec
from scalr.extract.teachers.teacher import Teacher, load_teacher
from scalr.extract.teachers.timm_import import import_timm
from small_teachers import SMALL, a_view, small_spec, small_teacher, targets_of

State = dict[str, torch.Tensor]


def official_dinov2_vits14() -> State:
    """The keys and shapes of dinov2_vits14_pretrain.pth (518 px: 37 x 37 patches), random values."""
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> torch.Tensor:
        return 0.05 * torch.randn(shape, generator=generator)

    state = {
        "cls_token": values(1, 1, 384),
        "pos_embed": values(1, 1 + 37 * 37, 384),
        "mask_token": values(1, 384),
        "patch_embed.proj.weight": values(384, 3, 14, 14),
        "patch_embed.proj.bias": values(384),
        "norm.weight": 1 + values(384),
        "norm.bias": values(384),
    }
    linear = {"attn.qkv": (1152, 384), "attn.proj": (384, 384), "mlp.fc1": (1536, 384), "mlp.fc2": (384, 1536)}
    for number in range(12):
        block = {f"{name}.weight": values(*shape) for name, shape in linear.items()}
        block |= {f"{name}.bias": values(shape[0]) for name, shape in linear.items()}
        block |= {f"norm{each}.weight": 1 + values(384) for each in (1, 2)}
        block |= {f"norm{each}.bias": values(384) for each in (1, 2)}
        block |= {f"ls{each}.gamma": 1 + values(384) for each in (1, 2)}
        state |= {f"blocks.{number}.{name}": value for name, value in block.items()}
    return state


@pytest.fixture(scope="module")
def dinov2_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "dinov2_vits14_pretrain.pth"
    torch.save(official_dinov2_vits14(), path)
    return path


def test_an_official_dinov2_file_gives_the_targets_of_timms_conversion(dinov2_file):
    timm = import_timm()
    teacher = load_teacher("dinov2_vits14", image_size=(112, 224), weights=str(dinov2_file))
    model = timm.create_model("vit_small_patch14_dinov2", img_size=(112, 224), num_classes=0).eval()
    model.load_state_dict(
        timm.models.vision_transformer.checkpoint_filter_fn(torch.load(dinov2_file, weights_only=True), model)
    )
    targets = targets_of(teacher)
    teacher._read.model = model
    assert torch.equal(targets_of(teacher), targets)
    assert targets.std() > 0.1
    assert teacher.provenance.weights == "file"


@pytest.mark.parametrize(
    ("name", "side", "offset"),
    [
        ("dinov2_vits14", 37, 0.1),
        ("dinov2_vits14", 16, 0.1),  # a training at 224 px
        ("dino_vits8", 28, 0.1),
        ("mae_vitb16", 14, 0.0),
        ("maskclip_vitb16", 14, 0.0),
    ],
)
def test_official_position_embeddings_are_read_where_their_code_reads_them(monkeypatch, tmp_path, name, side, offset):
    monkeypatch.setitem(registry.TEACHERS, name, small_spec(name))
    state = small_teacher(name, (side, side)).model.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    size = (5 * small_spec(name).patch_size, 40 * small_spec(name).patch_size)
    options = {"image_size": size, "weights": str(tmp_path / "w.safetensors")}
    official = load_teacher(name, pos_embed="official", **options)
    grid = state["pos_embed"][0, 1:].reshape(side, side, -1).double()
    rows, columns = (cubic(side, new, (new + offset) / side) for new in (5, 40))
    expected = torch.einsum("rh,cw,hwd->rcd", rows, columns, grid).flatten(0, 1).float()
    torch.testing.assert_close(official.model.pos_embed[0, 1:], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(official.model.pos_embed[0, :1], state["pos_embed"][0, :1])
    timms = load_teacher(name, pos_embed="timm", **options)
    assert (timms.model.pos_embed - official.model.pos_embed).abs().max() > 0.01
    assert official.patch_maps(torch.zeros(1, 3, *size)).shape[1:3] == (5, 40)
    assert (official.provenance.pos_embed, timms.provenance.pos_embed) == ("official", "timm")
    assert load_teacher(name, **options).provenance.pos_embed == ("official" if "clip" in name else "timm")


@pytest.mark.parametrize("name", ["dinov2_vits14_reg", "dinov3_vits16"])
def test_where_the_official_way_is_timms_they_are_one(monkeypatch, name):
    monkeypatch.setitem(registry.TEACHERS, name, small_spec(name))
    assert small_teacher(name, pos_embed="official").provenance == small_teacher(name).provenance


def test_an_unknown_official_way_is_said():
    with pytest.raises(TeacherError, match=r"--pos-embed: no official way .* is known"):
        load_teacher("timm:test_vit", weights="random", pos_embed="official")


RESIZED = {  # models whose positions each have a form of their own, with what they have beside class and patch tokens
    "class token": ("vit_small_patch16_224.dino", {}),
    "registers, no position of the class token": ("vit_small_patch14_reg4_dinov2.lvd142m", {}),
    "two class tokens": ("deit_small_distilled_patch16_224.fb_in1k", {}),
    "clip": ("vit_base_patch16_clip_224.openai", {}),
    "rope": ("vit_small_patch16_dinov3.lvd1689m", {}),
    "rope and positions": ("eva02_tiny_patch14_224.mim_in22k", {"num_heads": 2}),
    "relative positions": ("beit_base_patch16_224.in22k_ft_in22k", {}),
    "positions resized bilinearly": ("flexivit_small.1200ep_in1k", {}),
}


@pytest.fixture
def small_of_timm(monkeypatch):
    """Call with an entry of RESIZED for a model of timm with random weights; "small" becomes the teacher's name."""

    def call(kind: str) -> tuple[nn.Module, TeacherSpec]:
        timm_name, options = RESIZED[kind]
        options = SMALL | options
        model = import_timm().create_model(timm_name, **options)
        for number, tensor in enumerate(model.state_dict().values()):
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)))
        spec = TeacherSpec(timm_name, model.patch_embed.patch_size[0], 32, 1, "MIT", options=options)
        monkeypatch.setitem(registry.TEACHERS, "small", spec)
        return model, spec

    return call


def sha256_of(state: State) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {tuple(state[name].shape)} {state[name].dtype}".encode() + state[name].numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("kind", RESIZED)
def test_positions_are_resized_as_timm_does_and_the_digest_is_of_the_file(small_of_timm, tmp_path, kind):
    """No arithmetic is in the digest, so it is that of all image sizes, machines and numbers of threads."""
    model, spec = small_of_timm(kind)
    state = model.state_dict()
    torch.save(state, tmp_path / "w.pth")
    for patches in ((3, 5), (2, 8), (7, 28)):  # the last of as many patches as 14 x 14
        size = tuple(side * spec.patch_size for side in patches)
        teacher = load_teacher("small", image_size=size, weights=str(tmp_path / "w.pth"))
        assert teacher.provenance.weights_sha256 == sha256_of(state)
        targets = targets_of(teacher)
        teacher._read.model = (
            import_timm()
            .create_model(
                spec.timm_name,
                pretrained=True,
                pretrained_cfg_overlay={"state_dict": dict(state)},
                img_size=size,
                **spec.options,
            )
            .eval()
        )
        assert torch.equal(targets_of(teacher), targets)


@pytest.mark.parametrize("pos_embed", ["timm", "official"])
@pytest.mark.parametrize("grid", [(37, 37), (6, 6), (3, 5)])
def test_positions_of_another_grid_than_usual_are_in_the_digest_as_they_are(monkeypatch, tmp_path, grid, pos_embed):
    """Of a training at another resolution: a square, or the very grid that is asked for."""
    monkeypatch.setitem(registry.TEACHERS, "dinov2_vits14", small_spec("dinov2_vits14"))
    state = small_teacher("dinov2_vits14", grid).model.state_dict()
    torch.save(state, tmp_path / "w.pth")
    sizes = [(42, 70)] if grid == (3, 5) else [(42, 70), (84, 84), (28, 126)]
    for size in sizes:
        teacher = load_teacher("dinov2_vits14", image_size=size, weights=str(tmp_path / "w.pth"), pos_embed=pos_embed)
        assert teacher.provenance.weights_sha256 == sha256_of(state)
        if size == tuple(14 * side for side in grid):
            assert torch.equal(teacher.model.pos_embed, state["pos_embed"])


def test_as_many_positions_as_asked_for_are_a_square_in_official_code(monkeypatch, tmp_path, caplog):
    """Of 16 patches, 4 x 4 or 2 x 8; timm does not look, and the log says so."""
    monkeypatch.setitem(registry.TEACHERS, "dinov2_vits14", small_spec("dinov2_vits14"))
    state = small_teacher("dinov2_vits14", (4, 4)).model.state_dict()
    torch.save(state, tmp_path / "w.pth")
    options = {"image_size": (28, 112), "weights": str(tmp_path / "w.pth")}
    official = load_teacher("dinov2_vits14", pos_embed="official", **options).model.pos_embed[0, 1:]
    assert not caplog.text
    grid = state["pos_embed"][0, 1:].reshape(4, 4, -1).double()
    rows, columns = (cubic(4, new, (new + 0.1) / 4) for new in (2, 8))
    expected = torch.einsum("rh,cw,hwd->rcd", rows, columns, grid).flatten(0, 1).float()
    torch.testing.assert_close(official, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(load_teacher("dinov2_vits14", **options).model.pos_embed, state["pos_embed"])
    assert "may be of 4x4 or of 2x8 patches; timm assumes the latter, --pos-embed official the former" in caplog.text


def test_relative_positions_of_another_grid_than_usual_are_in_the_digest_as_they_are(small_of_timm, tmp_path):
    _, spec = small_of_timm("relative positions")
    state = import_timm().create_model(spec.timm_name, img_size=(96, 96), **spec.options).state_dict()
    torch.save(state, tmp_path / "w.pth")
    for size in ((48, 80), (96, 96), (96, 192)):
        teacher = load_teacher("small", image_size=size, weights=str(tmp_path / "w.pth"))
        assert teacher.provenance.weights_sha256 == sha256_of(state)


def test_timms_builder_is_as_it_was_after_a_model_that_it_does_not_have():
    from timm.models import _builder

    before = _builder.load_pretrained
    with pytest.raises(RuntimeError, match="Unknown model"):
        Skeleton.of("vit_of_nobody", {})
    assert _builder.load_pretrained is before


@pytest.mark.parametrize("kind", [*RESIZED, "cait"])
def test_random_weights_are_those_of_timm_at_the_usual_size_and_have_one_digest(monkeypatch, small_of_timm, kind):
    if kind == "cait":  # which timm cannot resize
        spec = TeacherSpec("cait_xxs24_224", 16, 32, 1, "MIT", options=SMALL)
        monkeypatch.setitem(registry.TEACHERS, "small", spec)
    else:
        _, spec = small_of_timm(kind)
    torch.manual_seed(0)
    expected = import_timm().create_model(spec.timm_name, img_size=spec.image_size, **spec.options).state_dict()
    usual = load_teacher("small", weights="random")
    assert usual.provenance.weights_sha256 == sha256_of(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in usual.model.state_dict().items())
    other = load_teacher("small", image_size=(2 * spec.patch_size, 3 * spec.patch_size), weights="random")
    assert other.provenance.weights_sha256 == usual.provenance.weights_sha256
    unsized = [name for name, tensor in other.model.state_dict().items() if tensor.shape == expected[name].shape]
    assert len(unsized) >= len(expected) - 3
    assert all(torch.equal(other.model.state_dict()[name], expected[name]) for name in unsized)
    assert other.patch_maps(torch.zeros(1, 3, *other.image_size)).isfinite().all()


def test_random_weights_have_one_digest_where_positions_are_resized_officially(monkeypatch):
    monkeypatch.setitem(registry.TEACHERS, "maskclip_vitb16", small_spec("maskclip_vitb16"))
    teachers = [small_teacher("maskclip_vitb16", patches) for patches in ((3, 5), (14, 28))]
    assert len({teacher.provenance.weights_sha256 for teacher in teachers}) == 1


def registers(state: State) -> State:
    """DINOv2 with registers: the class token's position is apart, and a mask token is there."""
    state["register_tokens"] = state.pop("reg_token")
    position = torch.randn(1, 1, 32)
    state["cls_token"] = state["cls_token"] - position
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    return state | {"mask_token": torch.zeros(1, 32)}


def giant(state: State) -> State:
    """SwiGLU under its names in DINOv2."""
    return {name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value for name, value in state.items()} | {
        "mask_token": torch.zeros(1, 32)
    }


def dinov3(state: State) -> State:
    """Storage tokens, layer scales and a stored RoPE; biases of q, k, v are zero in this model."""
    renames = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    official = {}
    for name, value in state.items():
        for ours, theirs in renames.items():
            name = name.replace(ours, theirs)
        official[name] = value
    more = {f"blocks.{number}.attn.qkv.bias": torch.zeros(96) for number in range(3)}
    return official | more | {"mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(4)}


def with_decoder(state: State) -> dict[str, State]:
    """MAE's file with what it was pretrained with."""
    decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_pos_embed": torch.ones(1, 197, 8)}
    decoder |= {"decoder_embed.weight": torch.ones(8, 32), "decoder_blocks.0.attn.qkv.weight": torch.ones(24, 8)}
    return {"model": state | decoder | {"decoder_norm.weight": torch.ones(8), "decoder_pred.bias": torch.ones(768)}}


def clip(state: State) -> State:
    """OpenAI's names, half precision, and a text encoder beside."""
    renames = {
        "blocks.": "transformer.resblocks.", "patch_embed.proj": "conv1", "norm_pre": "ln_pre", "norm1": "ln_1",
        "norm2": "ln_2", "norm.": "ln_post.", "qkv.": "in_proj_", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj", "pos_embed": "positional_embedding", "cls_token": "class_embedding",
    }  # fmt: skip
    official = {"logit_scale": torch.tensor(4.6), "token_embedding.weight": torch.zeros(7, 32)}
    for name, value in state.items():
        for ours, theirs in renames.items():
            name = name.replace(ours, theirs)
        if name.startswith("head"):
            if name == "head.weight":
                official["visual.proj"] = value.T.contiguous()
            continue
        value = value[0] if "positional" in name else value.flatten() if "class" in name else value
        official[f"visual.{name}"] = value
    return official


def save_torchscript(state: State, path: Path) -> None:
    """As OpenAI published CLIP: a program with its tensors."""

    class Empty(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    root = Empty()
    for name, value in state.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, Empty())
            module = getattr(module, parent)
        module.register_parameter(leaf, nn.Parameter(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the format old; the files are
        torch.jit.script(root).save(path)


LAYOUTS = {
    "dino": ("dino_vits8", lambda state: state, torch.save),
    "dinov2": ("dinov2_vits14", lambda state: state | {"mask_token": torch.zeros(1, 32)}, torch.save),
    "dinov2 with registers": ("dinov2_vits14_reg", registers, torch.save),
    "dinov2 giant": ("dinov2_vitg14", giant, torch.save),
    "dinov3": ("dinov3_vits16", dinov3, torch.save),
    "mae": ("mae_vitb16", with_decoder, torch.save),
    "clip": ("maskclip_vitb16", clip, torch.save),
    "clip as published": ("maskclip_vitb16", clip, save_torchscript),
    "timm": ("dinov2_vits14", lambda state: state, save_file),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_as_their_makers_publish_them(monkeypatch, tmp_path, layout):
    name, published, save = LAYOUTS[layout]
    monkeypatch.setitem(registry.TEACHERS, name, small_spec(name))
    native = 37 if name.startswith("dinov2") else 224 // small_spec(name).patch_size
    teacher = small_teacher(name, (native, native))
    if name.startswith("maskclip"):
        teacher.model.head.bias.data.zero_()  # CLIP's projection has none
    path = tmp_path / ("w.safetensors" if save is save_file else "w.pth")
    save(published(dict(teacher.model.state_dict())), path)
    loaded = load_teacher(name, image_size=teacher.image_size, weights=str(path))
    torch.testing.assert_close(targets_of(loaded), targets_of(teacher), atol=1e-4, rtol=1e-4)
    assert loaded.provenance.weights == "file"
    other = load_teacher(name, image_size=(4 * teacher.patch_size, 2 * teacher.patch_size), weights=str(path))
    assert other.provenance.weights_sha256 == loaded.provenance.weights_sha256
    if "registers" not in layout:  # whose class token is the sum of two
        assert loaded.provenance.weights_sha256 == load_again(teacher, path.with_suffix(".safetensors"))


def load_again(teacher: Teacher, path: Path) -> str:
    save_file(teacher.model.state_dict(), path)
    options = {"image_size": teacher.image_size, "weights": str(path)}
    return load_teacher(teacher.name, **options).provenance.weights_sha256


class Code:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"cls_token": Code(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(
        TeacherError,
        match="the file is damaged, or holds objects besides tensors, which"
        r" could run code \(it names \w+\.mkdir\)",
    ):
        load_teacher("dinov2_vits14", weights=str(tmp_path / "w.pth"))
    assert not (tmp_path / "ran").exists()


def test_code_in_a_torchscript_file_is_not_run(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/constants.pkl", b"")
        archive.writestr("w/data.pkl", pickle.dumps(Code(tmp_path / "ran"), protocol=2))
    with pytest.raises(TeacherError, match=r"it names posix\.mkdir"):
        load_teacher("dinov2_vits14", weights=str(tmp_path / "w.pt"))
    assert not (tmp_path / "ran").exists()


def changed(state: State, **changes) -> State:
    state = {name: value for name, value in state.items() if name not in changes}
    return state | {name: value for name, value in changes.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm.weight": None, "norm.bias": None}, "2 missing: norm.weight, norm.bias\\)"),
        ({"neck.weight": torch.zeros(3)}, r"1 unexpected: neck.weight\)"),
        ({"cls_token": torch.zeros(1, 1, 5)}, r"1 of another shape: cls_token \(1, 1, 5\), not \(1, 1, 384\)"),
        ({f"neck.{number}": torch.zeros(1) for number in range(15)}, r"15 unexpected: neck.0, .*neck.11 …"),
        ({"patch_embed.proj.weight": torch.zeros(384, 3, 16, 16)}, "its patches have 16 pixels, not 14"),
    ],
)
def test_weights_of_another_model_are_said(tmp_path, changes, message):
    torch.save(changed(official_dinov2_vits14(), **changes), tmp_path / "w.pth")
    with pytest.raises(TeacherError, match=rf"w\.pth: the weights do not fit vit_small_patch14_dinov2.*{message}"):
        load_teacher("dinov2_vits14", image_size=(28, 28), weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pth", b"", "cannot be read|damaged"),
        ("w.pth", b"not a checkpoint", "damaged"),
        ("w.safetensors", b"not a checkpoint", "cannot be read"),
        ("w.pth", pickle.dumps([1, 2]), "damaged|no tensors"),
    ],
)
def test_a_broken_file_is_said(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TeacherError, match=message):
        load_teacher("dinov2_vits14", weights=str(tmp_path / name))


def test_a_truncated_file_is_said(tmp_path, dinov2_file):
    whole = dinov2_file.read_bytes()
    for number, share in enumerate((0.01, 0.5, 0.999)):
        path = tmp_path / f"{number}.pth"
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(TeacherError, match=r"Copy it again|Copy or download the file again"):
            load_teacher("dinov2_vits14", weights=str(path))


@pytest.mark.parametrize("content", [{}, {"epoch": torch.tensor(3)}, {"model": {"epoch": 3}}, [torch.zeros(3)]])
def test_a_file_without_a_model_is_said(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(TeacherError, match=r"the file has no named tensors|the weights do not fit"):
        load_teacher("dinov2_vits14", weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize("path", ["/nowhere.pth", "/"])
def test_no_file_is_said(path):
    with pytest.raises(TeacherError, match=f"{path}: the (folder of )?weights"):
        load_teacher("dinov2_vits14", weights=path)


def test_a_hub_out_of_reach_explains_the_way_out(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(import_timm(), "create_model", unreachable)
    with pytest.raises(
        TeacherError, match=r"from the Hugging Face Hub .*network.*--weights FILE.*huggingface.*\$HF_HOME"
    ):
        load_teacher("dinov2_vits14")


class Answers(BaseHTTPRequestHandler):
    """A hub that is there, and nothing more; below /broken, not even that."""

    def do_HEAD(self):
        self.send_response(503 if self.path.startswith("/broken") else 200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_whether_the_hub_answers(monkeypatch):
    from huggingface_hub import constants

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        for endpoint, answers in {address: True, f"{address}/broken": False}.items():
            monkeypatch.setattr(constants, "ENDPOINT", endpoint)
            assert weights.hub_answers() == answers
        server.shutdown()
    monkeypatch.setattr(constants, "ENDPOINT", address)
    assert not weights.hub_answers()  # nobody is there


@pytest.fixture
def in_hub(monkeypatch, tmp_path):
    """Call with a teacher and tensors to have them in the cache of a hub without a network; gives their file."""
    from huggingface_hub import constants

    def call(name: str, state: State) -> Path:
        monkeypatch.setitem(registry.TEACHERS, name, small_spec(name))
        repository, commit = tmp_path / f"models--timm--{small_spec(name).timm_name}", "0" * 40
        file = repository / "snapshots" / commit / "model.safetensors"
        for path in (file, repository / "refs" / "main"):
            path.parent.mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        save_file(state, file)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        return file

    return call


def test_weights_of_the_hub_are_those_of_its_file(monkeypatch, in_hub):
    """From the hub's own cache, without a network."""
    name = "dino_vits8"
    monkeypatch.setitem(registry.TEACHERS, name, small_spec(name))
    file = in_hub(name, small_teacher(name, (28, 28)).model.state_dict())
    hub, own = (load_teacher(name, image_size=(40, 64), weights=each).provenance for each in ("hub", str(file)))
    assert hub == replace(own, weights="hub")


def test_weights_of_the_hub_are_loaded_strictly_too(monkeypatch, in_hub):
    name = "dino_vits8"
    monkeypatch.setitem(registry.TEACHERS, name, small_spec(name))
    state = small_teacher(name, (28, 28)).model.state_dict()
    in_hub(name, changed(state, **{"blocks.1.norm1.weight": None}))
    with pytest.raises(TeacherError, match=r"do not fit vit_small_patch8_224.dino \(1 missing: blocks.1.norm1.weight"):
        load_teacher(name, image_size=(40, 64))


def test_a_view_has_its_corners():
    """What the comparisons above rest on."""
    image, pixel = a_view()
    assert pixel.max(axis=0).tolist() == [image.shape[0] - 1, image.shape[1] - 1]
