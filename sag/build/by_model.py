"""Values of a config that depend on the model: `"${by_model:{adm_imagenet128: 0.1, with_classes: 0.2, other: 0.5}}"`.

The first entry that holds for the model counts:

- the name of a config in configs/model/, if the network of the model is that of this config;
- `latent`, if the model denoises latents: its config says `latent: true`;
- `with_classes`, if the network is class-conditional;
- `up_to_64`, or any other number, if images have at most so many pixels on a side;
- `other`, always.
"""

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from sag.build.checks import nodes


def by_model(values: Mapping[str, Any], *, _root_: DictConfig) -> Any:
    """Return the value for the model of a config.

    Args:
        values: The values by what they are for.
        _root_: The config.

    Raises:
        ValueError: If no entry holds for the model.
    """
    model = _root_.get("model") or {}
    network = model.get("network") or {}
    for entry, value in values.items():
        size = re.fullmatch(r"up_to_(\d+)", entry)
        if (
            entry in (model.get("name"), "other")
            or (entry == "latent" and model.get("latent"))
            or (entry == "with_classes" and network.get("num_classes") is not None)
            or (size and network.get("image_size", float("inf")) <= int(size[1]))
        ):
            return value
    raise ValueError("no entry of by_model holds for this model")


def fix_values(cfg: DictConfig, name: str | None) -> bool:
    """Replace the values that depend on the model by what they are for a model, whatever it is called later.

    Args:
        cfg: The config, which is changed.
        name: The config in configs/model/ whose network the model has, or None.

    Returns:
        Whether there were any.

    Raises:
        ValueError: If a value is not known for the model.
    """
    given, cfg.model.name, found = cfg.model.name, name, False
    for node in nodes(cfg):
        raw: Any = OmegaConf.to_container(node, resolve=False)
        for key in [key for key, value in raw.items() if isinstance(value, str) and "${by_model:" in value]:
            try:
                node[key], found = node[key], True
            except InterpolationResolutionError as error:
                place = node._get_full_key(key)
                raise ValueError(f"{place} has no value for this model; give {place}=...") from error
    cfg.model.name = given
    return found


OmegaConf.register_new_resolver("by_model", by_model, replace=True)
