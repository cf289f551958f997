"""The control plane: every decision of a replica, and no I/O. No torch, no threads, no clock; time is an argument.

Read in this order: `step.py` (what goes out and what comes back), `replica.py` (submit, cancel, plan, commit), then
one part of each kind: `order/arrival.py`, `compose/stall_free.py`, `evict/recompute.py`, `memory/paged.py`. `policy.py`
names the combinations. A new paper is a new part in one of these folders, not a new scheduler.
"""
