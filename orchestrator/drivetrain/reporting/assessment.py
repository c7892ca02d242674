"""An assessment in words."""

from __future__ import annotations

from drivetrain_pipelines.storage.checksums import JsonObject


def describe_assessment(found: JsonObject) -> list[tuple[str, str]]:
    """Titles and texts: scores, the worst part of the data, and who won. See `drivetrain_workers.assessment.assess`."""
    rows = []
    if scores := found["scores"]:
        rows.append(("assessed", ", ".join(f"{_words(name)} {value:.4g}" for name, value in scores.items())))
    if found["slices"]:
        worst = found["slices"][0]
        right = "" if worst["accuracy"] is None else f"accuracy {worst['accuracy']:.3g}, "
        rows.append(("worst slice", f"{worst['name']}: {right}loss {worst['loss']:.4g}, of {worst['decisions']:,}"))
    if baseline := found.get("baseline"):
        name, metric = baseline["name"], baseline["metric"]
        text = f"{name}: {metric} {baseline['scores'][metric]:.4g}, the network {baseline['network']:.4g}"
        winner = "the network wins" if baseline["winner"] == "network" else f"{baseline['winner']} wins"
        rows.append(("baseline", f"{text}: {winner}"))
    return rows


def _words(name: str) -> str:
    return name.replace("_", " ")
