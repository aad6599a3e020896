"""Names, dtypes and shapes of what goes in and out of each graph. Nobody else spells a tensor's name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

Shape = tuple[int | str, ...]

VISION_ENCODER, PROJECTOR, DECODER = GRAPHS = ("vision_encoder", "projector", "decoder")
MASK_DECODER = "mask_decoder"  #: a graph that a bundle may have besides
EMBED_TOKENS, TOKENIZER, CHAT_TEMPLATE = "embed_tokens.npy", "tokenizer.json", "chat_template.jinja"
#: Files of a proof, and the tiles that its picture is cut into at most, the thumbnail not counted.
PROOF_TILES = 2
PROOF_PICTURE, PROOF_ARRAYS = "proof/picture.png", "proof/expected.npz"

PIXEL_VALUES = "pixel_values"
VISION_FEATURES = "vision_features"
IMAGE_EMBEDS = "image_embeds"
INPUTS_EMBEDS = "inputs_embeds"
SEQUENCE_LENGTHS = "sequence_lengths"
TOTAL_SEQUENCE_LENGTH = "total_sequence_length"
LOGITS_INDICES = "logits_indices"
LOGITS = "logits"
INPUT_IDS = "input_ids"
TOKEN_IDS = "token_ids"
MASK_CODES = "mask_codes"
MASKS = "masks"
PARTS = ("key", "value")


def past_name(layer: int, part: str) -> str:
    """Name of the cache input of a layer; `part` is "key" or "value"."""
    return f"past_key_values.{layer}.{part}"


def present_name(layer: int, part: str) -> str:
    """Name of the cache output of a layer; `part` is "key" or "value"."""
    return f"present.{layer}.{part}"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, its dtype as NumPy calls it, its shape with names for what varies."""

    name: str
    dtype: str
    shape: Shape

    def fits(self, other: TensorSpec) -> bool:
        """Same dtype and rank, and the same size wherever both sizes are fixed."""
        return (
            self.dtype == other.dtype
            and len(self.shape) == len(other.shape)
            and all(a == b for a, b in zip(self.shape, other.shape) if isinstance(a, int) and isinstance(b, int))
        )

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class GraphSpec:
    """What a graph takes and gives, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def mismatches(self, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> list[str]:
        """Every difference between this contract and a real graph's inputs and outputs, as sentences."""
        found = []
        for kind, wanted, real in (("input", self.inputs, inputs), ("output", self.outputs, outputs)):
            by_name = {spec.name: spec for spec in real}
            for spec in wanted:
                if spec.name not in by_name:
                    found.append(f"{kind} {spec} is missing")
                elif not spec.fits(by_name[spec.name]):
                    found.append(f"{kind} {by_name[spec.name]} should be {spec}")
            names = {spec.name for spec in wanted}
            found.extend(f"{kind} {spec} is not expected" for spec in by_name.values() if spec.name not in names)
        return found


def vision_encoder(height: int, width: int, patches: int, vision_width: int) -> GraphSpec:
    return GraphSpec(
        (TensorSpec(PIXEL_VALUES, "float32", ("tiles", 3, height, width)),),
        (TensorSpec(VISION_FEATURES, "float32", ("tiles", patches, vision_width)),),
    )


def projector(patches: int, vision_width: int, image_tokens: int, hidden: int) -> GraphSpec:
    return GraphSpec(
        (TensorSpec(VISION_FEATURES, "float32", ("tiles", patches, vision_width)),),
        (TensorSpec(IMAGE_EMBEDS, "float32", ("tiles", image_tokens, hidden)),),
    )


def decoder(layers: int, kv_heads: int, head_dim: int, hidden: int, vocab: int) -> GraphSpec:
    """Prefill and decode in one graph.

    `sequence_lengths` holds, for each row, the number of valid keys after this call, less one; `total_sequence_length`
    is the largest number of valid keys of any row. Past and present of a layer are the same buffer of `capacity`
    positions. `logits_indices` names the positions of this call whose logits are wanted.
    """

    def cache(name) -> list[TensorSpec]:
        shape: Shape = ("batch", kv_heads, "capacity", head_dim)
        return [TensorSpec(name(layer, part), "float32", shape) for layer in range(layers) for part in PARTS]

    return GraphSpec(
        (
            TensorSpec(INPUTS_EMBEDS, "float32", ("batch", "sequence", hidden)),
            TensorSpec(SEQUENCE_LENGTHS, "int32", ("batch",)),
            TensorSpec(TOTAL_SEQUENCE_LENGTH, "int32", ()),
            TensorSpec(LOGITS_INDICES, "int64", ("batch", "kept")),
            *cache(past_name),
        ),
        (TensorSpec(LOGITS, "float32", ("batch", "kept", vocab)), *cache(present_name)),
    )


def mask_decoder(codes: int, size: int) -> GraphSpec:
    """Codes of masks to masks, above 0 where the thing is."""
    return GraphSpec(
        (TensorSpec(MASK_CODES, "int64", (MASKS, codes)),), (TensorSpec(MASKS, "float32", (MASKS, size, size)),)
    )


def with_cache_dtype(spec: GraphSpec, dtype: str) -> GraphSpec:
    """The contract of a decoder whose KV buffers have another dtype."""
    inputs, outputs = (
        tuple(replace(one, dtype=dtype) if "capacity" in one.shape else one for one in some)
        for some in (spec.inputs, spec.outputs)
    )
    return GraphSpec(inputs, outputs)
