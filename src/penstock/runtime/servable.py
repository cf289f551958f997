"""What a file may say and a server cannot do yet is refused by name, not passed over: the twin alone models it."""

from __future__ import annotations

from penstock.deployment import Cluster, Deployment, Layout, Precision
from penstock.errors import InvalidDeployment


def require_servable(deployment: Deployment) -> None:
    """Raises InvalidDeployment: more than one replica on one device, or another precision than model.dtype."""
    asked: tuple[tuple[str, object, object, str], ...] = (
        *(
            (f"layout.{name}", getattr(deployment.layout, name), field.default, "a server runs on one device")
            for name, field in Layout.model_fields.items()
            if name != "devices_per_node"
        ),
        (
            "cluster.replicas",
            deployment.cluster.replicas,
            Cluster.model_fields["replicas"].default,
            "a server runs one",
        ),
        ("memory.host_tier", deployment.memory.host_tier, None, "a server swaps to the memory it runs in"),
        *(
            (f"precision.{name}", getattr(deployment.precision, name), None, "a server computes as model.dtype says")
            for name in Precision.model_fields
            if getattr(deployment.precision, name) != _served(deployment, name)
        ),
    )
    for field, value, default, why in asked:
        if value != default:
            raise InvalidDeployment(
                field=field, value=value, why=why, remedy="leave it out to serve; `penstock simulate` models it"
            )


def _served(deployment: Deployment, part: str) -> str:
    model = deployment.model
    return model.compute_dtype if part in ("activations", "kv") else model.weights_dtype
