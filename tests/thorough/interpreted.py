"""Of Triton's kernels, interpreted."""

from __future__ import annotations

from tests.thorough.cases import Cases

INTERPRETED: Cases = {
    "tests/interpreted/limits/test_empty_sequences.py": {
        "test_states_and_cotangents_pass_through": ("16-bilevel",),
    },
    "tests/interpreted/limits/test_non_finite.py": {
        "test_backward": (
            "backward-no padding",
            "backward_chunks-padding",
            "backward_split-padding",
        ),
        "test_parts": (
            "memory_readout-no padding",
            "memory_readout_transposed-padding",
            "memory_update-no padding",
        ),
        "test_step": (
            "trellis_step-padding",
            "trellis_step_chunked-no padding",
        ),
    },
    "tests/interpreted/rules/test_neighbours.py": {
        "test_attention_and_its_gradients": ("log_decay-kda-20",),
    },
    "tests/interpreted/rules/test_peers_kernels.py": {
        "test_a_rule_is_its_peers_kernel": ("comba-Sizes(tokens=63, dim=60, batch=1, heads=2, gate=0.1)",),
    },
    "tests/interpreted/rules/test_recurrence.py": {
        "test_chunks_that_no_segment_divides": (
            "divided",
            "divided_twice",
            "erase",
            "gain",
            "gated_delta",
            "loss",
            "solve",
            "through_the_view",
            "transposed",
            "two_passes",
            "unread_probe",
            "view",
            "views_before",
        ),
        "test_first_order": (
            "1-reader_writer",
            "1-views_before",
            "4-reader_writer",
            "4-views_before",
            "64-trellis",
        ),
        "test_packed_sequences_of_which_one_is_empty": (
            "1-trellis",
            "1-window",
            "3-gain",
        ),
    },
    "tests/interpreted/rules/test_stale_chunks.py": {
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
    "tests/interpreted/test_attention.py": {
        "test_every_chunk_and_tile": (
            "1-16-fused",
            "1073741824-16-fused",
            "16-16-fused",
            "16-16-split",
            "17-16-split",
            "2-16-split",
            "20-32-split",
            "33-16-fused",
            "33-32-fused",
            "33-32-split",
        ),
        "test_every_readout_map": (
            "identity-split",
            "l2_silu-split",
            "silu-split",
        ),
        "test_every_write_map": (
            "identity-split",
            "l2_silu-split",
            "silu-split",
        ),
        "test_half_precision_inputs": (
            "bfloat16-fused",
            "float16-split",
        ),
        "test_recurrent": (
            "head-ln_silu",
            "head-softmax",
            "token-l2_silu",
            "token-silu",
        ),
        "test_sizes_far_from_powers_of_two": (
            "1-1-1-fused",
            "3-40-2-fused",
        ),
    },
    "tests/interpreted/test_backward.py": {
        "test_every_map_in_every_place": (
            "identity-backward_chunks",
            "identity-backward_split",
            "l2_silu-backward",
            "silu-backward",
            "silu-backward_chunks",
        ),
        "test_first_order_gradients": (
            "identity-backward_split",
            "silu-backward_chunks",
            "silu-backward_split",
        ),
        "test_half_precision_inputs": (
            "bfloat16-backward_split",
            "float16-backward",
            "float16-backward_chunks",
        ),
        "test_kernels_whose_results_nobody_wants_do_not_run": (
            "backward-wanted0-expected0-first_order",
            "backward_chunks-wanted3-expected3-first_order",
            "backward_chunks-wanted4-expected4-first_order",
            "backward_chunks-wanted5-expected5-first_order",
            "backward_chunks-wanted6-expected6-first_order",
            "backward_split-wanted1-expected1-first_order",
            "backward_split-wanted2-expected2-first_order",
        ),
        "test_sizes": ("16-32-16",),
        "test_states_that_are_computed_again": (
            "1-16",
            "16-2",
            "17-4",
            "2-16",
            "5-4",
        ),
        "test_tiles_of_a_chunk_of_packed_sequences": (
            "16-backward-first_order",
            "16-backward_split-first_order",
            "32-backward-bilevel",
        ),
        "test_whole_chunks_of_packed_sequences": (
            "16-16-bilevel",
            "16-16-first_order",
            "20-32-first_order",
            "32-32-bilevel",
            "40-64-bilevel",
            "40-64-first_order",
            "64-64-bilevel",
            "64-64-first_order",
        ),
        "test_zero_state": (
            "identity",
            "silu",
        ),
    },
    "tests/interpreted/test_between.py": {
        "test_mixer": (
            "odd-bfloat16-2",
            "odd-float32-1",
            "plain-bfloat16-1",
            "plain-float32-2",
            "two taps-bfloat16-1",
            "two taps-float32-2",
        ),
    },
    "tests/interpreted/test_between_step.py": {
        "test_a_model_of_bfloat16_is_near_float64_as_its_modules_are": (
            "False-exact",
            "True-chunked",
        ),
    },
    "tests/interpreted/test_descriptors.py": {
        "test_descriptors_change_nothing": (
            "32-32-split",
            "48-16-fused",
            "48-16-split",
            "64-32-fused",
            "64-32-split",
        ),
        "test_every_write_map": (
            "identity-split",
            "l2_silu-split",
            "silu-split",
        ),
        "test_odd_lengths": (
            "37-bfloat16-split",
            "37-float32-fused",
            "37-float32-split",
            "67-bfloat16-fused",
            "67-bfloat16-split",
        ),
        "test_packed_sequences": (
            "16-16-bfloat16-fused",
            "16-16-bfloat16-split",
            "16-16-float32-fused",
            "32-32-bfloat16-split",
            "32-32-float32-fused",
            "32-32-float32-split",
            "48-16-bfloat16-fused",
            "48-16-float32-fused",
            "48-16-float32-split",
            "64-32-bfloat16-fused",
            "64-32-bfloat16-split",
            "64-32-float32-split",
        ),
    },
    "tests/interpreted/test_parts.py": {
        "test_readout": (
            "16-16-token-memory_readout",
            "16-16-token-memory_readout_transposed",
            "20-16-token-memory_readout",
            "20-32-head-memory_readout",
            "20-32-head-memory_readout_transposed",
            "64-16-head-memory_readout",
            "64-16-head-memory_readout_transposed",
            "64-16-token-memory_readout",
        ),
        "test_update": (
            "identity-16-16",
            "identity-20-32",
            "identity-64-16",
            "l2_silu-16-16",
            "l2_silu-20-32",
            "ln_silu-20-32",
            "silu-16-16",
            "silu-20-32",
            "silu-64-16",
            "softmax-16-16",
            "softmax-64-16",
        ),
    },
    "tests/interpreted/test_substitution.py": {
        "test_longer_tiles_and_several_stored_states": ("64",),
        "test_tiles_and_a_shorter_one": ("identity",),
    },
    "tests/interpreted/test_user_maps.py": {
        "test_forward_and_both_gradients": ("gelu_tanh",),
    },
}
