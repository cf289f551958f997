"""MEASURES this machine, so that the twin can predict it: `penstock calibrate`.

Reading guide: `run.py` (what is measured, in which order, and what is written), `operators.py` with `designed.py` and
`timed_kernels.py` (a model's operators inside real engine steps), `host.py` (what a step of the server costs beside
them), `probe.py` (was the machine calm?), `machine.py` and `stream.py` (products of other shapes, memory, copies).
Prices are made of it by twin/calibrated.py, which knows the table and not this room.
"""
