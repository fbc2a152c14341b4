"""Quantizers: from float weights to stored encodings.

rtn, hqq need no data; gptq and awq take the Gram matrix of a layer's inputs. mixed chooses among
encodings under a byte budget.
"""
