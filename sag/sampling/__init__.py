"""Sampling runs: any number of processes make samples into a folder, stop and continue, and pack them into one npz."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from sag.sampling.job import Job as Job
    from sag.sampling.moment import Moment as Moment
    from sag.sampling.moment import moment_steps as moment_steps
    from sag.sampling.moment import moments as moments
    from sag.sampling.moment import observe as observe
    from sag.sampling.runner import Sampled as Sampled
    from sag.sampling.runner import run as run
    from sag.sampling.status import Progress as Progress
    from sag.sampling.status import progress as progress

__getattr__, __dir__, __all__ = lazy_loader.attach(  # progress is asked for without the seconds that importing torch takes
    __name__,
    submod_attrs={
        "job": ["Job"],
        "moment": ["Moment", "moment_steps", "moments", "observe"],
        "runner": ["Sampled", "run"],
        "status": ["Progress", "progress"],
    },
)
