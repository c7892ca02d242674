"""The description of an assessment."""

from __future__ import annotations

from drivetrain_pipelines.storage.json_files import JsonObject


def describe_assessment(found: JsonObject) -> list[tuple[str, str]]:
    """Return titles and texts: scores, worst slice and baseline. See `drivetrain_workers.assessment.assess`."""
    rows = []
    if scores := found["scores"]:
        rows.append(("assessed", ", ".join(f"{_words(name)} {value:.4g}" for name, value in scores.items())))
    if found["slices"]:
        worst = found["slices"][0]
        accuracy = "" if worst["accuracy"] is None else f"accuracy {worst['accuracy']:.3g}, "
        rows.append(("worst slice", f"{worst['name']}: {accuracy}loss {worst['loss']:.4g}, of {worst['decisions']:,}"))
    if baseline := found.get("baseline"):
        name, metric = baseline["name"], baseline["metric"]
        text = f"{name}: {metric} {baseline['scores'][metric]:.4g}, model {baseline['network']:.4g}"
        winner = "the model is better" if baseline["winner"] == "network" else f"{baseline['winner']} is better"
        rows.append(("baseline", f"{text}: {winner}"))
    return rows


def _words(name: str) -> str:
    return name.replace("_", " ")
