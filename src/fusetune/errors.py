"""The exceptions that a user is meant to read."""


class FusetuneError(Exception):
    """A fault in what the user gave: says what was found, where, what was expected and what to do.

    The command line prints it as one line, without a traceback. Anything else that is raised is a fault of ours.
    """


class SampleError(FusetuneError):
    """A fault of one of several samples, for whoever knows where it comes from.

    Attributes:
        number: of the sample, from 0.
        modality: its name.
        fault: what is wrong with it, without either.
    """

    def __init__(self, number: int, modality: str, fault: str) -> None:
        super().__init__(number, modality, fault)
        self.number, self.modality, self.fault = number, modality, fault

    def __str__(self) -> str:
        return f"sample {self.number}, '{self.modality}': {self.fault}"
