"""One token of any rule as a short program over vectors and matrices, its reverse, and the sources made of both."""
