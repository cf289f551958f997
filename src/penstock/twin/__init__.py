"""What a step costs in seconds and joules on given hardware.

Reading guide: `load.py` (what a step asks), `operators.py` (work of each operator), `step_graph.py` (a step as
operators), `price.py` (what a price is) and the four prices `roofline.py`, `measured.py`, `calibrated.py`,
`learned.py`; `step_price.py` adds a graph up so that a step costs O(1); `twin.py` has the face of an engine.
"""
