from __future__ import annotations

import re
from typing import Any

import pytest
from published_tables import BEGIN, END, PAGE, tables

from scalr.distill.recipe import Recipe, load_recipe, recipe_values
from scalr.evaluate.class_sets import RAW_IDS
from scalr.evaluate.finetune import FinetuneConfig
from scalr.evaluate.origin import origin_of
from scalr.evaluate.probe import ProbeConfig
from scalr.evaluate.published import PUBLISHED, published_for
from scalr.evaluate.published_result import NAMES, Published, nearest, rows_of_setting
from scalr.extract.datasets.simulated import SIMULATED

L_ON_ALL = "WI-48-768, dinov2_vitl14, all four datasets"
MINK, ON_600, WITH_HEAD = "MinkUNet", "nuscenes slidr_train", "contrastive, a head on the targets"
RESNET_4 = "resnet50_moco_v2_stride4"


def run_in_setting_of(row: Published) -> tuple[dict, dict]:
    """Model and protocol of a run in the row's setting, as far as the source says it."""
    said = (
        {name: value for name, value in values.items() if value is not None} for values in (row.model, row.protocol)
    )
    model, protocol = said
    return model, protocol


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.setting} {row.name}")
def test_a_figure_is_matched_by_its_own_setting_and_each_change_of_it_is_named(row):
    model, protocol = run_in_setting_of(row)
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
            # Result files from before there were other backbones do not name theirs.
            assert row.differences(*without).unknown or name == "backbone"


def _other(value: Any) -> Any:
    if isinstance(value, list):
        return [*value, "more"]
    return f"not {value}" if isinstance(value, str) else value + 1


def test_the_nearest_row_is_of_the_setting_where_one_is():
    for row in PUBLISHED:
        found = run_in_setting_of(row)
        assert nearest(published_for(row.setting), *found).differences(*found).of_run == []


def test_no_run_has_two_published_settings():
    """Nor has a run the setting of a row whose source does not say the network."""
    for row in PUBLISHED:
        found = rows_of_setting(published_for(row.setting), *run_in_setting_of(row))
        assert row in found or row.model.get("width", "said") is None
        for each in found:
            assert (each.model, each.protocol) == (row.model, row.protocol)


def test_a_setting_stands_twice_only_where_sources_report_different_values():
    by_setting = {}
    for row in PUBLISHED:
        key = (row.who, row.setting, str(row.model), str(row.protocol))
        by_setting.setdefault(key, []).append(row)
    several = [rows for rows in by_setting.values() if len(rows) > 1]
    assert {(rows[0].who, rows[0].setting) for rows in several} == {
        ("ScaLR", "finetune semantic_kitti 1%"),
        ("PPKT", "probe nuscenes by slidr"),
        *((who, "finetune nuscenes 1% by slidr") for who in ("PPKT", "SLidR")),
    }
    for rows in several:
        assert len({str(row.figures) for row in rows}) == len(rows)
    assert len({(row.setting, row.name) for row in PUBLISHED}) == len(PUBLISHED)


@pytest.mark.parametrize(
    ("model", "protocol"),
    [
        ({}, {"data": SIMULATED}),
        ({"teacher's weights": "random"}, {}),
        ({"teacher's weights": ["published", "random"]}, {}),
    ],
)
def test_no_published_result_has_the_setting_of_a_simulated_run_or_of_random_weights(model, protocol):
    (row,) = (row for row in published_for("probe nuscenes") if L_ON_ALL in row.name and row.who == "ScaLR")
    found = run_in_setting_of(row)
    assert rows_of_setting([row], *found) == [row]
    assert rows_of_setting([row], found[0] | model, found[1] | protocol) == []


def test_what_is_not_said_brings_a_row_no_nearer():
    """MAE's row says less of its teacher than DINOv2's: that is no reason to set it beside a student of DINOv2."""
    (row,) = (row for row in PUBLISHED if row.name == "ScaLR (Table 3: WI-48-256, dinov2_vits14, nuscenes)")
    model, protocol = run_in_setting_of(row)
    model |= {"pos_embed": "timm", "width": 16, "training.epochs": 25, "training.batch_size": 8}
    assert nearest(published_for("probe nuscenes"), model, protocol) is row


def test_a_row_of_another_loss_is_no_nearer_for_its_teacher():
    """LiMA's README says little but the teacher and the loss, and so differs in little."""
    rows = published_for("probe nuscenes by slidr")
    (lima,) = (row for row in rows if row.name.startswith("ScaLR (README of LiMA") and "vits14" in row.name)
    (slidr,) = (
        row for row in rows if row.name == f"SLidR (ScaLR's Table 2 and ScaLR's Table 8: {MINK}, {RESNET_4}, {ON_600})"
    )
    model, protocol = run_in_setting_of(slidr)
    model |= {"teachers": ["dinov2_vits14"], "feature": "x_prenorm"}
    assert nearest(rows, model, protocol).who == "SLidR"
    assert nearest(rows, model | {"objective.loss": "similarity"}, protocol) is lima


def test_results_on_other_lidars_are_of_the_classes_that_transfer_uses():
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


def provenance(recipe: Recipe, teachers: dict[str, dict], *sets: tuple[str, str, int]) -> dict:
    """As `distill` records it."""
    sources = [
        {"dataset": dataset, "split": split, "num_frames": frames, "occlusion": "keep", "superpixels": SLIC}
        for dataset, split, frames in sets
    ]
    made = {"weights": "hub", "image_size": [224, 448], "feature": "x_prenorm", "pos_embed": "official"}
    return {
        "stores": [{"sources": [source], "frames_in_use": [source["num_frames"]]} for source in sources],
        "teachers": {name: made | changes for name, changes in teachers.items()},
        "recipe": recipe_values(recipe),
        "torch": "2",
    }


SLIC = {"method": "slic"}
COMPLETE = (
    *(("nuscenes", "train", 28130), ("semantic_kitti", "train", 19130)),
    *(("pandaset_64", "train", 3920), ("pandaset_gt", "train", 3920)),
)
NUSCENES, KITTI, PANDAR64, PANDARGT = ((each,) for each in COMPLETE)
MINI = (("nuscenes", "slidr_train", 24109),)
DINO, DINOV2_L, MASKCLIP = {"dino_vits8": {}}, {"dinov2_vitl14": {}}, {"maskclip_vitb16": {"feature": "maskclip"}}
BOTH, MAE = DINOV2_L | MASKCLIP, {"mae_vitb16": {"feature": "x_norm", "pos_embed": "timm"}}
PLUS = {"dinov2_vitl14": {"image_size": [448, 896], "pos_embed": "timm"}}
LOSS = f"WI-48-256, dino_vits8, {ON_600}"
B16 = "training.batch_size=16"
# A published row that a student's probing is set beside: recipe with changes, teachers, training sets.
STUDENTS = {
    f"ScaLR (Table 4 and Table 8: {L_ON_ALL})": ("scalr_multi_dataset", DINOV2_L, COMPLETE),
    f"ScaLR+ (README of scalr_plus: {L_ON_ALL})": ("scalr_plus", PLUS, COMPLETE),
    "ScaLR (Table 4: WI-48-768, dinov2_vitl14, nuscenes)": ("scalr_wi768 training.epochs=49", DINOV2_L, NUSCENES),
    "ScaLR (Table 3: WI-48-768, dinov2_vitl14, nuscenes)": ("scalr_wi768", DINOV2_L, NUSCENES),
    "ScaLR (Table 3: WI-48-768, dino_vits8, nuscenes)": ("scalr_wi768", DINO, NUSCENES),
    "ScaLR (Table 3: WI-48-384, dino_vits8, nuscenes)": ("scalr_wi384", DINO, NUSCENES),
    "ScaLR (Table 3: WI-48-256, dino_vits8, nuscenes)": ("scalr_wi256", DINO, NUSCENES),
    "ScaLR (Table 3: WI-48-256, mae_vitb16, nuscenes)": ("scalr_wi256", MAE, NUSCENES),
    "ScaLR (Table 3: WI-48-256, dinov2_vits14, nuscenes)": ("scalr_wi256", {"dinov2_vits14": {}}, NUSCENES),
    "ScaLR (Table 3: WI-48-256, dinov2_vitb14, nuscenes)": ("scalr_wi256", {"dinov2_vitb14": {}}, NUSCENES),
    "ScaLR (Table 3 and Table 7: WI-48-256, dinov2_vitl14, nuscenes)": ("scalr_wi256", DINOV2_L, NUSCENES),
    "ScaLR (Table 3 and Table 7: WI-48-384, dinov2_vitl14, nuscenes)": ("scalr_wi384", DINOV2_L, NUSCENES),
    "ScaLR (Table 4: WI-48-256, dino_vits8, nuscenes)": (f"scalr_wi256 {B16}", DINO, NUSCENES),
    "ScaLR (Table 4: WI-48-256, dino_vits8, semantic_kitti)": (f"scalr_wi256 {B16}", DINO, KITTI),
    "ScaLR (Table 4: WI-48-256, dino_vits8, pandaset_64)": (f"scalr_wi256 {B16}", DINO, PANDAR64),
    "ScaLR (Table 4: WI-48-256, dino_vits8, pandaset_gt)": (f"scalr_wi256 {B16}", DINO, PANDARGT),
    "ScaLR (Table 4: WI-48-256, dino_vits8, nuscenes + semantic_kitti)": (f"scalr_wi256 {B16}", DINO, COMPLETE[:2]),
    "ScaLR (Table 4: WI-48-256, dino_vits8, all four datasets)": (f"scalr_wi256 {B16}", DINO, COMPLETE),
    "ScaLR (Table 7: WI-48-256, maskclip_vitb16, nuscenes)": ("scalr_wi256", MASKCLIP, NUSCENES),
    "ScaLR (Table 7: WI-48-256, dinov2_vitl14 + maskclip_vitb16, nuscenes)": (
        *("scalr_multi_teacher student.width=256 student.norm=batch", BOTH, NUSCENES),
    ),
    f"ScaLR (Table 2: WI-48-96, dino_vits8, {ON_600})": ("scalr_wi96", DINO, MINI),
    f"ScaLR (Table 2: {LOSS})": ("scalr_wi256", DINO, MINI),
    f"ScaLR (Table 1: {LOSS}, {WITH_HEAD})": ("table1_contrastive_head", DINO, MINI),
    f"ScaLR (Table 1: {LOSS}, contrastive, no head on the targets)": ("table1_contrastive", DINO, MINI),
    f"ScaLR (Table 1: {LOSS})": ("table1_similarity", DINO, MINI),
}
MINK_600 = f"{MINK}, dino_vits8, {ON_600}"
MINKUNETS = {
    f"ScaLR (Table 1: {MINK_600}, {WITH_HEAD})": ("table1_minkunet_contrastive_head", DINO, MINI),
    f"ScaLR (Table 1: {MINK_600}, contrastive, no head on the targets)": ("table1_minkunet_contrastive", DINO, MINI),
    f"ScaLR (Table 1: {MINK_600})": ("table1_minkunet_similarity", DINO, MINI),
    f"ScaLR (Table 1: {MINK_600}, one camera)": ("table1_minkunet_similarity_one_camera", DINO, MINI),
    f"PPKT (ScaLR's Table 2: {MINK_600}, {WITH_HEAD})": ("table2_ppkt_minkunet", DINO, MINI),
    f"SLidR (ScaLR's Table 2: {MINK_600})": ("table2_slidr_minkunet", DINO, MINI),
    f"ScaLR (Table 2: {MINK_600})": ("table2_scalr_minkunet", DINO, MINI),
    f"ScaLR (README of LiMA: {MINK}, dinov2_vits14, nuscenes)": (
        *("scalr_minkunet_vits", {"dinov2_vits14": {}}, NUSCENES),
    ),
}


@pytest.mark.parametrize("name", [*STUDENTS, *MINKUNETS])
def test_a_probed_student_of_a_recipe_stands_beside_the_row_of_its_setting_alone(name):
    """Losses, heads, widths, teachers, training sets, several teachers, and the 600 and 100 scenes of Table 1."""
    recipe, teachers, sets = (STUDENTS | MINKUNETS)[name]
    schedule = "slidr" if name in MINKUNETS else "scalr_plus" if name.startswith("ScaLR+") else "scalr"
    found = rows_of_setting(
        published_for("probe nuscenes by slidr" if schedule == "slidr" else "probe nuscenes"),
        origin_of_student(recipe, teachers, sets),
        probing_on("slidr_train" if "Table 1" in name else "train", schedule),
    )
    assert [row.name for row in found] == [name]


def origin_of_student(recipe: str, teachers: dict[str, dict], sets: tuple) -> dict:
    name, *changes = recipe.split()
    made = load_recipe(name, changes)
    return origin_of(made.student, provenance(made, teachers, *sets))


def probing_on(split: str, schedule: str) -> dict:
    """The protocol of a probing of nuScenes, as its result file has it."""
    trained, scored, on = (24109, 4021, "slidr_val") if split == "slidr_train" else (28130, 6019, "val")
    return {
        "training_frames": trained,
        "training_split": split,
        "frames": scored,
        "split": on,
        "classes": 16,
        "schedule_of": schedule,
        "mean_over": "present or predicted",
    }


def test_what_no_store_can_have_of_the_baselines_of_resnet_is_said():
    """Their images were cropped and flipped again each time, and their targets projected before they were pooled."""
    names = f"ST-SLidR (ScaLR's Table 2 and ScaLR's Table 8: {MINK}, {RESNET_4}, {ON_600})"
    (row,) = (row for row in published_for("probe nuscenes by slidr") if row.name == names)
    teachers = {RESNET_4: {"feature": "layer4", "pos_embed": None}}
    found = row.differences(origin_of_student("table8_st_slidr", teachers, MINI), probing_on("train", "slidr"))
    assert found.of_run == [
        "image size 224x448, not 224x416",
        "image augmentation none, not random crops and flips",
        "objective.target_head none, not linear",
    ]


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
    found = origin_of_student(recipe, DINOV2_L, COMPLETE)
    without = without | OF_SGD | OF_ST_SLIDR
    assert found.keys() - row.model.keys() == NOT_COMPARED | without | {"labels", "student", "superpixels"}


def test_settings_of_the_commands_are_published():
    """What the commands write as their setting, where the papers have results."""
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


def test_the_page_has_every_published_result():
    made = PAGE.read_text().split(BEGIN)[1].split(END)[0].strip()
    assert made == tables().strip(), "run python tests/published_tables.py"


def test_the_page_has_a_command_for_each_setting():
    page = re.split(r"(?m)^## ", PAGE.read_text().split("## Headline results\n")[1])[0]
    lines = [line for line in page.splitlines() if line.startswith("|")][2:]
    shown = {cells[0].strip(" `"): cells[2:] for cells in (line.strip("|").split("|") for line in lines)}
    assert shown.keys() == {row.setting for row in PUBLISHED if not re.search("^scratch|by slidr$", row.setting)}
    for setting, (scalr, plus) in shown.items():
        for who, cell in (("ScaLR", scalr), ("ScaLR+", plus)):
            rows = [row for row in published_for(setting) if row.who == who and L_ON_ALL in row.name]
            numbers = [str(value) for row in rows for value in row.figures.values()]
            assert re.findall(r"\d+\.\d+", cell) == numbers, setting
