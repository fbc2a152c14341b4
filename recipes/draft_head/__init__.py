"""A draft head for `lm-edgert-60m`, trained twice: towards the law, and towards right guesses."""
