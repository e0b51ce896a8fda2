"""What a network must offer so that a `Denoiser` can use it."""

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

from torch import Tensor, nn

from sag.models.attention import Attend, AttentionLayer
from sag.models.unet import UNetOutput


class Network(Protocol):
    """A network that predicts from noisy images: a module with these attributes."""

    image_size: int
    """Height and width of its inputs. Other sizes may be possible."""
    in_channels: int
    """Channels of its inputs: those of `image_channels` and, for an upsampling network, of the small images."""
    num_classes: int | None
    """Rows of the label table, including a null class; None for an unconditional network."""
    attention_layers: dict[str, AttentionLayer]
    """The attention layers that can be captured and replaced, by name."""

    @property
    def image_channels(self) -> int:
        """Channels of what is denoised."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Iterate over the weights."""

    def __call__(
        self,
        x: Tensor,
        tau: Tensor,
        y: Tensor | None = None,
        *,
        capture: Collection[str] = (),
        attend: Mapping[str, Attend] | None = None,
        low_res: Tensor = ...,
    ) -> UNetOutput:
        """Predict (see `UNet.forward`). Only an `UpsamplingUNet` is given `low_res`."""
