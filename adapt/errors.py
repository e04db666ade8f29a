"""What a user can get wrong, one class a room: the sentence says what, where, and the mend.

A library caller catches the type; a command prints `error: <sentence>` on stderr and exits with status 2.
"""


class AdaptError(ValueError):
    """The base: catch this one to catch them all."""


class TreeError(AdaptError):
    """Two parameter trees differ, or a subtree is not there."""


class RuleError(AdaptError):
    """A label rule matches nothing, or a leaf matches no rule."""


class StrategyError(AdaptError):
    """An unknown strategy, or one that does not fit this model or these flags."""


class CheckpointError(AdaptError):
    """A checkpoint that is missing, incomplete, corrupt or of an unknown architecture."""


class AssetError(AdaptError):
    """A bundled asset that can't be fetched, or whose bytes are not the expected ones."""


class DataError(AdaptError):
    """A data file, a column, a text or a label that can't be used."""


class OutputError(AdaptError):
    """An output folder that exists, or a disk that is full."""


class ExportError(AdaptError):
    """A model that the format asked for can't express."""


class ExtensionError(AdaptError):
    """A module of one's own that can't be imported, or that a run needs and nobody has imported."""


class TrainingError(AdaptError):
    """Training can't go on: the loss is not finite."""


class MeshError(AdaptError):
    """A mesh that does not fit the devices, the batch or a parameter; processes that do not agree."""
