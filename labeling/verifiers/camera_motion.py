"""Where the camera moves, the whole picture changes without an action in it."""

from labeling.evidence import Evidence, Values


def score(evidence: Evidence) -> Values:
    """Motion of the camera, as a share of the diagonal; see `labeling.sampling.motion_between`."""
    return evidence.camera_motion
