"""How a step's token budget is filled. Each file is one rule; `fill.py` says what a rule can ask for."""
