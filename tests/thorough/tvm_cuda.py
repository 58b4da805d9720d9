"""Of TVM's kernels for CUDA, compiled, and emulated on this CPU."""

from __future__ import annotations

from tests.thorough.cases import Cases

TVM_CUDA: Cases = {
    "tests/codegen/backends/tvm_cuda/test_compiled.py": {
        "test_defaults_fit_a_multiprocessor_and_do_not_spill": (
            "memory_readout-bfloat16",
            "memory_readout-float32",
            "memory_readout_transposed-float32",
            "memory_update-bfloat16",
            "memory_update-float32",
            "trellis_attention-float32",
            "trellis_step-bfloat16",
            "trellis_step_chunked-float32",
        ),
        "test_products_take_tensor_cores": (
            "bfloat16-bf16-sm_80",
            "float16-tf32-sm_80",
        ),
    },
    "tests/codegen/backends/tvm_cuda/test_emulated.py": {
        "test_every_chunk_and_tile": (
            "16-16",
            "2-4",
        ),
        "test_every_share_of_the_work": ("64-8",),
        "test_half_precision_packed_sequences_that_forget_everything": (
            "bfloat16-20",
            "float16-1",
        ),
        "test_maps_that_a_user_defines": (
            "gelu_tanh",
            "huber_loss",
        ),
        "test_readout": (
            "memory_readout-8-float32",
            "memory_readout_transposed-32-bfloat16",
        ),
        "test_recurrent_with_every_map": ("silu",),
        "test_sizes": (
            "1-1-1-1",
            "20-3-40-2",
            "20-33-5-17",
            "20-64-64-64",
        ),
        "test_split_with_every_readout_map": (
            "l2_silu-32",
            "ln_silu-32",
            "silu-32",
        ),
        "test_step": (
            "trellis_step-bfloat16",
            "trellis_step_chunked-float32",
        ),
        "test_update_with_every_map": (
            "l2_silu-8",
            "silu-8",
            "softmax-32",
        ),
    },
    "tests/codegen/backends/tvm_cuda/test_non_finite.py": {
        "test_attention": (
            "l2_silu-1-no padding",
            "l2_silu-20-no padding",
            "l2_silu-20-padding",
            "l2_silu-20-tensor cores-no padding",
            "softmax-20-no padding",
        ),
        "test_readout": (
            "memory_readout-multiply-adds-no padding",
            "memory_readout-multiply-adds-padding",
            "memory_readout-tensor cores-padding",
            "memory_readout_transposed-multiply-adds-padding",
            "memory_readout_transposed-tensor cores-padding",
        ),
        "test_rounded_products": (
            "bf16-bfloat16-no padding",
            "bf16-bfloat16-padding",
            "tf32-float16-no padding",
        ),
        "test_step": (
            "trellis_step-no padding",
            "trellis_step_chunked-padding",
        ),
        "test_update": (
            "multiply-adds-no padding",
            "tensor cores-padding",
        ),
    },
    "tests/codegen/backends/tvm_cuda/test_tensor_cores_emulated.py": {
        "test_every_chunk_and_tile": (
            "33-32",
            "9-16",
        ),
        "test_every_share_of_the_work": ("64-16",),
        "test_half_precision_packed_sequences_that_forget_everything": ("tf32-float16",),
        "test_readout_in_every_precision": (
            "memory_readout-tf32-float16",
            "memory_readout_transposed-bf16-bfloat16",
        ),
        "test_sizes": ("64-64-64",),
        "test_split_with_maps_in_all_places": ("softmax",),
        "test_the_default_of_bfloat16_inputs": ("16",),
        "test_update_in_every_precision": (
            "tf32-bfloat16",
            "tf32x3-float16",
        ),
    },
}
