"""An action that explains the reversed pair as well did not happen in this order."""

from labeling.evidence import Evidence, Values


def score(evidence: Evidence) -> Values:
    """log p(a | o, o') − log p(a | o', o), mean per token."""
    return evidence.forward - evidence.reversed
