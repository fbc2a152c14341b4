"""This machine: speed measurements and a check of what is installed."""
