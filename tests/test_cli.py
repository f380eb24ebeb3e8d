"""Each command from the command line, and what people see when their input is wrong."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import click
import numpy as np
import pytest
import torch
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from calls import calls_of
from in_children import command_in_shell
from moments import Child
from scalr.cli import main
from scalr.cli_options import Terminated
from scalr.distill.backbones.waffleiron.config import WaffleIronConfig
from scalr.distill.checkpoint import save_student
from scalr.distill.interruption import StoppedError
from scalr.distill.student import Student
from scalr.distill.training_log import read_log
from scalr.extract import check as check_module
from scalr.extract.store import open_store
from scalr.extract.store.inspect import readable_bytes
from scalr.extract.teachers.teacher import load_teacher
from store_comparison import assert_same_store

MEASURED_TEACHER = ("--teacher", "dinov2_vits14", "--weights", "random", "--image-size", "28x56")
TINY_TEACHER = (*MEASURED_TEACHER, "--batch-size", 6)
SMALL = ("student.width=8", "student.depth=3", "training.epochs=2", "training.batch_size=2", "training.warmup_steps=1")
COLUMNS = ("student", "student_on_pairs", "teacher")


def scalr(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def assert_one_line_error(result: Result, *parts: str) -> None:
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.exit_code == 1, result.output
    assert len(errors) == 1
    assert "Traceback" not in result.output
    for part in parts:
        assert part in errors[0]


@pytest.fixture
def world(synthetic_world, tmp_path) -> Path:
    return Path(shutil.copytree(synthetic_world, tmp_path / "world"))


@pytest.mark.slow
def test_from_images_to_a_probe(synthetic_world, tmp_path):
    extracted = scalr("extract", *MEASURED_TEACHER, "--root", synthetic_world, "--out", tmp_path / "s.zarr")
    assert extracted.exit_code == 0, extracted.output
    assert "2 frames, 12 views" in extracted.output
    assert "RANDOM" in extracted.stdout
    overrides = [word for value in SMALL for word in ("--set", value)]
    command = ("distill", "--cache", tmp_path / "s.zarr", *overrides, "--out", tmp_path / "run", "--resume")
    probes = ("--eval-every", 2, "--eval-root", synthetic_world, "--eval-frames", 1)
    distilled = scalr(*command, *probes)
    assert distilled.exit_code == 0, distilled.output
    assert "of the time was spent waiting for data" in distilled.output
    *_, last = read_log(tmp_path / "run/log.csv")
    assert 0 < float(last["probe_miou"]) < 1
    again = scalr(*command)  # as a batch job that is started once too often
    assert again.exit_code == 0, again.output
    assert "2 steps" in again.output
    student = tmp_path / "run/student.safetensors"
    probed = scalr(
        "evaluate", "probe", "--student", student, "--root", synthetic_world,
        "--epochs", 3, "--batch-size", 2, "--out", tmp_path / "probe",
    )  # fmt: skip
    assert probed.exit_code == 0, probed.output
    result = json.loads((tmp_path / "probe/result.json").read_text())
    assert f"mIoU {result['miou']:.1%}" in probed.output
    assert len(result["iou"]) == 16
    assert result["provenance"]["distillation"]["teachers"]["dinov2_vits14"]["weights"] == "random"
    report = scalr("evaluate", "report", tmp_path / "probe").stdout
    assert "all four datasets), published for another setting | 70.40 |" in report
    (note,) = re.findall(r"(?m)^\(\d+\) Not comparable with published results: simulated data, random .*$", report)
    for part in ("epochs 3, not 20", "width 8, not ", "teacher's weights random, not published"):
        assert part in note
    converted = tmp_path / "converted.safetensors"
    for source, target in ((student, tmp_path / "official.pth"), (tmp_path / "official.pth", converted)):
        assert scalr("convert", source, target).exit_code == 0
    probed = scalr(
        *("evaluate", "probe", "--student", converted, "--root", synthetic_world, "--fast", "--epochs", 1),
        *("--out", tmp_path / "official"),
    )  # fmt: skip
    assert probed.exit_code == 0, probed.output
    report = scalr("evaluate", "report", tmp_path / "official").stdout
    assert "unknown: what it was distilled from and how (a file converted from official.pth" in report


@pytest.mark.slow
def test_each_command_of_evaluation(simulated, tmp_path):
    nuscenes, kitti = simulated("nuscenes"), simulated("semantic_kitti")
    torch.manual_seed(0)
    student = tmp_path / "student.safetensors"
    save_student(Student(WaffleIronConfig(width=8, depth=3, out_channels=4)), student, {})

    def evaluate(verb: str, *arguments: object, out: str) -> str:
        result = scalr("evaluate", verb, *arguments, "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
        assert f"{tmp_path / out}/result.md" in result.stdout
        assert (tmp_path / out / "result.md").exists()
        return result.stdout

    common = ("--student", student, "--root", nuscenes, "--epochs", 2, "--warmup-epochs", 1)
    assert "mIoU" in evaluate("finetune", *common, "--batch-size", 2, out="finetune")
    scored = ("--model", tmp_path / "finetune/model.safetensors", "--root", nuscenes)
    shown, again = (
        evaluate("score", *scored, out="score"),
        evaluate("score", *scored, "--absent-classes", "as-1", out="b"),
    )
    assert shown.splitlines()[:16] == again.splitlines()[:16]
    assert re.search(r"(?m)^mIoU \d", shown)
    assert re.search(r"(?m)^mIoU, absent classes as 1 \d", again)
    evaluate("probe", *common, "--fast", "--classes", "semantic_kitti_10", out="source")
    source = tmp_path / "source/model.safetensors"
    assert "driveable_surface" in evaluate("transfer", "--model", source, "--root", kitti, out="transfer")
    for split in ("train", "val"):
        assert scalr(
            "extract", *TINY_TEACHER, "--root", nuscenes, "--split", split, "--out", tmp_path / "s.zarr"
        ).exit_code == 0  # fmt: skip
    evaluate("teacher", "--cache", tmp_path / "s.zarr", "--root", nuscenes, "--epochs", 3, out="teacher")
    options = ("--cache", tmp_path / "s.zarr", "--no-centre", "--area-frames", 1, "--out", tmp_path / "maps")
    shown = scalr("evaluate", "similarity", "--student", student, "--root", nuscenes, *options)
    assert shown.exit_code == 0, shown.output
    assert_shows_areas(shown.stdout, json.loads((tmp_path / "maps/similarity.json").read_text()))
    report = scalr("evaluate", "report", *(tmp_path / name for name in ("finetune", "score", "transfer", "teacher")))
    assert report.exit_code == 0, report.output
    assert "all four datasets), published for another setting | 78.40 |" in report.stdout
    assert "epochs 2, not 25" in report.stdout


def assert_shows_areas(shown: str, record: dict) -> None:
    """The table has what is in the record; a class without an area has a dash."""
    assert (record["config"]["centre"], record["compared"]) == (False, "plain cosine")
    assert f"{record['query']['text']}, plain cosine" in shown
    assert "1 frame of split val" in shown
    assert len(record["areas"]["frames"]) == 1
    rows = {words[0]: words[1:] for words in map(str.split, shown.splitlines()) if words}
    for name, values in record["areas"]["classes"].items():
        areas = [values[what][kind] for what in COLUMNS for kind in ("plain", "centred")]
        assert rows[name] == [f"{values['points']:,}", *("–" if area is None else f"{area:.3f}" for area in areas)]
    means = record["areas"]["mean"]
    assert rows["mean"] == [f"{means[what][kind]:.3f}" for what in COLUMNS for kind in ("plain", "centred")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("distill", "--checkpoint-minutes", -1),
            "--checkpoint-minutes: -1.0 cannot be used. Give a number, at least 0",
        ),
        (("distill", "--checkpoint-minutes", "nan"), "--checkpoint-minutes: nan cannot be used"),
        (("distill", "--set", "training.weight_decay=-1"), "training.weight_decay: -1 cannot be used"),
        (("distill", "--eval-every", 1, "--eval-root", "w", "--eval-frames", 0), "--eval-frames: 0 cannot be used"),
        (("evaluate", "probe", "--student", "s", "--root", "r", "--learning-rate", "inf"), "--learning-rate: inf"),
        (("evaluate", "finetune", "--student", "s", "--root", "r", "--seed", 10**20), "--seed: 1000"),
        (("evaluate", "score", "--model", "m", "--root", "r", "--workers", -1), "--workers: -1 cannot be used"),
        (("extract", "--teacher", "t", "--root", "r", "--workers", 10**6), "--workers: 1000000 cannot be used"),
    ],
)
def test_values_of_options_that_cannot_be_are_said_before_anything_starts(tmp_path, words, message):
    result = scalr(*words, "--out", tmp_path / "out")
    assert result.exit_code == 1
    error = result.output.splitlines()[-1]
    assert error.startswith(f"Error: {message}")
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_extracting_again_does_nothing_and_says_so(synthetic_world, tmp_path):
    command = ("extract", *TINY_TEACHER, "--root", synthetic_world, "--out", tmp_path / "s.zarr")
    assert "1 block written in this run" in scalr(*command).output
    assert "0 blocks written in this run" in scalr(*command).output


def test_a_world_in_another_layout_is_whole(tmp_path):
    options = ("--layout", "semantic_poss", "--train-scenes", 1, "--val-scenes", 0, "--keyframes", 1)
    assert scalr("synth", "--out", tmp_path / "poss", *options).exit_code == 0
    checked = scalr("check", "--dataset", "semantic_poss", "--root", tmp_path / "poss")
    assert checked.exit_code == 0
    assert "semantic_poss train: 1 frame, 0 views" in checked.output
    report = json.loads(scalr("check", "--dataset", "semantic_poss", "--root", tmp_path / "poss", "--json").stdout)
    assert report["problems"] == []
    assert report["points_per_frame"] > 10_000


@pytest.mark.slow
def test_two_datasets_in_one_store(simulated, tmp_path):
    """Frames of the same name are not the same."""
    for name in ("pandaset_64", "pandaset_gt"):
        command = (
            "extract",
            *TINY_TEACHER,
            "--dataset",
            name,
            "--root",
            simulated("pandaset"),
            "--out",
            tmp_path / "s.zarr",
        )
        assert scalr(*command, "--encoding", "patch").exit_code == 0
    shown = scalr("inspect", tmp_path / "s.zarr").output
    assert "pandaset_64 train, pandaset_gt train; 4 frames, 14 views" in shown
    assert scalr("verify", tmp_path / "s.zarr", "--sample", 4).exit_code == 0


@pytest.mark.slow
def test_two_teachers_with_features_of_their_choice(synthetic_world, tmp_path):
    """A model of timm and MaskCLIP, one from a file; what was chosen is recorded, and found again by verify."""
    teacher = load_teacher("timm:test_vit.r160_in1k", image_size=(32, 64), weights="random", feature="x_norm:-1,2")
    weights = tmp_path / "w.safetensors"
    save_file(teacher.model.state_dict(), weights)
    out = tmp_path / "s.zarr"
    common = (
        "--root",
        synthetic_world,
        "--out",
        out,
        "--image-size",
        "32x64",
        "--dtype",
        "float16",
        "--batch-size",
        6,
    )
    own = ("--weights", f"timm:test_vit.r160_in1k={weights}", "--weights", "random")
    asked = ("--teacher", "timm:test_vit.r160_in1k", "--feature", "x_norm:-1,2", *own)
    assert scalr("extract", *asked, *common).exit_code == 0
    assert scalr("extract", "--teacher", "maskclip_vitb16", *own[2:], *common).exit_code == 0
    store = open_store(out)
    recorded = store.teachers["timm:test_vit.r160_in1k"]
    assert [recorded[name] for name in ("feature", "dim", "weights")] == ["x_norm:2,5", 128, "file"]
    of_file = load_teacher("timm:test_vit.r160_in1k", image_size=(32, 64), weights=str(weights))
    assert recorded["weights_sha256"] == of_file.provenance.weights_sha256
    recorded = store.teachers["maskclip_vitb16"]
    assert [recorded[name] for name in ("feature", "dim", "pos_embed")] == ["maskclip", 512, "official"]
    assert "timm:test_vit.r160_in1k" in scalr("inspect", out).output
    checked = scalr("verify", out, "--sample", 1, *own[:2])
    assert checked.exit_code == 0, checked.output
    assert checked.output.count("minimum 1.000000") == 2
    assert_one_line_error(scalr("verify", out, "--sample", 1), "made from a weights file", "--weights")
    assert_one_line_error(
        scalr("extract", *asked, *common, "--feature", "x_prenorm"), "feature is 'x_norm:2,5' in the store", "x_prenorm"
    )


def test_inspect_and_verify(synthetic_world, tmp_path):
    """What was extracted is told, found whole, recomputed; and a flipped bit is found, taken out and made anew."""
    out = tmp_path / "s.zarr"
    command = ("extract", *TINY_TEACHER, "--root", synthetic_world, "--out", out, "--encoding", "patch")
    assert scalr(*command, "--dtype", "int8", "--frames-per-block", 1).exit_code == 0
    shown = scalr("inspect", out)
    assert "2 frames, 12 views" in shown.output
    assert "patch int8, 384 dimensions" in shown.output
    report = json.loads(scalr("inspect", out, "--json").stdout)
    assert report["teachers"]["dinov2_vits14"]["mean_cosine"] > 0.9999
    assert report["scans"] == {**report["scans"], "committed_blocks": 2, "missing_blocks": []}
    assert report["bytes"] == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    checked = json.loads(scalr("verify", out, "--sample", 2, "--json").stdout)
    assert checked["whole"]
    assert len(checked["sample"]) == 2
    for view in checked["sample"]:
        assert view["same_pairs"]
        assert 0.9999 < view["mean_cosine"] < 1
        assert 0 < view["loss_difference"] < 0.02
    flip_a_bit(out / "blocks/000001/targets/dinov2_vits14/vectors/c/0/0")
    found = scalr("verify", out)
    assert found.exit_code == 1
    assert "block 1, targets of dinov2_vits14" in found.output
    repaired = scalr("verify", out, "--repair")
    assert repaired.exit_code == 1
    assert "2 blocks read, 1 damaged" in repaired.output
    assert "targets of dinov2_vits14: 1 block missing (number 1)" in scalr("inspect", out).output
    assert "1 block written in this run" in scalr(*command, "--dtype", "int8").output
    assert scalr("verify", out).exit_code == 0


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 8
    file.write_bytes(content)


def test_a_sample_needs_the_dataset_it_was_made_from(world, tmp_path):
    command = ("extract", *TINY_TEACHER, "--root", world, "--out", tmp_path / "s.zarr")
    assert scalr(*command).exit_code == 0
    scan = next((world / "samples/LIDAR_TOP").iterdir())
    for file in (world / "samples/LIDAR_TOP").iterdir():
        file.write_bytes(scan.read_bytes())
    changed = scalr("verify", tmp_path / "s.zarr", "--sample", 12)
    assert changed.exit_code == 1
    assert "OTHER POINTS OR PIXELS" in changed.output
    shutil.rmtree(world)
    assert_one_line_error(scalr("verify", tmp_path / "s.zarr", "--sample", 1), str(world), "Pass --root")


@pytest.mark.slow
def test_a_dry_run_says_what_the_run_then_takes(synthetic_world, tmp_path):
    command = ("extract", *TINY_TEACHER, "--root", synthetic_world, "--out", tmp_path / "s.zarr")
    dry = scalr(*command, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "2 frames, 12 views" in dry.output
    assert not (tmp_path / "s.zarr").exists()
    (line,) = [line for line in dry.output.splitlines() if line.endswith("   chosen")]
    assert line.startswith("patch int8")
    assert scalr(*command).exit_code == 0
    report = json.loads(scalr("inspect", tmp_path / "s.zarr", "--json").stdout)
    assert f"{2 * report['scans']['files']} files" in scalr(*command, "--dry-run", "--frames-per-block", 1).output
    # Both frames are sampled, so nothing is extrapolated; the sample's indexes hold shorter records.
    found = json.loads(scalr(*command, "--dry-run", "--json").stdout)
    (chosen,) = [each for each in found["encodings"] if each["encoding"] == found["chosen"]]
    assert chosen["bytes"] == pytest.approx(report["teachers"]["dinov2_vits14"]["bytes"], rel=0.02)
    assert found["scan_bytes"] == pytest.approx(report["scans"]["bytes"], rel=0.02)
    assert f" in {report['scans']['files']} files" in dry.output
    assert readable_bytes(chosen["bytes"]) in line
    assert f"about {sum(report['pairs'].values()):,} pairs" in dry.output


def test_a_much_smaller_encoding_is_pointed_out(synthetic_world, tmp_path, caplog):
    command = ("extract", *TINY_TEACHER, "--root", synthetic_world)
    scalr(*command, "--out", tmp_path / "point.zarr", "--encoding", "point", "--dtype", "float16")
    assert "with --encoding patch --dtype int8" in caplog.text
    caplog.clear()
    scalr(*command, "--out", tmp_path / "patch.zarr", "--dtype", "float16")
    assert "--encoding" not in caplog.text


@pytest.mark.slow
def test_a_file_that_may_not_grow_is_one_error_and_the_run_goes_on(synthetic_world, tmp_path, children):
    """A limit on the size of files, as a stand-in for a full disk: the second block's points do not fit."""
    out, log = tmp_path / "s.zarr", tmp_path / "log"
    options = ("--root", synthetic_world, "--frames-per-block", "1", "--out")
    assert scalr("extract", *TINY_TEACHER, *options, tmp_path / "whole.zarr").exit_code == 0
    first, second = (path.stat().st_size for path in sorted(tmp_path.glob("whole.zarr/blocks/*/points/c/0/0")))
    assert first < second - 1000
    # As a run that was killed after it had made the statistics: these take a larger file.
    shutil.copytree(tmp_path / "whole.zarr", out, ignore=shutil.ignore_patterns("0000*"))
    options = (*options, out)
    words = [str(word) for word in ("extract", *TINY_TEACHER, *options)]
    limited = Child(children, command_in_shell, words, log, out, (first + second) // 2).end()
    stderr = Path(f"{log}.err").read_text()
    errors = [line for line in stderr.splitlines() if line.startswith("Error: ")]
    assert limited == 1, stderr
    assert len(errors) == 1
    assert "File too large" in errors[0]
    assert "run the same command again" in errors[0]
    assert "Traceback" not in stderr
    left = json.loads(scalr("verify", out, "--json").stdout)
    assert (left["damage"], left["whole"]) == ([], False)
    assert left["missing"] == {"scans": [1], "dinov2_vits14": [1]}
    assert scalr("extract", *TINY_TEACHER, *options).exit_code == 0
    report = json.loads(scalr("inspect", out, "--json").stdout)
    assert report["leftovers"] == {}
    assert report["teachers"]["dinov2_vits14"]["committed_blocks"] == 2


def test_another_image_size_on_the_same_store_is_refused(synthetic_world, tmp_path):
    command = ("extract", *TINY_TEACHER, "--root", synthetic_world, "--out", tmp_path / "s.zarr")
    assert scalr(*command).exit_code == 0
    assert_one_line_error(
        scalr(*command, "--image-size", "56x56"), "image_size is [28, 56] in the store and [56, 56] now"
    )


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--root", "nowhere"), ("nowhere", "the dataset folder is missing", "Pass --root")),
        (("--split", "mini_val"), ("split 'mini_val' needs the folder v1.0-mini", "--split")),
        (("--split", "tran"), ("no split and no scene 'tran', did you mean 'train'? Use one of",)),
        (("--teacher", "dino"), ("unknown teacher 'dino'", "--list-teachers")),
        (("--image-size", "30x56"), ("30x56", "nearest valid sizes: 28x56, 42x56")),
        (("--weights", "nowhere.pth"), ("nowhere.pth", "weights file is missing")),
        (("--device", "tpu"), ("device 'tpu' cannot be used here",)),
        (("--dataset", "kitti"), ("unknown dataset 'kitti'",)),
        (("--part", "8/8"), ("--part", "part 8 of 8 does not exist", "0/8 to 7/8")),
        (("--batch-size", "0"), ("--batch-size", "0 cannot be used")),
    ],
)
def test_wrong_options_of_extract(synthetic_world, tmp_path, arguments, parts):
    options = {"--root": synthetic_world, "--out": tmp_path / "out" / "s.zarr", "--weights": "random"}
    options |= {"--teacher": "dinov2_vits14", "--image-size": "28x56"} | dict([arguments])
    result = scalr("extract", *(word for option in options.items() for word in option))
    assert_one_line_error(result, *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["scan", pytest.param("image", marks=pytest.mark.slow), "table"])
def test_damaged_files_stop_the_run_and_leave_no_block(world, tmp_path, damage):
    broken = {
        "scan": next((world / "samples/LIDAR_TOP").iterdir()),
        "image": next((world / "samples/CAM_BACK").iterdir()),
        "table": world / "v1.0-trainval/ego_pose.json",
    }[damage]
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2 + 1])
    command = ("extract", *TINY_TEACHER, "--root", world, "--split", "train", "--out", tmp_path / "s.zarr")
    results = [scalr(*command), scalr(*command, "--split", "val", "--out", tmp_path / "v.zarr")]
    failed = [result for result in results if result.exit_code]
    assert failed
    for result in failed:
        assert_one_line_error(result, str(broken))
    assert not list(tmp_path.glob("?.zarr/blocks/0*")) or len(failed) == 1
    broken.write_bytes(content)
    assert scalr(*command).exit_code == 0


@pytest.mark.slow
def test_superpixels_from_a_folder_to_a_store_of_segments_alone(synthetic_world, tmp_path, monkeypatch):
    """The folder is named from here, and later lies elsewhere; what needs targets of points is refused."""
    for image in sorted((synthetic_world / "samples").glob("CAM_*/*")):
        path = tmp_path / "maps" / f"{image.stem}.png"
        path.parent.mkdir(exist_ok=True)
        halves = np.repeat(np.arange(2, dtype=np.uint8), Image.open(image).height // 2)[:, None]
        Image.fromarray(np.repeat(halves, Image.open(image).width, axis=1)).save(path, compress_level=1)
    monkeypatch.chdir(tmp_path)
    options = ("--root", synthetic_world, "--superpixels", "maps", "--encoding", "segments")
    estimated = scalr("extract", *TINY_TEACHER, *options, "--dry-run")
    assert estimated.exit_code == 0, estimated.output
    assert re.search(r"segments float16 .* chosen", estimated.stdout)
    extracted = scalr("extract", *TINY_TEACHER, *options, "--out", "s.zarr")
    assert extracted.exit_code == 0, extracted.output
    assert "superpixels of nuscenes train: method folder, names stem" in extracted.stdout
    store = open_store(tmp_path / "s.zarr")
    assert store.sources[0].attributes["record"]["superpixels"] == str(tmp_path / "maps")
    assert {*store.read_view(0).superpixel.tolist()} <= {0, 1}
    os.rename("maps", "elsewhere")
    refused = scalr("verify", "s.zarr", "--sample", "1")
    assert_one_line_error(refused, "maps: the folder of superpixel maps does not exist")
    verified = scalr("verify", "s.zarr", "--sample", "1", "--superpixels", "elsewhere")
    assert verified.exit_code == 0, verified.output
    assert "segments, mean cosine 1.000000" in verified.stdout
    save_student(Student(WaffleIronConfig(width=8, depth=3, out_channels=4)), tmp_path / "student.safetensors", {})
    for words in (("teacher",), ("similarity", "--student", "student.safetensors", "--split", "train")):
        result = scalr("evaluate", *words, "--cache", "s.zarr", "--root", synthetic_world, "--out", "out")
        assert_one_line_error(result, "the store holds only segments of dinov2_vits14, and no targets of points")
    damaged = tmp_path / "elsewhere" / sorted(os.listdir("elsewhere"))[0]
    damaged.write_bytes(b"")
    assert_one_line_error(
        scalr("extract", *TINY_TEACHER, "--root", synthetic_world, "--superpixels", "elsewhere", "--out", "t.zarr"),
        f"{damaged}: the superpixel map is not a PNG",
    )


def test_no_root_explains_itself(monkeypatch, synthetic_world, tmp_path):
    monkeypatch.delenv("NUSCENES", raising=False)
    assert_one_line_error(scalr("extract", *TINY_TEACHER), "--root", "$NUSCENES")
    monkeypatch.setenv("NUSCENES", str(synthetic_world))
    assert_one_line_error(scalr("extract", *TINY_TEACHER, "--dataset", "frames"), "--root: no dataset folder")
    assert scalr("extract", *TINY_TEACHER, "--out", tmp_path / "s.zarr").exit_code == 0


def test_wrong_inputs_of_later_stages(tmp_path, synthetic_world):
    assert_one_line_error(scalr("distill", "--cache", tmp_path / "no.zarr"), "no.zarr", "no feature store exists here")
    assert_one_line_error(scalr("distill", "--recipe", "scalr"), "no recipe 'scalr'")
    student = ("evaluate", "probe", "--student", tmp_path / "no.safetensors", "--root", synthetic_world)
    assert_one_line_error(scalr(*student), "no.safetensors", "no student file exists here")
    assert_one_line_error(scalr("synth", "--out", synthetic_world), str(synthetic_world))
    assert_one_line_error(scalr("demo", "--out", tmp_path), "the folder exists already")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "Check the permissions there"),
        (errno.ENOSPC, "Make room there"),
        (errno.EIO, "Check the storage"),
    ],
)
def test_what_the_system_refuses_anywhere_is_one_line(monkeypatch, tmp_path, number, advice):
    calls_of(monkeypatch, check_module, "check", OSError(number, os.strerror(number), str(tmp_path / "a")))
    assert_one_line_error(
        scalr("check", "--root", tmp_path), f"{tmp_path}/a: the operating system reports an error (", advice
    )


def test_a_package_that_is_not_installed_is_one_line(monkeypatch, tmp_path):
    calls_of(monkeypatch, check_module, "check", ModuleNotFoundError("No module named 'timm'", name="timm.layers"))
    result = scalr("check", "--root", tmp_path)
    assert_one_line_error(result, "timm.layers: the Python module is not installed. Run 'pip install .'")


def test_a_module_of_our_own_that_is_missing_is_no_package(monkeypatch, tmp_path):
    calls_of(monkeypatch, check_module, "check", ModuleNotFoundError("No module named 'scalr.x'", name="scalr.x"))
    assert isinstance(scalr("check", "--root", tmp_path).exception, ModuleNotFoundError)


def test_a_reader_of_our_output_that_has_left_is_no_error(monkeypatch, tmp_path):
    calls_of(monkeypatch, check_module, "check", BrokenPipeError(errno.EPIPE, "Broken pipe"))
    assert "Error" not in scalr("check", "--root", tmp_path).stderr


def test_wrong_usage_is_exit_code_2():
    assert scalr("distill", "--eval-every", 1).exit_code == 2
    assert scalr("extract").exit_code == 2
    assert scalr("extract", "--teacher", "dinov2_vits14", "--image-size", "big").exit_code == 2


def verbs(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from verbs(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(("words", "command"), [pytest.param(*verb, id=" ".join(verb[0])) for verb in verbs()])
def test_help_of_every_verb(words, command):
    """Short, each argument and option explained under a heading, and an example last that the command line takes."""
    shown = scalr(*words, "--help")
    assert shown.exit_code == 0
    lines = shown.output.rstrip().splitlines()
    assert len(lines) <= 95
    assert all(len(line) <= 110 for line in lines)
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert all(parameter.help for parameter in command.params)
    assert ("Positional arguments:" in lines) == (len(options) < len(command.params))
    headings = {option.heading for option in options if hasattr(option, "heading")}
    assert headings <= {line.rstrip(":") for line in lines}
    assert lines[-2] == "Example:"
    example = lines[-1].strip()
    assert example == command.epilog
    program, *typed = shlex.split(example.split(" && ")[0].split(" > ")[0], comments=True)
    if program == "scalr":
        assert tuple(typed[: len(words)]) == words
        command.make_context(words[-1], typed[len(words) :])


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        pytest.param(
            ("extract",),
            ("To continue an interrupted or killed extraction, run the same command again. Finished blocks are kept.",),
            id="how do I continue a killed extraction",
        ),
        pytest.param(
            ("extract",),
            ("--weights hub|random|FILE Teacher weights.", "FILE: your own weights, from a checkpoint file."),
            id="how do I use my own weights",
        ),
        pytest.param(
            ("distill",),
            (
                "--cache STORE Feature store to train on. Repeat the option to train on several datasets:"
                " for four, pass"
                " --cache four times, one store for each.",
            ),
            id="how do I train on four datasets",
        ),
    ],
)
def test_help_alone_answers_a_newcomer(words, answers):
    """The question is the test's name; these lines answer it, however wide the terminal is."""
    for width in (80, 110):
        shown = CliRunner().invoke(main, [*words, "--help"], terminal_width=width)
        text = " ".join(shown.output.split())
        assert all(answer in text for answer in answers)


def test_every_verb_is_listed_once():
    for group in (main, main.commands["evaluate"]):
        listed = group.list_commands(click.Context(group))
        assert sorted(listed) == sorted(group.commands)
    assert scalr("--help").output.count("  extract  ") == 1


def test_an_option_means_the_same_everywhere():
    """Options of one name have one type, and are flags, repeated or single in all verbs alike."""
    kinds = defaultdict(set)
    for _, command in verbs():
        for option in command.params:
            if isinstance(option, click.Option) and not isinstance(option.type, click.Choice):
                kinds[option.opts[0]].add((option.type.name, option.is_flag))
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}
    of_data = {"--dataset", "--root", "--out", "--device", "--json", "--workers", "--seed"}
    assert all(len(kinds[name]) == 1 for name in of_data)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell):
    script = scalr("completion", shell)
    assert script.exit_code == 0
    assert "_SCALR_COMPLETE" in script.stdout


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("scalr ex", ["extract"]),
        ("scalr evaluate ro", ["robustness"]),
        ("scalr extract --teacher dinov2_vitl", ["dinov2_vitl14", "dinov2_vitl14_reg"]),
        ("scalr distill --recipe scalr_wi", ["scalr_wi256", "scalr_wi384", "scalr_wi768", "scalr_wi96"]),
        ("scalr check --dataset semantic_kitti", ["semantic_kitti", "semantic_kitti_c"]),
        ("scalr extract --occ", ["--occlusion"]),
    ],
)
def test_a_shell_completes(typed, expected):
    complete = ShellComplete(main, {}, "scalr", "_SCALR_COMPLETE")
    *words, incomplete = typed.split()[1:]
    assert [item.value for item in complete.get_completions(words, incomplete)] == expected


@pytest.mark.parametrize(
    ("number", "code", "what"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGTERM, 143, "stopped by SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_and_sigterm_leave_a_store_that_resumes(synthetic_world, tmp_path, children, number, code, what):
    """In the terminal's way, to all processes of the command at once, while its first block is being committed."""
    whole, out, log = tmp_path / "whole.zarr", tmp_path / "s.zarr", tmp_path / "log"
    options = (*TINY_TEACHER, "--root", synthetic_world, "--frames-per-block", 1)
    assert scalr("extract", *options, "--out", whole).exit_code == 0
    words = [str(word) for word in ("extract", *options, "--out", out)]
    running = Child(children, command_in_shell, words, log, out / "blocks/000000", None, stops=(0,))
    assert running.wait_for_a_moment()
    os.killpg(running.pid, number)
    running.go_on()
    assert running.end() == code
    assert Path(f"{log}.out").read_text() == ""
    stderr = Path(f"{log}.err").read_text()
    assert stderr.endswith(f"Error: {what}; committed blocks are kept. Run the same command again to continue.\n")
    assert "Traceback" not in stderr
    verified = json.loads(scalr("verify", out, "--json").stdout)  # how many blocks are there depends on the moment
    assert (verified["damage"], verified["unreadable"], verified["stray"]) == ([], [], [])
    again = json.loads(scalr("extract", *options, "--out", out, "--json").stdout)
    assert again["store"]["leftovers"] == {}
    assert_same_store(open_store(out), open_store(whole))


@pytest.mark.parametrize(
    ("function", "command", "kept"),
    [
        (
            "scalr.extract.run.extract",
            "extract --teacher dinov2_vits14 --root .",
            "committed blocks are kept. Run the same command again to continue",
        ),
        (
            "scalr.distill.run.distill",
            "distill",
            "the last checkpoint is kept, if there is one. Run the same command with --resume to continue",
        ),
        (
            "scalr.evaluate.score.score_model",
            "evaluate score --model m --root .",
            "no result was written. Run the same command again",
        ),
        (
            "scalr.evaluate.predict.predict",
            "predict --model m scan.bin",
            "finished scans are kept. Run the same command again to continue",
        ),
    ],
)
def test_a_job_that_is_stopped_says_in_one_line_what_is_kept(monkeypatch, function, command, kept):
    """By SIGTERM, which schedulers send, and again while it ends."""

    def stopped(config: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(function, stopped)
    result = scalr(*command.split())
    assert result.exit_code == 143
    assert result.stderr.splitlines()[-1] == f"Error: stopped by SIGTERM; {kept}."
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


STOPPED = StoppedError("stopped by a signal", where="run/checkpoint.pt", fix="Run it with --resume.")


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
@pytest.mark.parametrize(("stopped", "code"), [(STOPPED, 143), (Terminated(), 143), (KeyboardInterrupt(), 130)])
def test_what_stops_all_processes_is_said_by_the_first(monkeypatch, rank, lines, stopped, code):
    monkeypatch.setattr("scalr.distill.run.distill", mock.Mock(side_effect=stopped))
    monkeypatch.setenv("RANK", rank)
    result = scalr("-q", "distill")
    assert (result.exit_code, len(result.stderr.splitlines())) == (code, lines)


@pytest.mark.slow
def test_results_as_json(synthetic_world, tmp_path):
    """Standard output is JSON and nothing else; the same figures as the files and the text have."""
    command = ("extract", *MEASURED_TEACHER, "--root", synthetic_world, "--out", tmp_path / "s.zarr", "--json")
    dry = json.loads(scalr(*command, "--dry-run").stdout)
    assert [(each["encoding"]["layout"], each["encoding"]["dtype"]) for each in dry["encodings"]] == [
        *[("point", "float16"), ("point", "int8"), ("patch", "float16"), ("patch", "int8")]
    ]
    written = json.loads(scalr(*command).stdout)
    assert (written["blocks_written"], written["skipped"]) == (1, {})
    assert written["store"] == json.loads(scalr("inspect", tmp_path / "s.zarr", "--json").stdout)
    assert dry["pairs"] == sum(written["store"]["pairs"].values())
    overrides = [word for value in SMALL for word in ("--set", value)]
    distilled = json.loads(
        scalr("distill", "--cache", tmp_path / "s.zarr", *overrides, "--out", tmp_path / "run", "--json").stdout
    )
    assert len(distilled["losses"]) == 2
    student = ("--student", distilled["student"], "--root", synthetic_world)
    probed = json.loads(
        scalr(
            "evaluate", "probe", *student, "--epochs", 1, "--warmup-epochs", 0, "--fast", "--out", tmp_path / "p",
            "--json",
        ).stdout
    )  # fmt: skip
    assert probed == json.loads((tmp_path / "p/result.json").read_text())
    similar = json.loads(scalr("evaluate", "similarity", *student, "--out", tmp_path / "m", "--json").stdout)
    assert similar["page_error"]["centred"]["maximum"] < 0.1


def test_quiet_says_results_only(synthetic_world, tmp_path):
    result = scalr("-q", "extract", *TINY_TEACHER, "--root", synthetic_world, "--out", tmp_path / "s.zarr")
    assert result.exit_code == 0
    assert "2 frames, 12 views" in result.stdout
    assert all(line.startswith("Warning: ") for line in result.stderr.splitlines())
