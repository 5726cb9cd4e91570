"""Settings of the evaluation."""

from pydantic import Field

from aimfair.base.settings import Settings


class EvaluateSettings(Settings):
    """Metrics on the test images."""

    batch_size: int = Field(256, ge=1, description="images at a time")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of every interval")
    replicates: int = Field(10_000, ge=100, le=1_000_000, description="bootstrap replicates")
    bins: int = Field(15, ge=1, description="of confidence, for calibration errors")
    small_group: int = Field(30, ge=0, description="groups with fewer images are flagged")
