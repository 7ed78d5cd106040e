"""Frame-pair sampling, the labelling stage, verifiers, and the Ray Data pipeline that chains them."""
