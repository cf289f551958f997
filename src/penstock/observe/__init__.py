"""TELLS: what a server says about itself, in the forms that operators' tools read.

Read `definitions.py` first: one table of every metric. `serve/metrics/` fills it with values; `reference.py` writes it
as a page, `grafana.py` as a dashboard, `alerts.py` holds rules over it. `tracing.py` makes OpenTelemetry spans of a
request that has ended, `request_log.py` its one line in the log.
"""
