"""The judge against a local server that answers as endpoints do, also when they are busy, wrong or gone."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np
import pytest

from evaluation.intervals import Share
from evaluation.judge import Judge, parse
from evaluation.probes import alternatives
from evaluation.world import SAMPLE, Pairs, WorldTest, world_figures
from lake.errors import Refused
from tests.evaluation.fakes import ACTIONS, Paints, pairs

OBS, NEXT_OBS = pairs()
Answer = Callable[[dict[str, Any], int], tuple[int, bytes]]


def saying(text: str | None) -> tuple[int, bytes]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@contextmanager
def endpoint(answer: Answer) -> Iterator[tuple[str, list[tuple[str, Any, dict[str, Any]]]]]:
    """A server whose answer depends on the question and on how many came before it; and the questions."""
    asked: list[tuple[str, Any, dict[str, Any]]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                asked.append((self.path, self.headers["Authorization"], question))
                number = len(asked) - 1
            status, body = answer(question, number)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_question_is_what_endpoints_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")

    def answer(question: dict[str, Any], number: int) -> tuple[int, bytes]:
        # As models write: the object in a fence, with words around it.
        success = ACTIONS.index(next(a for a in ACTIONS if a in question["messages"][0]["content"][0]["text"]))
        fenced = f'Here it is:\n```json\n{{"reason": "so", "editing_success": {success}, "minimal_editing": 2.5}}\n```'
        return saying(fenced)

    with endpoint(answer) as (url, asked):
        opinions = Judge(url + "/", "judge-1").opinions(OBS, NEXT_OBS, ACTIONS)
    assert [opinion.score for opinion in opinions] == [0, 1, 2, 2.5]
    assert {opinion.state for opinion in opinions} == {"scored"}
    path, authorization, question = asked[0]
    assert (path, authorization) == ("/v1/chat/completions", "Bearer secret")
    assert question["model"] == "judge-1"
    text, *images = question["messages"][0]["content"]
    place = next(i for i, action in enumerate(ACTIONS) if action in text["text"])
    for image, sent in zip((OBS[place], NEXT_OBS[place]), images, strict=True):
        assert sent["type"] == "image_url"
        encoded = sent["image_url"]["url"].removeprefix("data:image/png;base64,")
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR_RGB)
        assert np.array_equal(decoded, image)


def test_a_busy_endpoint_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def answer(question: dict[str, Any], number: int) -> tuple[int, bytes]:
        return (429, b"busy") if number < 2 else saying('{"editing_success": 7, "minimal_editing": 9}')

    with endpoint(answer) as (url, asked):
        (opinion,) = Judge(url, "judge-1", waits_s=(0.01,) * 5).opinions(OBS[:1], NEXT_OBS[:1], ACTIONS[:1])
    assert opinion.score == 7
    assert len(asked) == 3
    assert asked[0][1] is None


def test_an_endpoint_that_is_gone_is_not_asked_for_every_sample() -> None:
    with endpoint(lambda question, number: (503, b"")) as (url, asked):
        opinions = Judge(url, "judge-1", waits_s=(0.001,) * 5).opinions(
            np.repeat(OBS, 10, 0), np.repeat(NEXT_OBS, 10, 0), ACTIONS * 10
        )
    assert {opinion.state for opinion in opinions} == {"unanswered"}
    assert all(opinion.score is None for opinion in opinions)
    assert len(asked) <= 4 * 6
    (nobody,) = Judge(url, "judge-1", waits_s=(0.001,) * 5).opinions(OBS[:1], NEXT_OBS[:1], ACTIONS[:1])
    assert nobody.state == "unanswered"
    assert nobody.reason


def test_what_would_never_work_is_refused() -> None:
    with endpoint(lambda question, number: (401, b'{"error": "bad key"}')) as (url, _):
        with pytest.raises(Refused, match=r"401.*bad key.*OPENAI_API_KEY"):
            Judge(url, "judge-1").opinions(OBS[:1], NEXT_OBS[:1], ACTIONS[:1])
        with pytest.raises(ValueError, match="empty"):
            Judge(url, "judge-1").opinions(OBS[:2], NEXT_OBS[:2], ["it moves", " \n"])
    for address in ("host/v1", "http://", "http://host:port/v1", "ftp://host/v1"):
        with pytest.raises(Refused, match="https://host/v1"):
            Judge(address, "judge-1")
    with pytest.raises(Refused, match="OPENAI_API_KEY"):
        Judge("https://me:secret@host/v1", "judge-1")


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I cannot help with that.",
        '{"editing_success": 11, "minimal_editing": 3}',
        '{"editing_success": NaN, "minimal_editing": 3}',
        '{"editing_success": 3}',
        '{"editing_success": null, "minimal_editing": 3}',
        "[1, 2] {",
        '{"editing_success": 3, "minimal_editing": 3',
    ],
)
def test_answers_that_cannot_be_read(answer: str) -> None:
    opinion = parse(answer)
    assert (opinion.state, opinion.score, opinion.reason) == ("unparsed", None, answer)


def test_samples_without_a_score_are_counted() -> None:
    replies = [saying("?"), saying(None), (200, b"<html>"), saying('{"editing_success": 8, "minimal_editing": 6}')]
    with endpoint(lambda question, number: replies[number]) as (url, _):
        test = WorldTest(Paints(), judge=Judge(url, "judge-1"))
        rows, _ = test.judge_pairs(Pairs(OBS, NEXT_OBS, ACTIONS, alternatives(ACTIONS, 0)), seed=0)
    figures = world_figures(rows)[SAMPLE]
    assert (figures["judge_score"].value, figures["judge_score"].total) == (6, 1)
    assert figures["judge_editing_success"].value == 8
    assert figures["judge_unparsed"] == Share(3, 4)
    assert figures["judge_unanswered"] == Share(0, 4)
