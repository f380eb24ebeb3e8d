"""`scalr verify`: find damage, remove it on request, and compare a sample with the teacher."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from ..counted import counted
from ..device import resolve_device
from ..settings import CountOrZero, Settings
from .recompute import Recomputed, recompute_targets
from .store.format import ASIDE
from .store.inspect import missing
from .store.repair import repair_store
from .store.verify import Damage, Findings, open_to_verify, verify_store

MOST_STRAYS = 8  # number of stray files that are listed
REPEAT = "Repeat the 'scalr extract' command that wrote this store: it extracts what is missing."
LISTED = ("blocks", "unreadable", "stray", "missing", "without_statistics")  # findings that JSON output copies


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(Settings):
    """One verification; the fields are the options of `scalr verify`."""

    store: Path
    repair: bool = False
    sample: CountOrZero = 0
    root: Path | None = None
    superpixels: Literal["slic"] | Path | None = None
    weights: tuple[str, ...] = ()
    device: str = "auto"


@dataclass(frozen=True)
class Verification:
    """What was found, and what was removed because of it."""

    store: Path
    found: Findings
    repaired: bool
    kept: list[Path] = field(default_factory=list)  # folders that hold what was removed
    sample: list[Recomputed] = field(default_factory=list)

    @property
    def damage(self) -> list[Damage]:
        return self.found.damage

    @property
    def whole(self) -> bool:
        """Whether the store is complete and undamaged, all of it could be read, and the sample agrees with it."""
        return self.found.whole and all(view.as_stored for view in self.sample)

    def as_json(self) -> dict:
        """Plain JSON values."""
        lists = {name: getattr(self.found, name) for name in LISTED}
        return {
            "store": str(self.store),
            "whole": self.whole,
            **lists,
            "damage": [asdict(each) for each in self.damage],
            "repaired": self.repaired,
            "kept": [str(path) for path in self.kept],
            "sample": [asdict(view) | {"as_stored": view.as_stored} for view in self.sample],
        }

    def as_text(self) -> str:
        """A table for people."""
        found = self.found
        lines = [
            f"{self.store}: {counted(found.blocks, 'block')} read, {len(self.damage)} damaged",
            *map(str, self.damage),
        ]
        if self.repaired and self.damage:
            if self.kept:
                lines.append(f"{counted(len(self.kept), 'damaged item')} moved to {self.store / ASIDE}:")
                lines += [f"  {path}" for path in self.kept]
                lines.append(f"When the store is complete again, delete them with 'rm -r {self.store / ASIDE}'.")
            lines.append(REPEAT)
        elif self.damage:
            lines.append(f"Run 'scalr verify {self.store} --repair'. {REPEAT}")
        lines += [f"cannot be read now: {each}" for each in found.unreadable]
        if found.unreadable:
            lines.append("No damage of these files is known. Check their permissions and their storage.")
        lines += [f"incomplete: {missing(kind, blocks)}" for kind, blocks in found.missing.items()]
        lines += [f"incomplete: no statistics of {each}" for each in found.without_statistics]
        if (found.missing or found.without_statistics) and not self.damage:
            lines.append(REPEAT)
        lines += [f"stray, not a file of the store: {each}" for each in found.stray[:MOST_STRAYS]]
        if len(found.stray) > MOST_STRAYS:
            lines.append(f"and {len(found.stray) - MOST_STRAYS} more stray files, which are ignored")
        return "\n".join([*lines, *map(str, self.sample)])


def verify(config: VerifyConfig) -> Verification:
    """Check a store; see `verify_store`, `repair_store` and `recompute_targets`.

    Raises:
        ScalrError: the store cannot be opened, or the sample's dataset or weights are missing.
    """
    store = open_to_verify(config.store)
    found = verify_store(store)
    kept = repair_store(store, found) if config.repair else []
    sample = []
    if config.sample and not found.damage:
        device = resolve_device(config.device)
        options = {name: getattr(config, name) for name in ("root", "superpixels", "weights")}
        sample = list(recompute_targets(store, config.sample, **options, device=device))
    return Verification(store.path, found, config.repair, kept, sample)
