"""Whether compiled loops can be had. No torch."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether numba is there (``pip install 'scalekv[cpu]'``) and not told to leave code as it is.

    ``NUMBA_DISABLE_JIT=1`` in the environment is such a word: without compiling, PyTorch is much quicker.
    """
    try:
        from numba import config
    except ImportError:  # absent, or refuses this version of numpy
        return False
    return not config.DISABLE_JIT
