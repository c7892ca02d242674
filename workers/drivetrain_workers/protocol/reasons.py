"""The reasons why a generation of ranks, or a run, ended; shared by workers and control plane."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Reason why a generation, or a run, ended."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    BUDGET_SPENT = "budget_spent"
    RANK_KILLED = "rank_killed"
    COLLECTIVE = "collective"
    HUNG = "hung"
    AGENT_LOST = "agent_lost"
    STORAGE = "storage"
    USER_CODE = "user_code"
    OUT_OF_MEMORY = "out_of_memory"
    SMALLER_BATCHES = "smaller_batches"
    BAD_STEP = "bad_step"
    REWOUND = "rewound"
    RESUME_MISMATCH = "resume_mismatch"
    INPUT = "input"
    PREPARE_FAILED = "prepare_failed"
    PLACEMENT_FAILED = "placement_failed"
    INTERNAL = "internal"
