"""Speculative decoding: guesses of the next tokens, checked by the model in one step.

`proposer` says what a source of guesses is; `ngram` and `small` are two of them; `verify` decides
which guesses stand, `controller` how many are worth their time, `cycle` is the part of a request
that puts these together, `options` is what callers ask for.
"""
