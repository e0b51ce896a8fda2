"""Networks."""

from sag.models.attention import Attend, Attention, AttentionLayer, check_layers
from sag.models.autoencoder import Autoencoder
from sag.models.classifier import Classifier
from sag.models.dit import DiT, SiT
from sag.models.network import Network
from sag.models.sizes import image_size
from sag.models.unet import UNet, UNetOutput, UpsamplingUNet

__all__ = [
    "Attend",
    "Attention",
    "AttentionLayer",
    "Autoencoder",
    "Classifier",
    "DiT",
    "Network",
    "SiT",
    "UNet",
    "UNetOutput",
    "UpsamplingUNet",
    "check_layers",
    "image_size",
]
