"""Names, dtypes and shapes of the inputs and outputs of each graph. Only this module spells those names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

Shape = tuple[int | str, ...]

VISION_ENCODER = "vision_encoder"
PROJECTOR = "projector"
DECODER = "decoder"
ENCODERS = (VISION_ENCODER, PROJECTOR)  #: those that images go through
GRAPHS = (*ENCODERS, DECODER)
MASK_DECODER = "mask_decoder"  #: an optional graph, not in every bundle

EMBED_TOKENS = "embed_tokens.npy"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
PROOF_IMAGE = "proof/picture.png"
PROOF_ARRAYS = "proof/expected.npz"
PROOF_TILES = 2  #: the most tiles that the proof's image is cut into, without the thumbnail
PROOF_EDGE = 4 / 3  #: the longer side of the proof's image in tiles, where a grid of tiles is cut

PIXEL_VALUES = "pixel_values"
VISION_FEATURES = "vision_features"
IMAGE_EMBEDS = "image_embeds"
INPUTS_EMBEDS = "inputs_embeds"
SEQUENCE_LENGTHS = "sequence_lengths"
TOTAL_SEQUENCE_LENGTH = "total_sequence_length"
LOGITS_INDICES = "logits_indices"
LOGITS = "logits"
VECTORS = "vectors"
QUERY_IDS = "query_ids"  #: of a proof
QUERY_VECTORS = "query_vectors"  #: of a proof
INPUT_IDS = "input_ids"
TOKEN_IDS = "token_ids"
MASK_CODES = "mask_codes"
MASKS = "masks"
PAST = "past_key_values."  #: how the name of each cache input starts
PRESENT = "present."  #: how the name of each cache output starts
PARTS = ("key", "value")
KV_CACHE = "kv_cache"  #: its name among the precisions of a bundle, where it is rounded


def proof_image(index: int) -> str:
    """The file of the image of a case of the proof."""
    return PROOF_IMAGE if index == 0 else PROOF_IMAGE.replace(".png", f"_{index}.png")


#: Names of the axes whose size differs from call to call. The axis of masks is `MASKS`, as their tensor is.
TILES = "tiles"
BATCH = "batch"
SEQUENCE = "sequence"  #: tokens of a row in this call
CAPACITY = "capacity"  #: positions of a KV buffer
KEPT = "kept"  #: positions of a row whose logits or vectors are returned


def past_name(layer: int, part: str) -> str:
    """Name of the cache input of a layer; `part` is "key" or "value"."""
    return f"{PAST}{layer}.{part}"


def present_name(past: str) -> str:
    """Name of the cache output that belongs to the cache input `past`."""
    return PRESENT + past.removeprefix(PAST)


def is_past(name: str) -> bool:
    """Whether a tensor of this name is a cache input."""
    return name.startswith(PAST)


def is_present(name: str) -> bool:
    """Whether a tensor of this name is a cache output."""
    return name.startswith(PRESENT)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, its dtype as NumPy calls it, its shape with names for sizes that vary."""

    name: str
    dtype: str
    shape: Shape

    def fits(self, other: TensorSpec) -> bool:
        """Whether dtype and rank are the same, and the sizes wherever both are fixed."""
        return (
            self.dtype == other.dtype
            and len(self.shape) == len(other.shape)
            and all(a == b for a, b in zip(self.shape, other.shape) if isinstance(a, int) and isinstance(b, int))
        )

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the axes whose size varies."""
        return tuple(size for size in self.shape if isinstance(size, str))

    def sized(self, **sizes: int) -> tuple[int, ...]:
        """The shape with numbers for its named axes, as in `sized(batch=2, capacity=256)`; other names are ignored."""
        return tuple(sizes[size] if isinstance(size, str) else size for size in self.shape)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class GraphSpec:
    """The inputs and outputs of a graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def axes(self) -> set[str]:
        """The names of the axes of inputs whose size varies."""
        return {axis for tensor in self.inputs for axis in tensor.axes}

    def cache_pairs(self) -> list[tuple[TensorSpec, TensorSpec]]:
        """The cache input and cache output of each layer and part, in the order of the inputs."""
        outputs = {tensor.name: tensor for tensor in self.outputs}
        return [(past, outputs[present_name(past.name)]) for past in self.inputs if is_past(past.name)]

    def with_cache_dtype(self, dtype: str) -> GraphSpec:
        """The same contract with KV buffers of another dtype."""

        def changed(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            return tuple(replace(tensor, dtype=dtype) if CAPACITY in tensor.shape else tensor for tensor in tensors)

        return GraphSpec(changed(self.inputs), changed(self.outputs))

    def mismatches(self, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> list[str]:
        """Every difference between this contract and a real graph's inputs and outputs, as sentences."""
        problems = []
        for kind, expected, real in (("input", self.inputs, inputs), ("output", self.outputs, outputs)):
            by_name = {spec.name: spec for spec in real}
            for spec in expected:
                if spec.name not in by_name:
                    problems.append(f"{kind} {spec} is missing")
                elif not spec.fits(by_name[spec.name]):
                    problems.append(f"{kind} {by_name[spec.name]} should be {spec}")
            names = {spec.name for spec in expected}
            problems.extend(f"{kind} {spec} is not expected" for spec in by_name.values() if spec.name not in names)
        return problems


def vision_encoder(height: int, width: int, patches: int, vision_width: int) -> GraphSpec:
    """From tiles (tiles, 3, height, width) to vision features (tiles, patches, vision_width)."""
    return GraphSpec(
        (TensorSpec(PIXEL_VALUES, "float32", (TILES, 3, height, width)),),
        (TensorSpec(VISION_FEATURES, "float32", (TILES, patches, vision_width)),),
    )


def projector(patches: int, vision_width: int, image_tokens: int, hidden: int) -> GraphSpec:
    """From vision features (tiles, patches, vision_width) to image embeddings (tiles, image_tokens, hidden)."""
    return GraphSpec(
        (TensorSpec(VISION_FEATURES, "float32", (TILES, patches, vision_width)),),
        (TensorSpec(IMAGE_EMBEDS, "float32", (TILES, image_tokens, hidden)),),
    )


def decoder(layers: int, kv_heads: int, head_dim: int, hidden: int, vocab: int) -> GraphSpec:
    """Prefill and decode in one graph.

    `sequence_lengths` holds, for each row, the number of valid keys after this call, minus one; `total_sequence_length`
    is the largest number of valid keys of any row. Past and present of a layer are the same buffer of `capacity`
    positions. `logits_indices` holds the positions of this call whose logits are returned. `hidden` is the width of
    `inputs_embeds`: that of embeddings, and one more where a token may see tokens after it (`manifest.Embedding`).
    """

    shape: Shape = (BATCH, kv_heads, CAPACITY, head_dim)
    past = [TensorSpec(past_name(layer, part), "float32", shape) for layer in range(layers) for part in PARTS]
    present = [replace(tensor, name=present_name(tensor.name)) for tensor in past]
    return GraphSpec(
        (
            TensorSpec(INPUTS_EMBEDS, "float32", (BATCH, SEQUENCE, hidden)),
            TensorSpec(SEQUENCE_LENGTHS, "int32", (BATCH,)),
            TensorSpec(TOTAL_SEQUENCE_LENGTH, "int32", ()),
            TensorSpec(LOGITS_INDICES, "int64", (BATCH, KEPT)),
            *past,
        ),
        (TensorSpec(LOGITS, "float32", (BATCH, KEPT, vocab)), *present),
    )


def vector_decoder(decoder: GraphSpec, width: int) -> GraphSpec:
    """A decoder that returns a vector of length 1 for each kept position, (batch, kept, width), in place of logits."""
    return replace(decoder, outputs=(TensorSpec(VECTORS, "float32", (BATCH, KEPT, width)), *decoder.outputs[1:]))


def mask_decoder(codes: int, size: int) -> GraphSpec:
    """From codes (masks, codes) to masks (masks, size, size), positive where the object is."""
    return GraphSpec(
        (TensorSpec(MASK_CODES, "int64", (MASKS, codes)),), (TensorSpec(MASKS, "float32", (MASKS, size, size)),)
    )
