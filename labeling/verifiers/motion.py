"""Too little motion leaves no action to name, and too much is blur or an undetected cut."""

from labeling.evidence import Evidence, Values


def score(evidence: Evidence) -> Values:
    """Motion of things, as a share of the diagonal; see `labeling.sampling.motion_between`."""
    return evidence.motion
