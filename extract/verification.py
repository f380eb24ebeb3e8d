"""`scalr verify`: look for damage, take it out if asked to, and compare a sample with the teacher."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..device import resolve_device
from .recompute import Recomputed, recompute_targets
from .store import open_store
from .store.verify import Damage, repair_store, verify_store


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """One verification; the fields are the options of `scalr verify`."""

    store: Path
    repair: bool = False
    sample: int = 0
    root: Path | None = None
    weights: tuple[str, ...] = ()
    device: str = "auto"


@dataclass(frozen=True)
class Verification:
    """What was found."""

    store: Path
    blocks: int
    damage: list[Damage]
    repaired: bool
    sample: list[Recomputed] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return not self.damage and all(view.same_pairs for view in self.sample)

    def as_json(self) -> dict:
        """Plain JSON values."""
        return asdict(self) | {"store": str(self.store), "whole": self.whole}

    def as_text(self) -> str:
        """A table for people."""
        lines = [f"{self.store}: {self.blocks} blocks read, {len(self.damage)} damaged", *map(str, self.damage)]
        if self.repaired and self.damage:
            lines.append("The damaged blocks are taken out; run the same 'scalr extract' again.")
        elif self.damage:
            lines.append(f"Run 'scalr verify {self.store} --repair', then the same 'scalr extract' again.")
        for view in self.sample:
            found = (
                f"cosine {view.mean_cosine:.6f} (worst {view.worst_cosine:.6f}), loss within {view.loss_difference:.2g}"
                if view.same_pairs
                else "OTHER POINTS OR PIXELS than the dataset gives"
            )
            lines.append(f"view {view.row}, {view.teacher}: {view.pairs} pairs, {found}")
        return "\n".join(lines)


def verify(config: VerifyConfig) -> Verification:
    """Check a store; see `verify_store`, `repair_store` and `recompute_targets`.

    Raises:
        ScalrError: the store cannot be opened, or the sample's dataset or weights are not there.
    """
    store = open_store(config.store)
    blocks = len(store.committed_blocks())
    damage = verify_store(store)
    if config.repair:
        repair_store(store, damage)
    sample = []
    if config.sample and not damage:
        device = resolve_device(config.device)
        sample = list(recompute_targets(store, config.sample, root=config.root, weights=config.weights, device=device))
    return Verification(store.path, blocks, damage, config.repair, sample)
