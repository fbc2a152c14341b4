"""Numba kernels of the CPU executor. Importing this package's modules imports numba, but for
`layout`."""
