"""Weights as a dictionary times sparse codes: COMPOT (arXiv 2602.15200) and its baselines.

    gram = GramAccumulator(576); gram.add(inputs)       # whiten.py: calibration inputs of a layer
    size = choose(*weight.shape, ratio=0.2)             # budget.py; weight [inputs, outputs]
    factors = compot(weight, whiten(gram.finish()), size.k, size.s)
    factors.product(), factors.error                    # A S, and its relative error on the inputs

NumPy only, float64 inside. Letters: m inputs, n outputs, k atoms, s non-zeros for each output.
"""
