"""Pictures by diffusion: noise schedules, guidance, cache policies and the sampling loop, in NumPy.

Only `pieces` and `resize` know graphs, nothing a device: a network is given as callables
(`loop.Denoiser`).
"""
