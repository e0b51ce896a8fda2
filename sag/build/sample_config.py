"""The keys of configs/sample.yaml."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class SampleConfig:
    """The keys of configs/sample.yaml and their types; the values are there."""

    model: Any = MISSING
    classifier: Any = None
    sampler: Any = MISSING
    guidance: dict[str, Any] = field(default_factory=dict)
    num_samples: int = MISSING
    batch_size: int = MISSING
    seed: int = MISSING
    indices: list[int] | None = None
    size: list[int] | None = None
    bits: int = MISSING
    labels: Any = MISSING
    low_res: str | None = None
    path: str | None = None
    prompt: str | None = None
    prompts: str | None = None
    negative_prompt: str | None = None
    images_per_prompt: int = 1
    precision: str = MISSING
    compile: bool = MISSING
    device: str = MISSING
    out: str | None = None
    duplicates: str | None = None
    published: Any = None
