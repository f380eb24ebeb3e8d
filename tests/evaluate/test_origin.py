from __future__ import annotations

from dataclasses import replace

import pytest

from scalr.distill.recipe import load_recipe, recipe_values
from scalr.evaluate.origin import NEW_WEIGHTS, description, origin_of, teacher_summary
from toy_backbone import ToyConfig

NETWORK = load_recipe("demo").student  # WI-12-48
WITH_CLASSES = replace(NETWORK, head="probe", stochastic_depth=0.2)
TEACHER = {"weights": "hub", "weights_sha256": "a", "image_size": [28, 56], "feature": "x_prenorm", "pos_embed": "timm"}
SOURCE = {"dataset": "nuscenes", "split": "train", "num_frames": 2, "occlusion": "keep"}
DISTILLED = {
    "stores": [{"sources": [SOURCE | {"num_frames": 3}], "frames_in_use": [2]}],
    "teachers": {"mine": TEACHER},
    "recipe": recipe_values(load_recipe("demo")),
}
TRAINING = {"training_dataset": "nuscenes", "training_split": "train", "training_frames": 2, "schedule_of": "scalr"}
FINETUNED = {"student": {"file": "s"}, "distillation": DISTILLED, "finetuning": TRAINING}
PROBED = {"distillation": FINETUNED, "probing": TRAINING | {"departures": ["seed 1", "fast"]}}
CONVERTED = {"converted_from": {"file": "a.pth", "sha256": "0123456789abcdef"}}

LABELS = "finetuned on nuscenes train (2 frames) by the schedule of scalr"
OF_DISTILLED = "distilled from mine (published weights, 28x56) on nuscenes train (2 frames)"


def test_a_student_is_told_by_its_network_its_recipe_and_its_teacher():
    origin = origin_of(NETWORK, DISTILLED)
    expected = {
        "width": 48,
        "depth": 12,
        "norm": "batch",
        "activation": "relu",
        "head": "linear",
        "labels": [],
        "teachers": ["mine"],
        "teacher's weights": "published",
        "image size": "28x56",
        "feature": "x_prenorm",
        "pos_embed": "timm",
        "pretrained on": ["nuscenes train (2 frames)"],
        "occlusion": "keep",
        "training.epochs": 60,
        "training.warmup_epochs": "none",
        "inputs.voxel_size_m": 0.2,
    }
    assert {name: origin[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("network", "provenance", "text"),
    [
        (NETWORK, DISTILLED, OF_DISTILLED),
        (WITH_CLASSES, FINETUNED, f"{OF_DISTILLED}; {LABELS}"),
        (
            *(WITH_CLASSES, PROBED),
            f"{OF_DISTILLED}; {LABELS}; {LABELS.replace('finetuned', 'probed')} with deviations: seed 1 and fast",
        ),
        (WITH_CLASSES, FINETUNED | {"distillation": NEW_WEIGHTS}, f"from new weights; {LABELS}"),
        (NETWORK, CONVERTED, "converted from a.pth (SHA-256 0123456789ab)"),
        (
            *(WITH_CLASSES, CONVERTED),
            "converted from a.pth (SHA-256 0123456789ab); trained on labels that its file does not name",
        ),
        (NETWORK, {"recipe": DISTILLED["recipe"]}, "of unknown pretraining"),
        (NETWORK, {}, "of unknown pretraining"),
        (
            *(NETWORK, DISTILLED | {"teachers": {"mine": TEACHER | {"weights": "file"}}}),
            OF_DISTILLED.replace("published", "a file's"),
        ),
    ],
)
def test_a_line_says_where_a_model_comes_from(network, provenance, text):
    assert description(origin_of(network, provenance)) == f"WI-12-48, {text}"


def test_result_files_from_before_there_were_other_backbones_are_described():
    before = {name: value for name, value in origin_of(NETWORK, {}).items() if name not in ("student", "backbone")}
    assert description(before) == "WI-12-48, of unknown pretraining"
    assert description(origin_of(ToyConfig(), {})) == "Toy, of unknown pretraining"


def test_what_probing_and_finetuning_replace_is_taken_from_the_recipe():
    """A model's own head and stochastic depth are those of its last training."""
    origin = origin_of(WITH_CLASSES, FINETUNED)
    assert (origin["head"], origin["stochastic_depth"]) == ("linear", 0.0)
    assert "head" not in origin_of(WITH_CLASSES, CONVERTED)


def test_a_network_that_starts_from_new_weights_has_seen_no_labels():
    """Of the converted file of a model with classes, nobody knows."""
    assert origin_of(WITH_CLASSES, NEW_WEIGHTS)["labels"] == []
    assert "labels" not in origin_of(WITH_CLASSES, CONVERTED)


def test_several_teachers_and_sets_are_told_apart():
    other = TEACHER | {"image_size": [56, 112], "pos_embed": "official"}
    stores = [
        {"sources": [SOURCE, SOURCE | {"dataset": "semantic_kitti", "occlusion": "drop"}], "frames_in_use": [2, 2]}
    ]
    origin = origin_of(NETWORK, DISTILLED | {"teachers": {"mine": TEACHER, "another": other}, "stores": stores})
    assert origin["teachers"] == ["another", "mine"]
    assert (origin["image size"], origin["pos_embed"]) == (["28x56", "56x112"], ["timm", "official"])
    assert (origin["teacher's weights"], origin["feature"]) == ("published", "x_prenorm")
    assert origin["pretrained on"] == ["nuscenes train (2 frames)", "semantic_kitti train (2 frames)"]
    assert origin["occlusion"] == ["keep", "drop"]


def test_weights_of_a_file_are_not_known_to_be_the_published_ones():
    teachers = {"mine": TEACHER, "another": TEACHER | {"weights": "file"}}
    assert origin_of(NETWORK, DISTILLED | {"teachers": teachers})["teacher's weights"] is None


def test_teachers_are_those_of_the_student_that_all_trainings_began_with():
    expected = {
        "mine": {name: TEACHER.get(name) for name in ("model", "weights_sha256", "feature", "image_size", "pos_embed")}
    }
    for provenance in (DISTILLED, FINETUNED, PROBED):
        assert teacher_summary(provenance) == expected
    assert teacher_summary(FINETUNED | {"distillation": NEW_WEIGHTS}) == teacher_summary(CONVERTED) == {}
