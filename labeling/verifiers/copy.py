"""An action that explains no change at all as well did not happen here."""

from labeling.evidence import Evidence, Values


def score(evidence: Evidence) -> Values:
    """log p(a | o, o') − log p(a | o, o), mean per token."""
    return evidence.forward - evidence.unchanged
