"""The attention mask, the degraded image and the difference it makes, over the steps: python scripts/visualize.py model=..."""

import builtins
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import MISSING, DictConfig, OmegaConf

import sag
from sag import storage
from sag.build import SampleConfig
from scripts.common import run

if TYPE_CHECKING:
    from sag.models import AttentionLayer


@dataclass
class VisualizeConfig:
    """The keys of configs/visualize.yaml and their types; the values are there."""

    model: Any = MISSING
    classifier: Any = None
    sampler: Any = MISSING
    guidance: dict[str, Any] = field(default_factory=dict)
    samples: builtins.list[int] = MISSING
    seed: int = MISSING
    size: Any = None
    labels: Any = MISSING
    path: str | None = None
    prompt: str | None = None
    prompts: str | None = None
    negative_prompt: str | None = None
    images_per_prompt: int = 1
    layers: builtins.list[str] | None = None
    moments: int = MISSING
    precision: str = MISSING
    device: str = MISSING
    out: str | None = None
    list: bool = MISSING


def layer_table(layers: "Mapping[str, AttentionLayer]") -> str:
    """The attention layers of a model."""
    lines = [f"{'layer':<12}{'resolution':>12}{'channels':>10}{'heads':>7}"]
    lines += [
        f"{name:<12}{f'{layer.resolution}x{layer.resolution}':>12}{layer.channels:>10}{layer.heads:>7}"
        for name, layer in layers.items()
    ]
    return "\n".join(lines)


def job_config(cfg: DictConfig) -> DictConfig:
    """Return a config as that of scripts/sample.py, which samples what this one asks for."""
    shared = OmegaConf.masked_copy(cfg, [key for key in SampleConfig.__dataclass_fields__ if key in cfg])
    count = len(cfg.samples)
    own = {"indices": list(cfg.samples), "num_samples": count, "batch_size": count, "bits": 8, "compile": False}
    return cast(DictConfig, OmegaConf.merge(SampleConfig, shared, own))


def main(cfg: DictConfig) -> None:
    """List the layers, or write a PNG and a GIF for each layer asked for."""
    import torch  # here, as --help does without what it and the pictures take to import

    from evaluations.study.pictures import draw_gif, draw_strip

    if cfg.list:
        if "denoiser" in cfg.model:  # its layers are known once it is loaded
            layers = sag.build.denoiser(job_config(cfg)).attention_layers
        else:
            with torch.device("meta"):
                layers = sag.build.outline(cfg.model).attention_layers
        print(layer_table(layers))
        return
    if cfg.moments < 1 or not cfg.samples or min(cfg.samples) < 0:
        raise ValueError(f"moments must be at least 1 and samples numbers >= 0, got {cfg.moments} and {list(cfg.samples)}")
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    settings = {key: value for key, value in settings.items() if key not in ("device", "out", "layers")}
    key = storage.settings_hash(settings)
    out = Path(cfg.out or f"outputs/visualize/{cfg.model.name}-{key[:8]}")
    shown = cfg.layers or [cfg.guidance.sag.layer] if "sag" in cfg.guidance else []
    names = [f"{layer}.{kind}" for layer in shown for kind in ("png", "gif")]
    storage.refuse_foreign(storage.LocalFolder(out), [storage.RECORD, *names], storage.own_files(storage.LocalFolder(out), key))
    found = sag.sampling.moments(sag.build.job(job_config(cfg)), cfg.layers, cfg.moments)
    storage.claim_files(storage.LocalFolder(out), settings, names)
    for layer, moments in found.items():
        draw_strip(moments, out / f"{layer}.png")
        draw_gif(moments, out / f"{layer}.gif")
        print(f"wrote {out / layer}.png and .gif")


def command() -> None:
    """Run this program with the arguments of the command line."""
    run(main, "visualize", VisualizeConfig)


if __name__ == "__main__":
    command()
