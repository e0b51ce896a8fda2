"""Questions to a denoiser, and how to ask several of them at once."""

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sag.diffusion import Condition, DenoiserLike, Prediction
from sag.models import Attend, Attention


@dataclass(frozen=True, eq=False)
class Question:
    """The input of one pass through the denoiser, at the current step.

    Args:
        x_t: (N, C, H, W) float32.
        condition: What the denoiser is told.
        attend: Replacements for attentions, by layer name.
        capture: Names of the attention layers to return with the answer.
    """

    x_t: Tensor
    condition: Condition | None = None
    attend: Mapping[str, Attend] | None = None
    capture: Collection[str] = ()


def ask_together(denoiser: DenoiserLike, t: int, questions: Mapping[Any, Question]) -> dict[Any, Prediction]:
    """Ask several questions in as few batches as the shapes of their images and conditions allow.

    Args:
        denoiser: The denoiser. It must treat each image of a batch independently, as networks do.
        t: The step.
        questions: The questions, by any key.

    Returns:
        The answers, by the same keys.
    """
    groups: dict[Hashable, list[Any]] = {}
    for who, q in questions.items():
        kind = None if q.condition is None else (type(q.condition), q.condition.kind)
        groups.setdefault((q.x_t.shape[1:], kind), []).append(who)
    answers: dict[Any, Prediction] = {}
    for members in groups.values():
        answers.update(zip(members, _ask_alike(denoiser, t, [questions[who] for who in members]), strict=True))
    return {who: answers[who] for who in questions}


def _ask_alike(denoiser: DenoiserLike, t: int, questions: Sequence[Question]) -> list[Prediction]:
    counts = [len(q.x_t) for q in questions]
    conditions = [q.condition for q in questions if q.condition is not None]
    layers = {layer for q in questions for layer in q.attend or ()}
    answer = denoiser(
        torch.cat([q.x_t for q in questions]),
        t,
        Condition.join(conditions) if conditions else None,
        capture={layer for q in questions for layer in q.capture},
        attend={layer: _each_its_own([(q.attend or {}).get(layer) for q in questions], counts) for layer in layers},
    )
    parts = [slice(start, end) for start, end in pairwise(accumulate(counts, initial=0))]
    return [_rows(answer, part, q.capture) for part, q in zip(parts, questions, strict=True)]


def _each_its_own(attends: Sequence[Attend | None], counts: Sequence[int]) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int]) -> Tensor:
        parts = zip(attends, *(x.split(list(counts)) for x in (q, k, v)), strict=True)
        return torch.cat([F.scaled_dot_product_attention(*qkv) if f is None else f(*qkv, size) for f, *qkv in parts])

    return attend


def _rows(answer: Prediction, part: slice, capture: Collection[str]) -> Prediction:
    tensors = {name: getattr(answer, name) for name in ("eps", "log_variance", "score", "x_0")}
    rows: dict[str, Any] = {name: value if value is None else value[part] for name, value in tensors.items()}
    attention = {
        name: Attention(a.q[part], a.k[part], a.v[part], a.size) for name, a in answer.attention.items() if name in capture
    }
    return replace(answer, attention=attention, **rows)
