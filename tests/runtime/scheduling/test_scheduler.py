"""Requests answered together are answered as each alone, whenever they come and whichever are cancelled."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import shapes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from on_device import on_device
from onnx_vlm.runtime import VLM, Generation, GenerationError, InputError, Limits, load
from onnx_vlm.runtime.inference.host_run import HostRun
from onnx_vlm.runtime.inputs import Request
from onnx_vlm.runtime.scheduling import AnswerStream, ClosedError, Piece, QueueFullError, Scheduler

IMAGES = [shapes.draw(shapes.scene(shapes.HELD_OUT + index)) for index in range(3)]
PROMPTS = ("caption", "detect red circle", "how many circles")
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"max_new_tokens": 1},
    {"num_beams": 3, "max_new_tokens": 8},
    {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 6},
    {"do_sample": True, "seed": 3, "temperature": 1.5, "num_return_sequences": 3, "max_new_tokens": 8},
    {"do_sample": True, "seed": 4, "top_k": 5, "repetition_penalty": 1.3},
    {"top_logprobs": 2, "no_repeat_ngram_size": 2},
    {"stop": ["re", " a"]},
)
#: Where the cache is: the checkpoint, what its graph does with the cache, who holds it, and what its numbers are.
PLACES = {
    "host, a bidirectional prefix": ("paligemma2", "onnxruntime", None, "float"),
    "host, causal": ("perception_lm", "onnxruntime", None, "float"),
    "host, causal, int8": ("perception_lm", "onnxruntime", None, "int8"),
    "host, copied": ("perception_lm", "portable", None, "float"),
    "device, a bidirectional prefix": ("paligemma2", "onnxruntime", False, "float"),
    "device, a bidirectional prefix, int8": ("paligemma2", "onnxruntime", False, "int8"),
    "device, causal, captured": ("perception_lm", "onnxruntime", True, "float"),
    "device, copied": ("perception_lm", "portable", False, "float"),
}


@dataclass
class Place:
    """A model, and the answers that it gives alone."""

    vlm: VLM
    alone: dict[tuple[int, int, int], Generation] = field(default_factory=dict)

    def answer(self, case: tuple[int, int, int]) -> Generation:
        prompt, image, options = case
        if case not in self.alone:
            self.alone[case] = self.vlm.generate(PROMPTS[prompt], IMAGES[image], **OPTIONS[options])
        return self.alone[case]


CAUSAL = [name for name, (checkpoint, *_) in PLACES.items() if checkpoint == "perception_lm"]


@pytest.fixture(scope="module", params=PLACES, ids=str)
def place(request: pytest.FixtureRequest, bundles: Callable[..., Path]) -> Place:
    name, target, captures, cache = PLACES[request.param]
    folder = bundles(name, target=target, kv_cache=cache)
    return Place(load(folder, provider="cpu", threads=1) if captures is None else on_device(folder, captures))


@pytest.fixture(scope="module")
def vlm(bundle: Path) -> VLM:
    return load(bundle, threads=1)


@pytest.fixture(scope="module")
def causal(bundles: Callable[..., Path]) -> VLM:
    return load(bundles("perception_lm"), threads=1)


def asked(prompt: Any, image: Any = None) -> Request:
    return Request(prompt, [] if image is None else [image], [], None)


def ids(generation: Generation) -> list[list[int]]:
    return [answer.token_ids for answer in (generation, *generation.alternatives)]


CASES = st.tuples(*(st.integers(0, len(values) - 1) for values in (PROMPTS, IMAGES, OPTIONS)))
#: A request: its case, whether it is cancelled after so many pieces, and how many milliseconds after the one before it.
ARRIVALS = st.lists(st.tuples(CASES, st.none() | st.integers(0, 4), st.integers(0, 8)), min_size=1, max_size=12)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrivals=ARRIVALS,
    max_rows=st.integers(3, 6),
    max_pause=st.sampled_from([1e-6, 1.0, math.inf]),
    together=st.integers(1, 4),
)
def test_each_is_answered_as_alone(place: Place, arrivals: list, max_rows: int, max_pause: float, together: int):
    with Scheduler(place.vlm, max_rows=max_rows, max_pause=max_pause, max_tokens=256, together=together) as scheduler:
        takers = []
        for case, cancel_after, wait in arrivals:
            time.sleep(wait / 1000)
            prompt, image, options = case
            stream = scheduler.submit(asked(PROMPTS[prompt], IMAGES[image]), **OPTIONS[options])
            takers.append(Taker(stream, cancel_after))
        for taker, (case, _, _) in zip(takers, arrivals):
            taker.join(120)
            if taker.cancelled_by_itself and isinstance(taker.error, GenerationError):
                continue
            assert taker.error is None, (case, taker.error)
            expected = place.answer(case)
            assert ids(taker.stream.generation) == ids(expected), (case, arrivals)
            for index, answer in enumerate((expected, *expected.alternatives)):
                assert "".join(piece.text for piece in taker.pieces if piece.index == index) == answer.text
        state = scheduler.state()
    assert (state.queued, state.running, state.rows) == (0, 0, 0)


class Taker(threading.Thread):
    """Takes the pieces of a stream, and cancels it after so many."""

    def __init__(self, stream: AnswerStream, cancel_after: int | None) -> None:
        super().__init__()
        self.stream, self.cancel_after = stream, cancel_after
        self.pieces: list[Piece] = []
        self.error: Exception | None = None
        self.cancelled_by_itself = False
        self.start()

    def run(self) -> None:
        try:
            self._cancel_if(0)
            for number, piece in enumerate(self.stream, 1):
                self.pieces.append(piece)
                self._cancel_if(number)
        except Exception as error:
            self.error = error

    def _cancel_if(self, number: int) -> None:
        if number == self.cancel_after:
            self.cancelled_by_itself = True
            self.stream.cancel()


def test_scores_are_those_of_score(place: Place):
    candidates = ["one", "two circles", "a red circle"]
    with Scheduler(place.vlm, max_rows=4, max_tokens=256) as scheduler:
        streams = [scheduler.submit_score(asked("how many circles", image), iter(candidates)) for image in IMAGES]
        beside = scheduler.submit(asked("caption", IMAGES[0]))
        for stream, image in zip(streams, IMAGES):
            expected = place.vlm.score("how many circles", image, candidates)
            for scored, alone in zip(stream.result(60), expected):
                assert (scored.text, scored.token_ids) == (alone.text, alone.token_ids)
                assert scored.log_probability == pytest.approx(alone.log_probability, abs=1e-4)
        assert ids(beside.result(60)) == ids(place.answer((0, 0, 0)))


def test_short_prompts_run_together(place: Place, monkeypatch: pytest.MonkeyPatch):
    """As many as have room in a row, so that they take no more memory than one prompt."""
    run = type(place.vlm.pipeline.engine.open(1, 16))
    rows_of_runs: list[int] = []
    append = run.append

    def noted(self: Any, first: int, rows: Any) -> Any:
        rows_of_runs.append(len(rows))
        return append(self, first, rows)

    monkeypatch.setattr(run, "append", noted)
    cases = [(0, 0, 0), (2, 1, 0), (0, 2, 0), (0, 1, 0)]
    longest = max(place.answer(case).prompt_tokens for case in cases)
    with Scheduler(
        place.vlm, max_rows=4, max_tokens=3 * longest, prefix_memory=0, max_pause=math.inf, together=4
    ) as scheduler:
        tasks = [scheduler.task(asked(PROMPTS[prompt], IMAGES[image])) for prompt, image, _ in cases]
        streams = scheduler.queue([(task, None) for task in tasks])
        answers = [stream.result(60) for stream in streams]
    assert rows_of_runs == [3, 1]
    assert [ids(answer) for answer in answers] == [ids(place.answer(case)) for case in cases]


def test_the_row_of_an_answer_of_one_token_is_free_at_once(place: Place):
    cases = [(0, 0, 2), (0, 1, 1)]  # the beams of the first take the row of the second
    with Scheduler(place.vlm, max_rows=4, max_tokens=256, together=2) as scheduler:
        tasks = [scheduler.task(asked(PROMPTS[prompt], IMAGES[image]), **OPTIONS[at]) for prompt, image, at in cases]
        streams = scheduler.queue([(task, None) for task in tasks])
        answers = [stream.result(60) for stream in streams]
    assert [ids(answer) for answer in answers] == [ids(place.answer(case)) for case in cases]


def test_images_that_cannot_be_encoded_together_are_encoded_alone(vlm: VLM, monkeypatch: pytest.MonkeyPatch):
    embed = vlm.pipeline.embed

    def narrow(prompts: Any) -> Any:
        if len(prompts) > 1 or len(prompts[0].ids) > 30:
            raise GenerationError("no memory")
        return embed(prompts)

    monkeypatch.setattr(vlm.pipeline, "embed", narrow)
    with Scheduler(vlm, max_rows=4, together=4) as scheduler:
        prompts = ("caption", "detect " + "red circle ; " * 20, "how many circles")
        tasks = [scheduler.task(asked(prompt, IMAGES[0])) for prompt in prompts]
        short, long, other = scheduler.queue([(task, None) for task in tasks])
        with pytest.raises(GenerationError, match="no memory"):
            long.result(60)
        monkeypatch.undo()
        for prompt, stream in (("caption", short), ("how many circles", other)):
            assert stream.result(60).text == vlm.generate(prompt, IMAGES[0]).text


@pytest.mark.parametrize("place", CAUSAL, indirect=True)
def test_the_next_turn_of_a_conversation_computes_what_is_new(place: Place):
    scene = shapes.scene(shapes.HELD_OUT)
    with Scheduler(place.vlm, max_rows=2, max_tokens=512) as scheduler:
        messages: list[dict[str, Any]] = []
        for turn, question in enumerate(shapes.chat_questions(scene)[:3]):
            content: list[dict[str, Any]] = [{"type": "text", "text": question.prompt}]
            if turn == 0:
                content.insert(0, {"type": "image"})
            messages = [*messages, {"role": "user", "content": content}]
            answer = scheduler.submit(asked(messages, shapes.draw(scene))).result(60)
            assert answer.token_ids == place.vlm.generate(messages, shapes.draw(scene)).token_ids
            messages = [*messages, {"role": "assistant", "content": answer.text}]
        state = scheduler.state()
        longest = answer.prompt_tokens
    assert (state.prefix_hits, state.prefix_misses) == (2, 1)
    assert state.prefix_tokens > longest, "the second and the third turn found most of what they began with"
    assert state.prefix_bytes > 0


def test_conversations_are_kept_within_the_memory(causal: VLM):
    with Scheduler(causal, max_rows=1, max_tokens=256, prefix_memory=200_000) as scheduler:
        for image in IMAGES:
            scheduler.submit(asked("caption", image), max_new_tokens=4).result(60)
        kept = scheduler.state().prefix_bytes
        assert 0 < kept <= 200_000
    with Scheduler(causal, max_rows=1, max_tokens=256, prefix_memory=0) as scheduler:
        for _ in range(2):
            scheduler.submit(asked("caption", IMAGES[0]), max_new_tokens=4).result(60)
        assert (scheduler.state().prefix_bytes, scheduler.state().prefix_hits) == (0, 0)


def test_equal_images_are_encoded_once(bundle: Path):
    with Scheduler(load(bundle, threads=1), max_rows=2) as scheduler:
        for stream in [scheduler.submit(asked("caption", IMAGES[0])) for _ in range(5)]:
            stream.result(60)
        state = scheduler.state()
    assert (state.image_hits, state.image_misses) == (4, 1)
    assert (state.steps > 0, state.tokens > state.steps) == (True, True)


def test_what_is_wrong_with_a_request_is_its_own(vlm: VLM):
    every_id = list(range(vlm.manifest.vocab))
    with Scheduler(vlm, max_rows=2, max_tokens=60) as scheduler:
        good = scheduler.submit(asked("caption", IMAGES[0]))
        wrong = [
            (scheduler.submit(asked("caption", b"no image")), InputError, "image"),
            (scheduler.submit(asked("caption")), InputError, "at least one"),
            (scheduler.submit(asked("how many " * 40, IMAGES[0])), InputError, "a row has 60"),
            (
                scheduler.submit(asked("caption", IMAGES[0]), suppress_tokens=every_id),
                GenerationError,
                "no token",
            ),
        ]
        for stream, kind, said in wrong:
            with pytest.raises(kind, match=said):
                stream.result(60)
            with pytest.raises(kind, match=said):
                list(stream)
        assert good.result(60).text == vlm.generate("caption", IMAGES[0]).text


def test_what_can_be_known_at_once_is_told_at_once(vlm: VLM):
    with Scheduler(vlm, max_rows=2) as scheduler:
        with pytest.raises(InputError, match="temperature"):
            scheduler.submit(asked("caption", IMAGES[0]), temperature=-1)
        with pytest.raises(InputError, match="3 rows, the scheduler 2"):
            scheduler.submit(asked("caption", IMAGES[0]), num_beams=3)
        with pytest.raises(InputError, match="end token"):
            scheduler.submit_score(asked("caption", IMAGES[0]), ["1<eos>"])
    for name in ("max_rows", "max_queue", "max_tokens", "together"):
        with pytest.raises(InputError, match=f"{name} is 0"):
            Scheduler(vlm, **{name: 0})


def test_the_memory_is_known_before_the_first_request(bundle: Path):
    limited = load(bundle, threads=1, limits=Limits(max_memory=2_000_000))
    with Scheduler(limited, max_rows=2) as scheduler:
        assert scheduler.state().kv_bytes < 2_000_000
        assert scheduler.submit(asked("caption", IMAGES[0])).result(60).text
    with pytest.raises(InputError, match=r"fewer rows \(max_rows\)"):
        Scheduler(limited, max_rows=64, max_tokens=512)


class Gate:
    """Holds the decoder before each of its runs until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.runs = threading.Semaphore(0)
        run = HostRun._run

        def gated(*arguments: Any) -> Any:
            self.runs.release()
            assert self.open.wait(60)
            return run(*arguments)

        monkeypatch.setattr(HostRun, "_run", gated)


def test_a_full_queue_refuses_and_a_cancel_makes_room(vlm: VLM, monkeypatch: pytest.MonkeyPatch):
    gate = Gate(monkeypatch)
    with Scheduler(vlm, max_rows=1, max_queue=2) as scheduler:
        running = scheduler.submit(asked("caption", IMAGES[0]))
        assert gate.runs.acquire(timeout=60)
        waiting = [scheduler.submit(asked("caption", image)) for image in IMAGES[:2]]
        with pytest.raises(QueueFullError, match="2 requests wait"):
            scheduler.submit(asked("caption", IMAGES[2]))
        waiting[0].cancel()
        more = scheduler.submit(asked("caption", IMAGES[2]))
        gate.open.set()
        for stream, image in ((running, 0), (waiting[1], 1), (more, 2)):
            assert stream.result(60).text == vlm.generate("caption", IMAGES[image]).text
        with pytest.raises(GenerationError, match="cancelled"):
            waiting[0].result(60)


def test_a_failure_of_the_device_ends_what_runs_and_nothing_else(vlm: VLM, monkeypatch: pytest.MonkeyPatch):
    with Scheduler(vlm, max_rows=2) as scheduler:
        with monkeypatch.context() as broken:
            broken.setattr(HostRun, "_run", lambda *_: (_ for _ in ()).throw(GenerationError("no memory")))
            with pytest.raises(GenerationError, match="no memory"):
                scheduler.submit(asked("caption", IMAGES[0])).result(60)
        assert scheduler.submit(asked("caption", IMAGES[0])).result(60).text


@pytest.mark.parametrize("drain", [True, False])
def test_closing(vlm: VLM, monkeypatch: pytest.MonkeyPatch, drain: bool):
    gate = Gate(monkeypatch)
    scheduler = Scheduler(vlm, max_rows=1)
    streams = [scheduler.submit(asked("caption", IMAGES[0])) for _ in range(3)]
    assert gate.runs.acquire(timeout=60)
    closing = threading.Thread(target=scheduler.close, args=(drain,))
    closing.start()
    while not scheduler._closed:
        time.sleep(0.001)
    with pytest.raises(ClosedError):
        scheduler.submit(asked("caption", IMAGES[0]))
    gate.open.set()
    closing.join(60)
    assert not any(thread.is_alive() for thread in scheduler._threads)
    for stream in streams:
        if drain:
            assert stream.result(1).text
        else:
            with pytest.raises(GenerationError, match="cancelled"):
                stream.result(1)


def test_closing_while_a_request_is_prepared_ends(vlm: VLM, monkeypatch: pytest.MonkeyPatch):
    """What is cancelled between the two threads is dropped by one of them; the other must hear of it."""
    started, proceed = threading.Event(), threading.Event()
    embed = vlm.pipeline.embed

    def slow(prompts: Any) -> Any:
        started.set()
        assert proceed.wait(60)
        return embed(prompts)

    monkeypatch.setattr(vlm.pipeline, "embed", slow)
    scheduler = Scheduler(vlm, max_rows=1)
    stream = scheduler.submit(asked("caption", IMAGES[0]))
    assert started.wait(60)
    closing = threading.Thread(target=scheduler.close, args=(False,), daemon=True)
    closing.start()
    while not stream.cancelled:
        time.sleep(0.001)
    proceed.set()
    closing.join(60)
    assert not closing.is_alive()


def test_a_listener_is_told_of_pieces_and_then_of_the_end(vlm: VLM):
    events: list[Any] = []
    ended = threading.Event()

    def listen(event: Any) -> None:
        events.append(event)
        if not isinstance(event, Piece):
            ended.set()

    with Scheduler(vlm, max_rows=1) as scheduler:
        scheduler.submit(asked("detect red circle ; blue square", IMAGES[0]), listen, top_logprobs=1)
        assert ended.wait(60)
    *pieces, generation = events
    assert "".join(piece.text for piece in pieces) == generation.text
    assert [token for piece in pieces for token in piece.token_ids] == generation.token_ids
    assert [note for piece in pieces for note in piece.logprobs or ()] == generation.logprobs
    told = [piece.grounded.boxes for piece in pieces if piece.grounded is not None]
    assert not generation.boxes or told[-1] == generation.boxes


def test_a_listener_that_fails_ends_its_request_alone(vlm: VLM):
    with Scheduler(vlm, max_rows=2) as scheduler:
        deaf = scheduler.submit(asked("caption", IMAGES[0]), lambda event: 1 / 0)
        assert scheduler.submit(asked("caption", IMAGES[1])).result(60).text == vlm.generate("caption", IMAGES[1]).text
        with pytest.raises(GenerationError, match="cancelled"):
            deaf.result(60)
