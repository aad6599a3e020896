"""The contract between export and runtime."""

from __future__ import annotations

from onnx_vlm.graphs import GraphSpec, TensorSpec, contract


def test_a_contract_names_every_mismatch():
    spec = GraphSpec(
        (TensorSpec("a", "float32", ("batch", 3)), TensorSpec("b", "int64", ())),
        (TensorSpec("c", "float32", (1,)),),
    )
    assert spec.mismatches([TensorSpec("b", "int64", ()), TensorSpec("a", "float32", (2, "x"))], spec.outputs) == []
    assert spec.mismatches([TensorSpec("a", "float32", (2, 4)), TensorSpec("d", "int8", ())], []) == [
        "input a: float32(2, 4) should be a: float32(batch, 3)",
        "input b: int64() is missing",
        "input d: int8() is not expected",
        "output c: float32(1) is missing",
    ]


def test_the_decoder_has_a_buffer_for_each_layer_and_part():
    spec = contract.decoder(layers=2, kv_heads=3, head_dim=8, hidden=16, vocab=100)
    pairs = [(past.name, present.name) for past, present in spec.cache_pairs()]
    assert pairs == [
        (f"past_key_values.{layer}.{part}", f"present.{layer}.{part}") for layer in (0, 1) for part in ("key", "value")
    ]
    assert [tensor.name for tensor in spec.inputs if contract.is_past(tensor.name)] == [past for past, _ in pairs]
    assert [tensor.name for tensor in spec.outputs if contract.is_present(tensor.name)] == [name for _, name in pairs]
    assert all(past.sized(batch=5, capacity=256) == (5, 3, 256, 8) for past, _ in spec.cache_pairs())
    assert spec.axes == {"batch", "sequence", "kept", "capacity"}


def test_a_graph_without_a_cache_has_no_pairs():
    assert contract.projector(4, 8, 4, 16).cache_pairs() == []


def test_only_the_cache_changes_its_dtype():
    spec = contract.decoder(layers=1, kv_heads=3, head_dim=8, hidden=16, vocab=100)
    half = spec.with_cache_dtype("float16")
    for before, after in zip((*spec.inputs, *spec.outputs), (*half.inputs, *half.outputs)):
        cached = contract.is_past(before.name) or contract.is_present(before.name)
        assert after.dtype == ("float16" if cached else before.dtype)
