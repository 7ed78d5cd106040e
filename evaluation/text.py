"""How near a named action is to the true one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from evaluation.intervals import Mean

_WORD = re.compile(r"\w+")
_SCORER = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
_RESAMPLES = 1000


def words(action: str) -> list[str]:
    """The words of an action in lower case."""
    return _WORD.findall(action.lower())


def normalized(action: str) -> str:
    """Return the words of an action, without case, punctuation and white space: equal for an exact match."""
    return " ".join(words(action))


def rouge(truth: str, named: str) -> dict[str, float]:
    """F-measures of ROUGE-1 and ROUGE-L (Lin 2004), by rouge-score, which knows only the letters a to z and digits."""
    scores = _SCORER.score(truth, named)
    return {name: float(scores[name].fmeasure) for name in ("rouge1", "rougeL")}


def bleu(truths: Sequence[str], named: Sequence[str]) -> Mean:
    """BLEU of the corpus, 0 to 100 (Papineni et al. 2002), by sacrebleu, with its bootstrap interval over samples."""
    if not named:
        return Mean(float("nan"), (float("nan"), float("nan")), 0)
    metric = BLEU()
    score = metric.corpus_score(list(named), [list(truths)], n_bootstrap=_RESAMPLES if len(named) > 1 else 1)
    middle, half = getattr(score, "_mean", -1), getattr(score, "_ci", -1)
    if half < 0:
        return Mean(score.score, (float("nan"), float("nan")), len(named))
    return Mean(score.score, (max(0.0, middle - half), min(100.0, middle + half)), len(named))
