"""World models over image tokens: one causal sequence of action text, obs image tokens and next_obs image tokens.

The action comes first, so that the distance from an obs token to the next_obs token of the same place is constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from models.protocols import Codes, Images, ImageTokenizer
from models.settings import TokenSampling

_GREEDY_BELOW = 1e-3
"""Logits divided by less have no differences that a float can tell from infinity."""


@dataclass(frozen=True)
class SequenceLayout:
    """How a family writes a triple, in token ids: action text, `before_obs`, obs, `before_next`, next_obs.

    `image` is one image as it is written: None where a code stands, which is the first place, else the id of a
    separator. `code_ids` are the ids of the codes, in the order of the codebook, and `pad` is what the shorter action
    texts are padded with, on the left.
    """

    before_obs: Sequence[int]
    before_next: Sequence[int]
    image: Sequence[int | None]
    code_ids: Sequence[int]
    pad: int


class TokenWorld:
    """`p(next_obs | obs, action)` by a causal language model of transformers whose vocabulary has image tokens.

    Sampling and scoring are over the codebook alone: a place of a code takes no other token, and separators are where
    the layout has them.
    """

    def __init__(
        self,
        model: Any,
        text_tokenizer: PreTrainedTokenizerBase,
        images: ImageTokenizer,
        layout: SequenceLayout,
        *,
        batch_size: int = 16,
        sampling: TokenSampling | None = None,
    ) -> None:
        self.image_size = images.image_size
        self.images = images
        self.model = model
        self._tokenizer = text_tokenizer
        self._layout = layout
        self._batch_size = batch_size
        self._sampling = sampling or TokenSampling()
        self._code_ids = torch.tensor(layout.code_ids)
        self._is_code = torch.tensor([token is None for token in layout.image])
        self._template = torch.tensor([-1 if token is None else token for token in layout.image])

    @property
    def next_tokens(self) -> int:
        """Tokens of an image with its separators: the last ones of a training sequence."""
        return len(self._template)

    def sequences(
        self, obs: Codes, actions: Sequence[str], next_obs: Codes
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Forward arguments and labels of whole sequences, left-padded; labels are -100 but at next_obs image tokens.

        `obs` and `next_obs` are codes, int, shape (batch, codes of an image). Labels, int64, have the shape of
        `input_ids`, and as many of a row count as the image has codes: separators do not.
        """
        inputs = self._prompts(obs, actions)
        following = self._rows(next_obs)
        labels = torch.full_like(inputs["input_ids"], -100)
        counted = following.masked_fill(~self._is_code.to(following.device), -100)
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
            inputs, _ = self.sequences(before, actions[start:stop], after)
            logits = self.model(**inputs, logits_to_keep=self.next_tokens + 1, use_cache=False).logits[:, :-1]
            logprobs = self._over_codes(logits[:, self._is_code.to(logits.device)])
            chosen = torch.from_numpy(after).long().to(logprobs.device)[..., None]
            scores.append(logprobs.gather(-1, chosen)[..., 0].mean(-1).cpu().numpy())
        return np.concatenate(scores).astype(np.float32)

    def _draw(self, obs: Codes, actions: Sequence[str], n: int, seeds: Sequence[int]) -> Codes:
        """Draw codes of `n` candidates of each, int32, shape (batch * n, codes of an image)."""
        places = self._is_code.nonzero()[:, 0].tolist()
        total = len(places)
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
            last, coming = places[len(drawn) - 1], places[len(drawn)]
            separators = self._template[last + 1 : coming].to(logits.device).expand(len(mask), -1)
            step = torch.cat([code_ids[drawn[-1]][:, None], separators], 1)
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
        """Lay out all before the first next_obs token, left-padded to the longest action."""
        layout, beginning = self._layout, self._tokenizer.bos_token or ""
        texts = [text_ids(self._tokenizer, f"{beginning}{action}") for action in actions]
        longest = max(map(len, texts))
        padded = torch.tensor([[layout.pad] * (longest - len(text)) + text for text in texts])
        unpadded = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
        before_obs, before_next = (
            torch.tensor(ids, dtype=torch.long).expand(len(texts), -1)
            for ids in (layout.before_obs, layout.before_next)
        )
        ids = torch.cat([padded, before_obs, self._rows(obs).cpu(), before_next], 1).to(self.model.device)
        return _with_positions(ids, torch.cat([unpadded, torch.ones(len(ids), ids.shape[1] - longest)], 1))

    def _rows(self, codes: Codes) -> torch.Tensor:
        """Token ids of images as the layout writes them, int64, shape (batch, next_tokens)."""
        ids = self._code_ids[torch.from_numpy(np.ascontiguousarray(codes, np.int64))]
        rows = self._template.repeat(len(ids), 1)
        rows[:, self._is_code] = ids
        return rows.to(self.model.device)


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text, without what a tokenizer adds around it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _mixed(seed: int, row: int) -> int:
    return int(np.random.SeedSequence([seed, row]).generate_state(1)[0])


def filtered(logprobs: torch.Tensor, settings: TokenSampling) -> torch.Tensor:
    """Log-probabilities, shape (batch, codes), after temperature, top-k and top-p; what is ruled out is -inf.

    Top-p keeps the smallest set of most likely tokens whose probabilities reach `top_p` (Holtzman et al.,
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
