"""World models over Emu3: one causal sequence of action text, obs image tokens and next_obs image tokens.

The action comes first, so that the distance from an obs token to the next_obs token of the same place is constant.
Each image is written as Emu3's processor writes it: start, `rows*columns`, a mark, the tokens with an end-of-line token
after each row, end of frame, end (transformers, `Emu3Processor`; Wang et al., arXiv 2409.18869, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerBase

from models.image_tokens import Codes, ImageTokenizer
from models.protocols import Images

_GREEDY_BELOW = 1e-3
"""Logits divided by less have no differences that a float can tell from infinity."""


class SamplingSettings(BaseModel):
    """How image tokens are drawn from the model's distribution over the codebook."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(1.0, ge=0, le=10, description="below 0.001: always the likeliest token")
    top_k: int | None = Field(None, ge=1, description="draw from the k likeliest tokens only")
    top_p: float = Field(1.0, gt=0, le=1, description="draw from the likeliest tokens that together have this share")


class Emu3World:
    """`p(next_obs | obs, action)` by an `Emu3ForConditionalGeneration`.

    Sampling and scoring are over the codebook alone: no other token can stand where an image token is due, and ends of
    lines are where they must be.
    """

    def __init__(
        self,
        model: Any,
        text_tokenizer: PreTrainedTokenizerBase,
        images: ImageTokenizer,
        *,
        batch_size: int = 16,
        sampling: SamplingSettings | None = None,
    ) -> None:
        self.image_size = images.image_size
        self.images = images
        self.model = model
        self._tokenizer = text_tokenizer
        self._batch_size = batch_size
        self._sampling = sampling or SamplingSettings()
        mapping = model.model.vocabulary_mapping
        self._code_ids = torch.tensor([mapping.img2bpe[code] for code in range(images.codebook_size)])
        self._end_of_line = int(mapping.eol_token_id)
        self._pad = int(text_tokenizer.pad_token_id)
        start, mark = text_tokenizer.boi_token, text_tokenizer.image_wrapper_token
        self._begin = self._ids(f"{start}{images.side}*{images.side}{mark}")
        self._end = self._ids(f"{text_tokenizer.eof_token}{text_tokenizer.eoi_token}")
        if self._tokenizer.unk_token_id in (self._begin if self._tokenizer.unk_token_id is not None else ()):
            raise ValueError(f"the tokenizer cannot write {images.side}*{images.side}")

    @property
    def next_tokens(self) -> int:
        """Tokens of an image with its ends of lines: the last ones of a training sequence."""
        return self.images.side * (self.images.side + 1)

    def sequences(
        self, obs: Codes, actions: Sequence[str], next_obs: Codes
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Forward arguments and labels of whole sequences, left-padded; labels are -100 but at next_obs image tokens.

        `obs` and `next_obs` are codes, int, shape (batch, rows * columns). Labels, int64, have the shape of
        `input_ids`, and as many of a row count as the image has codes: ends of lines do not.
        """
        inputs = self._prompts(obs, actions)
        following = self._rows(next_obs)
        labels = torch.full_like(inputs["input_ids"], -100)
        counted = following.masked_fill(following == self._end_of_line, -100)
        return _append(inputs, following), torch.cat([labels, counted], 1)

    @torch.no_grad()
    def sample(self, obs: Images, actions: Sequence[str], n: int, *, seed: int | Sequence[int] = 0) -> Images:
        """Draw `n` next observations of each pair: uint8, shape (batch, n, height, width, 3).

        `seed` is one for the call, or one for each obs: what is drawn for an obs depends on its own seed, and not on
        what it is batched with. Raises ValueError where the images are not uint8 of the model's size, or actions or
        seeds are more or fewer than images.
        """
        seeds = [_mixed(seed, row) for row in range(len(obs))] if isinstance(seed, int) else seed
        if not len(actions) == len(seeds) == len(obs):
            raise ValueError(f"{len(actions)} actions and {len(seeds)} seeds for {len(obs)} observations")
        candidates = []
        for start in range(0, len(obs), self._batch_size):
            stop = start + self._batch_size
            codes = self.images.encode(obs[start:stop])[0]
            candidates.append(self._draw(codes, actions[start:stop], n, seeds[start:stop]))
        decoded = self.images.decode(np.concatenate(candidates))
        return decoded.reshape(len(obs), n, *decoded.shape[1:])

    def shown(self, images: Images) -> Images:
        """Images as this model can draw them at best: through its image tokenizer and back.

        Raises ValueError where they are not uint8 of the model's size.
        """
        return self.images.decode(self.images.encode(images)[0])

    @torch.no_grad()
    def score(self, obs: Images, actions: Sequence[str], next_obs: Images) -> npt.NDArray[np.float32]:
        """Mean natural-log probability of each next observation's image tokens, float32, shape (batch,).

        Raises ValueError where the images are not uint8 of the model's size, or the three differ in number.
        """
        if not len(obs) == len(actions) == len(next_obs):
            raise ValueError(f"{len(obs)} obs, {len(actions)} actions and {len(next_obs)} next_obs")
        scores = []
        for start in range(0, len(obs), self._batch_size):
            stop = start + self._batch_size
            before, after, _ = self.images.encode_pairs(obs[start:stop], next_obs[start:stop])
            inputs, labels = self.sequences(before, actions[start:stop], after)
            logits = self.model(**inputs, logits_to_keep=self.next_tokens + 1, use_cache=False).logits[:, :-1]
            counted = labels[0, -self.next_tokens :] != -100
            logprobs = self._over_codes(logits[:, counted])
            chosen = torch.from_numpy(after).long().to(logprobs.device)[..., None]
            scores.append(logprobs.gather(-1, chosen)[..., 0].mean(-1).cpu().numpy())
        return np.concatenate(scores).astype(np.float32)

    def _draw(self, obs: Codes, actions: Sequence[str], n: int, seeds: Sequence[int]) -> Codes:
        """Codes of `n` candidates of each, int32, shape (batch * n, rows * columns)."""
        total = self.images.side**2
        # Drawn on the CPU, before anything: the same on every device and in every batch.
        draws = [torch.rand(n, total, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        luck = torch.cat(draws).to(self.model.device)
        inputs = self._prompts(obs, actions)
        mask = inputs["attention_mask"].repeat_interleave(n, 0)
        outputs = self.model(**inputs, logits_to_keep=1, use_cache=True)
        cache = outputs.past_key_values
        cache.batch_repeat_interleave(n)
        logits = outputs.logits[:, -1].repeat_interleave(n, 0)
        code_ids = self._code_ids.to(logits.device)
        drawn: list[torch.Tensor] = []
        while True:
            drawn.append(self._pick(self._over_codes(logits), luck[:, len(drawn)]))
            if len(drawn) == total:
                return torch.stack(drawn, 1).to(torch.int32).cpu().numpy()
            step = code_ids[drawn[-1]][:, None]
            if len(drawn) % self.images.side == 0:
                step = torch.cat([step, torch.full_like(step, self._end_of_line)], 1)
            mask = torch.cat([mask, mask.new_ones(len(mask), step.shape[1])], 1)
            positions = (mask.cumsum(1) - 1)[:, -step.shape[1] :]
            logits = self.model(
                input_ids=step,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                logits_to_keep=1,
                use_cache=True,
            ).logits[:, -1]

    def _pick(self, logprobs: torch.Tensor, luck: torch.Tensor) -> torch.Tensor:
        """One code a row: the first at which the cumulative probability exceeds `luck`, which is uniform in [0, 1)."""
        settings = self._sampling
        if settings.temperature < _GREEDY_BELOW:
            return logprobs.argmax(-1)
        reached = filtered(logprobs, settings).double().exp().cumsum(-1)
        return torch.searchsorted(reached, luck[:, None].double() * reached[:, -1:], right=True)[:, 0]

    def _over_codes(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[..., self._code_ids.to(logits.device)].float().log_softmax(-1)

    def _prompts(self, obs: Codes, actions: Sequence[str]) -> dict[str, torch.Tensor]:
        """All before the first next_obs token, left-padded to the longest action."""
        beginning = self._tokenizer.bos_token or ""
        texts = [self._ids(f"{beginning}{action}") for action in actions]
        longest = max(map(len, texts))
        padded = torch.tensor([[self._pad] * (longest - len(text)) + text for text in texts])
        unpadded = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
        begin, end = (torch.tensor(ids).expand(len(texts), -1) for ids in (self._begin, self._end))
        ids = torch.cat([padded, begin, self._rows(obs).cpu(), end, begin], 1).to(self.model.device)
        return _with_positions(ids, torch.cat([unpadded, torch.ones(len(ids), ids.shape[1] - longest)], 1))

    def _rows(self, codes: Codes) -> torch.Tensor:
        """Token ids of images, an end-of-line token after each row, int64, shape (batch, next_tokens)."""
        side = self.images.side
        ids = self._code_ids[torch.from_numpy(np.ascontiguousarray(codes, np.int64))].view(-1, side, side)
        ends = torch.full((len(ids), side, 1), self._end_of_line)
        return torch.cat([ids, ends], 2).flatten(1).to(self.model.device)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _mixed(seed: int, row: int) -> int:
    return int(np.random.SeedSequence([seed, row]).generate_state(1)[0])


def filtered(logprobs: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """Log-probabilities, shape (batch, codes), after temperature, top-k and top-p; what is ruled out is -inf.

    Top-p keeps the smallest set of likeliest tokens whose probabilities reach `top_p` (Holtzman et al.,
    arXiv 1904.09751, section 3.1).
    """
    logprobs = (logprobs / settings.temperature).log_softmax(-1)
    if settings.top_k is not None and settings.top_k < logprobs.shape[-1]:
        least = logprobs.topk(settings.top_k).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < least, -torch.inf).log_softmax(-1)
    if settings.top_p < 1:
        ordered, order = logprobs.sort(-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        ruled_out = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= settings.top_p)
        logprobs = logprobs.masked_fill(ruled_out, -torch.inf).log_softmax(-1)
    return logprobs


def _with_positions(ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    mask = mask.long().to(ids.device)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def _append(inputs: dict[str, torch.Tensor], following: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs with more tokens after every row."""
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(following)], 1)
    return _with_positions(torch.cat([inputs["input_ids"], following], 1), mask)
