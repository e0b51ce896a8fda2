"""What reading attention costs in the library diffusers: a pass with and without the processor, and a step with SAG."""

import copy
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluations.metric import check_count
from sag.devices import pick_device, seconds
from sag.diffusion import Condition, DenoiserLike, GaussianDiffusion, Schedule
from sag.guidance import GuidedDenoiser, SelfAttentionGuidance

CHANNELS = (64, 128, 256)  # of the network's levels
TOKENS, WIDTH = 77, 256  # of the text
TIME = 500  # the step at which the network is asked


@dataclass(frozen=True)
class ProcessorCost:
    """What the processor costs, as medians of calls that take turns.

    Attributes:
        parameters: The size of the network.
        seconds_plain: Of a pass with the library's own processors.
        seconds_prepared: Of a pass with the processor that carries out requests.
        seconds_sag: Of a step with SAG.
    """

    parameters: int
    seconds_plain: float
    seconds_prepared: float
    seconds_sag: float

    def describe(self) -> str:
        """Return one line for people."""
        plain, prepared, sag = self.seconds_plain, self.seconds_prepared, self.seconds_sag
        return (
            f"U-Net of {self.parameters / 1e6:.0f} M parameters: a pass takes {1000 * plain:.1f} ms; "
            f"the processor adds {100 * (prepared / plain - 1):.2f} %, and a step with SAG takes {sag / plain:.2f} passes"
        )


def benchmark_processor(batch_size: int = 1, rounds: int = 40, size: int = 32, device: str = "auto") -> ProcessorCost:
    """Measure a U-Net of the library diffusers with random weights.

    Example:
        >>> from evaluations.benchmark.processor import benchmark_processor
        >>> benchmark_processor(rounds=1, size=16, device="cpu").parameters
        18150852

    Args:
        batch_size: Number of latents in a call.
        rounds: Number of timed calls of each kind.
        size: Height and width of the latents.
        device: "cpu", "cuda", "cuda:N", or "auto".

    Returns:
        The measurements.

    Raises:
        ValueError: If the library is not installed, a number is too small, or there is no such device.
    """
    from sag.diffusers.extras import require

    require("part=processor")
    from diffusers import UNet2DConditionModel

    from sag.diffusers import DiffusersDenoiser, prepare

    for name, count in (("batch_size", batch_size), ("rounds", rounds)):
        check_count(name, count, 1)
    where = pick_device(device)
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=size,
        block_out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
    )
    network.eval().requires_grad_(False).to(where)
    own = copy.deepcopy(network)
    diffusion = GaussianDiffusion(Schedule.linear(), None, clip_denoised=False)
    prepared = DiffusersDenoiser(network, diffusion, prepare(network))
    guided = GuidedDenoiser(prepared, [SelfAttentionGuidance(0.75, "middle", blur_sigma=1.0, blur_kernel=9)])
    cases: dict[str, DenoiserLike] = {"plain": DiffusersDenoiser(own, diffusion, {}), "prepared": prepared, "sag": guided}
    x_t = torch.randn(batch_size, 4, size, size, device=where)
    condition = Condition(text=torch.randn(batch_size, TOKENS, WIDTH, device=where))
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, denoiser in cases.items():
            taken = seconds(lambda: _ask(denoiser, x_t, condition), where)  # noqa: B023  (it is called at once)
            times[name] += [taken] if turn > 0 else []  # the first calls are slower
    median = {name: statistics.median(taken) for name, taken in times.items()}
    parameters = sum(p.numel() for p in network.parameters())
    return ProcessorCost(parameters, median["plain"], median["prepared"], median["sag"])


@torch.no_grad()
def _ask(denoiser: DenoiserLike, x_t: Tensor, condition: Condition) -> None:
    denoiser(x_t, TIME, condition)
