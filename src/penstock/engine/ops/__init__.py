"""The few operations a model is made of, besides torch's own matrix multiplication.

Read kernels.py first: it is the list. portable.py is the plain torch meaning of each, for any device; native.py and
native.c are the same in C for the CPU, fused and reading KV in place. rope.py and moe.py stand beside them;
triton/ has the kernels of GPUs.
"""
