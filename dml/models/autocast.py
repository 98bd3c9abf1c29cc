"""A model whose layers run in bfloat16."""

import torch
from torch import Tensor, nn

from dml.models.embedder import device_of


class Autocast(nn.Module):
    """Another model under autocast: images (B, 3, H, W) -> embeddings (B, D) float32, of layers in bfloat16.

    About twice as fast where the processor or GPU computes in bfloat16, and good enough for the sign of a gradient. It
    shares the weights of the other model. Layers in float64, such as those of controls, stay in float64.
    """

    error = 0.01  # of a similarity of unit embeddings, about

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, D) of images (B, 3, H, W), with layers computed in bfloat16."""
        with torch.autocast(device_of(self.model).type, torch.bfloat16):
            embeddings = self.model(images)
        return embeddings.float() if embeddings.dtype == torch.bfloat16 else embeddings
