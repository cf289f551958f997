"""The one file: what is served, on what, under which policy. `serve`, `bench` and the twin read the same YAML.

Every key has a default, so an empty file serves the model in the box. A section checks itself; rules across sections
are named functions below. Every key is also a flag (`--policy.token-budget 256`) and an environment variable
(`PENSTOCK_POLICY__TOKEN_BUDGET=256`); the order of precedence is flag, environment, file, default.
"""

from penstock.deployment.access import Key
from penstock.deployment.file import Deployment, keys, merge, overlaid
from penstock.deployment.readers import Reader, why_unread
from penstock.deployment.rules import is_loopback
from penstock.deployment.section import Section
from penstock.deployment.serving import Hardware, Memory, Model, Policy, Server
from penstock.deployment.simulation import Cluster, Layout, Precision, Slo, Twin, Workload

__all__ = [
    "Cluster", "Deployment", "Hardware", "Key", "Layout", "Memory", "Model", "Policy", "Precision", "Reader", "Section",
    "Server", "Slo", "Twin", "Workload", "is_loopback", "keys", "merge", "overlaid", "why_unread",
]  # fmt: skip
