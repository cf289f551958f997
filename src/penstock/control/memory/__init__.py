"""How KV blocks are kept: `paged.py` shares nothing, `prefix_tree.py` shares equal prefixes, `reserved.py` is the
baseline before paging. `blocks.py` says what all of them do."""
