"""Stages of a conversion, one a file; `converters.pipeline` puts them in order."""
