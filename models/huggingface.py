"""A dynamics model over any image-text-to-text model of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig, PreTrainedModel

from models.dynamics.family import PairInputs
from models.protocols import Annotation, Images

SCORE_BLOCK = 8
"""Action texts are padded to a multiple of this many tokens, so that scoring meets few shapes."""

STOP_CHECK_EVERY = 4
"""Tokens generated on an accelerator between two looks at whether all rows have ended: each look stalls the host."""


Cache = Literal["dynamic", "static", "compiled"]
"""How generation keeps keys and values: growing, in buffers of one size, or so with a compiled step (GPU only)."""


class HuggingFaceDynamics:
    """`p(action | obs, next_obs)` by a causal image-text-to-text model.

    Both log-probabilities are over text only: special tokens other than the end are ruled out, and all end tokens of
    the model count as one. So `annotate` and `score` agree on every text that its tokenizer splits as the model
    wrote it. A forward has at most `batch_size` rows. On an accelerator it always has as many, the last pair repeated,
    so that a label does not depend on how many came along; or, where `answers_few`, the next power of two, so that
    who asks for one pair does not wait for a whole batch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inputs: PairInputs,
        *,
        image_size: int,
        batch_size: int,
        max_new_tokens: int,
        cache: Cache = "dynamic",
        answers_few: bool = False,
    ) -> None:
        self.image_size = image_size
        self.model = model
        self._inputs = inputs
        self._batch_size, self._answers_few = batch_size, answers_few
        self._max_new_tokens = max_new_tokens
        ends = _end_tokens(model, inputs)
        self._end = ends[0]
        self._ends = torch.tensor(ends, device=model.device)
        self._silent = _silent_tokens(model, inputs, ends)
        self._silent_ids = frozenset(self._silent.nonzero()[:, 0].tolist())
        # The model's own generation settings (sampling, penalties, forced tokens) would make its log-probabilities
        # differ from the scored ones.
        model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=self._end)
        self._generation = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            cache_implementation=None if cache == "dynamic" else "static",
            disable_compile=cache != "compiled",
        )

    @torch.no_grad()
    def annotate(self, obs: Images, next_obs: Images) -> list[Annotation]:
        """Name the action of each pair, greedily; an action of `max_new_tokens` is cut off by a forced end token.

        Raises ValueError where the images are not uint8 of shape (batch, image_size, image_size, 3).
        """
        annotations: list[Annotation] = []
        for rows, inputs in self._batches(obs, next_obs):
            tokens, logprobs = self.model.generate(
                **inputs, generation_config=self._generation, custom_generate=self._decode
            )
            ended = (tokens == self._end).cumsum(-1)
            written = ((ended == 0) | ((ended == 1) & (tokens == self._end))).float()
            means = ((logprobs * written).sum(-1) / written.sum(-1)).tolist()
            for row, mean in zip(tokens.tolist()[: len(rows)], means, strict=False):
                end = row.index(self._end)
                text = self._inputs.tokenizer.decode(row[:end], clean_up_tokenization_spaces=False)
                annotations.append(Annotation(text.strip(), mean, end + 1))
        return annotations

    @torch.no_grad()
    def score(self, obs: Images, next_obs: Images, actions: Sequence[str]) -> npt.NDArray[np.float32]:
        """Mean natural-log probability of each action's tokens and its end token, float32, shape (batch,).

        Raises ValueError where the images are not uint8 of shape (batch, image_size, image_size, 3), or where there
        are more or fewer actions than pairs.
        """
        if len(actions) != len(obs):
            raise ValueError(f"{len(actions)} actions for {len(obs)} pairs")
        targets = [self._tokenize(action) for action in actions]
        scores = np.empty(len(obs), np.float32)
        for rows, inputs in self._batches(obs, next_obs):
            chunk = [targets[row] for row in rows]
            chunk += chunk[-1:] * (len(inputs["input_ids"]) - len(chunk))
            scores[rows.start : rows.stop] = self._score(inputs, chunk)[: len(rows)]
        return scores

    def sequences(
        self, obs: Images, next_obs: Images, actions: Sequence[str]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Forward arguments and labels of whole sequences, for training: the prompt, the action and its end token.

        Labels, int64, shape (batch, tokens), are those of the last `tokens` positions, -100 after a row's end token.
        Raises ValueError as `score` does.
        """
        self._check(obs, next_obs)
        padded, written = self._padded([self._tokenize(action) for action in actions])
        return _append(self._prompts(obs, next_obs), padded), padded.masked_fill(~written, -100)

    def _score(self, inputs: dict[str, torch.Tensor], targets: list[list[int]]) -> npt.NDArray[np.float32]:
        padded, written = self._padded(targets)
        length = padded.shape[1]
        outputs = self.model(**_append(inputs, padded), logits_to_keep=length + 1, use_cache=False)
        # The logits at a position are those of the token after it.
        logprobs = self._logprobs(outputs.logits[:, -length - 1 : -1]).gather(-1, padded[..., None])[..., 0]
        means: npt.NDArray[np.float32] = (logprobs.where(written, 0).sum(-1) / written.sum(-1)).cpu().numpy()
        return means

    def _padded(self, targets: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of tokens with end tokens after them, and which of them are the rows' own; shape (batch, tokens)."""
        longest = max(map(len, targets))
        length = -(-longest // SCORE_BLOCK) * SCORE_BLOCK
        padded = torch.tensor([row + [self._end] * (length - len(row)) for row in targets], device=self.model.device)
        lengths = torch.tensor([len(row) for row in targets], device=self.model.device)
        return padded, torch.arange(length, device=self.model.device) < lengths[:, None]

    def _tokenize(self, action: str) -> list[int]:
        text = self._inputs.lead + action if action else ""
        tokens = self._inputs.tokenizer(text, add_special_tokens=False)["input_ids"]
        # An action that spells special tokens is scored without them: an image token would ask for a third image.
        return [*(token for token in tokens if token not in self._silent_ids), self._end]

    def _batches(self, obs: Images, next_obs: Images) -> Iterator[tuple[range, dict[str, torch.Tensor]]]:
        self._check(obs, next_obs)
        for start in range(0, len(obs), self._batch_size):
            stop = min(start + self._batch_size, len(obs))
            # To a CPU every row is work.
            length = stop - start if self.model.device.type == "cpu" else self._rows(stop - start)
            picked = np.minimum(np.arange(start, start + length), stop - 1)
            yield range(start, stop), self._prompts(obs[picked], next_obs[picked])

    def _rows(self, pairs: int) -> int:
        """Of a forward on an accelerator."""
        return min(1 << (pairs - 1).bit_length(), self._batch_size) if self._answers_few else self._batch_size

    def _check(self, obs: Images, next_obs: Images) -> None:
        size = self.image_size
        for images in (obs, next_obs):
            if images.dtype != np.uint8 or images.shape != (len(obs), size, size, 3):
                raise ValueError(f"images are {images.dtype} {images.shape}, not uint8 {(len(obs), size, size, 3)}")

    def _prompts(self, obs: Images, next_obs: Images) -> dict[str, torch.Tensor]:
        inputs = self._inputs(obs, next_obs, self.model.device)
        return {
            name: tensor.to(self.model.dtype) if tensor.is_floating_point() else tensor
            for name, tensor in inputs.items()
        }

    def _logprobs(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.float()
        end = logits[..., self._ends].logsumexp(-1)
        logits = logits.masked_fill(self._silent, -torch.inf)
        logits[..., self._end] = end
        return logits.log_softmax(-1)

    def _decode(
        self, model: Any, input_ids: torch.Tensor, generation_config: GenerationConfig, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The greedy loop that `generate` runs: tokens and their log-probabilities, each of shape (batch, tokens).

        transformers' own loop waits for the device after every token and keeps all logits where it returns any.
        """
        # Prompts are of one length, so the mask hides nothing; to find that out costs a look from the host per token.
        for unused in ("logits_processor", "stopping_criteria", "attention_mask"):
            kwargs.pop(unused)
        compiles = model._valid_auto_compile_criteria(kwargs, generation_config)
        forward = model.get_compiled_call(generation_config.compile_config) if compiles else model
        check_every = 1 if input_ids.device.type == "cpu" else STOP_CHECK_EVERY
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        tokens, logprobs = [], []
        outputs = model._prefill(input_ids, generation_config, kwargs)
        for count in range(1, self._max_new_tokens + 1):
            scores = self._logprobs(outputs.logits[:, -1])
            ended = ended | (count == self._max_new_tokens)
            token = torch.where(ended, self._end, scores.argmax(-1))
            tokens.append(token)
            logprobs.append(scores.gather(-1, token[:, None])[:, 0])
            ended = ended | (token == self._end)
            if count == self._max_new_tokens or (count % check_every == 0 and bool(ended.all())):
                break
            input_ids = torch.cat([input_ids, token[:, None]], dim=-1)
            kwargs = model._update_model_kwargs_for_generation(outputs, kwargs)
            step = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **kwargs)
            outputs = forward(**step, return_dict=True)
        return torch.stack(tokens, -1), torch.stack(logprobs, -1)


def _append(inputs: dict[str, torch.Tensor], tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs with `tokens`, shape (batch, length), after every prompt, and without a mask.

    Prompts are of one length; what pads the tokens comes last, and attention is causal, so that nothing sees it.
    """
    prompts = inputs["input_ids"].shape
    kinds = torch.zeros_like(tokens)
    return {
        name: torch.cat([value, tokens if name == "input_ids" else kinds.to(value.dtype)], dim=-1)
        if value.shape == prompts
        else value
        for name, value in inputs.items()
        if name != "attention_mask"
    }


def _end_tokens(model: PreTrainedModel, inputs: PairInputs) -> list[int]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = inputs.tokenizer.eos_token_id
    return [ends] if isinstance(ends, int) else list(ends)


def _silent_tokens(model: PreTrainedModel, inputs: PairInputs, ends: list[int]) -> torch.Tensor:
    """Return a mask of ids that are not text, bool, shape (vocabulary,): special tokens and ids without a token."""
    tokenizer = inputs.tokenizer
    vocabulary = model.config.get_text_config().vocab_size
    silent = torch.arange(vocabulary) >= len(tokenizer)
    special = [token for token, added in tokenizer.added_tokens_decoder.items() if added.special]
    silent[[token for token in {*special, *ends} if token != tokenizer.unk_token_id and token < vocabulary]] = True
    return silent.to(model.device)
