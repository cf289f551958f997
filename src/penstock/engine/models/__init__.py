"""One file per model family. decoder.py first: it is what all families but GPT-2 have in common."""
