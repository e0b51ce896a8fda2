"""Models in the format of the library diffusers, in a folder or in the cache of huggingface_hub."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download

from sag.devices import PRECISIONS
from sag.diffusers.denoiser import DeltaSpace, DiffusersDenoiser

Kind = Literal["sd1", "sd2", "sdxl", "sd3", "flux", "dit"]
KINDS = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
    "sd3": "Stable Diffusion 3",
    "flux": "FLUX.1",
    "dit": "DiT",
}
TRANSFORMERS = {
    "SD3Transformer2DModel": "sd3",
    "FluxTransformer2DModel": "flux",
    "DiTTransformer2DModel": "dit",
    "Transformer2DModel": "dit",
}
FILES = ["model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"]
"""What is read of a model's folder."""
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
TEXT_WIDTHS = {768: "sd1", 1024: "sd2"}


def load_denoiser(
    path: str | None,
    device: torch.device,
    precision: str = "float32",
    compiled: bool = False,
    *,
    negative_prompt: str | None = None,
    expects: Kind | None = None,
    delta_space: DeltaSpace | None = None,
    tiled: bool = False,
    sliced: bool = True,
    offload: Literal["model", "sequential"] | None = None,
) -> DiffusersDenoiser:
    """Load a model of the library diffusers. Only safetensors are read, no code is run, and nothing is downloaded.

    The safety checker of Stable Diffusion is left out, as this project returns every sample.

    Args:
        path: A folder with model_index.json, or a repository such as "stable-diffusion-v1-5/stable-diffusion-v1-5" in the cache
            of huggingface_hub.
        device: Where the model goes.
        precision: "float32", "bfloat16" or "float16", of the network and the text encoders. The autoencoder stays in float32.
        compiled: Whether the network is compiled at its first call.
        negative_prompt: What classifier-free guidance moves away from; None is the empty text.
        expects: What the model has to be; None for any.
        delta_space: See `DiffusersDenoiser.of`.
        tiled: Whether images are decoded in overlapping tiles, which takes less memory and changes pixels slightly.
        sliced: Whether images are decoded one at a time, which takes less memory.
        offload: "model" keeps only the part in use on the GPU, "sequential" only the layer in use; both need a GPU.

    Raises:
        ValueError: If the model is not there, is another one, or does not load.
    """
    folder = find_folder(path)
    index = _read(folder / "model_index.json")
    kind = kind_of(folder, index)
    if expects is not None and kind != expects and kind is not None:
        raise ValueError(f"{path} is {KINDS[kind]}, but {KINDS[expects]} was expected; for any model, use model=own_diffusers")
    dtype = PRECISIONS[precision]
    without: dict[str, Any] = {name: None for name in ("safety_checker", "feature_extractor", "image_encoder") if name in index}
    if "safety_checker" in without:
        without["requires_safety_checker"] = False
    parts = [name for name, of in index.items() if isinstance(of, list) and of[0] is not None and name not in without]
    absent = [name for name in parts if not (folder / name).is_dir()]
    if absent:
        raise ValueError(f"{path} is incomplete: its model_index.json names {absent[0]}, and there is no such folder")
    try:
        with _silent():
            pipeline = DiffusionPipeline.from_pretrained(
                folder,
                dtype={"vae": torch.float32, "default": dtype},
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                **without,
            )
    except Exception as error:  # the library's loaders raise whatever comes first
        raise ValueError(f"{path} does not load: {' '.join(str(error).split())}") from error
    vae = getattr(pipeline, "vae", None)
    for wanted, method in ((tiled, "enable_tiling"), (sliced, "enable_slicing")):
        if wanted and vae is not None and hasattr(vae, method):
            getattr(vae, method)()
    _place(pipeline, device, offload)
    denoiser = DiffusersDenoiser.of(pipeline, negative_prompt=negative_prompt, delta_space=delta_space)
    denoiser.network.requires_grad_(False)
    if compiled:
        denoiser.network.compile()
    return denoiser


def find_folder(path: str | None) -> Path:
    """Return the folder of a model.

    Args:
        path: A folder, or a repository of the hub, whose snapshot is looked for in the cache of huggingface_hub.

    Raises:
        ValueError: If there is none. The message has the command that fetches it.
    """
    if not path:
        raise ValueError(
            "path is missing: a folder in the format of diffusers, or a repository in the cache of huggingface_hub"
        )
    folder = Path(path).expanduser()
    if (folder / "model_index.json").is_file():
        return folder
    if folder.exists():
        raise ValueError(f"{path} is no folder in the format of diffusers: it has no model_index.json")
    if not REPOSITORY.fullmatch(path):
        raise ValueError(
            f"{path} does not exist; expected a folder in the format of diffusers, or a repository such as owner/name"
        )
    snapshot = cached_folder(path)
    if snapshot is None:
        files = " ".join(f"'{pattern}'" for pattern in FILES)
        raise ValueError(
            f"{path} is neither a folder nor in the cache of huggingface_hub; where there is a network, hf download {path} "
            f"--include {files} fetches it; else name a folder in the format of diffusers with path=FOLDER"
        )
    return snapshot


def cached_folder(repository: str) -> Path | None:
    """Return the folder of a repository of the hub in the cache of huggingface_hub, or None if it is not there."""
    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except Exception:  # no such repository in the cache, or no name of one
        return None


def fetch_folder(repository: str) -> Path:
    """Download what `load_denoiser` reads of a repository of the hub into the cache of huggingface_hub, unless it is there.

    Args:
        repository: Its name, such as "stable-diffusion-v1-5/stable-diffusion-v1-5".

    Raises:
        OSError: If the hub cannot be reached or refuses.
    """
    try:
        return Path(snapshot_download(repository, allow_patterns=FILES))
    except Exception as error:  # the hub's library raises the errors of several others
        raise OSError(f"{repository} cannot be downloaded from the hub: {' '.join(str(error).split())}") from error


def kind_of(folder: Path, index: dict[str, Any]) -> Kind | None:
    """Return what a model is, or None if it is none of `KINDS`.

    Args:
        folder: Its folder.
        index: The content of its model_index.json.

    Raises:
        ValueError: If it has no network, or is of a class that the library does not have.
    """
    name = index.get("_class_name")
    if not isinstance(name, str) or not hasattr(diffusers, name):
        raise ValueError(f"{folder} is of the class {name}, which diffusers {diffusers.__version__} does not have")
    if (folder / "transformer").is_dir():
        kind = TRANSFORMERS.get(_read(folder / "transformer" / "config.json").get("_class_name", ""))
    elif (folder / "unet").is_dir():
        config = _read(folder / "unet" / "config.json")
        width: Any = config.get("cross_attention_dim")
        kind = "sdxl" if config.get("addition_embed_type") == "text_time" else TEXT_WIDTHS.get(width)
    else:
        raise ValueError(f"{folder} has neither a folder unet nor a folder transformer, so there is nothing to guide")
    return kind  # type: ignore[return-value]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it is no JSON object")
    return content


def _place(pipeline: Any, device: torch.device, offload: str | None) -> None:
    if offload not in (None, "model", "sequential"):
        raise ValueError(f"offload must be model, sequential or null, got {offload!r}")
    if offload is None:
        pipeline.to(device)
    elif device.type == "cpu":
        raise ValueError(f"offload={offload} needs a GPU, and this is a CPU; leave it out")
    else:
        getattr(pipeline, f"enable_{offload}_cpu_offload")(device=device)


@contextmanager
def _silent() -> Iterator[None]:
    """Switch off the libraries' progress bars."""
    switches = [diffusers.utils.logging, transformers.utils.logging]
    before = [switch.is_progress_bar_enabled() for switch in switches]
    for switch in switches:
        switch.disable_progress_bar()
    try:
        yield
    finally:
        for switch, enabled in zip(switches, before, strict=True):
            if enabled:
                switch.enable_progress_bar()
