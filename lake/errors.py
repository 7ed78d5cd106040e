"""Errors that a user can cause and mend."""


class Refused(Exception):
    """The request cannot be served as it stands; the message is one line that names the remedy (exit code 2)."""


class Superseded(Exception):
    """Another process has taken over; nothing more may be committed by this one (exit code 1)."""


class Fenced(Superseded):
    """A `forget` or a `repair` came by and ended every open writer; run the command again (exit code 1)."""


class Stalled(Exception):
    """A run has got nowhere for so long that it was ended; the message is its diagnosis (exit code 1)."""


class SourceChanged(Exception):
    """A source file changed under its uri while it was read."""
