"""Labels of files that are one record each: from a list in the same folder, or a folder per class."""

from __future__ import annotations

from pyarrow import csv

from drivetrain_pipelines.errors import PrepareError
from drivetrain_pipelines.raw.sources import LIST_FILE, SourceFile, open_file
from drivetrain_pipelines.spec import StorageSpec


def read_labels(files: list[SourceFile], storage: StorageSpec) -> dict[str, str]:
    """Return the label of each file by its URL, without the list files; a file that is not in the list has no label.

    Raises:
        PrepareError: a list without the columns ``file`` and ``label``, or one that names a missing file.
    """
    lists = [file.url for file in files if file.url.endswith("/" + LIST_FILE)]
    urls = {file.url for file in files} - set(lists)
    if not lists:
        return {url: url.rsplit("/", 2)[-2] for url in urls}
    labels: dict[str, str] = {}
    for url in lists:
        with open_file(url, storage) as opened:
            table = csv.read_csv(opened)
        if not {"file", "label"} <= set(table.column_names):
            raise PrepareError(f"{url} has the columns {', '.join(table.column_names)}; file and label are needed")
        folder = url.removesuffix(LIST_FILE)
        labels |= {folder + str(row["file"]): str(row["label"]) for row in table.to_pylist()}
    if missing := sorted(labels.keys() - urls):
        raise PrepareError(f"{lists[0]} names {len(missing)} missing files, the first is {missing[0]}")
    return labels
