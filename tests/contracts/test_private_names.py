"""Private names of Ray and DeepSpeed are used in one module each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from drivetrain.cluster import ray_internals
from drivetrain_workers.engine import deepspeed_internals

REPOSITORY = Path(__file__).parents[2]
SOURCES = [path for part in ("orchestrator", "workers", "pipelines") for path in (REPOSITORY / part).rglob("*.py")]
RAY = re.compile(r"\bray\.(_\w+|core\.generated|autoscaler\._private|autoscaler\.v2)|\bray_constants\b|\bGcsClient\b")
DEEPSPEED = re.compile(
    r"\b(_hp_mapping|[hl]p_fragment_address|ds_(numel|shape|tensor|id|status)|partition_numel|update_lp_params|param_names"
    r"|single_partition_of_fp32_groups|bit16_groups|fp16_groups|fp(32|16)_partitioned_groups\w*|sub_group_to_group_id"
    r"|persistent_parameters|checkpoint_event_(pro|epi)logue|dp_process_group|__compatible_ops__|cdb)\b"
)


@pytest.mark.parametrize(("names", "module"), [(RAY, ray_internals), (DEEPSPEED, deepspeed_internals)])
def test_private_names_stand_in_one_module(names: re.Pattern[str], module: object) -> None:
    where = {path for path in SOURCES if names.search(path.read_text())}
    assert where == {Path(str(module.__file__))}
