"""Kill and restart a small training run repeatedly, as the agent would; arguments: folder, number of kills."""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path

from drivetrain_workers.checkpoints.store import newest_valid

from tests.cluster.checkpoint_ranks import Case, start

_STEPS, _SAVE_EVERY = 40, 2
_CALLS, _LONGEST_LIFE_S = 60, 1.5


def gang(case: Case, life_s: float | None) -> tuple[bool, bool]:
    """Run one gang, for ``life_s`` seconds at most; returns whether it finished and whether it killed itself."""
    ranks = start(case)
    until = None if life_s is None else time.monotonic() + life_s
    alive = list(ranks)
    while alive:
        ended = wait([rank.sentinel for rank in alive], None if until is None else max(0.0, until - time.monotonic()))
        alive = [rank for rank in alive if rank.exitcode is None]
        if not ended or any(
            rank.exitcode for rank in ranks
        ):  # as the agent does: all ranks of a generation end together
            for rank in ranks:
                rank.kill()
                rank.join()
            break
    return all(rank.exitcode == 0 for rank in ranks), bool(ended) and bool(case.die_at_call)


def main() -> None:
    """Kill as often as asked, then let it finish; prints how often it died inside its own file calls."""
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    calm = Case(str(folder / "calm"), 2, 2, _STEPS, _SAVE_EVERY, keep=2)
    assert gang(calm, None)[0]
    case, draw = replace(calm, folder=str(folder / "disturbed")), random.Random(0)
    done, in_saves, newest = 0, 0, 0
    while done < kills:
        case = replace(case, generation=case.generation + 1, die_at_call=draw.randrange(1, _CALLS) * draw.randrange(2))
        finished, by_itself = gang(case, None if case.die_at_call else draw.uniform(0, _LONGEST_LIFE_S))
        found, problems = newest_valid(Path(case.folder) / "checkpoints")
        step = int(found.name.split("-")[1].split(".")[0]) if found else 0
        assert problems == []  # a kill leaves no invalid checkpoint
        assert step >= newest, f"step {step} after step {newest}"
        newest = step
        if finished:  # continue from the beginning
            case = replace(case, folder=str(folder / f"disturbed-{done}"))
            newest = 0
            continue
        done += 1
        in_saves += by_itself
    assert gang(replace(case, generation=case.generation + 1, die_at_call=0), None)[0]
    if case.folder != str(folder / "disturbed"):
        Path(folder / "disturbed").rename(folder / "disturbed-first")
        Path(case.folder).rename(folder / "disturbed")
    print(json.dumps({"kills": done, "in_saves": in_saves, "gangs": case.generation}))


if __name__ == "__main__":
    main()
