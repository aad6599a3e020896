"""`POST /v1/embeddings`: the vectors of `VLM.embed` in OpenAI's shape, and its refusals."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import shapes
from onnx_vlm.runtime import late_interaction
from onnx_vlm.runtime.retrieval import pooled
from onnx_vlm.runtime.scheduling import QueueFullError
from onnx_vlm.runtime.server.app import Access
from onnx_vlm.runtime.server.embeddings.turns import Turns
from server_helpers import SCENE, Running, image_part, load_models, serving

PAGE = shapes.draw(SCENE)


@pytest.fixture(scope="module")
def embedding(bundles: Callable[..., Path]) -> Iterator[Running]:
    """A server of the checkpoint that makes vectors."""
    models = load_models({"colpali": bundles("colpali")})
    with serving(models) as server:
        yield server
    models.close()


@pytest.fixture(scope="module")
def expected(embedding: Running) -> dict[str, list[np.ndarray]]:
    vlm = embedding.models.get(None).vlm
    return {"queries": vlm.embed(queries=["a red circle", "two squares"]), "pages": vlm.embed(PAGE)}


def test_pages_and_queries_are_embedded_together(embedding: Running, expected: dict):
    inputs = ["a red circle", image_part(), {"type": "text", "text": "two squares"}]
    with embedding.http() as client:
        done = client.post("/v1/embeddings", json={"model": "colpali", "input": inputs})
    assert done.status_code == 200, done.text
    found = done.json()
    vectors = [np.array(entry["embedding"], np.float32) for entry in found["data"]]
    theirs = [expected["queries"][0], expected["pages"][0], expected["queries"][1]]
    for index, (ours, entry) in enumerate(zip(vectors, found["data"], strict=True)):
        assert ours == pytest.approx(theirs[index], abs=1e-5)
        assert (entry["object"], entry["index"], entry["shape"]) == ("embedding", index, [*ours.shape])
    assert found["usage"]["prompt_tokens"] == sum(map(len, theirs))
    assert late_interaction(vectors[:1], vectors[1:2]).shape == (1, 1)
    embedding.until_idle()


def test_the_official_client_gets_them(embedding: Running, expected: dict):
    done = embedding.openai().embeddings.create(model="colpali", input=["a red circle"])
    entry = done.data[0]
    vectors = np.array(entry.embedding, np.float32).reshape(entry.model_extra["shape"])
    assert vectors == pytest.approx(expected["queries"][0], abs=1e-5)


def test_pages_are_pooled_and_encoded_as_asked(embedding: Running, expected: dict):
    body = {"input": [image_part(), "a red circle"], "pool_factor": 3, "encoding_format": "base64"}
    with embedding.http() as client:
        page, query = client.post("/v1/embeddings", json=body).json()["data"]
    rows = np.frombuffer(base64.b64decode(page["embedding"]), np.float32).reshape(page["shape"])
    assert rows == pytest.approx(pooled(expected["pages"][0], 3), abs=1e-5)
    assert query["shape"] == [*expected["queries"][0].shape]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"input": [3]}, 400, "input"),
        ({"input": "a", "dimensions": 8}, 400, "leave dimensions out"),
        ({"input": "a", "pool_factor": 0}, 400, "pool_factor"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"input": "an <image>"}, 422, "<image>"),
        ({"input": [{"type": "image_url", "image_url": "data:image/png;base64,AAAA"}]}, 422, "not an image"),
        ({"input": [{"type": "image_url", "image_url": "/etc/passwd"}]}, 400, "input.0"),
        ({"input": "a", "model": "other"}, 404, "there is no model"),
    ],
)
def test_what_is_refused(embedding: Running, body: dict, status: int, message: str):
    with embedding.http() as client:
        done = client.post("/v1/embeddings", json=body)
    assert done.status_code == status, done.text
    assert message in done.json()["error"]["message"]


def test_each_model_does_what_it_is_for(embedding: Running, running: Running):
    question = {"messages": [{"role": "user", "content": "a"}]}
    with embedding.http() as client:
        done = client.post("/v1/chat/completions", json=question)
        assert (done.status_code, "/v1/embeddings" in done.text) == (400, True)
        assert client.get("/v1/models").json()["data"][0]["onnx_vlm"]["tasks"] == ["embed"]
        assert "onnx_vlm_prompt_tokens" in client.get("/metrics").text
        assert "EmbeddingRequest" in client.get("/docs").text
    with running.http() as client:
        done = client.post("/v1/embeddings", json={"model": "paligemma2", "input": "a"})
    assert (done.status_code, "/v1/chat/completions" in done.text) == (400, True)


def test_time_is_bounded(embedding: Running):
    with serving(embedding.models, Access(max_seconds=1e-4)) as server, server.http() as client:
        done = client.post("/v1/embeddings", json={"input": [image_part()] * 2})
    assert (done.status_code, done.json()["error"]["code"]) == (504, "timeout")


def test_turns_are_taken_in_order_and_bounded():
    async def attempt() -> list[int]:
        turns, order = Turns(2), []

        async def work(number: int) -> None:
            async with turns.take():
                await asyncio.sleep(0.01)
                order.append(number)

        working = [asyncio.ensure_future(work(number)) for number in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="2 requests wait"):
            async with turns.take():
                pass
        await asyncio.gather(*working)
        return order

    with ThreadPoolExecutor(1) as pool:  # the thread of the tests may have a loop, that of a browser
        assert pool.submit(asyncio.run, attempt()).result() == [0, 1, 2]
