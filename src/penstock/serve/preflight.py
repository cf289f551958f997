"""What an app would refuse when the model is loaded, refused while it loads: that may take minutes."""

from __future__ import annotations

from penstock.deployment import Deployment
from penstock.observe.tracing import require_packages
from penstock.serve.auth import keys_of
from penstock.serve.server import listen


def check(deployment: Deployment) -> None:
    """Raises InvalidDeployment: the key file, the administration's port or the collector cannot be used."""
    server = deployment.server
    keys_of(deployment)
    if server.admin_port:
        listen("127.0.0.1", server.admin_port, field="server.admin_port").close()
    if server.trace_endpoint is not None:
        require_packages(server.trace_endpoint)
