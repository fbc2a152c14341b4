"""Pictures by diffusion: noise schedules, guidance, cache policies and the sampling loop, in NumPy.

Nothing here knows a graph or a device: a network is given as callables (`loop.Denoiser`).
"""
