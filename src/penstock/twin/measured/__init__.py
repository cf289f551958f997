"""Prices from measurements: operator databases of other people's GPUs, and profiles in open formats.

Reading guide: `price.py` (the price from databases), `tables.py` (which measurement answers for an operator),
`database.py` (the files of aiconfigurator-core), `profiles.py` (one deployment's own profile, and the open format),
`layerwise.py` (other simulators' profiles), `curves.py` (between the points).
"""

from penstock.twin.measured.database import Database
from penstock.twin.measured.layerwise import read_serving_sim, read_vidur
from penstock.twin.measured.price import Measured
from penstock.twin.measured.profiles import InvalidProfile, Profile, read_profile

__all__ = ["Database", "InvalidProfile", "Measured", "Profile", "read_profile", "read_serving_sim", "read_vidur"]
