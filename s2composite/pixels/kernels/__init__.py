"""The numba kernels, one plain function each."""
