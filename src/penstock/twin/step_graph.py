"""A step as operators, in four parts that depend on different sums, so that each part can be priced once and kept.

rows      on the tokens of the step: embedding, norms, projections, MLP or experts, collectives
head      on the sampled rows: LM head, sampler
decode    on how many sequences decode and on the sum of their contexts
prefill   on each chunk's past and length
"""
