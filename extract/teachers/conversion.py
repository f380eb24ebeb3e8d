"""Find out how timm would load a file into a model: what becomes of each tensor, before the model takes memory."""

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
COMPUTED_ANEW = re.compile(r"rope|\.bias_mask$|\.relative_position_index$")  # by timm, from the model's options
COUNTER = ".num_batches_tracked"  # of batch norm: older files lack it, and it matters in training only


class _Traced(torch.Tensor):
    """A tensor that tracks the tensors of the file from which it was computed, through timm's conversion."""

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
        taken: tensors that the model takes, under the model's names.
        made_of: for each converted tensor, the names of the file's tensors from which timm computed it.
        missing: tensors of the model that the file lacks.
        misshapen: tensors of another shape or kind of values than the model's: what was found, and what is expected.
        unexpected: converted tensors for which the model has no place.
        ignored: tensors of the file from which the model takes nothing.
        lost: tensors in the file's blocks with values other than zero that the model does not take.
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
    """A model of timm that takes no memory, with timm's way to load weights into it.

    Args:
        model: the model, on the device "meta".
        request: the arguments with which timm's builder calls its `load_pretrained`.
    """

    model: torch.nn.Module
    request: Mapping[str, Any]

    @classmethod
    def of(cls, timm_name: str, options: Mapping[str, Any]) -> Skeleton:
        """Build the skeleton of a model. Not thread-safe: timm's builder is replaced during the call.

        Raises:
            Exception: timm has no model of that name, or not with these options.
        """
        _builder = import_timm().models._builder
        request: dict[str, Any] = {}

        def instead(model: torch.nn.Module, **arguments: Any) -> None:
            request.update(arguments)  # if a model is a part of another one, the outer one comes last

        # Each model function of timm selects its conversion and passes it to the builder only.
        original, _builder.load_pretrained = _builder.load_pretrained, instead
        try:
            with torch.device("meta"):
                model = import_timm().create_model(timm_name, pretrained=True, **options)
        finally:
            _builder.load_pretrained = original
        return cls(model, request)

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The model's tensors, which have shapes and dtypes but no values."""
        return self.model.state_dict()

    def is_classifier(self, name: str) -> bool:
        """Whether a tensor belongs to the classifier, or to CLIP's projection."""
        layers = self.model.pretrained_cfg.get("classifier") or ()
        return name.rpartition(".")[0] in ((layers,) if isinstance(layers, str) else layers)

    def fetch(self) -> object:
        """Load the model's file from the Hugging Face Hub, or from its cache.

        Raises:
            Exception: an error of any of the libraries involved.
        """
        _builder = import_timm().models._builder
        fetched: list[object] = []

        def keep(content: object, model: torch.nn.Module) -> dict[str, torch.Tensor]:
            fetched.append(content)
            return model.state_dict()  # timm loads it into that same model

        _builder.load_pretrained(self.model, **{**self.request, "filter_fn": keep})
        if not fetched:
            raise RuntimeError("timm has no file of tensors for it")
        return fetched[0]

    def fit(self, tensors: Mapping[str, torch.Tensor]) -> Fit:
        """Convert a file's tensors as timm does, which resizes positions to the model's image size.

        Raises:
            Exception: any error of timm's conversion, if the file is not as the conversion assumes.
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
        """Find the grid of a file's position embeddings; None if it has none, or if the grid cannot be determined.

        Args:
            fit: the fit of these tensors in this model.
            grid: the model's grid.
            usual: the usual grid of this kind of model.
            square: whether a square is likelier than the model's grid, as official code assumes.
        """
        likely = {"guesses": [usual], "last_guess": grid} if square else {"guesses": [usual, grid]}
        for name, sources in fit.made_of.items():
            if len(sources) == 1 and name in self.tensors:
                count, here = (_rows(each) for each in (tensors[min(sources)], self.tensors[name]))
                if name == "pos_embed":
                    others = here - math.prod(grid)
                    # Official files may have positions of class tokens that timm's model lacks.
                    return grid_of_positions(count, range(others, others + 3), **likely)
                if name.endswith("relative_position_bias_table"):
                    others = here - math.prod(2 * side - 1 for side in grid)
                    return grid_of_offsets(count, others, [usual, grid])
        return None


def _form(tensor: torch.Tensor) -> str:
    """Describe shape and kind, which must be equal; the precision of floating-point values may differ."""
    sizes = f"({', '.join(map(str, tensor.shape))})"
    return sizes if tensor.is_floating_point() else f"{sizes} {tensor.dtype}"


def _rows(tensor: torch.Tensor) -> int:
    return math.prod(tensor.shape[:-1])


def _is_lost(tensor: torch.Tensor, parts: Sequence[torch.Tensor]) -> bool:
    """Whether a value other than zero is in no part that is taken, such as the bias of k in a bias for q, k and v."""
    if sum(part.numel() for part in parts) >= tensor.numel():
        return False
    return bool(tensor.count_nonzero() > sum(part.count_nonzero() for part in parts))
