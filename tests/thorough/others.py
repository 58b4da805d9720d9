"""Of the compiler, the tuner and the whole."""

from __future__ import annotations

from tests.thorough.cases import ALL, Cases

OTHERS: Cases = {
    "tests/codegen/kernels/exports/test_export.py": {
        "test_a_plan_launches_what_tvm_launches": (
            "step_size per token-memory_readout",
            "step_size per token-memory_readout_transposed",
            "step_size per token-memory_update",
            "step_size per token-trellis_step",
        ),
    },
    "tests/codegen/recurrence/test_split_form.py": {
        "test_the_kernels_of_one_memory_compute_a_rule_of_one_pass": ("identity-64",),
    },
    "tests/codegen/test_show.py": {
        "test_a_rule_by_name_or_fields": ALL,
    },
    "tests/fuzz/test_fuzz.py": {
        "test_random_calls": (
            "2-trellis_attention-backward_first_order/B1-T1-H1/Dk2-Dv5-M32-C1000/float32/trellis(phi=silu,phi_eps=100.0,link=silu,out=ln_silu,step_size=token)",
        ),
    },
    "tests/stress/test_forks.py": {
        "test_a_child_forked_while_another_thread_looks_for_a_module": ("tvm_ffi",),
    },
    "tests/stress/test_interruptions.py": {
        "test_compiles_are_interrupted": ("2",),
    },
    "tests/test_rule_benchmarks.py": {
        "test_both_calls_compute_the_same": (
            "comba-decode",
            "comba-forward",
            "deltanet-decode",
            "deltanet-forward",
            "gated_deltanet-decode",
            "gated_deltanet-forward",
            "gdn2-decode",
            "gla-decode",
            "gla-forward",
            "gsa-forward",
            "in_place_ttt-decode",
            "in_place_ttt-forward",
            "kda-decode",
            "lattice-decode",
            "lattice-forward",
            "linear-decode",
            "linear-forward",
            "memora-decode",
            "memora-forward",
            "mesanet-decode",
            "oja-decode",
            "oja-forward",
            "omeganet-decode",
            "omeganet-forward",
            "rwkv7-forward",
            "titans-forward",
            "ttt_linear-decode",
        ),
        "test_both_training_steps_compute_the_same": ("rwkv7",),
    },
    "tests/tuner/experiments/test_regret.py": {
        "test_the_regret_of_each_winner_is_against_the_best_of_all": ALL,
    },
    "tests/tuner/offline/test_gpu_check.py": {
        "test_every_form_of_a_rule_is_compiled_as_a_default_would_be": ("sm_80",),
        "test_the_other_forward_defaults_compile_for_hopper_and_do_not_spill": ALL,
        "test_the_training_workload_compiles_for_hopper_and_does_not_spill": ("train-c16",),
    },
    "tests/tuner/verify/test_check.py": {
        "test_half_types_have_their_own_tolerance": ("float16",),
        "test_right_gradients_pass": ("backward_first_order",),
        "test_rounding_does_not_decide_what_stands_in_one_slot_and_nothing_overflows": (
            "identity-identity-64-64-64",
            "identity-ln_silu-64-64-64",
            "ln_silu-ln_silu-64-64-64",
            "silu-identity-64-64-64",
            "silu-ln_silu-64-64-64",
            "softmax-identity-64-64-64",
        ),
    },
    "tests/tuner/verify/test_rules.py": {
        "test_every_hard_input_is_well_conditioned_for_every_named_rule": ("memora-1",),
        "test_right_gradients_pass": (
            "mesanet-backward_first_order",
            "titans-backward",
            "ttt_linear-backward_first_order",
        ),
        "test_right_kernels_pass": (
            "1-gsa",
            "1-infini",
            "1-name10",
            "1-titans",
            "1-ttt_linear",
            "4-gated_deltanet",
            "4-lattice",
            "4-mesanet",
            "4-oja",
            "4-omeganet",
            "4-rwkv7",
            '4-{"phi": "weighed(z, a, g) = g * (z - a) ** 2", "passes": 1}',
        ),
    },
    "tests/tuner/workers/test_faults.py": {
        "test_a_candidate_at_fault_costs_itself_only": (
            "abort",
            "compiler_never_ends",
            "exit",
        ),
        "test_the_finals_are_held_without_a_candidate_at_fault": (
            "all_memory",
            "segmentation_fault",
        ),
    },
}
