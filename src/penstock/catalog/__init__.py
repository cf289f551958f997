"""KNOWS: the models in the box, as data. `load.py` finds them."""

from penstock.catalog.load import models_in_the_box, resolve_model

__all__ = ["models_in_the_box", "resolve_model"]
