"""sFID (Nash et al., arXiv:2103.03841): FID of features that depend on the position in the image."""

from dataclasses import dataclass
from typing import ClassVar

from evaluations.metric import MomentsOf
from evaluations.metrics.fid import FID


@dataclass(frozen=True)
class SFID(FID):
    """The Fréchet distance of spatial features."""

    values: ClassVar = {"sfid": "sFID"}
    needs: ClassVar = frozenset({"spatial"})
    place = 20
    summary = MomentsOf("spatial")
