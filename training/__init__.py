"""Training on the lake's triples with Ray Train: dynamics models and world models, their data, loop and checkpoints."""
