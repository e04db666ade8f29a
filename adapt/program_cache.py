"""Compiled programs persist between processes: a second start compiles nothing.

JAX keeps them by what they compute, the versions and the device. :func:`adapt.finetune` and the
other functions that train or encode call :func:`keep_programs`, as the commands do.
"""

import functools
import os
import warnings

import jax

from adapt.pretrained.assets import cache_folder

MINIMUM_SECONDS = "jax_persistent_cache_min_compile_time_secs"


@functools.cache
def keep_programs() -> None:
    """Have JAX keep compiled programs in ``compiled`` under the cache folder (``ADAPT_CACHE``).

    A folder that JAX was given before, by ``jax_compilation_cache_dir`` or
    ``JAX_COMPILATION_CACHE_DIR``, stays; ``JAX_ENABLE_COMPILATION_CACHE=false`` turns it off.
    """
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        if MINIMUM_SECONDS.upper() not in os.environ:
            jax.config.update(MINIMUM_SECONDS, 0.0)  # else only what compiled for a second is kept
    # A cache that can't be written saves no time; it is no reason to trouble anybody.
    warnings.filterwarnings(
        "ignore", "Error (reading|writing) persistent compilation cache", UserWarning
    )
