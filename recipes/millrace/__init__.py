"""How Millrace, the model that ships in Penstock's box, is made: from a grammar to weights, with one command.

Read in this order: `corpus` and `skills` (what it learns from), `dialogues` (how it talks), `stream` (how that becomes
batches), `model` and `train` (how it learns), `score` (what it then can do). `split` says what it never sees.
"""
