"""The account of a run in two lines."""

from __future__ import annotations

from datetime import timedelta

from drivetrain_pipelines.storage.json_files import JsonObject

_MAX_CLASSES = 4


def describe_time(account: JsonObject) -> str:
    """Describe the time of a run: total, goodput, and the largest classes.

    Args:
        account: as returned by `drivetrain.accounting.run_account.RunAccount.to_json`.
    """
    wall_s = account["wall_s"]
    largest = sorted(account["seconds"].items(), key=lambda entry: -entry[1])[:_MAX_CLASSES]
    shares = ", ".join(f"{name} {seconds / wall_s:.0%}" for name, seconds in largest if seconds > 0.005 * wall_s)
    return f"{timedelta(seconds=round(wall_s))}, goodput {account['goodput']:.0%}: {shares}"


def describe_cost(account: JsonObject) -> str:
    """Describe worker hours, dollars, energy and CO2, as far as they are known. Args: see `describe_time`."""
    parts = [f"{account['worker_hours']:.3g} worker hours"]
    if account["dollars"] is not None:
        parts.append(f"${account['dollars']:.2f}")
    if account["energy_kwh"] is not None:
        source = account["energy_from"].replace("estimate", "estimated")
        parts.append(f"{_scaled(account['energy_kwh'], 'kWh', 'Wh')} ({source})")
        parts.append(f"{_scaled(account['co2_kg'], 'kg', 'g')} CO2")
    return ", ".join(parts)


def _scaled(value: float, unit: str, thousandth: str) -> str:
    return f"{value:.3g} {unit}" if value >= 0.1 else f"{1000 * value:.3g} {thousandth}"
