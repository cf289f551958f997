"""Which price a deployment gets: by name, or the best-founded one there is for its hardware."""

from __future__ import annotations

from pathlib import Path

from penstock.catalog.device import Device
from penstock.catalog.shape import ModelShape
from penstock.deployment import Deployment
from penstock.errors import InvalidDeployment
from penstock.twin.price import OperatorPrice
from penstock.twin.roofline import Roofline


def operator_price(deployment: Deployment, device: Device, shape: ModelShape) -> tuple[OperatorPrice, list[str]]:
    """The price of single operators, and notes on the choice for the report.

    Raises InvalidDeployment: the price that was asked for has no data for this hardware; the remedy says what has.
    """
    asked = deployment.twin.price
    roofline = Roofline(device)
    if asked == "roofline":
        return roofline, []
    if asked == "calibrated" or (asked == "auto" and deployment.twin.data is None):
        from penstock.twin.calibrated import calibration_of

        table = calibration_of(device)
        if table is not None:
            return table, []
        if asked == "calibrated":
            own = f"penstock calibrate --out {device.name}" if device.kind == "cpu" else "penstock calibrate"
            raise InvalidDeployment(
                field="twin.price", value="calibrated", why=f"{device.name} has no measurements of its own",
                remedy=f"hardware.name: a machine that `{own}` measured; or twin.price: roofline",
            )  # fmt: skip
    if asked == "learned":
        return _learned(deployment, device, roofline)
    return _measured(deployment, device, roofline)


def _measured(deployment: Deployment, device: Device, roofline: Roofline) -> tuple[OperatorPrice, list[str]]:
    from penstock.twin.measured import Database, Measured

    twin, asked = deployment.twin, deployment.twin.price
    if twin.data is not None and (profile := _profile(Path(twin.data).expanduser(), roofline)) is not None:
        return profile, [f"priced by the profile {Path(twin.data).name}, whatever device it was measured on"]
    if device.measured_as is None:
        if asked == "measured":
            raise InvalidDeployment(
                field="twin.price", value="measured", why=f"no operator database holds {device.name}",
                remedy="twin.price: roofline, or hardware that `penstock inspect hardware` shows as measured",
            )  # fmt: skip
        return roofline, [f"no operator measurements of {device.name}: priced by the limits of the hardware"]
    try:
        database = Database(
            device.measured_as,
            twin.backend,
            twin.backend_version,
            None if twin.data is None else Path(twin.data).expanduser(),
        )
    except InvalidDeployment as error:
        if asked == "measured" or twin.data is not None:
            raise
        return roofline, [f"priced by the limits of the hardware: {error}"]
    return Measured(database, roofline), []


def _profile(path: Path, roofline: Roofline) -> OperatorPrice | None:
    """The price of a profile file, or of a folder of LLMServingSim's; None: a folder of databases."""
    from penstock.twin.measured import read_profile, read_serving_sim

    if path.is_file():
        return read_profile(path, roofline)
    if any(path.glob("dense.csv*")):
        return read_serving_sim(path, roofline)
    if not path.is_dir():
        raise InvalidDeployment(
            field="twin.data", value=str(path), why="there is no such file or directory",
            remedy="a profile (CSV or Parquet), a folder of LLMServingSim's profiler, or one of operator databases",
        )  # fmt: skip
    return None


def _learned(deployment: Deployment, device: Device, roofline: Roofline) -> tuple[OperatorPrice, list[str]]:
    from penstock.twin.calibrated import calibration_of
    from penstock.twin.learned import Learned

    data = deployment.twin.data
    path = None if data is None else Path(data).expanduser()
    if path is None or not path.is_file():
        raise InvalidDeployment(
            field="twin.data", value=data, why="a learned price is read from a file of its own",
            remedy="twin.data: a file that `penstock learn PROFILE --out FILE` wrote",
        )  # fmt: skip
    # What was not learned of a calibrated machine (norms, copies) was measured all the same.
    learned = Learned.load(path, calibration_of(device) or roofline)
    other = learned.trained_on and learned.trained_on != device.name
    return learned, [f"the learned price was trained on {learned.trained_on}, not on {device.name}"] if other else []
