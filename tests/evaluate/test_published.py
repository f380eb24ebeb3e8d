from __future__ import annotations

import re
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any

import pytest

from doc_examples import DOCS
from scalr.distill.recipe import load_recipe, recipe_values
from scalr.evaluate.class_sets import RAW_IDS
from scalr.evaluate.finetune import FinetuneConfig
from scalr.evaluate.origin import origin_of
from scalr.evaluate.probe import ProbeConfig
from scalr.evaluate.published import NAMES, PUBLISHED, Published, nearest, published_for

DATASETS = ("nuscenes", "semantic_kitti", "pandaset_64", "pandaset_gt")
FINETUNED = (
    *("nuscenes 1%", "nuscenes 10%", "nuscenes 100%", "semantic_kitti 1%", "semantic_kitti 100%"),
    *("pandaset_64 100%", "pandaset_gt 100%"),
)
L_ON_ALL = "WI-48-768, dinov2_vitl14, all four datasets"
L_ON_NUSCENES = "WI-48-768, dinov2_vitl14, nuscenes"
# The tables of the paper: table and model -> mIoU by setting, in the order of DATASETS and FINETUNED.
PROBED = {
    f"ScaLR (Table 4: {L_ON_ALL})": (67.8, 55.8, 37.9, 34.5),
    f"ScaLR (Table 4: {L_ON_NUSCENES})": (67.8, 43.1, 33.9, 29.9),
    "ScaLR (Table 4: WI-48-256, dino_vits8, nuscenes)": (54.4, 28.8, 26.9, 25.2),
    "ScaLR (Table 4: WI-48-256, dino_vits8, semantic_kitti)": (39.5, 46.6, 25.3, 25.7),
    "ScaLR (Table 4: WI-48-256, dino_vits8, pandaset_64)": (39.6, 25.6, 30.0, 24.7),
    "ScaLR (Table 4: WI-48-256, dino_vits8, pandaset_gt)": (29.9, 26.9, 23.5, 28.5),
    "ScaLR (Table 4: WI-48-256, dino_vits8, nuscenes + semantic_kitti)": (54.4, 50.1, 29.3, 28.9),
    "ScaLR (Table 4: WI-48-256, dino_vits8, all four datasets)": (54.6, 50.6, 33.1, 32.3),
    f"ScaLR+ (README of scalr_plus: {L_ON_ALL})": (70.4, 61.0, 43.5, 40.7),
}
PROBED_ON_NUSCENES = {
    "Table 1: WI-48-256, dino_vits8, nuscenes slidr_train, contrastive, a head on the targets": 50.0,
    "Table 1: WI-48-256, dino_vits8, nuscenes slidr_train, contrastive, no head on the targets": 54.1,
    "Table 1: WI-48-256, dino_vits8, nuscenes slidr_train": 56.7,
    "Table 2: WI-48-96, dino_vits8, nuscenes slidr_train": 46.8,
    "Table 2: WI-48-256, dino_vits8, nuscenes slidr_train": 54.2,
    "Table 3: WI-48-256, mae_vitb16, nuscenes": 47.8,
    "Table 3: WI-48-256, dino_vits8, nuscenes": 54.4,
    "Table 3: WI-48-384, dino_vits8, nuscenes": 57.8,
    "Table 3: WI-48-768, dino_vits8, nuscenes": 61.1,
    "Table 3: WI-48-256, dinov2_vits14, nuscenes": 57.7,
    "Table 3: WI-48-256, dinov2_vitb14, nuscenes": 60.2,
    "Table 3: WI-48-256, dinov2_vitl14, nuscenes": 61.6,
    "Table 3: WI-48-384, dinov2_vitl14, nuscenes": 63.9,
    "Table 3: WI-48-768, dinov2_vitl14, nuscenes": 66.8,
    "Table 7: WI-48-256, maskclip_vitb16, nuscenes": 59.4,
    "Table 7: WI-48-256, dinov2_vitl14 + maskclip_vitb16, nuscenes": 62.5,
    "Table 7: WI-48-384, maskclip_vitb16, nuscenes": 60.9,
    "Table 7: WI-48-384, dinov2_vitl14 + maskclip_vitb16, nuscenes": 65.1,
}
PROBED_ON_KITTI = {
    "Table 3: WI-48-256, dinov2_vitl14, semantic_kitti": 48.3,
    "Table 3: WI-48-384, dinov2_vitl14, semantic_kitti": 50.6,
    "Table 3: WI-48-768, dinov2_vitl14, semantic_kitti": 51.1,
}
TRAINED = {
    ("finetune", f"ScaLR (Table 5: {L_ON_ALL})"): (50.7, 69.2, 78.4, 56.8, 65.8, 48.3, 41.1),
    ("finetune", f"ScaLR (Table 5: {L_ON_NUSCENES})"): (51.0, 70.5, 77.9, 49.7, 63.9, 49.4, 42.1),
    ("finetune", f"ScaLR+ (README of scalr_plus: {L_ON_ALL})"): (54.1, 70.7, 78.4, 57.4, 65.2, 50.7, 44.0),
    ("scratch", "WaffleIron (ScaLR's Table 5: WI-48-768, new weights)"): (35.2, 62.2, 78.7, 49.6, 63.4, 47.8, 40.0),
}
# Of a setting each: a row's name, and its figures.
OTHERS = {
    ("finetune semantic_kitti 1%", f"ScaLR (README: {L_ON_ALL})"): {"mIoU": 55.8},
    ("finetune nuscenes 1%", "ScaLR (Table 2: WI-48-96, dino_vits8, nuscenes slidr_train)"): {"mIoU": 38.8},
    ("finetune nuscenes 1%", "ScaLR (Table 2: WI-48-256, dino_vits8, nuscenes slidr_train)"): {"mIoU": 41.4},
    ("transfer semantic_kitti", f"ScaLR (Table 7: {L_ON_ALL})"): {"mIoU": 36.6},
    ("transfer semantic_poss", f"ScaLR (Table 7: {L_ON_ALL})"): {"mIoU": 59.1},
    ("transfer semantic_kitti", f"ScaLR (Table 7: {L_ON_NUSCENES})"): {"mIoU": 29.6},
    ("transfer semantic_poss", f"ScaLR (Table 7: {L_ON_NUSCENES})"): {"mIoU": 57.1},
    ("transfer semantic_kitti", "WaffleIron (ScaLR's Table 7: WI-48-768, new weights)"): {"mIoU": 28.6},
    ("transfer semantic_poss", "WaffleIron (ScaLR's Table 7: WI-48-768, new weights)"): {"mIoU": 54.0},
    ("robustness nuscenes_c", f"ScaLR (Table 6: {L_ON_ALL})"): {"mCE": 87.4, "mRR": 83.8, "mIoU corrupted": 65.7},
    ("robustness nuscenes_c", f"ScaLR (Table 6: {L_ON_NUSCENES})"): {"mCE": 89.1, "mRR": 83.7, "mIoU corrupted": 65.2},
    ("robustness nuscenes_c", "WaffleIron (ScaLR's Table 6: WI-48-768, new weights)"): {
        "mCE": 90.9,
        "mRR": 80.6,
        "mIoU corrupted": 63.5,
    },
    ("robustness nuscenes_c", "WaffleIron (Robo3D's README: new weights)"): {
        "mCE": 106.73,
        "mRR": 72.78,
        "mIoU clean": 76.07,
    },
    ("robustness semantic_kitti_c", "WaffleIron (Robo3D's README: new weights)"): {
        "mCE": 109.54,
        "mRR": 72.18,
        "mIoU clean": 66.04,
    },
}


# Of MinkUNets: probed, finetuned with 1, 10 and 100 % of nuScenes' labels and 1 % of SemanticKITTI's.
RESNET, RESNET_4 = "resnet50_moco_v2", "resnet50_moco_v2_stride4"
MINK, ON_600, WITH_HEAD = "MinkUNet", "nuscenes slidr_train", "contrastive, a head on the targets"
BY_SLIDR = {
    f"PPKT (ScaLR's Table 8: {MINK}, {RESNET}, {ON_600}, {WITH_HEAD})": (35.9, 37.8, 60.3, 74.5, 44.0),
    f"SLidR (ScaLR's Table 8: {MINK}, {RESNET_4}, {ON_600})": (38.8, 38.3, 59.8, 74.8, 44.6),
    f"ST-SLidR (ScaLR's Table 8: {MINK}, {RESNET_4}, {ON_600})": (40.5, 40.8, 60.8, 75.1, 44.7),
    f"Seal (ScaLR's Table 8: {MINK}, {RESNET_4}, {ON_600})": (45.0, 45.8, 63.0, 75.6, 46.6),
    f"PPKT (ScaLR's Table 2: {MINK}, {RESNET}, {ON_600}, {WITH_HEAD})": (36.4, 37.5),
    f"SLidR (ScaLR's Table 2: {MINK}, {RESNET_4}, {ON_600})": (38.8, 39.0),
    f"ST-SLidR (ScaLR's Table 2: {MINK}, {RESNET_4}, {ON_600})": (40.5, 40.8),
    f"Seal (ScaLR's Table 2: {MINK}, {RESNET_4}, {ON_600})": (45.0, 45.8),
    f"PPKT (ScaLR's Table 2: {MINK}, dino_vits8, {ON_600}, {WITH_HEAD})": (38.6, 40.6),
    f"SLidR (ScaLR's Table 2: {MINK}, dino_vits8, {ON_600})": (39.3, 39.0),
    f"ScaLR (Table 2: {MINK}, dino_vits8, {ON_600})": (42.4, 40.5),
    f"ScaLR (Table 1: {MINK}, dino_vits8, {ON_600}, {WITH_HEAD})": (39.3,),
    f"ScaLR (Table 1: {MINK}, dino_vits8, {ON_600}, contrastive, no head on the targets)": (43.4,),
    f"ScaLR (Table 1: {MINK}, dino_vits8, {ON_600})": (43.6,),
    f"ScaLR (Table 1: {MINK}, dino_vits8, {ON_600}, one camera)": (42.1,),
    f"ScaLR (README of LiMA: {MINK}, dinov2_vits14, nuscenes)": (49.66, 45.89, 61.07, 73.39, 46.06),
    f"ScaLR (README of LiMA: {MINK}, dinov2_vitb14, nuscenes)": (51.90, 48.90, 62.88, 74.15, 47.77),
    f"ScaLR (README of LiMA: {MINK}, dinov2_vitl14, nuscenes)": (51.77, 49.13, 62.75, 74.16, 48.64),
    f"MinkUNet (ScaLR's Table 8: {MINK}, new weights)": (8.1, 30.3, 56.2, 74.7, 39.5),
}
BY_SLIDR_ON = ("probe nuscenes", *(f"finetune {on}" for on in FINETUNED[:4]))


def test_figures_are_those_of_the_papers_and_readmes():
    expected = dict(OTHERS)
    for name, figures in BY_SLIDR.items():
        settings = [on.replace("finetune", "scratch") if "new weights" in name else on for on in BY_SLIDR_ON]
        pairs = zip(settings, figures, strict=False)
        expected |= {(f"{setting} by slidr", name): {"mIoU": miou} for setting, miou in pairs}
    for name, figures in PROBED.items():
        expected |= {(f"probe {on}", name): {"mIoU": miou} for on, miou in zip(DATASETS, figures, strict=True)}
    for on, rows in (("nuscenes", PROBED_ON_NUSCENES), ("semantic_kitti", PROBED_ON_KITTI)):
        expected |= {(f"probe {on}", f"ScaLR ({name})"): {"mIoU": miou} for name, miou in rows.items()}
    for (verb, name), figures in TRAINED.items():
        expected |= {(f"{verb} {on}", name): {"mIoU": miou} for on, miou in zip(FINETUNED, figures, strict=True)}
    assert {(row.setting, row.name): dict(row.figures) for row in PUBLISHED} == expected
    assert len(PUBLISHED) == len(expected)  # no two of one name in one setting


def card_of(row: Published) -> tuple[dict, dict]:
    """Model and protocol of a run in the row's setting, as far as it is said."""
    said = (
        {name: value for name, value in values.items() if value is not None} for values in (row.model, row.protocol)
    )
    model, protocol = said
    return model, protocol


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.setting} {row.name}")
def test_a_figure_is_matched_by_its_own_setting_and_each_change_of_it_is_named(row):
    model, protocol = card_of(row)
    found = row.differences(model, protocol)
    assert found.of_run == []
    assert found.unsaid == [
        NAMES.get(name, name) for name, value in {**row.model, **row.protocol}.items() if value is None
    ]
    for values in (model, protocol):
        for name in values:
            other = _other(values[name])
            changed = [{**each, name: other} if each is values else each for each in (model, protocol)]
            (text,) = row.differences(*changed).differing
            assert text.startswith(f"{NAMES.get(name, name)} ")
            assert ", not " in text
            without = [
                {key: value for key, value in each.items() if key != name or each is not values}
                for each in (model, protocol)
            ]
            # Cards from before there were other backbones do not name theirs.
            assert row.differences(*without).unknown or name == "backbone"


def _other(value: Any) -> Any:
    if isinstance(value, list):
        return [*value, "more"]
    return f"not {value}" if isinstance(value, str) else value + 1


def test_the_nearest_row_is_of_the_setting_where_one_is():
    for row in PUBLISHED:
        found = card_of(row)
        assert nearest(published_for(row.setting), *found).differences(*found).of_run == []


def test_what_is_not_said_brings_a_row_no_nearer():
    """MAE's row says less of its teacher than DINOv2's: that is no reason to set it beside a student of DINOv2."""
    (row,) = (row for row in PUBLISHED if row.name == "ScaLR (Table 3: WI-48-256, dinov2_vits14, nuscenes)")
    model, protocol = card_of(row)
    model |= {"pos_embed": "timm", "width": 16, "training.epochs": 25, "training.batch_size": 8}
    assert nearest(published_for("probe nuscenes"), model, protocol) is row


def test_a_row_of_another_loss_is_no_nearer_for_its_teacher():
    """LiMA's README says little but the teacher and the loss, and so differs in little."""
    rows = published_for("probe nuscenes by slidr")
    (lima,) = (row for row in rows if row.name.startswith("ScaLR (README of LiMA") and "vits14" in row.name)
    (slidr,) = (row for row in rows if row.name == f"SLidR (ScaLR's Table 8: {MINK}, {RESNET_4}, {ON_600})")
    model, protocol = card_of(slidr)
    model |= {"teachers": ["dinov2_vits14"], "feature": "x_prenorm"}
    assert nearest(rows, model, protocol).who == "SLidR"
    assert nearest(rows, model | {"objective.loss": "similarity"}, protocol) is lima


def test_figures_on_other_lidars_are_of_the_classes_that_transfer_uses():
    rows = {row.setting: row.protocol["classes"] for row in PUBLISHED if row.setting.startswith("transfer ")}
    assert rows == {
        f"transfer {dataset}": len(RAW_IDS[name][dataset])
        for name, dataset in (("semantic_kitti_10", "semantic_kitti"), ("semantic_poss_6", "semantic_poss"))
    }


def test_a_supervised_model_is_set_beside_supervised_ones():
    model, protocol = {"depth": 3, "width": 8, "teachers": [], "pretrained on": []}, {"frames": 2}
    assert nearest(published_for("robustness nuscenes_c"), model, protocol).who == "WaffleIron"
    distilled = model | {"teachers": ["mine"], "pretrained on": ["mine"]}
    assert nearest(published_for("robustness nuscenes_c"), distilled, protocol).who == "ScaLR"
    assert nearest(published_for("robustness nuscenes_c"), {"depth": 3, "width": 8}, protocol).who == "ScaLR"


def provenance(recipe: str, teachers: dict[str, dict], *sets: tuple[str, str, int]) -> dict:
    """As `distill` records it."""
    sources = [
        {"dataset": dataset, "split": split, "num_frames": frames, "occlusion": "keep"}
        for dataset, split, frames in sets
    ]
    made = {"weights": "hub", "image_size": [224, 448], "feature": "x_prenorm", "pos_embed": "official"}
    return {
        "stores": [{"sources": [source], "frames_in_use": [source["num_frames"]]} for source in sources],
        "teachers": {name: made | changes for name, changes in teachers.items()},
        "recipe": recipe_values(load_recipe(recipe)),
        "torch": "2",
    }


WHOLE = (
    *(("nuscenes", "train", 28130), ("semantic_kitti", "train", 19130)),
    *(("pandaset_64", "train", 3920), ("pandaset_gt", "train", 3920)),
)
PLUS = {"dinov2_vitl14": {"image_size": [448, 896], "pos_embed": "timm"}}
DINO, BOTH = {"dino_vits8": {}}, {"dinov2_vitl14": {}, "maskclip_vitb16": {"feature": "maskclip"}}
MINI = ("nuscenes", "slidr_train", 24109)
ON_MINI = "WI-48-256, dino_vits8, nuscenes slidr_train"
OF_RECIPES = {
    f"ScaLR (Table 4: {L_ON_ALL})": ("scalr_multi_dataset", {"dinov2_vitl14": {}}, WHOLE),
    f"ScaLR+ (README of scalr_plus: {L_ON_ALL})": ("scalr_plus", PLUS, WHOLE),
    "ScaLR (Table 3: WI-48-256, dinov2_vitl14, nuscenes)": ("scalr_wi256", {"dinov2_vitl14": {}}, WHOLE[:1]),
    "ScaLR (Table 3: WI-48-384, dinov2_vitl14, nuscenes)": ("scalr_wi384", {"dinov2_vitl14": {}}, WHOLE[:1]),
    "ScaLR (Table 3: WI-48-768, dinov2_vitl14, nuscenes)": ("scalr_wi768", {"dinov2_vitl14": {}}, WHOLE[:1]),
    "ScaLR (Table 2: WI-48-96, dino_vits8, nuscenes slidr_train)": ("scalr_wi96", DINO, (MINI,)),
    f"ScaLR (Table 1: {ON_MINI}, contrastive, a head on the targets)": ("table1_contrastive_head", DINO, (MINI,)),
    f"ScaLR (Table 1: {ON_MINI}, contrastive, no head on the targets)": ("table1_contrastive", DINO, (MINI,)),
    f"ScaLR (Table 1: {ON_MINI})": ("table1_similarity", DINO, (MINI,)),
}


@pytest.mark.parametrize("name", OF_RECIPES)
def test_a_student_of_the_bundled_recipe_is_of_the_published_setting(name):
    made = provenance(*OF_RECIPES[name][:2], *OF_RECIPES[name][2])
    (row,) = (row for row in published_for("probe nuscenes") if row.name == name)
    _, protocol = card_of(row)
    network = load_recipe(OF_RECIPES[name][0]).student
    assert row.differences(origin_of(network, made), protocol).of_run == []


OF_600 = f"{MINK}, dino_vits8, {ON_600}"
S_14 = {"dinov2_vits14": {}}
BY_SLIDR_OF_RECIPES = {
    f"ScaLR (Table 1: {OF_600}, {WITH_HEAD})": ("table1_minkunet_contrastive_head", DINO, MINI),
    f"ScaLR (Table 1: {OF_600}, contrastive, no head on the targets)": ("table1_minkunet_contrastive", DINO, MINI),
    f"ScaLR (Table 1: {OF_600})": ("table1_minkunet_similarity", DINO, MINI),
    f"ScaLR (Table 1: {OF_600}, one camera)": ("table1_minkunet_similarity_one_camera", DINO, MINI),
    f"PPKT (ScaLR's Table 2: {OF_600}, {WITH_HEAD})": ("table2_ppkt_minkunet", DINO, MINI),
    f"SLidR (ScaLR's Table 2: {OF_600})": ("table2_slidr_minkunet", DINO, MINI),
    f"ScaLR (Table 2: {OF_600})": ("table2_scalr_minkunet", DINO, MINI),
    f"ScaLR (README of LiMA: {MINK}, dinov2_vits14, nuscenes)": ("scalr_minkunet_vits", S_14, WHOLE[0]),
}


@pytest.mark.parametrize("name", BY_SLIDR_OF_RECIPES)
def test_a_minkunet_of_the_bundled_recipe_is_of_the_published_setting(name):
    recipe, teachers, of = BY_SLIDR_OF_RECIPES[name]
    assert differences_by_slidr(name, recipe, teachers, of) == []


def differences_by_slidr(name: str, recipe: str, teachers: dict, of: tuple[str, str, int]) -> list[str]:
    """Of a probed student of a recipe, in a setting "by slidr"."""
    made = provenance(recipe, teachers, of)
    made["stores"][0]["sources"][0]["superpixels"] = {"method": "slic"}
    (row,) = (row for row in published_for("probe nuscenes by slidr") if row.name == name)
    _, protocol = card_of(row)
    return row.differences(origin_of(load_recipe(recipe).student, made), protocol).of_run


def test_what_no_store_can_have_of_the_baselines_of_resnet_is_said():
    """Their images were cropped and flipped anew each time, and their targets projected before they were pooled."""
    name = f"ST-SLidR (ScaLR's Table 8: {MINK}, {RESNET_4}, {ON_600})"
    teachers = {RESNET_4: {"feature": "layer4", "pos_embed": None}}
    assert differences_by_slidr(name, "table8_st_slidr", teachers, MINI) == [
        "image size 224x448, not 224x416",
        "image augmentation none, not random crops and flips",
        "objective.target_head none, not linear",
    ]


def test_two_teachers_are_those_of_table_7():
    made = provenance("scalr_multi_teacher", BOTH, *WHOLE[:1])
    network = replace(load_recipe("scalr_multi_teacher").student, width=256, norm="batch")
    made["recipe"]["student"] = asdict(network)
    name = "ScaLR (Table 7: WI-48-256, dinov2_vitl14 + maskclip_vitb16, nuscenes)"
    (row,) = (row for row in PUBLISHED if row.name == name)
    _, protocol = card_of(row)
    assert row.differences(origin_of(network, made), protocol).of_run == []


# Keys of a recipe that are not compared: they follow from others, are of the machine, the precision, the draws, or of
# losses and schedules that a row does not have.
NOT_COMPARED = {
    *("out_channels", "objective.teachers", "training.precision", "training.accumulate", "training.compile"),
    *("training.workers", "training.activation_checkpointing", "training.seed"),
}
OF_SGD = {"training.momentum", "training.dampening"}
OF_CONTRASTIVE = {"objective.temperature", "objective.contrastive_pairs", "objective.target_head_channels"}
OF_ST_SLIDR = {f"objective.{name}" for name in ("tolerance_quantile", "balanced", "balance_threshold")}
OF_RECIPROCAL = {"training.timescale_epochs", "training.cooldown_epochs"}
OF_COSINE = {"training.min_learning_rate", "training.warmup_steps"}


@pytest.mark.parametrize(
    ("recipe", "who", "without"),
    [
        ("scalr_multi_dataset", "ScaLR", OF_CONTRASTIVE | OF_RECIPROCAL),
        ("scalr_plus", "ScaLR+", OF_CONTRASTIVE | OF_COSINE),
    ],
)
def test_all_that_a_recipe_says_is_compared(recipe, who, without):
    (row, *_) = (row for row in published_for("probe nuscenes") if row.who == who)
    made = provenance(recipe, {"dinov2_vitl14": {}}, *WHOLE)
    found = origin_of(load_recipe(recipe).student, made)
    without = without | OF_SGD | OF_ST_SLIDR
    assert found.keys() - row.model.keys() == NOT_COMPARED | without | {"labels", "student", "superpixels"}


def test_settings_of_the_verbs_are_published():
    """What the verbs write as their setting, where the papers have figures."""
    base = {"student": "s", "root": "r", "out": "o"}
    assert published_for(FinetuneConfig(**base, labels="1%").setting)
    assert published_for(ProbeConfig(**base, dataset="semantic_kitti").setting)
    assert published_for(FinetuneConfig(**base, dataset="pandaset_gt").setting)
    assert published_for(FinetuneConfig(**base, from_scratch=True).setting)
    assert FinetuneConfig(**base, labels="1%", dataset="semantic_kitti").setting == "finetune semantic_kitti 1%"
    assert FinetuneConfig(**base, from_scratch=True).setting == "scratch nuscenes 100%"
    assert ProbeConfig(**base).setting == "probe nuscenes"
    assert ProbeConfig(**base, schedule="slidr").setting == "probe nuscenes by slidr"
    assert published_for(FinetuneConfig(**base, schedule="slidr", labels="1%").setting)
    assert published_for(FinetuneConfig(**base, schedule="slidr", labels="1%", from_scratch=True).setting)
    assert published_for(None) == []


def rows_of_page(section: str) -> list[list[str]]:
    """Of its table, without the two lines of the head."""
    page = re.split(r"(?m)^## ", (DOCS / "reproduce.md").read_text().split(f"## {section}\n")[1])[0]
    lines = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def text_of(row: Published) -> str:
    return ", ".join(str(value) if name == "mIoU" else f"{name} {value}" for name, value in row.figures.items())


def test_the_page_has_a_command_for_each_setting_and_the_figures_of_the_students_on_all_datasets():
    shown = {setting.strip("`"): figures for setting, _, *figures in rows_of_page("The tables")}
    assert shown.keys() == {row.setting for row in PUBLISHED if not re.search("^scratch|by slidr$", row.setting)}
    for setting, figures in shown.items():
        rows = [
            *published_for(setting),
            *published_for(setting.replace("finetune", "scratch") * ("finetune" in setting)),
        ]
        scalr, plus, supervised = (
            [row for row in rows if row.who == who and (L_ON_ALL in row.name or who == "WaffleIron")]
            for who in ("ScaLR", "ScaLR+", "WaffleIron")
        )
        expected = [
            "; ".join(f"{text_of(row)} ({row.source})" if len(group) > 1 else text_of(row) for row in group)
            for group in (scalr, plus, supervised)
        ]
        assert figures == [text or "–" for text in expected], setting


def test_the_page_has_every_figure_with_its_setting():
    by_name = groupby(sorted(PUBLISHED, key=lambda row: row.name), key=lambda row: row.name)
    expected = [[name, "; ".join(f"{row.setting} {text_of(row)}" for row in rows)] for name, rows in by_name]
    assert rows_of_page("Every published figure") == expected
