"""Of TVM's kernels for CPUs."""

from __future__ import annotations

from tests.thorough.cases import ALL, Cases

TVM: Cases = {
    "tests/codegen/backends/tvm/rules/test_chunks.py": {
        "test_a_batch_with_initial_states": (
            "comba",
            "deltanet",
            "erase_post",
            "fixed",
            "gated_deltanet",
            "gla",
            "gsa_before",
            "linear",
            "linked",
            "rwkv7",
        ),
        "test_half_precision": (
            "kda-dtype0-0.02",
            "linear-dtype1-0.002",
        ),
        "test_packed_sequences_that_are_empty_or_end_inside_a_tile": ("linear",),
        "test_strong_gates_forget_exactly": (
            "gated_deltanet",
            "linear",
        ),
        "test_tiles_of_any_shape": (
            "comba-32-8-12",
            "erase_post-32-8-12",
            "erase_post-8-4-4",
        ),
        "test_widths_that_fill_no_vector": (
            "deltanet-1-1",
            "deltanet-3-70",
            "gla-1-1",
            "gla-100-5",
        ),
    },
    "tests/codegen/backends/tvm/rules/test_chunks_backward.py": {
        "test_all_gradients_of_a_batch": (
            "comba",
            "deltanet",
            "erase_post",
            "fixed",
            "linear",
        ),
        "test_gates_that_keep_little_have_all_digits_of_their_gradient": (
            "comba",
            "erase_post",
            "gated_deltanet",
            "gla",
            "kda",
            "linear",
        ),
        "test_tiles_of_any_shape": ("16-4-4",),
        "test_z_as_a_constant": ("linear",),
    },
    "tests/codegen/backends/tvm/rules/test_offsets.py": {
        "test_tokens_and_kept_states": ("walk with a probe",),
    },
    "tests/codegen/backends/tvm/rules/test_recurrence.py": {
        "test_exact": ("gain",),
        "test_one_slot_and_one_token": ("gated_delta",),
        "test_packed_sequences_of_which_one_is_empty": (
            "erase",
            "gain",
            "gated_delta",
            "momentum",
            "probe",
            "transposed",
            "views_before",
            "window",
        ),
        "test_several_segments": (
            "divided_twice",
            "erase",
            "gain",
            "gated_delta",
            "momentum",
            "probe",
            "through_the_view",
            "transposed",
            "trellis",
            "views_before",
            "window",
        ),
        "test_strong_gates_forget_exactly": (
            "momentum",
            "probe",
            "transposed",
        ),
        "test_vectors_of_every_width": (
            "erase-8",
            "through_the_view-16",
            "through_the_view-4",
        ),
    },
    "tests/codegen/backends/tvm/rules/test_stale_chunks.py": {
        "test_packed_sequences_with_states": (
            "channels",
            "chunk_start",
            "hebbian",
            "reader",
            "slots_at_the_chunk_start",
            "titans",
            "window_longer_than_a_tile",
        ),
    },
    "tests/codegen/backends/tvm/test_backward.py": {
        "test_every_map_in_every_place": (
            "l2_silu",
            "silu",
        ),
        "test_narrow_vectors": ALL,
        "test_sizes_and_types": (
            "1-1-1-float32",
            "80-96-48-float16",
        ),
        "test_tiles_of_a_chunk_of_packed_sequences": ("64-bilevel",),
        "test_tiles_that_span_chunks_of_one_token": ("softmax",),
        "test_tiles_that_span_chunks_of_packed_sequences": ("2-bilevel",),
        "test_what_is_not_wanted_is_not_computed": (
            "1-identity-k",
            "1-identity-log_decay",
            "1-identity-q",
            "1-identity-states",
            "1-identity-step_size",
            "1-identity-target",
            "1-identity-v",
        ),
    },
    "tests/codegen/backends/tvm/test_forward.py": {
        "test_every_chunk_and_tile": (
            "1073741824-16-fused",
            "2-8-pair",
            "33-8-fused",
            "33-8-split",
            "70-64-fused",
        ),
        "test_every_readout_map": ("softmax-fused",),
        "test_every_vector_width": (
            "16-4",
            "8-12",
        ),
        "test_every_write_map_and_size": (
            "identity-fused-1-1-1",
            "l2_silu-fused-64-64-64",
            "softmax-fused-80-96-48",
        ),
        "test_half_precision_inputs_and_a_step_size_per_token": (
            "fused-bfloat16",
            "recurrent-float16",
        ),
        "test_kernels_compile_for_cpus_that_are_not_here": ("x86-64-v3-trellis_step",),
        "test_product_loops_keep_everything_in_registers": (
            "16-x86-64-v3",
            "256-x86-64-v4",
        ),
        "test_products_sum_in_vectors_that_processors_have": ("trellis_attention-112",),
        "test_readout": (
            "1-4-float32-memory_readout_transposed",
            "16-16-bfloat16-memory_readout",
            "20-16-float32-memory_readout_transposed",
            "64-16-bfloat16-memory_readout",
            "64-16-bfloat16-memory_readout_transposed",
        ),
        "test_recurrent": (
            "head-l2_silu",
            "head-silu",
            "token-identity",
            "token-ln_silu",
            "token-softmax",
        ),
        "test_sizes_of_the_recurrent_variant": ("64-64-64",),
        "test_step": (
            "bfloat16-trellis_step",
            "float32-trellis_step_chunked",
        ),
        "test_tiles_that_span_chunks": ALL,
        "test_update": ("16-16",),
    },
    "tests/codegen/backends/tvm/test_glue.py": {
        "test_a_kernel_is_as_the_oracle_has_it": (
            "padded-add_rms_norm",
            "padded-gated_norm",
            "padded-gated_norm_backward",
            "padded-rms_norm",
            "padded-rms_norm_backward",
            "padded-swiglu_gate",
            "padded-swiglu_gate_backward",
            "plain-memory_inputs_backward",
        ),
    },
    "tests/codegen/backends/tvm/test_non_finite.py": {
        "test_attention": (
            "batch-build3-20-rule3",
            "batch-build5-3-rule5",
            "batch-build8-1-rule8",
            "packed-build3-20-rule3",
            "packed-build5-3-rule5",
            "packed-build8-1-rule8",
        ),
        "test_backward": (
            "16-rule1-bilevel-changes1",
            "16-rule2-bilevel-changes2",
            "20-rule4-bilevel-changes4",
            "3-rule6-first_order-changes6",
        ),
        "test_backward_of_sizes": (
            "16-24-40-60-bilevel",
            "16-64-64-64-bilevel",
            "2-32-64-16-bilevel",
        ),
        "test_earlier_tokens_further_back_than_a_tile": ("build1-3-63",),
        "test_nan_of_all_ones_in_half_precision": (
            "fused-float16",
            "recurrent-bfloat16",
        ),
        "test_sizes": (
            "fused-20-64-64-64",
            "recurrent-1-60-24-40",
        ),
    },
}
