"""Errors that a user can cause and mend."""


class ModelRefused(Exception):
    """The model cannot be used as asked; the message is one line that names the remedy."""
