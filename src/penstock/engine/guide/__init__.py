"""Guided decoding: which tokens may come next if the text is to obey a grammar.

Read `grammar.py` first: JSON schemas, expressions, choices as one text that the library (llguidance) understands.
`matching.py` is one sequence's place in its grammar, `guides.py` compiles grammars and keeps the places, `masks.py`
computes the masks of a step beside the model. `checker.py` is a process of its own in which the front end tries what a
client sent before anybody else sees it. Engine and sampler alone know of this package, and nothing here imports torch.
"""
