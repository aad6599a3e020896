"""The graphs of a bundle at work: tiles to image embeddings, embeddings to logits, over one KV cache a call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...graphs import ProviderError, contract
from ...graphs.manifest import Manifest
from ..limits import Limits
from ..providers import tensorrt
from ..providers.load_options import LoadOptions
from ..providers.targets import Target
from ..text.prompt import EncodedPrompt
from . import expanded
from .device_cache import Device
from .host_cache import Cache, CopiedCache
from .host_run import HostRun
from .opening import Opener
from .run import DeviceRun, Logits, Run
from .session import Session
from .token_embeddings import embed, load_table, merge, pad_right, uncut

#: bytes for each of the logits: beam search holds them four times in float32 while it sorts their indices of int64
LOGITS = 24
#: Tokens of a prompt that run at once where the cache is rounded: the operator multiplies what the mask hides as well.
PART = 512


class Engine:
    """Sessions and the embedding table. It holds no state of a call, so calls do not disturb each other.

    Args:
        targets: where it may run, the best first; it runs on the first that can. `passed_over` says why not on one
            before it.
        vision_memory: bytes that one run of the vision encoder may take.
        options: `expand_weights` and `share_weights` of these.
        begun: called when ONNX Runtime is at work.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        targets: Sequence[Target],
        vision_memory: int = Limits.vision_memory,
        options: LoadOptions | None = None,
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        options = options or LoadOptions()
        self.manifest = manifest
        self._vision_memory = vision_memory
        self.passed_over: list[str] = []
        self._opener, self._opening = Opener(folder, manifest, options.share_weights, begun), threading.Lock()
        self.target, self._sessions = self._open(targets, options.expand_weights)
        self._expanded = self._sessions.get(contract.DECODER)
        if options.expand_weights:
            expanded.check(manifest, self.target)
            self._expanded = expanded.open_expanded(folder, manifest, self.target)
            self._sessions.setdefault(contract.DECODER, self._expanded)
        self._decoder, self._masks = (self._sessions.get(name) for name in (contract.DECODER, contract.MASK_DECODER))
        on_device = not self.target.row.on_host and manifest.vectors is None
        positions = manifest.generation.max_positions
        self._device = Device(self._decoder, self.target, positions, manifest.cache == "copied") if on_device else None
        self._in_parts = manifest.rounds_cache and manifest.causal and not on_device
        self._cache_kind = Cache if manifest.cache == "in_place" else CopiedCache
        # Engines take shapes up to the profile's.
        self._limits = manifest.profiles[contract.DECODER] if self.target.row.builds_engines else None
        self.placement = {name: session.placement for name, session in self._sessions.items()}
        self._table = load_table(folder / contract.EMBED_TOKENS, manifest.hidden, manifest.vocab)

    def _open(self, targets: Sequence[Target], expand_weights: bool) -> tuple[Target, dict[str, Session]]:
        """The first target that the bundle runs on, and the sessions there. Where vectors are made, the decoder alone
        is opened: queries need no more. Nor do they need it beside its second graph."""
        names = [*self.manifest.graphs]
        if self.manifest.vectors is not None:
            names = [] if expand_weights else [contract.DECODER]
        for target in targets[:-1]:
            try:
                return target, self._opener.open(target, names)
            except ProviderError as error:
                self.passed_over.append(str(error))
        return targets[-1], self._opener.open(targets[-1], names)

    def _session(self, name: str) -> Session:
        """The session of a graph, opened when it is first needed; those that images need are opened together."""
        with self._opening:
            if name not in self._sessions:
                opened = self._opener.open(self.target, contract.ENCODERS)
                self._sessions |= opened
                self.placement |= {name: session.placement for name, session in opened.items()}
            return self._sessions[name]

    def encode_images(self, tiles: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Tiles (tiles, 3, height, width) to image embeddings (tiles, image_tokens, hidden)."""
        size = self.tiles_at_once
        parts = (np.asarray(tiles[start : start + size]) for start in range(0, len(tiles), size))
        return np.concatenate([self.project(self.encode(part)) for part in parts])

    @property
    def tiles_at_once(self) -> int:
        """How many tiles the memory for the vision encoder is enough for, at least one.

        A tile takes no more than 24 arrays of its features, and the scores of attention twice, in heads of 64: by this
        235 MB for 1024 patches of width 1024, where 200 MB were measured.
        """
        _, patches, width = self.manifest.graphs[contract.VISION_ENCODER].outputs[0].shape
        enough = max(1, self._vision_memory // (4 * (24 * patches * width + 2 * patches**2 * width // 64)))
        profile = self.manifest.profiles.get(contract.VISION_ENCODER)
        return min(enough, profile[contract.TILES].largest) if profile else enough

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        """Tiles (tiles, 3, height, width) to vision features (tiles, patches, vision_width)."""
        return self._session(contract.VISION_ENCODER).run({contract.PIXEL_VALUES: tiles})[0]

    def project(self, features: np.ndarray) -> np.ndarray:
        """Vision features (tiles, patches, vision_width) to image embeddings (tiles, image_tokens, hidden)."""
        return self._session(contract.PROJECTOR).run({contract.VISION_FEATURES: features})[0]

    @property
    def on_host(self) -> bool:
        """Whether cache and logits are in the memory of the host."""
        return self._device is None

    @property
    def draws_masks(self) -> bool:
        """Whether there is a graph to make masks of their codes."""
        return self._masks is not None

    def masks(self, codes: np.ndarray) -> np.ndarray:
        """Codes of masks (masks, codes) of int64 to masks (masks, height, width), above 0 where the thing is."""
        return self._masks.run({contract.MASK_CODES: codes})[0]

    def embed(self, prompt: EncodedPrompt) -> np.ndarray:
        """Embeddings (tokens, hidden) of a prompt, with those of its images and videos."""
        return self.merge(prompt, [self.encode_images(tiles) for tiles in prompt.tiles])

    def merge(self, prompt: EncodedPrompt, embeds: list[np.ndarray]) -> np.ndarray:
        """Embeddings (tokens, hidden) of a prompt, with image embeddings for each of its images."""
        return merge(self._table, prompt.ids, prompt.is_image, embeds, self.manifest.embedding)

    def uncut(self, row: np.ndarray, end: int, start: int | None = None) -> int:
        """Where to end a part of a prompt's row near `end`, so that tokens that see each other run together; see
        `token_embeddings.uncut`."""
        return uncut(row, end, start) if self.manifest.embedding.ahead else end

    def vectors(self, prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The vectors (tokens, width) of each of several prompts (tokens, hidden), which are run together."""
        lengths = np.array([len(prompt) for prompt in prompts])
        rows, longest = len(prompts), int(lengths.max())
        if self._limits is not None:
            tensorrt.check_sizes(self._limits, batch=rows, sequence=longest)
        pasts = (past for past, _ in self._decoder.spec.cache_pairs())
        inputs = {past.name: np.zeros(past.sized(batch=rows, capacity=longest), past.dtype) for past in pasts}
        inputs |= {
            contract.INPUTS_EMBEDS: pad_right(prompts),
            contract.SEQUENCE_LENGTHS: (lengths - 1).astype(np.int32),
            contract.TOTAL_SEQUENCE_LENGTH: np.array(longest, np.int32),
            contract.LOGITS_INDICES: np.tile(np.arange(longest), (rows, 1)),
        }
        vectors = self._expanded.run(inputs, [contract.VECTORS])[0]
        return [row[:length] for row, length in zip(vectors, lengths)]

    def memory(self, prompts: int, longest: int, rows: int, tokens: int) -> int:
        """About the bytes that a call takes: those of the KV cache of so many rows of so many tokens, of the prefill of
        prompts as long as the longest of them, and of the logits."""
        cache = self.kv_bytes(rows, tokens)
        prefill = self.manifest.prefill
        logits = LOGITS * rows * self.manifest.vocab
        return cache + prompts * longest * (prefill.token + prefill.pair * longest) + logits

    def start(self, prompts: list[np.ndarray], new_tokens: int, copies: int = 1) -> tuple[Logits, Run]:
        """Prefill prompts (tokens, hidden) of any lengths; the logits (batch, vocab) after each, and the run.

        There is room for `copies` rows a prompt.
        """
        lengths = np.array([len(prompt) for prompt in prompts])
        run = self.open(
            len(prompts) * copies, int(lengths.max()) + new_tokens, batch=len(prompts), longest=int(lengths.max())
        )
        if not (self._in_parts and lengths.max() > PART):
            return run.run_tokens(pad_right(prompts), lengths), run
        return np.concatenate([self._run_parts(run, row, prompt) for row, prompt in enumerate(prompts)]), run

    def _run_parts(self, run: Run, row: int, tokens: np.ndarray) -> Logits:
        """Run `tokens` (tokens, hidden) as the next ones of a row, some at a time; the logits (1, vocab) after them."""
        end = 0
        while end < len(tokens):
            start, end = end, self.uncut(tokens, min(end + PART, len(tokens)), end)
            logits = run.append(row, [tokens[start:end]])
        return logits

    def kv_bytes(self, rows: int, tokens: int) -> int:
        """The bytes of a KV cache of `rows` rows of `tokens` tokens."""
        capacity = tokens if self._device is None else self._device.capacity(tokens)
        return self._cache_kind.nbytes(self._decoder.spec, rows, capacity)

    def saved_bytes(self, tokens: int, capacity: int) -> int:
        """The bytes of what `Run.save` returns of so many tokens, where a row has room for `capacity`."""
        held = tokens if self._device is None else self._device.capacity(capacity)
        return Cache.nbytes(self._decoder.spec, 1, held)

    def open(self, rows: int, tokens: int, *, batch: int = 0, longest: int = 1) -> Run:
        """A run with room for `rows` rows of `tokens` tokens; `batch` of them are in use, and empty.

        Args:
            longest: tokens that are run at once.
        """
        if self._limits is not None:
            tensorrt.check_sizes(self._limits, batch=rows, sequence=longest)
        if self._device is None:
            cache = self._cache_kind(self._decoder.spec, batch, rows, tokens)
            return HostRun(self._decoder, cache, self.embed_tokens, self._expanded)
        return DeviceRun(self._device, self._device.buffers(rows, tokens), batch, self.embed_tokens)

    def resume(self, run: Run, length: int, rest: np.ndarray, new_tokens: int, copies: int) -> tuple[Logits, Run]:
        """Go on from the first `length` tokens of a run's first row with `rest` (tokens, hidden), the end of a prompt.

        As `start` of the whole prompt, where a token sees only what stands before it. `run` is used up.
        """
        run = run.truncate(length, copies, length + len(rest) + new_tokens)
        if self._in_parts:
            return self._run_parts(run, 0, rest), run
        return run.run_tokens(rest[None], np.array([len(rest)])), run

    def embed_tokens(self, ids: np.ndarray) -> np.ndarray:
        """Embeddings (..., hidden) of ids (...), none of them of an image."""
        return embed(self._table, ids, self.manifest.embedding)
