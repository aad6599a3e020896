"""A KV cache of int8: what the operator writes into it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_vlm.graphs import contract
from onnx_vlm.graphs.transforms import quantize_cache
from small_graphs import graph, value

HEADS, TOKENS, DIM = 2, 5, 16


def attention() -> ir.Model:
    """One layer of attention over a cache, which has no weights."""
    spec = contract.decoder(1, HEADS, DIM, HEADS * DIM, 1)
    pasts = [value(past.name, *past.shape) for past, _ in spec.cache_pairs()]
    presents = [value(present.name, *present.shape) for _, present in spec.cache_pairs()]
    rows = [value(name, "batch", "sequence", HEADS * DIM) for name in ("query", "key", "value")]
    sizes = [value(contract.SEQUENCE_LENGTHS, "batch"), value(contract.TOTAL_SEQUENCE_LENGTH)]
    for size in sizes:
        size.dtype = ir.DataType.INT32
    mixed = value("mixed", "batch", "sequence", HEADS * DIM)
    node = ir.node(
        "GroupQueryAttention",
        [*rows, *pasts, *sizes],
        {"num_heads": HEADS, "kv_num_heads": HEADS},
        domain="com.microsoft",
        outputs=[mixed, *presents],
    )
    model = graph([node], [*rows, *pasts, *sizes], [mixed, *presents])
    model.graph.opset_imports["com.microsoft"] = 1
    return model


def run(model: ir.Model, dtype: type, **rows: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    pasts = [one.name for one in session.get_inputs() if contract.is_past(one.name)]
    fed = rows | dict.fromkeys(pasts, np.zeros((1, HEADS, TOKENS, DIM), dtype))
    fed[contract.SEQUENCE_LENGTHS] = np.array([TOKENS - 1], np.int32)
    fed[contract.TOTAL_SEQUENCE_LENGTH] = np.array(TOKENS, np.int32)
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, fed)))


def test_the_operator_rounds_as_the_proof_does():
    random = np.random.default_rng(0)
    rows = {name: random.standard_normal((1, TOKENS, HEADS * DIM), "float32") for name in ("query", "key", "value")}
    model = attention()
    names = quantize_cache.add_ranges(model)
    floats = run(model, np.float32, **rows)
    largest = {past: floats[name] for past, name in names.items()}
    for past, found in largest.items():
        np.testing.assert_array_equal(found, np.abs(floats[contract.present_name(past)]).max((0, 2), keepdims=True))
    cut = random.random((1, HEADS, 1, DIM)) < 0.3  # of these numbers, values beyond the range come
    seen = {past: np.where(cut, found / 5, 1.1 * found) for past, found in largest.items()}
    rounded = attention()
    quantize_cache.quantize_cache(rounded, seen)
    stored = run(rounded, np.int8, **rows)
    for past, found in seen.items():
        scale, present = quantize_cache.scales(found), contract.present_name(past)
        expected = quantize_cache.rounded(floats[present], scale)
        assert np.abs(expected - floats[present]).max() > 0.5, "some are cut off"
        np.testing.assert_array_equal(stored[present] * scale, expected)
    sizes = {stored[contract.present_name(past)].dtype.itemsize for past in largest}
    assert sizes == {1}


def test_a_number_that_was_always_0_may_become_another():
    largest = np.zeros((1, 2, 1, 4), np.float32)
    largest[0, 0, 0, 1] = 8
    scale = quantize_cache.scales(largest)
    assert (scale > 0).all()
    assert (scale[0, 0] >= 8 / 8 / quantize_cache.LARGEST).all()
