"""The tables of published results in docs/reproduce.md, made from `evaluate.published`.

python tests/published_tables.py      # writes them into the page
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

from doc_examples import DOCS
from scalr.evaluate.published import PUBLISHED
from scalr.evaluate.published_result import DATASETS, FINETUNED, Published

PAGE = DOCS / "reproduce.md"
BEGIN, END = "<!-- published results: made by tests/published_tables.py -->\n", "<!-- end of published results -->\n"
ROBUSTNESS, UNSEEN = ("mCE", "mRR", "mIoU corrupted", "mIoU clean"), ("semantic_kitti", "semantic_poss")
BY_SLIDR = ("probe nuscenes", "nuscenes 1%", "nuscenes 10%", "nuscenes 100%", "semantic_kitti 1%")


def tables() -> str:
    """All tables; each published result is in exactly one."""
    left = list(PUBLISHED)
    parts = [
        _table("Linear probing", left, _is_probed, _dataset, DATASETS),
        _table("Losses", left, _is_mini, _figure, ("mIoU",)),
        _table("Finetuning and training from scratch", left, _is_trained, _labels, tuple(FINETUNED)),
        _table("MinkUNet, by the protocol of SLidR", left, _is_by_slidr, _labels, BY_SLIDR),
        _table("Robustness on nuScenes-C", left, _is("robustness nuscenes_c"), _figure, ROBUSTNESS),
        _table("Robustness on SemanticKITTI-C", left, _is("robustness semantic_kitti_c"), _figure, ROBUSTNESS),
        _table("Domain generalisation from nuScenes", left, _is("transfer"), _dataset, UNSEEN),
    ]
    assert not left, left
    return "\n".join(parts)


def _is_mini(row: Published) -> bool:
    return row.protocol.get("split") == "slidr_val"


def _is_by_slidr(row: Published) -> bool:
    return row.setting.endswith(" by slidr")


def _is_probed(row: Published) -> bool:
    return row.setting.startswith("probe") and not _is_by_slidr(row) and not _is_mini(row)


def _is_trained(row: Published) -> bool:
    return row.setting.split()[0] in ("finetune", "scratch") and not _is_by_slidr(row)


def _is(setting: str) -> Callable[[Published], bool]:
    return lambda row: row.setting.startswith(setting)


def _dataset(row: Published, figure: str) -> str:
    return row.setting.split()[1]


def _labels(row: Published, figure: str) -> str:
    setting = row.setting.removesuffix(" by slidr")
    return setting if setting.startswith("probe") else setting.split(maxsplit=1)[1]


def _figure(row: Published, figure: str) -> str:
    return figure


def _table(
    title: str,
    left: list[Published],
    belongs: Callable[[Published], bool],
    column: Callable[[Published, str], str],
    columns: Sequence[str],
) -> str:
    """The rows that belong to it, which it takes from those that are left; a line for each method and model."""
    lines: dict[str, list[Published]] = {}
    for row in filter(belongs, list(left)):
        lines.setdefault(json.dumps([row.who, dict(row.model)], sort_keys=True), []).append(row)
        left.remove(row)
    head = ["method", "source", "student", "distilled from, on", *columns]
    text = [f"### {title}", "", _line(head), "|---" * 4 + "|---:" * len(columns) + "|"]
    for rows in sorted(lines.values(), key=lambda rows: (_sources(rows), rows[0].who, rows[0].name)):
        cells = {name: [] for name in columns}
        for row in rows:
            for figure, value in row.figures.items():
                cells[column(row, figure)].append((row, value))
        values = [_cell(cells[name]) for name in columns]
        text.append(_line([rows[0].who, _sources(rows), rows[0].student, rows[0].pretraining, *values]))
    return "\n".join([*text, ""])


def _sources(rows: Iterable[Published]) -> str:
    """The page says that tables are ScaLR's."""
    return ", ".join(sorted({source.removeprefix("ScaLR's ") for row in rows for source in row.sources}))


def _cell(values: Sequence[tuple[Published, float]]) -> str:
    if len(values) > 1:
        return "; ".join(f"{value} ({_sources([row])})" for row, value in values)
    return "".join(f"{value}" if row.std is None else f"{value} ± {row.std}" for row, value in values) or "–"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + tables() + "\n" + END + rest.split(END)[1])
