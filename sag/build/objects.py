"""What configs describe: networks with their weights, denoisers, guidance methods, and jobs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from sag.build.composing import identity
from sag.build.groups import choices, load_config
from sag.checkpoints import CheckpointMismatch, load_network, log_notes
from sag.data import ImageSource, NpzImages, SelectedImages
from sag.data.prompts import read_prompts
from sag.devices import pick_device, set_up
from sag.diffusion import Denoiser, Model
from sag.guidance import ClassifierGuidance, Guidance
from sag.models import UpsamplingUNet
from sag.noise import sample_labels
from sag.sampling.job import Job, check_batch_size, check_indices
from sag.storage import CacheError


def network(node: DictConfig, device: torch.device, precision: str = "float32", compiled: bool = False) -> Any:
    """Build a network and load its weights.

    Args:
        node: A config of the group model or classifier: `network` and `checkpoint`.
        device: Where the network goes.
        precision: "float32", "bfloat16" or "float16".
        compiled: Whether it is compiled at its first call.

    Raises:
        ValueError: If there are no weights, or they do not fit; the message names the configs that they do fit.
        OSError: If the weights cannot be fetched; the message has their size and the command that fetches them.
    """
    if node.checkpoint is None:
        raise ValueError(f"{node._get_full_key('checkpoint')} is missing: the file or address of the weights")
    with torch.device("meta"):
        built = instantiate(node.network, _convert_="all")
    try:
        notes = load_network(built, node.checkpoint)
    except CheckpointMismatch as error:
        fitting = _fitting_configs(error.shapes)
        advice = f"its entries fit {' or '.join(fitting)}" if fitting else "no config in configs/ has these entries"
        raise ValueError(f"{error}; {advice}") from error
    except OSError as error:
        if "://" not in node.checkpoint or isinstance(error, CacheError):
            raise
        size = sum(4 * value.numel() for value in built.state_dict().values()) / 1e9
        raise OSError(
            f"{error}; where there is one, python scripts/download.py what=[{_name(node)}] fetches the {size:.2f} GB"
        ) from error
    log_notes(node.checkpoint, notes)
    set_up(built, device, precision, compiled)
    return built


def _name(node: DictConfig) -> str:
    """Return the name of a model, given its config or that of its autoencoder."""
    parent: Any = node._get_parent()
    return str(node.name if "name" in node else parent.name)


def guidance(node: Mapping[str, DictConfig], load: Callable[[DictConfig], Any]) -> list[Guidance]:
    """Build the techniques of the config list `guidance`, in its order.

    Args:
        node: Their configs, by name.
        load: Builds a network that a technique names, such as a classifier.

    Raises:
        ValueError: If a technique names a network which is not configured, or an argument is out of range.
    """
    techniques = []
    for name, arguments in node.items():
        networks = {}
        for key, value in arguments.items():
            if value is None:
                names = ", ".join(choices(str(key)))
                raise ValueError(
                    f"guidance {name!r} needs a {key!s}, and this model comes with none; add {key!s}=... (one of {names})"
                )
            if OmegaConf.is_dict(value) and "checkpoint" in value:
                networks[str(key)] = load(value)
        rest = {key: value for key, value in arguments.items() if key not in networks}
        techniques.append(instantiate(rest, _convert_="all", **networks))
    return techniques


def denoiser(cfg: DictConfig) -> Model:
    """Build the model of a config, without guidance, and load its weights.

    Example:
        >>> import sag
        >>> sag.build.denoiser(sag.compose("sample", ["model=fashion32", "device=cpu"])).shape
        (1, 32, 32)

    Args:
        cfg: Composed from configs/sample.yaml. Its model has `network` and `diffusion` (and `autoencoder`, if it denoises
            latents), or `denoiser`, which is called with `device`, `precision` and `compiled` and returns a `Model`.

    Raises:
        ValueError: If device, precision, network or weights do not fit.
        OSError: If the weights cannot be fetched.
    """
    device = pick_device(cfg.device, cfg.precision)
    if "denoiser" in cfg.model:
        arguments: Any = OmegaConf.to_container(cfg.model.denoiser, resolve=True)
        make = get_object(arguments.pop("_target_"))
        own: Model = make(**arguments, device=device, precision=cfg.precision, compiled=cfg.compile)
        return own
    built = network(cfg.model, device, cfg.precision, cfg.compile)
    of_latents = cfg.model.get("autoencoder")
    # In half precision, large activations of published autoencoders overflow
    autoencoder = None if of_latents is None else network(of_latents, device, compiled=cfg.compile)
    return Denoiser(built, instantiate(cfg.model.diffusion), cfg.model.null_label, autoencoder)


def outline(model: DictConfig) -> Denoiser:
    """Build a model without its weights, on torch's default device: random numbers, or none on the device "meta".

    Example:
        >>> import sag, torch
        >>> with torch.device("meta"):
        ...     outline = sag.build.outline(sag.compose("sample", ["model=adm_imagenet256"]).model)
        >>> sum(p.numel() for p in outline.network.parameters())
        553838086

    Args:
        model: A config of the group model.

    Raises:
        ValueError: If the config does not describe a network, as those of models in folders.
    """
    if "network" not in model:
        raise ValueError(f"the networks of {model.name} are known only once their files are loaded; sample some images instead")
    of_latents = model.get("autoencoder")
    return Denoiser(
        instantiate(model.network, _convert_="all").eval().requires_grad_(False),
        instantiate(model.diffusion),
        model.null_label,
        None if of_latents is None else instantiate(of_latents.network, _convert_="all").eval().requires_grad_(False),
    )


def job(cfg: DictConfig, model: Model | None = None) -> Job:
    """Load and check all that a config names.

    Example:
        >>> import sag
        >>> job = sag.build.job(sag.compose("sample", ["num_samples=16", "batch_size=8", "device=cpu"]))
        >>> len(job.indices), len(job.shards), job.target
        (16, 2, 'samples_16x32x32x3.npz')

    Args:
        cfg: Composed from configs/sample.yaml.
        model: The model of the config, if it is built already; None builds it.

    Returns:
        What `sag.sampling.run` takes.

    Raises:
        ValueError: If something cannot be sampled.
        OSError: If a file cannot be read or fetched.
    """
    indices, device = choose_indices(cfg), pick_device(cfg.device, cfg.precision)
    model, sampler = model or denoiser(cfg), instantiate(cfg.sampler)
    sampler.respace(model)  # steps that the schedule cannot have are refused before anything else is loaded
    techniques = guidance(cfg.guidance, lambda node: network(node, device, cfg.precision, cfg.compile))
    low_res, low_res_labels = _read_low_res(cfg, model, indices)
    return Job(
        model,
        identity(cfg),
        indices,
        techniques,
        sampler,
        cfg.seed,
        low_res_labels or choose_labels(cfg, indices, model, techniques),
        low_res,
        model.sample_size(cfg.size),
        cfg.bits,
        cfg.batch_size,
        cfg.duplicates,
        device,
        choose_prompts(cfg, indices, model),
    )


def choose_indices(cfg: DictConfig) -> list[int]:
    """Return which samples a config asks for.

    Raises:
        ValueError: If there are none, one is negative or repeated, or the batch size is impossible.
    """
    check_batch_size(cfg.batch_size)
    if cfg.indices is None:
        if cfg.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {cfg.num_samples}")
        return list(range(cfg.num_samples))
    check_indices(cfg.indices)
    return list(cfg.indices)


def choose_prompts(cfg: DictConfig, indices: Sequence[int], denoiser: Model) -> list[str] | None:
    """Return the texts of the samples, or None where the model takes no text.

    Raises:
        ValueError: If the model takes no text, both `prompt` and `prompts` are given, or the file has too few prompts.
        OSError: If the file cannot be read.
    """
    if not denoiser.takes_text:
        if cfg.prompt is not None or cfg.prompts is not None:
            raise ValueError(f"{cfg.model.name} takes no text; leave out prompt and prompts")
        return None
    if cfg.prompts is None:
        if cfg.images_per_prompt != 1:
            raise ValueError("images_per_prompt needs prompts=FILE; of one prompt, num_samples images are made")
        return [cfg.prompt or ""] * len(indices)
    if cfg.prompt is not None:
        raise ValueError("give either prompt, a text, or prompts, a file; not both")
    if cfg.images_per_prompt < 1:
        raise ValueError(f"images_per_prompt must be at least 1, got {cfg.images_per_prompt}")
    prompts, each = read_prompts(cfg.prompts), cfg.images_per_prompt
    if max(indices) >= len(prompts) * each:
        what = f"num_samples={len(indices)}" if cfg.indices is None else f"sample {max(indices)} of indices"
        raise ValueError(
            f"{what} needs {-(-(max(indices) + 1) // each)} prompts (images_per_prompt={each}), but {cfg.prompts} has "
            f"{len(prompts)}; set num_samples={len(prompts) * each}"
        )
    return [prompts[index // each] for index in indices]


def choose_labels(cfg: DictConfig, indices: Sequence[int], denoiser: Model, guidance: Sequence[Guidance]) -> list[int] | None:
    """Return the labels of the samples, or None where neither network nor guidance has classes.

    Raises:
        ValueError: If labels are out of range, or networks disagree on the number of classes.
    """
    count, null_label = denoiser.num_classes, denoiser.condition().null_label
    classes = {} if count is None else {"the model": count - (null_label is not None)}
    for g in guidance:
        if isinstance(g, ClassifierGuidance):
            classes["the classifier"] = g.classifier.num_classes
    if len(set(classes.values())) > 1:
        model, classifier = classes.values()
        raise ValueError(f"the model has {model} classes, but the classifier {classifier}; choose another classifier=")
    labels: Any = OmegaConf.to_object(cfg.labels) if OmegaConf.is_list(cfg.labels) else cfg.labels
    if not classes:
        if labels not in ("random", "none"):
            what = "takes no classes" if denoiser.takes_text else "is unconditional"
            raise ValueError(f"this model {what}: labels={labels} has no use; leave it out")
        return None
    chosen = sample_labels(labels, cfg.seed, indices, next(iter(classes.values())))
    if chosen is None and "the classifier" in classes:
        raise ValueError("labels=none leaves classifier guidance without a class to guide to; leave one of them out")
    if chosen is None and count is not None:
        if null_label is None:
            raise ValueError("labels=none needs a model with a null class; this one is class-conditional only")
        return [null_label] * len(indices)
    return chosen


def _read_low_res(cfg: DictConfig, model: Model, indices: Sequence[int]) -> tuple[ImageSource | None, list[int] | None]:
    """Return the low-resolution images (and labels) of the samples for an upsampling model, else (None, None).

    Raises:
        ValueError: If low_res is missing, is not wanted, has fewer images than are asked for, or has unknown labels.
    """
    upsampling = isinstance(model, Denoiser) and isinstance(model.network, UpsamplingUNet)
    if upsampling != (cfg.low_res is not None):
        raise ValueError(
            "an upsampling model needs low_res=samples.npz, the low-resolution samples to enlarge"
            if upsampling
            else f"low_res={cfg.low_res} is for upsampling models (model=adm_upsample_64_256, ...) only"
        )
    if not upsampling:
        return None, None
    images = NpzImages(cfg.low_res)
    labels = images.labels()
    if max(indices) >= len(images):
        raise ValueError(
            f"{cfg.low_res} holds {len(images)} images, but sample {max(indices)} is asked for; set num_samples={len(images)}"
        )
    classes = model.num_classes
    if labels is not None and classes is not None and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"{cfg.low_res} has labels outside [0, {classes}), the classes of {cfg.model.name}")
    rows = np.asarray(indices)
    return SelectedImages(images, rows), None if labels is None else labels[rows].tolist()


def _fitting_configs(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    fitting = []
    for group in ("model", "classifier"):
        for name in choices(group):
            config = load_config(group, name)
            if config is None or "network" not in config:
                continue
            with torch.device("meta"):
                built = instantiate(config.network, _convert_="all")
            if shapes == {key: tuple(value.shape) for key, value in built.state_dict().items()}:
                fitting.append(f"{group}={name}")
    return fitting
