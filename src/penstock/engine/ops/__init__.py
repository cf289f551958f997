"""The few operations a model is made of, besides torch's own matrix multiplication.

Read kernels.py first: it is the list. portable.py is the plain torch meaning of each, for any device; native.py and
the C files the same for the CPU, fused and reading KV in place (attention.c says how). rope.py and moe.py stand
beside them; triton/ has the kernels of GPUs.
"""
