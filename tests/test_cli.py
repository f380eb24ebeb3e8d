"""Each verb from the command line, and what people see when their input is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from scalr.cli import main

TINY_TEACHER = ("--teacher", "dinov2_vits14", "--weights", "random", "--image-size", "28x56")
SMALL = ("student.width=8", "student.depth=3", "training.epochs=2", "training.batch_size=2", "training.warmup_steps=1")


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


def test_from_images_to_a_probe(synthetic_world, tmp_path):
    extracted = scalr("extract", *TINY_TEACHER, "--root", synthetic_world, "--out", tmp_path / "s.zarr")
    assert extracted.exit_code == 0, extracted.output
    assert "2 frames, 12 views" in extracted.output
    assert "RANDOM" in extracted.stdout
    overrides = [word for value in SMALL for word in ("--set", value)]
    distilled = scalr("distill", "--cache", tmp_path / "s.zarr", *overrides, "--out", tmp_path / "run")
    assert distilled.exit_code == 0, distilled.output
    student = tmp_path / "run/student.safetensors"
    probed = scalr(
        "evaluate", "probe", "--student", student, "--root", synthetic_world,
        "--epochs", 3, "--batch-size", 2, "--out", tmp_path / "probe",
    )  # fmt: skip
    assert probed.exit_code == 0, probed.output
    result = json.loads((tmp_path / "probe/result.json").read_text())
    assert f"mIoU {result['miou']:.1%}" in probed.output
    assert len(result["iou"]) == 16
    assert result["student"]["teacher"]["weights"] == "random"


def test_extracting_again_does_nothing_and_says_so(synthetic_world, tmp_path):
    command = ("extract", *TINY_TEACHER, "--root", synthetic_world, "--out", tmp_path / "s.zarr")
    assert "1 blocks written now" in scalr(*command).output
    assert "0 blocks written now" in scalr(*command).output


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
        (("--split", "mini_val"), ("v1.0-mini", "version folder is missing", "--split")),
        (("--split", "tran"), ("no split 'tran'", "Use one of")),
        (("--teacher", "dino"), ("unknown teacher 'dino'", "Use one of")),
        (("--image-size", "30x56"), ("30x56", "nearest valid size is 28x56")),
        (("--weights", "nowhere.pth"), ("nowhere.pth", "weights file is missing")),
        (("--device", "tpu"), ("no device 'tpu'",)),
        (("--dataset", "kitti"), ("unknown dataset 'kitti'",)),
    ],
)
def test_wrong_options_of_extract(synthetic_world, tmp_path, arguments, parts):
    options = {"--root": synthetic_world, "--out": tmp_path / "out" / "s.zarr", "--weights": "random"}
    options |= {"--teacher": "dinov2_vits14", "--image-size": "28x56"} | dict([arguments])
    result = scalr("extract", *(word for option in options.items() for word in option))
    assert_one_line_error(result, *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["scan", "image", "table"])
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


def test_no_root_explains_itself(monkeypatch, synthetic_world, tmp_path):
    monkeypatch.delenv("NUSCENES", raising=False)
    assert_one_line_error(scalr("extract", *TINY_TEACHER), "--root", "$NUSCENES")
    monkeypatch.setenv("NUSCENES", str(synthetic_world))
    assert scalr("extract", *TINY_TEACHER, "--out", tmp_path / "s.zarr").exit_code == 0


def test_wrong_inputs_of_later_stages(tmp_path, synthetic_world):
    assert_one_line_error(scalr("distill", "--cache", tmp_path / "no.zarr"), "no.zarr", "no feature store here")
    assert_one_line_error(scalr("distill", "--recipe", "scalr"), "no recipe 'scalr'")
    student = ("evaluate", "probe", "--student", tmp_path / "no.safetensors", "--root", synthetic_world)
    assert_one_line_error(scalr(*student), "no.safetensors", "no student here")
    assert_one_line_error(scalr("synth", "--out", synthetic_world), str(synthetic_world))
    assert_one_line_error(scalr("demo", "--out", tmp_path), "the folder is there already")


def test_wrong_usage_is_exit_code_2():
    assert scalr("extract").exit_code == 2
    assert scalr("extract", "--teacher", "dinov2_vits14", "--image-size", "big").exit_code == 2


def test_help_is_fast():
    """No torch, timm or zarr for --help."""
    import subprocess
    import sys

    script = (
        "import sys; from scalr.cli import main; main(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not [name for name in ("torch", "timm", "zarr", "numpy") if f"'{name}'" in done.stdout]
