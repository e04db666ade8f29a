"""Errors that a user can mend.

Each message is one sentence that says what is wrong, where, and what to do about it. A program
catches :class:`AdaptError` or one of its kinds. A command prints ``error: <message>`` on stderr and
exits with status 2.
"""

LONGEST_LINE = 900  # characters of a message's line
BEGINNING = 600  # and END: what is kept of a longer one
END = 250


class AdaptError(ValueError):
    """The base of all errors of this library.

    A message may quote a value of a damaged file: a line of it that is longer than anybody reads
    loses its middle. What is wrong stands at its beginning, the mend at its end.
    """

    def __init__(self, message: str = ""):
        super().__init__("\n".join(map(without_middle, str(message).split("\n"))))


def without_middle(line: str) -> str:
    """The line; one of more than LONGEST_LINE characters has ``...`` in place of its middle."""
    if len(line) <= LONGEST_LINE:
        return line
    return f"{line[:BEGINNING]} ... {line[-END:]}"


class TreeError(AdaptError):
    """Two parameter trees differ, or a subtree is missing."""


class RuleError(AdaptError):
    """A rule wins no parameter, a parameter matches no rule, or one has no label."""


class StrategyError(AdaptError):
    """A strategy is unknown, or does not fit the model or the other options."""


class CheckpointError(AdaptError):
    """A checkpoint is missing, incomplete, corrupt or of an unknown architecture."""


class AssetError(AdaptError):
    """A bundled asset can't be fetched, or has other bytes than expected."""


class DataError(AdaptError):
    """A data file, a column, a text or a label can't be used."""


class OutputError(AdaptError):
    """An output folder exists already, or a disk is full."""


class BucketError(AdaptError):
    """A bucket can't be read or written, or its client is not installed."""


class ExportError(AdaptError):
    """The asked format can't express a model."""


class ExtensionError(AdaptError):
    """A module of one's own can't be imported, or a run needs one that nobody has imported."""


class TrainingError(AdaptError):
    """Training can't go on, for the loss is not finite."""


class DivergedError(TrainingError):
    """The loss is not finite after ``steps`` steps, or in the one after them."""

    def __init__(self, message: str, steps: int):
        super().__init__(message)
        self.steps = steps


class MeshError(AdaptError):
    """A mesh does not fit the devices, the batch or a parameter, or processes disagree."""


def first_line(error: BaseException) -> str:
    """The first line of a message of another library, which may run over many."""
    message = str(error).strip() or type(error).__name__
    return message.splitlines()[0]
