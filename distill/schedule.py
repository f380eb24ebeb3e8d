"""Learning rates over a training, as fractions of the peak."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, warmup_steps: float, total_steps: int, least: float) -> float:
    """Linear warm-up from zero, then cosine decay to the fraction `least` of the peak (ScaLR)."""
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return least + 0.5 * (1 - least) * (1 + math.cos(math.pi * min(1.0, progress)))


def cosine_of_epochs(epoch: int, epochs: int) -> float:
    """Cosine decay to zero that changes between epochs only, without a warm-up (SLidR).

    torch's CosineAnnealingLR with T_max = `epochs`, stepped once an epoch: the last epoch is made a little above zero.
    """
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def reciprocal_sqrt(
    step: int, *, warmup_steps: float, total_steps: int, timescale_steps: float, cooldown_steps: float
) -> float:
    """Linear warm-up, decay by the reciprocal square root of the steps since, linear cool-down to zero (ScaLR+).

    As in the official code (LinWarmup_ReciprocalSqrt_LinCoolDown), the cool-down begins where a decay that counts the
    warm-up's steps too would be, slightly below the one before it, and the last step is made with zero.
    """
    cooldown_start = total_steps - cooldown_steps
    if step <= warmup_steps and warmup_steps > 0:
        return step / warmup_steps
    if step <= cooldown_start:
        return 1 / math.sqrt(1 + (step - warmup_steps) / timescale_steps)
    start = 1 / math.sqrt(1 + cooldown_start / timescale_steps)
    left = total_steps - step - 1
    return start * max(0.0, left / max(1.0, cooldown_steps - 1))
