"""Of Triton's kernels, compiled without a GPU."""

from __future__ import annotations

from tests.thorough.cases import ALL, Cases

TRITON: Cases = {
    "tests/codegen/backends/triton/test_compiled.py": {
        "test_every_kernel_compiles_for_sm_90": ("trellis_attention-substitution",),
        "test_forward_substitution_with_the_paper_s_sizes_spills_nothing": (
            "gfx942",
            "sm_80",
        ),
        "test_the_backwards_compile_for_sm_90": ("backward-sizes1-settings1-backward_first_order",),
        "test_training_of_many_slots_spills_no_more_than_it_did": ALL,
    },
    "tests/codegen/backends/triton/test_descriptors.py": {
        "test_tiles_are_copied_by_the_tensor_memory_accelerator": (
            "memory_readout-readout-copies3-{'num_stages': 3, 'tile_rows': 32}",
            "memory_readout-readout-copies3-{}",
            "memory_readout_transposed-readout-copies4-{}",
            "memory_update-update-copies2-{'num_stages': 3, 'tile_rows': 32}",
            "memory_update-update-copies2-{}",
            "trellis_attention-fused-copies0-{'num_stages': 3, 'tile_rows': 32}",
            "trellis_attention-split-copies1-{}",
        ),
    },
}
