"""What the kernels must reach and what they aim at: the bars every run of the benches is held against.

Ratios are the time of the best public way over ours, both from the same run; on a GPU that of replays as CUDA graphs,
where both were captured. A target without a state is met by the better of dense and compact state; a target without a
rival is against the fastest way that touches every element.
"""

from dataclasses import dataclass
from typing import Literal

Metric = Literal["ratio", "copy share", "extra memory", "overhead"]
"""``ratio`` to a rival; share of the copy bandwidth; peak extra memory over the bytes of the accumulators; ``overhead``
in seconds, beyond those that a copy of as many bytes takes.
"""


@dataclass(frozen=True)
class Bar:
    must: float
    aim: float


@dataclass(frozen=True)
class Target:
    """A bar for every case whose fields agree with those given here; an empty field agrees with anything."""

    name: str
    cpu: Bar | None
    cuda: Bar | None
    work: str
    tensors: str = ""
    density: float | None = None
    pattern: str = ""
    state: str = ""
    rival: str = ""
    metric: Metric = "ratio"

    def bar(self, device: str) -> Bar | None:
        return self.cuda if device == "cuda" else self.cpu

    def covers(self, work: str, tensors: str, density: float | None, pattern: str, state: str) -> bool:
        return (
            self.work == work
            and self.tensors in ("", tensors)
            and self.density in (None, density)
            and self.pattern in ("", pattern)
            and self.state in ("", state)
        )

    def meets(self, value: float, limit: float) -> bool:
        return value <= limit if self.metric in ("extra memory", "overhead") else value >= limit


ADAMW = "adamw fp32"
STATISTICS = "accumulate sum + square"
SELECT = "select value"
SELECT_DIFFERENCE = "select difference"
SEGMENTS = "select segments"
GENERATE = "generate"
ENCODE = "encode files"
PROMPTS = "write prompts"
FEED = "feed images"
FEED_TO_STEPS = "feed training steps"

CLONE_FUSED_WHERE = "clone + fused + where"
FOUR_FOREACH = "four foreach ops"
PLAIN_DIFFUSERS = "plain diffusers"
KTHVALUE = "kthvalue + compare"
TOPK = "topk + scatter"
TOPK_LOOP = "topk + scatter, in a loop"
USUAL = "without shortcuts"
NO_FEED = "one batch again and again"

TARGETS = (
    Target("all-ones mask", Bar(0.95, 1.1), Bar(0.95, 1.1), ADAMW, density=1.0, pattern="all", state="dense"),
    Target("1% random", Bar(2.5, 6), Bar(6, 11), ADAMW, density=0.01, pattern="random"),
    Target("5% random", Bar(1.2, 2), Bar(2.2, 3.3), ADAMW, density=0.05, pattern="random"),
    Target("10% random", Bar(1.1, 1.6), Bar(1.6, 2.4), ADAMW, density=0.10, pattern="random"),
    Target("30% random", Bar(0.95, 1.1), Bar(1.2, 1.5), ADAMW, density=0.30, pattern="random"),
    Target("10% rows, dense state", Bar(5, 8), Bar(6, 8), ADAMW, density=0.10, pattern="rows", state="dense"),
    Target("10% rows, compact state", Bar(3, 6), Bar(6, 8), ADAMW, density=0.10, pattern="rows", state="compact"),
    Target("10% masked", Bar(4, 6), Bar(4, 8), ADAMW, density=0.10, pattern="random", rival=CLONE_FUSED_WHERE),
    Target("all statistics", Bar(3.5, 5), Bar(1.5, 1.7), STATISTICS, rival=FOUR_FOREACH),
    Target("select + mask", Bar(20, 60), None, SELECT, tensors="flat 1e8", rival=KTHVALUE),
    Target("select + mask", None, Bar(5, 15), SELECT, tensors="flat 1e8", rival=TOPK),
    # One read of the scores in 2x and 1.5x of its time.
    Target("select against one read", None, Bar(1 / 2, 1 / 1.5), SELECT, tensors="flat 1e8", metric="copy share"),
    Target(
        "select, launches and waiting",
        None,
        Bar(60e-6, 60e-6),
        SELECT_DIFFERENCE,
        tensors="ResNet-50",
        pattern="top-k",
        metric="overhead",
    ),
    Target("select, extra memory", Bar(0.05, 0.05), Bar(0.05, 0.05), SELECT, metric="extra memory"),
    Target("select, extra memory", Bar(0.05, 0.05), Bar(0.05, 0.05), SELECT_DIFFERENCE, metric="extra memory"),
    Target("select per tensor", Bar(5, 10), None, SEGMENTS, pattern="top-k per tensor", rival=TOPK_LOOP),
    Target("select per row", Bar(4, 8), None, SEGMENTS, pattern="top-k per row", rival=TOPK_LOOP),
    Target("select 2 of 4", Bar(6, 12), None, SEGMENTS, pattern="2 of 4", rival=TOPK_LOOP),
    Target(
        "demo's images", Bar(1.5, 2), None, GENERATE, "digits, 64 images", state="onnxruntime", rival=PLAIN_DIFFUSERS
    ),
    Target("digits, int8, 4 of 8 steps", Bar(2, 3), None, GENERATE, state="int8, 4 steps", rival=USUAL),
    Target("cropped images without waiting", Bar(3, 4), Bar(3, 4), FEED, state="crop + flip"),
    Target("flipped images without waiting", Bar(3, 8), Bar(3, 8), FEED, state="flip"),
    Target("images without waiting", Bar(3, 8), Bar(3, 8), FEED, state="unchanged"),
    Target("steps without waiting", Bar(0.95, 0.99), Bar(0.95, 0.99), FEED_TO_STEPS, rival=NO_FEED),
    Target("demo's images", None, Bar(1.6, 2), GENERATE, "digits, 64 images", state="tensorrt", rival=PLAIN_DIFFUSERS),
)
