"""TVM on CPUs: parsed, compiled by LLVM, run by threads that a call owns."""
