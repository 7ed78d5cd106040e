"""Generate drawn clips whose every event is known: training data of the builtin models, and truth to measure by."""
