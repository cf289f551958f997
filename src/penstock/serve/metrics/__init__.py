"""GET /metrics and the dashboard's numbers: everything counted once (`counts.py`), shown under two names.

`observe/definitions.py` says what there is; `exposition.py` joins it with the counts, and `live.py` gives the few that
the dashboard draws.
"""

from penstock.serve.metrics.counts import MAX_FIELD_NAMES, MAX_TENANTS, Metrics
from penstock.serve.metrics.exposition import CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "MAX_FIELD_NAMES", "MAX_TENANTS", "Metrics"]
