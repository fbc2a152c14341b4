"""Quantizers: from float weights to stored encodings."""
