"""Training of the builtin models on the sample world: `python -m training.builtin --help`."""
