"""A vision-language model as judge of predictions, behind any endpoint that speaks OpenAI's chat completions.

The protocol of Qiu et al., arXiv 2506.06006, with GPT-4o there: given obs, the prediction and the instruction, a score
for editing success and one for minimal editing, 0 to 10 each; the score of a sample is the lower of the two. How the
question is worded is ours.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import httpx
import numpy as np
import numpy.typing as npt

from lake.errors import Refused, one_line
from lake.retry import Schedule, retry, seconds_asked
from models.protocols import Images

KEY_VARIABLE = "OPENAI_API_KEY"

_QUESTION = """The first image is a frame of a video. An edit was asked for, as an instruction that says what happens \
next; the second image is the result of the edit.

Instruction: {instruction}

Give two scores from 0 to 10.
editing_success: does the second image show that the instruction was followed? 0: not at all; 10: completely.
minimal_editing: is everything that the instruction does not concern as it was? 0: a wholly different scene; 10: \
nothing else has changed.

Answer with one JSON object alone: {{"reason": "one sentence", "editing_success": 0, "minimal_editing": 0}}"""

_TRANSIENT = (408, 409, 429, 500, 502, 503, 504)
_WAITS_S = (1, 2, 4, 8, 16)
_TIMEOUT = httpx.Timeout(120, connect=10)
# Endpoints answer in seconds, and serve several clients at once.
_AT_ONCE = 4


@dataclass(frozen=True)
class Opinion:
    """Result for one sample: `state` is scored, unparsed (an answer without two scores) or unanswered.

    `editing_success` and `minimal_editing`, 0 to 10, are there only where it was scored; `reason` is the judge's
    sentence, its whole answer where that could not be read, or why there was none.
    """

    state: str
    reason: str
    editing_success: float | None = None
    minimal_editing: float | None = None

    @property
    def score(self) -> float | None:
        """The lower of the two."""
        if self.editing_success is None or self.minimal_editing is None:
            return None
        return min(self.editing_success, self.minimal_editing)


class Judge:
    """A judge at `url` (the base, such as https://host/v1); the key comes from the environment, OPENAI_API_KEY."""

    def __init__(self, url: str, model: str, *, waits_s: tuple[float, ...] = _WAITS_S) -> None:
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise Refused(
                f"the judge's address {url!r} is not an address ({error}): give the base, https://host/v1"
            ) from None
        if address.scheme not in ("http", "https") or not address.host:
            raise Refused(f"the judge's address {url!r} is none of http:// or https://: give the base, https://host/v1")
        if address.userinfo:
            # The address is booked in the table runs, which anybody may read.
            raise Refused(f"the judge's address has a password in it: give it as {KEY_VARIABLE}")
        self._url, self._model = url.rstrip("/") + "/chat/completions", model
        self._http, self._schedule = httpx.Client(timeout=_TIMEOUT), Schedule(waits_s)
        self._gone = threading.Event()

    def opinions(self, obs: Images, predicted: Images, instructions: Sequence[str]) -> list[Opinion]:
        """Ask about each prediction, several at once; the answers are in order.

        When one question stays unanswered after all retries the endpoint is taken to be gone, and no more are asked.

        Raises:
            ValueError: an instruction is empty.
            Refused: the endpoint refuses the question: a wrong key, address, model or request.
        """
        if not all(instruction.strip() for instruction in instructions):
            raise ValueError("an instruction is empty: there is nothing to judge by")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self._ask, obs, predicted, instructions))

    def _ask(self, obs: npt.NDArray[np.uint8], predicted: npt.NDArray[np.uint8], instruction: str) -> Opinion:
        if self._gone.is_set():
            return Opinion("unanswered", "not asked: the endpoint did not answer before")
        images = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in (obs, predicted)]
        text = {"type": "text", "text": _QUESTION.format(instruction=instruction)}
        question = {"model": self._model, "temperature": 0, "messages": [{"role": "user", "content": [text, *images]}]}
        key = os.environ.get(KEY_VARIABLE)
        headers = {"Authorization": f"Bearer {key}"} if key else {}

        def post() -> httpx.Response:
            answer = self._http.post(self._url, json=question, headers=headers)
            if answer.status_code in _TRANSIENT:
                raise _Busy(answer)
            return answer

        try:
            # A question asked twice changes nothing.
            answer = retry(post, self._schedule, lambda error: isinstance(error, _Busy | httpx.TransportError))
        except (_Busy, httpx.TransportError) as error:
            self._gone.set()
            return Opinion("unanswered", one_line(error, 300) or type(error).__name__)
        if answer.status_code != 200:
            raise Refused(
                f"the judge at {self._url} answers HTTP {answer.status_code} ({one_line(answer.text, 200)}): check the "
                f"address, the model {self._model!r} and {KEY_VARIABLE}"
            )
        return parse(_content(answer))


class _Busy(Exception):
    """The endpoint cannot answer now."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(f"HTTP {answer.status_code}")
        self.retry_after_s = seconds_asked(answer.headers.get("Retry-After"))


def parse(answer: str) -> Opinion:
    """Read the judge's answer: the JSON object in it, whatever stands around it."""
    try:
        found: Any = json.loads(answer[answer.index("{") : answer.rindex("}") + 1])
        success, minimal = float(found["editing_success"]), float(found["minimal_editing"])
    except (ValueError, KeyError, TypeError):
        return Opinion("unparsed", answer[:500])
    if not (0 <= success <= 10 and 0 <= minimal <= 10):
        return Opinion("unparsed", answer[:500])
    return Opinion("scored", str(found.get("reason", ""))[:500], success, minimal)


def data_url(image: npt.NDArray[np.uint8]) -> str:
    """An RGB image as a PNG in a data URL."""
    encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    return "data:image/png;base64," + base64.b64encode(encoded).decode()


def _content(answer: httpx.Response) -> str:
    """The text of the first choice; the body itself where there is none, which then cannot be parsed."""
    try:
        content = answer.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return answer.text
    return content if isinstance(content, str) else ""
