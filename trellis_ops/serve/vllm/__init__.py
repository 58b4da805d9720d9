"""A plugin of vLLM, which serves the reference model; vLLM finds it by the entry point `vllm.general_plugins`."""
