"""A model that is unsure of its own answer is more often wrong."""

from labeling.evidence import Evidence, Values


def score(evidence: Evidence) -> Values:
    """log p(a | o, o'), mean per token."""
    return evidence.forward
