"""What a frozen prefix makes of the data, computed once and read by every later epoch and run.

:mod:`~adapt.prefix_cache.states` computes the states of a file of examples,
:mod:`~adapt.prefix_cache.store` keeps them on disk, and :mod:`~adapt.prefix_cache.policy` decides
whether that pays. A training loop of one's own needs :func:`with_states` alone.
"""

from adapt.prefix_cache.policy import CacheDecision, choose, with_states

__all__ = ["CacheDecision", "choose", "with_states"]
