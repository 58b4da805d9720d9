"""The reverse pass of a tile, in the layout of `codegen.backends.tvm.emit`; numbers are those of docs/backward.md."""
