"""What a call of an operator gives: its tensors checked against each other and its rule, before a kernel runs."""
