"""Frame-pair sampling, the labeling stage, verifiers, and the Ray Data pipeline that chains them."""
