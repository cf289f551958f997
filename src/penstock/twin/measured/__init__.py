"""Prices from measurements: operator databases of other people's GPUs, and profiles in open formats.

Reading guide: `price.py` (the price), `tables.py` (which measurement answers for an operator), `curves.py` (between
the points), `database.py` (the files of aiconfigurator-core).
"""

from penstock.twin.measured.database import Database
from penstock.twin.measured.price import Measured

__all__ = ["Database", "Measured"]
