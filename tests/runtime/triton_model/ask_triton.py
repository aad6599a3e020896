"""Ask a running Triton that serves two bundles, as docs/triton.md says, over HTTP and gRPC.

    python tests/runtime/triton_model/ask_triton.py shapes talks

The first model is the tiny PaliGemma 2 of tests/checkpoints, the second the tiny PerceptionLM. Needs the package
`tritonclient[all]`.
"""

from __future__ import annotations

import argparse
import base64
import json
import queue
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.http as http

IMAGE = base64.b64encode((Path(__file__).parents[3] / "docs" / "shapes.png").read_bytes())
PROMPTS = ("detect red circle", "Describe the picture.")
LONG = {"max_tokens": 200, "min_tokens": 200, "temperature": 0}
WAIT = 60  #: seconds


def post(url: str, **inputs: Any) -> tuple[int, str]:
    """The status and text of a request to `generate` or `generate_stream`."""
    request = urllib.request.Request(url, json.dumps(inputs).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=WAIT) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def question(client: Any, prompt: str, **options: Any) -> list[Any]:
    """The inputs of a streamed request."""
    arrays = {
        "text_input": np.array([prompt.encode()], object),
        "image": np.array([IMAGE], object),
        "stream": np.array([True]),
        "sampling_parameters": np.array([json.dumps(options or {"temperature": 0}).encode()], object),
    }
    inputs = []
    for name, array in arrays.items():
        inputs.append(client.InferInput(name, [1], "BOOL" if array.dtype == bool else "BYTES"))
        inputs[-1].set_data_from_numpy(array)
    return inputs


class Stream:
    """A gRPC connection, and the responses that come on it."""

    def __init__(self, address: str) -> None:
        self.client = grpc.InferenceServerClient(address)
        self.responses: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.client.start_stream(callback=lambda result, error: self.responses.put((result, error)))

    def ask(self, model: str, prompt: str, **options: Any) -> None:
        inputs = question(grpc, prompt, **options)
        self.client.async_stream_infer(model, inputs, enable_empty_final_response=True)

    def piece(self) -> tuple[str, bool]:
        """The next text, and whether it is the last."""
        result, error = self.responses.get(timeout=WAIT)
        if error is not None:
            raise error
        texts = result.as_numpy("text_output")
        is_last = result.get_response().parameters["triton_final_response"].bool_param
        return "".join(text.decode() for text in texts) if texts is not None else "", is_last

    def answer(self) -> str:
        text, is_last = self.piece()
        while not is_last:
            more, is_last = self.piece()
            text += more
        return text


def check_http(url: str, models: list[str]) -> list[str]:
    """Whole and streamed answers, and errors; the answers."""
    client = http.InferenceServerClient(url.removeprefix("http://"))
    answers = []
    for model, prompt in zip(models, PROMPTS, strict=True):
        assert client.is_model_ready(model)
        assert client.get_model_config(model)["model_transaction_policy"]["decoupled"]
        asked = {"text_input": prompt, "image": IMAGE.decode(), "exclude_input_in_output": True}
        status, text = post(f"{url}/v2/models/{model}/generate", **asked)
        assert status == 200, text
        answers.append(json.loads(text)["text_output"])
        status, text = post(f"{url}/v2/models/{model}/generate_stream", **asked, stream=True)
        events = [json.loads(line.removeprefix("data:")) for line in text.splitlines() if line]
        assert "".join(event["text_output"] for event in events) == answers[-1]
        assert len(events) > 2
        for more, words in (
            ({"image": "%%%"}, "not base64"),
            ({"sampling_parameters": '{"foo": 1}'}, "'foo', which is unknown"),
            ({"sampling_parameters": "{"}, "not JSON"),
        ):
            status, text = post(f"{url}/v2/models/{model}/generate", **(asked | more))
            assert status >= 400, text
            assert words in json.loads(text)["error"], text
    try:
        client.infer(models[0], question(http, PROMPTS[0]))
    except http.InferenceServerException as error:
        print("tritonclient.http.infer:", error.message())
    return answers


def check_grpc(address: str, models: list[str], expected: list[str]) -> None:
    """Two models at once, and requests that are cancelled."""
    streams = [Stream(address) for _ in models]
    for stream, model, prompt in zip(streams, models, PROMPTS, strict=True):
        stream.ask(model, prompt)
    assert [stream.answer() for stream in streams] == expected
    seconds = {cancels: wait_behind(address, models[0], streams[0], cancels) for cancels in (False, True)}
    print(
        f"a question behind 12 long ones waits {seconds[False]:.2f} s, behind 12 cancelled ones {seconds[True]:.2f} s"
    )
    assert seconds[True] < seconds[False] / 2


def wait_behind(address: str, model: str, asking: Stream, cancels: bool) -> float:
    """Seconds until a short question is answered after 12 long ones, more than are answered together."""
    others = [Stream(address) for _ in range(12)]
    for stream in others:
        stream.ask(model, "caption", **LONG)
    others[0].piece()
    begun = time.monotonic()
    if cancels:
        for stream in others:
            stream.client.stop_stream(cancel_requests=True)
    asking.ask(model, PROMPTS[0])
    asking.answer()
    seconds = time.monotonic() - begun
    for stream in others:
        stream.client.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs=2)
    parser.add_argument("--http", default="http://127.0.0.1:8000")
    parser.add_argument("--grpc", default="127.0.0.1:8001")
    asked = parser.parse_args()
    answers = check_http(asked.http, asked.models)
    print(*answers, sep="\n")
    check_grpc(asked.grpc, asked.models, answers)


if __name__ == "__main__":
    main()
