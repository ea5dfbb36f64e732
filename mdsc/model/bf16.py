"""Which devices multiply bf16 matrices faster than float32 ones."""

import torch


def computes_bf16(device: torch.device) -> bool:
    """Whether bf16 pays on this device: GPUs from Ampere on, and CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False
