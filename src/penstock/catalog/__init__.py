"""KNOWS: models and hardware, as data with a source each.

Reading guide: `shape.py` (a model as widths and counts), `config.py` (the same from any config.json), `demand.py` (its
FLOP and bytes), `models_by_name.py` (from a name to a shape), `device.py` (hardware), `hardware_load.py` (from a name
to hardware). `load.py` finds checkpoints.
"""

from penstock.catalog.load import models_in_the_box, resolve_model
from penstock.catalog.models_by_name import architectures, model_shape

__all__ = ["architectures", "model_shape", "models_in_the_box", "resolve_model"]
