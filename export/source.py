"""The source model itself, transformers' own, run with its weights on disk: pieces of one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from ..graphs.weights import Source, in_order, slices

#: Weights of more elements stay on disk.
KEPT = 1 << 20
ATTENTION = "eager"  #: transformers' plain attention, the one that all others are held to


@contextmanager
def empty_parameters() -> Iterator[None]:
    """Modules built in here have parameters without memory, but real buffers."""
    register = torch.nn.Module.register_parameter

    def empty(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = empty
    try:
        with no_init_weights():
            yield
    finally:
        torch.nn.Module.register_parameter = register


def read_from_disk(model: PreTrainedModel, weights: Mapping[int, Source]) -> None:
    """Make a model of `empty_parameters()` work: products and look-ups read their weights, in float32, as they go.

    Args:
        weights: the values of each parameter, by its `id`.
    """
    model.set_attn_implementation(ATTENTION)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            source = weights[id(parameter)]
            kind = next((ours for theirs, ours in STREAMED.items() if isinstance(module, theirs)), None)
            if name == "weight" and kind is not None and parameter.numel() > KEPT:
                theirs = type(module)
                # Between a class and PyTorch's, so that what a class does around the product stays.
                module.__class__ = kind if theirs in STREAMED else type(theirs.__name__, (theirs, kind), {})
                module.source, values = source, torch.empty(0)  # the weight still says where it is and of what type
            else:
                values = torch.from_numpy(source[...])
            module._parameters[name] = torch.nn.Parameter(values, requires_grad=False)
    model.eval()


class _Linear(torch.nn.Linear):
    source: Source

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        pieces = in_order(self.source.__getitem__, slices(self.source.shape))
        product = torch.cat([torch.nn.functional.linear(input, torch.from_numpy(piece)) for piece in pieces], -1)
        return product if self.bias is None else product + self.bias


class _Embedding(torch.nn.Embedding):
    source: Source

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        ids, places = input.unique(return_inverse=True)
        rows = [torch.from_numpy(self.source[int(row) : int(row) + 1]) for row in ids]
        return torch.nn.functional.embedding(places, torch.cat(rows))


STREAMED = {torch.nn.Linear: _Linear, torch.nn.Embedding: _Embedding}
