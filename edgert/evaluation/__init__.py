"""Quality: perplexity, zero-shot tasks, and checks of a bundle against its own answers."""
