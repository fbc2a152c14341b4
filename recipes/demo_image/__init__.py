"""The demo picture model: a small text-to-picture model, trained from random weights on two open
emoji sets and generated scenes (`run.py`).
"""
