"""Pages and queries to vectors, without torch: they find each other, and options and refusals are as documented."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shapes
from held_out import page_sets
from helpers import run_command
from onnx_vlm.graphs import manifest, manifest_checks
from onnx_vlm.runtime import VLM, InputError, Limits, late_interaction, load
from onnx_vlm.runtime.hub.card import Base, make_card
from onnx_vlm.runtime.retrieval.pooling import clusters

SETS = 5


@pytest.fixture(scope="module")
def vlm(bundles: Callable[..., Path]) -> VLM:
    return load(bundles("colpali"), threads=1)


@pytest.fixture(scope="module")
def embedded(vlm: VLM) -> tuple[list[str], list[np.ndarray], list[np.ndarray]]:
    """A held-out set: captions, and the vectors of queries and pages."""
    captions, pages = next(page_sets(1))
    return captions, vlm.embed(queries=captions), vlm.embed(pages)


def found_first(vlm: VLM, **options) -> tuple[float, np.ndarray]:
    """The share of held-out captions that find their page first, and all scores."""
    tables = [
        late_interaction(vlm.embed(queries=queries), vlm.embed(pages, **options)) for queries, pages in page_sets(SETS)
    ]
    return float(np.mean([table.argmax(1) == np.arange(len(table)) for table in tables])), np.stack(tables)


def test_captions_find_their_pages(vlm: VLM, bundles: Callable[..., Path], figure: Callable[[str], None]):
    """At least 95 % of them, in int4 too, and with a third of the vectors."""
    share, scores = found_first(vlm)
    small, small_scores = found_first(load(bundles("colpali", "int4"), threads=1))
    third, _ = found_first(vlm, pool_factor=3, dtype="int8")
    same = float(np.mean(small_scores.argmax(2) == scores.argmax(2)))
    figure(
        f"colpali: first {share:.1%}, in int4 {small:.1%} ({same:.1%} the same page), pooled by 3 in int8 {third:.1%}"
    )
    assert min(share, small, third) >= 0.95


def test_queries_load_no_graph_for_images(bundles: Callable[..., Path]):
    vlm = load(bundles("colpali"), threads=1)
    vlm.embed(queries="a red circle")
    assert [*vlm.placement] == ["decoder"]
    vlm.embed(np.zeros((20, 30, 3), np.uint8))
    assert sorted(vlm.placement) == ["decoder", "projector", "vision_encoder"]


def test_vectors_may_be_smaller(vlm: VLM, embedded):
    captions, queries, pages = embedded
    scores = late_interaction(queries, pages)
    for dtype, change in (("float16", 1e-3), ("int8", 2e-2)):
        smaller = vlm.embed(queries=captions, dtype=dtype)
        assert {vectors.dtype.name for vectors in smaller} == {dtype}
        assert np.abs(late_interaction(smaller, pages) - scores).max() < change * np.abs(scores).max()
    (pooled,) = vlm.embed(shapes.draw(shapes.scene(shapes.HELD_OUT)), pool_factor=4)
    assert len(pooled) == len(pages[0]) // 4
    assert np.linalg.norm(pooled, axis=1) == pytest.approx(1, abs=1e-5)


def test_scores_are_sums_of_the_best_similarities():
    random = np.random.default_rng(0)
    queries = [random.normal(size=(size, 8)).astype(np.float32) for size in (3, 1)]
    pages = [random.normal(size=(size, 8)).astype(np.float32) for size in (4, 2, 7)]
    expected = [[(query @ page.T).max(1).sum() for page in pages] for query in queries]
    assert late_interaction(queries, pages) == pytest.approx(np.array(expected), rel=1e-5)


def test_alike_vectors_are_clusters():
    """Three heaps, in any order."""
    random = np.random.default_rng(1)
    heaps = np.concatenate([centre + random.normal(0, 0.01, (5, 3)) for centre in np.eye(3)])
    order = random.permutation(15)
    labels = clusters(heaps[order].astype(np.float32), 3)
    assert all(len(set(labels[order // 5 == heap])) == 1 for heap in range(3))
    assert len(clusters(heaps.astype(np.float32), 1)) == 15
    assert len(set(clusters(heaps.astype(np.float32), 15))) == 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either images or queries"),
        ({"images": np.zeros((9, 9, 3), np.uint8), "queries": "a"}, "either images or queries"),
        ({"queries": ["a", 3]}, "a query is a text, not 3"),
        ({"queries": "an <image>"}, "<image>"),
        ({"queries": "a" * 3000}, "max_prompt_tokens"),
        ({"queries": "a", "dtype": "int4"}, "dtype is 'int4'; give float32, float16, int8"),
        ({"queries": "a", "pool_factor": 2}, "queries are not pooled"),
        ({"images": [], "pool_factor": 0}, "pool_factor is 0; give an integer of 1 or more"),
        ({"images": "nowhere.png"}, "nowhere.png"),
    ],
)
def test_what_is_refused(vlm: VLM, options: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        vlm.embed(**options)


@pytest.mark.parametrize(
    ("queries", "pages", "message"),
    [
        ([], [np.ones((1, 2), np.float32)], "0 queries and 1 pages"),
        ([np.ones((1, 2), np.float32)], [np.ones((1, 3), np.float32)], "2 and 3 numbers"),
        ([np.ones(2, np.float32)], [np.ones((1, 2), np.float32)], r"queries\[0\]"),
        ([np.ones((1, 2))], [np.ones((1, 2), np.float32)], "float64"),
    ],
)
def test_what_has_no_score(queries: list[np.ndarray], pages: list[np.ndarray], message: str):
    with pytest.raises(InputError, match=message):
        late_interaction(queries, pages)


def test_limits_hold(bundles: Callable[..., Path]):
    vlm = load(bundles("colpali"), threads=1, limits=Limits(max_prompt_tokens=30, max_memory=1000))
    with pytest.raises(InputError, match="max_prompt_tokens is 30"):
        vlm.embed(queries="a circle, a square, a triangle and a circle and a square and a triangle")
    with pytest.raises(InputError, match="max_memory is 1000"):
        vlm.embed(queries="a")


def test_a_bundle_does_one_or_the_other(vlm: VLM, bundle: Path):
    for asked in (lambda: vlm.generate("a", []), lambda: vlm.chat().ask("a"), lambda: vlm.score("a", [], ["b"])):
        with pytest.raises(
            InputError, match=r"makes vectors of pages and queries and answers no prompts; use VLM\.embed"
        ):
            asked()
    with pytest.raises(InputError, match="answers prompts and makes no vectors; use generate"):
        load(bundle, threads=1).embed(queries="a")


def test_verify_compares_pages_and_queries(bundles: Callable[..., Path]):
    done = run_command("verify", bundles("colpali", "int4"))
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("vectors", "query_ids", "query_vectors", "cosine"))


def test_a_model_card_says_what_the_bundle_is_for(bundles: Callable[..., Path]):
    card = make_card(manifest.load(bundles("colpali", "int4")), "me/pages", Base(None, {}))
    for text in (
        '"visual-document-retrieval"',
        "pages and queries in, vectors out",
        "late_interaction(",
        "| cosine with",
    ):
        assert text in card


def test_a_manifest_of_two_kinds_is_refused(bundles: Callable[..., Path], bundle: Path):
    for folder, vectors in ((bundles("colpali"), None), (bundle, manifest.Vectors("", "", ""))):
        described = dataclasses.replace(manifest.load(folder), vectors=vectors)
        assert any(problem.startswith("vectors: ") for problem in manifest_checks.problems(described, folder))
