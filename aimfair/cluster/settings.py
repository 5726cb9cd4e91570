"""Settings of work in other processes."""

from pydantic import Field

from aimfair.base.settings import Settings


class ClusterSettings(Settings):
    """What a task takes under ``--on ray``; no result depends on it."""

    cpus: float | None = Field(
        None,
        gt=0,
        le=1024,
        description="CPUs that a task takes; null: as many as it has threads, with a GPU the share of one",
    )
    gpus: float | None = Field(
        None,
        ge=0,
        le=64,
        description="GPUs that a task with a model takes, or the part of one; null: 1 if the cluster has any and device"
        " is not cpu, else 0",
    )
    retries: int = Field(3, ge=0, le=100, description="how often a task is started again whose worker was lost")
