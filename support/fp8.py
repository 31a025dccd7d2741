"""Matrix products in 8 bits with torchao, for GPUs where float8 is faster than bfloat16."""

import torch

FIRST_WITH_FLOAT8 = 8, 9  # compute capability: RTX 40, L4, H100 and later
DIVISOR = 16  # of the sizes that the kernels support


def use_fp8(model, device):
    """Make the blocks' linear layers multiply in float8, in place; weights keep their precision.

    Before each product each tensor is scaled by its own maximum and rounded: to e4m3 in the forward
    pass, gradients to e5m2 (arXiv:2209.05433). Other devices emulate the rounding, which is slower
    than not using it. Exits if torchao is missing.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise SystemExit("fp8=True needs torchao: pip install torchao==0.18.0") from None
    native = multiplies_fp8(device)
    if not native:
        print(f"fp8: {device} does not support float8 products; they are emulated, slowly")
    convert_to_float8_training(
        model,
        module_filter_fn=can_be_fp8,
        config=Float8LinearConfig(emulate=not native, pad_inner_dim=True),
    )


def multiplies_fp8(device):
    """Whether the device is a GPU with float8 products."""
    cuda = device.type == "cuda"
    return cuda and torch.cuda.get_device_capability(device) >= FIRST_WITH_FLOAT8


def can_be_fp8(linear, name):
    """Whether this layer belongs to a block and its sizes fit."""
    fits = linear.in_features % DIVISOR == linear.out_features % DIVISOR == 0
    return name.startswith("blocks.") and fits
