"""Tool calls: how families of models write them, read from a stream of any cutting, and required by a grammar.

Read `hermes.py` first, a format in thirty lines, then `source.py`, on which every format reads. `tool.py` says what a
format is, `choose.py` which one a model has, `rules.py` what their grammars share, `parts.py` what reading gives.
"""
