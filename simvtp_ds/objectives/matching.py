"""Video-text matching: does this caption belong to this video?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def match_loss(logits: Tensor, negative_logits: Tensor) -> Tensor:
    """Cross entropy of B true pairs (class 1) and B false pairs (class 0), both [B, 2], mean over 2B: float32 []."""
    yes = torch.ones(logits.shape[0], dtype=torch.long, device=logits.device)
    no = torch.zeros(negative_logits.shape[0], dtype=torch.long, device=negative_logits.device)
    return F.cross_entropy(torch.cat([logits, negative_logits]).float(), torch.cat([yes, no]))
