"""What answers may be held to: boxes as the model writes them, or JSON."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ...graphs.manifest import Manifest
from ..generation.decode import Force
from ..generation.filters import Filter
from ..text.json_answers import JsonConstraint, JsonVocabulary
from ..text.prompt import Prompts
from .formats import BoxFormat
from .grammar import Constraint, Grammar, Vocabulary


class Constraints:
    """The constraints that a bundle's answers may have.

    Args:
        manifest, prompts, boxes: those of the bundle.
    """

    def __init__(self, manifest: Manifest, prompts: Prompts, boxes: BoxFormat) -> None:
        self._prompts, self._boxes, self._causal = prompts, boxes, manifest.causal
        self._vocab, self._ends = manifest.vocab, manifest.generation.eos_token_ids

    def filters(
        self, constrain: str | None, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> tuple[list[Filter], Force | None]:
        """The filters of an option `constrain`, and what tells the ids that must come next.

        Args:
            constrain: None, "boxes", "json", or a JSON schema.
            prompts: the ids of each.
            max_new_tokens: where an answer is cut.

        Raises:
            InputError: if what answers are constrained to has no room, or the schema of the JSON cannot be used.
        """
        if constrain is None:
            return [], None
        if constrain == "boxes":
            return [Constraint(self._grammar, max_new_tokens, prompts)], None
        schema = "{}" if constrain == "json" else constrain
        constraint = JsonConstraint(self._json_vocabulary, schema)
        # Ids that run together see each other where attention is bidirectional.
        return [constraint], constraint.forced if self._causal else None

    @functools.cached_property
    def _grammar(self) -> Grammar:
        """The grammar of answers with boxes. Made when it is first needed: it reads the whole vocabulary."""
        return self._boxes.grammar(Vocabulary(self._prompts.tokenizer, self._vocab, self._ends))

    @functools.cached_property
    def _json_vocabulary(self) -> JsonVocabulary:
        """The vocabulary of answers in JSON. Made when it is first needed: it reads all of it."""
        return JsonVocabulary(self._prompts.tokenizer, self._vocab, self._ends)
