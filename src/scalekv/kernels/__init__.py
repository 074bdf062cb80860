"""Loops over keys and values in machine code, for CPUs: what takes dozens of passes in PyTorch takes one or two.

They need numba, the extra ``scalekv[cpu]``. Without it, and on other devices, PyTorch does the same; the results are
the same to the last bit, so that nothing but time depends on it.
"""

from scalekv.kernels.launch import IntegerForm, Searching, decode, encode, merge, runs_on

__all__ = ["IntegerForm", "Searching", "decode", "encode", "merge", "runs_on"]
