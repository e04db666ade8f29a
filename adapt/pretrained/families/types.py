"""What the functions of a family take and give."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Entries = Mapping[str, Any]  # of config.json
Fields = dict[str, Any]  # of EncoderConfig
Tensors = dict[str, np.ndarray]
Found = tuple[Any, Tensors]  # a head, and the tensors by the names of the table
