"""A model of the library diffusers as one function: (x_t, t, condition) -> predicted noise."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sag.diffusers.attention import Request, latent_size, prepare
from sag.diffusers.autoencoder import LibraryAutoencoder
from sag.diffusers.networks import Call, LatentCondition, call_dit, caller
from sag.diffusers.schedules import OUTPUTS, training_schedule
from sag.diffusion import AutoencoderLike, Condition, GaussianDiffusion, Memory, Prediction, Schedule
from sag.diffusion.condition import check_condition
from sag.models import Attend, AttentionLayer, check_layers

DeltaSpace = Literal["output", "eps"]


@dataclass(frozen=True)
class TextEncoder:
    """Turns texts into what a network is told of them, as a pipeline of the library does.

    Args:
        pipeline: The pipeline.
        negative_prompt: What classifier-free guidance moves away from; None is what the pipeline takes by default.
    """

    pipeline: Any
    negative_prompt: str | None = None

    def __call__(self, texts: Sequence[str]) -> LatentCondition:
        """Return the condition of texts."""
        text, pooled = self._encode(texts)
        if self.negative_prompt is None and self.pipeline.config.get("force_zeros_for_empty_prompt"):  # SDXL
            null_text, null_pooled = torch.zeros_like(text), None if pooled is None else torch.zeros_like(pooled)
        else:
            null_text, null_pooled = self._encode([self.negative_prompt or ""] * len(texts))
        return LatentCondition(text=text, null_text=null_text, pooled=pooled, null_pooled=null_pooled)

    def _encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Return the embeddings of texts, (N, T, D), and one for each text, (N, P), if the pipeline has those."""
        encode = self.pipeline.encode_prompt
        offered = {
            "prompt": list(texts),
            "prompt_2": None,
            "prompt_3": None,
            "device": self.pipeline._execution_device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": False,
        }
        known = inspect.signature(encode).parameters
        with torch.no_grad():
            results = encode(**{name: value for name, value in offered.items() if name in known})
        if len(results) == 4:  # SDXL, SD3: text, negative text, and the same pooled
            return results[0], results[2]
        return results[0], results[1] if len(results) == 3 else None  # Flux: text, pooled, places


@dataclass(frozen=True)
class DiffusersDenoiser:
    """A network of the library diffusers with its diffusion, without guidance.

    `DiffusersDenoiser.of(pipeline)` makes one of a loaded pipeline, `load_denoiser` of a folder.

    Args:
        network: A U-Net or a transformer. `prepare` has been called with it.
        diffusion: The diffusion that the network was trained for; it may be respaced.
        attention_layers: The layers that can be captured and replaced, as `prepare` lists them.
        autoencoder: What turns latents into images; None for networks of pixels.
        texts: What encodes texts; None if the model takes none.
        controlnet: A ControlNet. Its images are `control` of a `LatentCondition`.
        control_scale: The factor of what it adds.
        embedded_guidance: The guidance scale that distilled networks, such as FLUX.1-dev, are told.
    """

    network: Any
    diffusion: GaussianDiffusion
    attention_layers: Mapping[str, AttentionLayer]
    autoencoder: AutoencoderLike | None = None
    texts: TextEncoder | None = None
    controlnet: Any = field(default=None, repr=False)
    control_scale: float = 1.0
    embedded_guidance: float = 3.5

    @classmethod
    def of(
        cls, pipeline: Any, *, negative_prompt: str | None = None, delta_space: DeltaSpace | None = None
    ) -> "DiffusersDenoiser":
        """Make a denoiser of a pipeline of the library, which may share its parts with other pipelines.

        Args:
            pipeline: The pipeline, such as a StableDiffusionPipeline.
            negative_prompt: What classifier-free guidance moves away from; None is what the pipeline takes by default.
            delta_space: See `GaussianDiffusion`. None is "output" for networks that do not predict eps, as in the library's
                own pipeline with SAG.

        Raises:
            ValueError: If its network has no self-attention that can be read, or its scheduler describes no training.
        """
        network = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
        if network is None:
            raise ValueError(f"{type(pipeline).__name__} has neither a unet nor a transformer")
        takes_text = getattr(pipeline, "text_encoder", None) is not None
        vae = getattr(pipeline, "vae", None)
        return cls(
            network,
            _diffusion(network, dict(pipeline.scheduler.config), delta_space),
            prepare(network),
            None if vae is None else LibraryAutoencoder(vae),
            TextEncoder(pipeline, negative_prompt) if takes_text else None,
            getattr(pipeline, "controlnet", None),
        )

    @property
    def takes_text(self) -> bool:
        """Whether the model encodes texts."""
        return self.texts is not None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the latents at the network's own size."""
        return latent_channels(self.network), *latent_size(self.network)

    @property
    def num_classes(self) -> int | None:
        """Number of labels, including the null label of DiT; None if the network takes no labels."""
        config = self.network.config
        if config.get("num_embeds_ada_norm") is not None:
            return int(config.num_embeds_ada_norm) + 1
        classes = config.get("num_class_embeds")
        return None if classes is None else int(classes)

    @property
    def null_label(self) -> int | None:
        """The class that means "no class"."""
        classes = self.network.config.get("num_embeds_ada_norm")
        return None if classes is None else int(classes)

    def condition(
        self, labels: Tensor | None = None, low_res: Tensor | None = None, texts: Sequence[str] | None = None
    ) -> LatentCondition:
        """Return what the network is told of samples. Encoding texts takes a pass of the text encoders.

        Args:
            labels: Classes, (N,) int64.
            low_res: None, since these models enlarge nothing.
            texts: N texts.

        Raises:
            ValueError: If there are texts for a model that takes none, or `low_res`.
        """
        if low_res is not None:
            raise ValueError("this model enlarges no images; leave out low_res")
        if texts is None:
            return LatentCondition(labels, null_label=self.null_label)
        if self.texts is None:
            raise ValueError("this model takes no text; leave out prompt and prompts")
        return replace(self.texts(texts), labels=labels, null_label=self.null_label)

    def sample_size(self, size: Sequence[int] | None = None) -> tuple[int, int]:
        """Return (h, w) of the latents.

        Args:
            size: (height, width) of the images in pixels; None is the network's own size.

        Raises:
            ValueError: If the autoencoder cannot halve such a size as often as it does, or it is no multiple of the patches.
        """
        if size is None:
            return latent_size(self.network)
        factor = self._factor
        multiple = factor * patch_size(self.network)
        if len(size) != 2 or min(size) < 1 or any(length % multiple for length in size):
            raise ValueError(f"size must be [height,width] in pixels, both divisible by {multiple} here, got {list(size)}")
        if caller(self.network) is call_dit and size[0] != size[1]:
            raise ValueError(f"size must be square for the library's DiT, got {list(size)}")
        return size[0] // factor, size[1] // factor

    @property
    def _factor(self) -> int:
        return 1 if self.autoencoder is None else self.autoencoder.factor

    def respace(self, steps: int | str | Schedule) -> "DiffusersDenoiser":
        """Return the same denoiser on fewer steps (see `Schedule.respace`), or on another schedule."""
        diffusion = self.diffusion.respace(steps)
        return self if diffusion is self.diffusion else replace(self, diffusion=diffusion)

    def decode(self, x_0: Tensor) -> Tensor:
        """Return the images of latents, (N, C, H, W), or x_0 itself if the network denoises pixels."""
        return x_0 if self.autoencoder is None else self.autoencoder.decode(x_0)

    def __call__(
        self,
        x_t: Tensor,
        t: int,
        condition: Condition | None = None,
        *,
        capture: Collection[str] = (),
        attend: Mapping[str, Attend] | None = None,
        memory: Memory | None = None,
    ) -> Prediction:
        """Predict the noise in x_t.

        Args:
            x_t: (N, C, h, w) float32.
            t: The step, an index of the diffusion's schedule.
            condition: What the network is told. A `LatentCondition` can say more than a `Condition`.
            capture: Names of the attention layers to return.
            attend: Replacements for attentions, by layer name.
            memory: What the previous step passed on. This denoiser neither reads nor changes it.

        Raises:
            ValueError: If the condition does not fit the network or the number of samples, or a layer is unknown.
        """
        check_condition(condition, len(x_t))
        check_layers([*capture, *(attend or ())], self.attention_layers)
        request = None
        if capture or attend:
            request = Request((x_t.shape[2], x_t.shape[3]), capture, attend or {})
        tau = torch.full((len(x_t),), self.diffusion.schedule.tau[t], dtype=torch.float32, device=x_t.device)
        call = Call(
            self.network, x_t.to(self.network.dtype), tau, _latent(condition), request, self._factor,
            self.controlnet, self.control_scale, self.embedded_guidance,
        )  # fmt: skip
        output = caller(self.network)(call).float()
        found = {} if request is None else request.found
        lost = [name for name in capture if name not in found]
        if lost:
            raise ValueError(f"layer {lost[0]} was not read; something replaced its processor after the denoiser was made")
        output, of_variance = self.diffusion.split(output, x_t.shape[1])
        log_variance = None if of_variance is None else self.diffusion.learned_log_variance(of_variance, t)
        eps, x_0 = self.diffusion.resolve(output, x_t, t)
        return Prediction(eps, log_variance, attention=found, x_0=x_0 if self.diffusion.carries_x0 else None)


def latent_channels(network: Any) -> int:
    """Return the number of channels of the latents that a network denoises."""
    config = network.config
    if "joint_attention_dim" in config and "axes_dims_rope" in config:  # Flux packs 2x2 latents
        return int(config.in_channels) // 4
    return min(int(config.in_channels), int(config.get("out_channels") or config.in_channels))


def patch_size(network: Any) -> int:
    """Return the height and width of a network's tokens in latents; 1 for U-Nets, which also take odd sizes."""
    if "axes_dims_rope" in network.config:
        return 2
    return int(network.config.get("patch_size") or 1)


def _diffusion(network: Any, config: dict[str, Any], delta_space: DeltaSpace | None) -> GaussianDiffusion:
    """Return the diffusion that the scheduler's config of a model describes."""
    training = training_schedule(config)
    given = config.get("prediction_type", "epsilon")
    prediction = "flow" if training.variances is None else OUTPUTS.get(given)
    if prediction is None:
        raise ValueError(f"the scheduler's config has prediction_type={given}; expected one of {', '.join(OUTPUTS)}")
    learned = network.config.get("out_channels") == 2 * network.config.in_channels
    space = delta_space or ("eps" if prediction == "eps" else "output")
    return GaussianDiffusion(training, "learned_range" if learned else None, prediction, clip_denoised=False, delta_space=space)


def _latent(condition: Condition | None) -> LatentCondition:
    if isinstance(condition, LatentCondition):
        return condition
    given = condition or Condition()
    return LatentCondition(given.labels, given.text, given.low_res, given.null_label, given.null_text)
