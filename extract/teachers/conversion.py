"""How timm would load a file into a model: what becomes of each tensor, before any memory is spent on the model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from .pos_embed import Grid, grid_of_offsets, grid_of_positions
from .timm_import import import_timm

IN_A_BLOCK = re.compile(r"blocks\.\d+\.")
COMPUTED_ANEW = re.compile(r"rope|\.bias_mask$|\.relative_position_index$")  # by timm, of the model's options
COUNTER = ".num_batches_tracked"  # of batch norm: older files have none, and only training counts


class _Traced(torch.Tensor):
    """A tensor that knows from which tensors of the file it was made, whatever timm's conversion does to it."""

    made_of: frozenset[str] = frozenset()

    @classmethod
    def made(cls, tensor: torch.Tensor, name: str) -> _Traced:
        traced = tensor.as_subclass(cls)
        traced.made_of = frozenset([name])
        return traced

    @classmethod
    def __torch_function__(cls, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = super().__torch_function__(function, types, args, kwargs or {})
        made_of = frozenset().union(*(each.made_of for each in _traced((args, kwargs))))
        for each in _traced(result):
            each.made_of = made_of
        return result


def _traced(value: object) -> Iterator[_Traced]:
    if isinstance(value, _Traced):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _traced(each)
    elif isinstance(value, dict):
        yield from _traced([*value.values()])


@dataclass(frozen=True)
class Fit:
    """What becomes of a file's tensors in a model.

    Attributes:
        taken: what the model takes, by its own names.
        made_of: for each tensor that timm makes, the names of those of the file that it was made of.
        missing: what the model has and the file lacks.
        misshapen: of another shape or kind of values than the model's: what was found, and what is expected.
        unexpected: what timm makes of the file and the model has no place for.
        ignored: tensors of the file of which the model takes nothing.
        lost: tensors of the file, in its blocks, of which the model does not take all values other than zero.
    """

    taken: dict[str, torch.Tensor]
    made_of: dict[str, frozenset[str]]
    missing: tuple[str, ...]
    misshapen: dict[str, tuple[str, str]]
    unexpected: tuple[str, ...]
    ignored: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Skeleton:
    """A model of timm that takes no memory, and how timm would load weights into it.

    Args:
        model: on the device "meta".
        request: what timm's builder asks of its `load_pretrained`.
    """

    model: torch.nn.Module
    request: Mapping[str, Any]

    @classmethod
    def of(cls, timm_name: str, options: Mapping[str, Any]) -> Skeleton:
        """Not to be called in two threads at once: timm's builder is another one meanwhile.

        Raises:
            Exception: timm has no model of that name, or not with these options.
        """
        _builder = import_timm().models._builder
        request: dict[str, Any] = {}

        def instead(model: torch.nn.Module, **arguments: Any) -> None:
            request.update(arguments)  # where one model is a part of another, the whole comes last

        # Each model function of timm chooses its conversion and hands it to the builder, to nobody else.
        original, _builder.load_pretrained = _builder.load_pretrained, instead
        try:
            with torch.device("meta"):
                model = import_timm().create_model(timm_name, pretrained=True, **options)
        finally:
            _builder.load_pretrained = original
        return cls(model, request)

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The model's own, of shapes and dtypes only."""
        return self.model.state_dict()

    def is_classifier(self, name: str) -> bool:
        """Whether a tensor belongs to the layers that give classes, or CLIP's projection."""
        layers = self.model.pretrained_cfg.get("classifier") or ()
        return name.rpartition(".")[0] in ((layers,) if isinstance(layers, str) else layers)

    def fetch(self) -> object:
        """The content of the model's file in the hub, or in its cache.

        Raises:
            Exception: each library's own.
        """
        _builder = import_timm().models._builder
        fetched: list[object] = []

        def keep(content: object, model: torch.nn.Module) -> dict[str, torch.Tensor]:
            fetched.append(content)
            return model.state_dict()  # to be loaded into that very model

        _builder.load_pretrained(self.model, **{**self.request, "filter_fn": keep})
        if not fetched:
            raise RuntimeError("timm has no file of tensors for it")
        return fetched[0]

    def fit(self, tensors: Mapping[str, torch.Tensor]) -> Fit:
        """Convert a file's tensors as timm does, which resizes positions to the model's image size.

        Raises:
            Exception: each conversion's own, where it presumes what is not so.
        """
        traced = {name: _Traced.made(tensor, name) for name, tensor in tensors.items()}
        convert = self.request["filter_fn"]
        converted = convert(traced, self.model) if convert else traced
        made_of = {name: getattr(tensor, "made_of", frozenset()) for name, tensor in converted.items()}
        known = {name: tensor.as_subclass(torch.Tensor) for name, tensor in converted.items() if name in self.tensors}
        forms = {name: (_form(tensor), _form(self.tensors[name])) for name, tensor in known.items()}
        taken = {name: tensor for name, tensor in known.items() if forms[name][0] == forms[name][1]}
        used = frozenset().union(*(made_of[name] for name in taken))
        return Fit(
            taken=taken,
            made_of=made_of,
            missing=tuple(name for name in self.tensors if name not in known and not name.endswith(COUNTER)),
            misshapen={name: forms[name] for name in known if name not in taken},
            unexpected=tuple(name for name in converted if name not in known),
            ignored=tuple(name for name in tensors if name not in used),
            lost=tuple(
                name
                for name, tensor in tensors.items()
                if IN_A_BLOCK.match(name)
                and not COMPUTED_ANEW.search(name)
                and _is_lost(tensor, [part for each, part in taken.items() if name in made_of[each]])
            ),
        )

    def own_grid(
        self, fit: Fit, tensors: Mapping[str, torch.Tensor], grid: Grid, usual: Grid, *, square: bool = False
    ) -> Grid | None:
        """The grid of patches whose positions a file knows; None where it knows none, or does not let it be seen.

        Args:
            fit: of these tensors in this model.
            grid: of this model.
            usual: of this kind of model.
            square: whether a square is likelier than this model's grid, as official codes have it.
        """
        likely = {"guesses": [usual], "last_guess": grid} if square else {"guesses": [usual, grid]}
        for name, sources in fit.made_of.items():
            if len(sources) == 1 and name in self.tensors:
                count, here = (_rows(each) for each in (tensors[min(sources)], self.tensors[name]))
                if name == "pos_embed":
                    others = here - math.prod(grid)
                    # Official files may have positions of class tokens where timm's model has none.
                    return grid_of_positions(count, range(others, others + 3), **likely)
                if name.endswith("relative_position_bias_table"):
                    others = here - math.prod(2 * side - 1 for side in grid)
                    return grid_of_offsets(count, others, [usual, grid])
        return None


def _form(tensor: torch.Tensor) -> str:
    """What must be equal; precisions of floating point may differ."""
    sizes = f"({', '.join(map(str, tensor.shape))})"
    return sizes if tensor.is_floating_point() else f"{sizes} {tensor.dtype}"


def _rows(tensor: torch.Tensor) -> int:
    return math.prod(tensor.shape[:-1])


def _is_lost(tensor: torch.Tensor, parts: Sequence[torch.Tensor]) -> bool:
    """Whether any value but zero is in none of the parts that are taken: of a bias for q, k and v, that for k."""
    if sum(part.numel() for part in parts) >= tensor.numel():
        return False
    return bool(tensor.count_nonzero() > sum(part.count_nonzero() for part in parts))
