"""Where layers run in bfloat16; elsewhere they run in float32."""

import torch


def computed(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 by itself; in software that takes ten times as long as float32.

    On a CPU this is what PyTorch asks before it hands a layer to oneDNN. On x86 that needs AVX-512, or the AVX2 of 2024
    that converts bfloat16; on Arm the bf16 extension.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
