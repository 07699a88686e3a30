"""The one exception that a user is meant to read."""


class FusetuneError(Exception):
    """A fault in what the user gave: says what was found, where, what was expected and what to do.

    The command line prints it as one line, without a traceback. Anything else that is raised is a fault of ours.
    """
