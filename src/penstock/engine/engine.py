"""The engine: `run(step) -> StepResult`, the only way in.

A step is a delta, so the engine keeps what it changes: sequences.py holds the admitted sequences and the decode set
as arrays, pool.py their KV. A run applies the step's fields in order, collects its rows (rows.py) and lays them out
(batch.py), puts them through the model (models/), samples, and says which sequences are complete.

Steps may be planned before the result of the last one is known. So a decode's input is the token this engine sampled
itself, and a sequence that has ended stays silent, whatever later steps still say of it, until it is released.
"""

from __future__ import annotations

from collections.abc import Sequence as Numbers
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from penstock.control.request import Request
from penstock.control.step import Finish, Step, StepResult
from penstock.engine.batch import Batch, Rows, make_batch
from penstock.engine.guide.guides import Guides
from penstock.engine.loader import LoadedModel, load_model
from penstock.engine.lora.registry import AdapterRegistry, LoadedAdapter, ReadAdapter
from penstock.engine.lora.step import StepAdapters
from penstock.engine.ops.kernels import Kernels, kernels_for
from penstock.engine.ops.rope import LayerAngles
from penstock.engine.pool import KVPool
from penstock.engine.pooling import PooledRows, Pooler, Pooling
from penstock.engine.prompt_logprobs import score
from penstock.engine.rows import StepRows, step_rows
from penstock.engine.sampling import Sampler
from penstock.engine.sequences import DecodeSet, Sequence, Sequences, Slots
from penstock.engine.shared_prefix import PrefixFinder
from penstock.engine.validate import check_kind, check_tokens
from penstock.errors import InvalidRequest, ProtocolError


class Engine:
    """Computes the steps of one replica (the Executor of runtime/executor.py). Not thread-safe: one caller."""

    scratch_blocks = 0
    """Blocks of the pool behind those that were agreed: see KVPool."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        blocks: int,
        block_tokens: int,
        host_blocks: int = 0,
        max_seqs: int,
        max_step_tokens: int | None = None,
        kernels: Kernels | None = None,
        max_adapters: int = 0,
        max_rank: int = 64,
        pooling: Pooling | None = None,
        tokenizer_path: Path | str | None = None,
    ) -> None:
        """Reserve KV for `blocks` blocks of `block_tokens` tokens, and `host_blocks` more for what is swapped out.

        Args:
            max_seqs: sequences that hold blocks at one time. max_step_tokens: bound on the rows of one step.
            kernels: default is the fastest that works on the model's device.
            pooling: how embeddings are made; None: there are none.
            max_adapters, max_rank: adapters at one time, and the largest rank of one.
            tokenizer_path: the directory of tokenizer.json, which grammars need (`Sampling.guide`).
        """
        architecture = model.architecture
        self.max_sequence_tokens = min(architecture.max_sequence_tokens, blocks * block_tokens)
        self.architecture = architecture
        self._model, self._device = model.model, model.device
        self._pool = KVPool(
            architecture,
            blocks=blocks,
            block_tokens=block_tokens,
            host_blocks=host_blocks,
            dtype=model.dtype,
            device=model.device,
            scratch_blocks=self.scratch_blocks,
        )
        self._kernels = kernels if kernels is not None else kernels_for(model.device)
        self._rope: LayerAngles | None = None
        if architecture.rope is not None:
            self._rope = LayerAngles(architecture, self.max_sequence_tokens, model.device)
        self.recompute_beyond: int | None = None
        """Tokens beyond which a sequence must be computed anew from its first token: with LongRoPE."""
        if architecture.rope is not None and architecture.rope.type == "longrope":
            original = int(architecture.rope.parameters["original_max_position_embeddings"])
            self.recompute_beyond = original if original < self.max_sequence_tokens else None
        self._by_length = self._rope is not None and self._rope.depends_on_length
        self._max_step_tokens = max_step_tokens
        self._sequences = Sequences()
        self._slots = Slots(max_seqs, self.max_sequence_tokens, block_tokens)
        self._decoding = DecodeSet(max_seqs)
        self._prefixes = PrefixFinder(block_tokens)
        self.adapters = AdapterRegistry(
            architecture, most=max_adapters, max_rank=max_rank, dtype=model.dtype, device=model.device
        )
        self._pooler = Pooler(pooling) if pooling is not None else None
        self._sampler = Sampler(max_seqs, architecture.vocab_size, model.device)
        self.guides = Guides(tokenizer_path, architecture.vocab_size)
        self._last_step: int | None = None

    @classmethod
    def load(
        cls, path: Path | str, *, dtype: str = "float32", device: str = "cpu", threads: int | None = None, **sizes: Any
    ) -> Self:
        """Load the checkpoint in directory `path` and reserve its KV; `sizes` are the constructor's.

        `threads`: CPU threads of this process's computations. Raises UnsupportedModel.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        return cls(load_model(path, dtype=dtype, device=device), tokenizer_path=path, **sizes)

    def add(self, request: Request) -> None:
        """Make a request known before the first step that names it. Raises InvalidRequest; nothing is kept then."""
        try:
            self._validate(request)
            adapter = self.adapters.number(request.adapter)
            self.guides.open(request)
        except InvalidRequest:
            if request.id not in self._sequences:
                self.guides.release(request.id)
            raise
        self._sequences[request.id] = Sequence(request, output=tuple(request.output), adapter=adapter)

    def run(self, step: Step) -> StepResult:
        """Run one step to its end. `seconds` of the result is its wall time.

        Raises: ProtocolError: the step breaks the contract of control/step.py.
        """
        started = perf_counter()
        if self._last_step is not None and step.number != self._last_step + 1:
            raise ProtocolError(f"step {step.number} comes after step {self._last_step}")
        self._last_step = step.number
        result = StepResult(step.number)
        with torch.inference_mode():
            self._apply(step)
            laid = self._rows(step)
            if laid.rows is not None:
                self._compute(laid, laid.rows, result)
        result.seconds = perf_counter() - started
        return result

    def load_adapter(self, name: str, path: Path | str, *, digest: str | None = None) -> LoadedAdapter:
        """Make an adapter known to requests that name it. Raises UnsupportedAdapter (engine/lora/registry.py)."""
        return self.adapters.load(name, path, digest=digest)

    def read_adapter(self, path: Path | str, *, digest: str | None = None) -> ReadAdapter:
        """The first half of that, which any thread may do while steps run."""
        return self.adapters.read(path, digest=digest)

    def add_adapter(self, name: str, read: ReadAdapter) -> LoadedAdapter:
        """The second half, which takes no time. Raises UnsupportedAdapter."""
        return self.adapters.add(name, read)

    def unload_adapter(self, name: str) -> bool:
        """Forget an adapter, or what was none. False: not yet, since a sequence that has it is not released."""
        # A list of them first: the caller may be another thread than the one that runs steps.
        if any(one.request.adapter == name for one in list(self._sequences.values())):
            return False
        self.adapters.unload(name)
        return True

    def close(self) -> None:
        """Give back the KV pools and forget all sequences. Safe to call twice."""
        self._sequences.clear()
        self._sampler.close()
        self.guides.close()
        self._pool.device = self._pool.host = torch.empty(0)

    def statistics(self) -> dict[str, int]:
        """Sequences known, slots in use, sequences decoding, bytes of KV reserved."""
        return {
            "sequences": len(self._sequences),
            "slots_used": self._slots.used,
            "decoding": len(self._decoding),
            "kv_bytes": self._pool.bytes,
        }

    def check(self) -> None:
        """Recount slots and decode set from scratch. Raises ProtocolError when they disagree."""
        self._slots.check()
        for slot, request_id in zip(self._decoding.slots.tolist(), self._decoding.ids, strict=True):
            sequence = self._sequences.get(request_id)
            if sequence is None or sequence.slot != slot or sequence.done:
                raise ProtocolError(f"{request_id} is in the decode set and must not be")

    def _apply(self, step: Step) -> None:
        """What the step changes, field by field in the order of the class."""
        for request_id in step.release:
            self._detach(self._sequences.known(request_id))
            self.guides.release(request_id)
            if self._pooler is not None:
                self._pooler.forget(request_id)
            del self._sequences[request_id]
        for request_id in step.evict:
            self._detach(self._sequences.known(request_id))
        for swap in step.swap_out:
            sequence = self._sequences.known(swap.id)
            self._check_blocks(swap.id, swap.device, swap.host)
            self._pool.swap_out(swap)
            self._detach(sequence)
        for swap in step.swap_in:
            sequence = self._sequences.known(swap.id)
            self._check_blocks(swap.id, swap.device, swap.host)
            self._pool.swap_in(swap)
            self._attach(sequence, swap.device)
        for admission in step.admit:
            sequence = self._sequences.known(admission.id)
            self._check_blocks(admission.id, admission.blocks)
            self._attach(sequence, admission.blocks)
        for request_id in step.pause:
            self._decoding.leave(self._sequences.slot_of(request_id))
        for request_id in step.join:
            slot = self._sequences.slot_of(request_id)
            if not self._sequences.known(request_id).done:
                self._decoding.join(slot, request_id)
        for request_id, block in zip(step.grow, step.grow_blocks, strict=True):
            self._check_blocks(request_id, (block,))
            self._slots.grow(self._sequences.slot_of(request_id), block)

    def _rows(self, step: Step) -> StepRows:
        return step_rows(
            step, self._sequences, self._slots, self._decoding, self._pooler, most=self._max_step_tokens,
            whole_length=self.recompute_beyond is not None,
        )  # fmt: skip

    def _compute(self, laid: StepRows, rows: Rows, result: StepResult) -> None:
        """Model, sampling, and what ends with it."""
        slots, ids, scored, pooled = laid.slots, laid.ids, laid.scored, laid.pooled
        hidden = self._hidden(rows)
        if scored:
            result.prompt_logprobs = score(
                scored, hidden[len(ids) :], lambda some: self._model.logits(some, self._kernels),
                self.architecture.vocab_size,
            )  # fmt: skip
        if pooled:
            self._embed(pooled, hidden[len(hidden) - sum(len(one.rows) for one in pooled) :], result)
        if scored or pooled:
            hidden = hidden[: len(ids)]
        if not ids:
            return
        logits = self._model.logits(hidden, self._kernels)
        output_lengths = self._slots.length[slots] - self._slots.prompt_length[slots]
        sampled = self._sampler.sample(logits, slots, output_lengths)
        tokens = sampled.tokens
        if sampled.failed:
            kept = np.ones(len(ids), bool)
            for row, why in sampled.failed.items():
                result.failed[ids[row]] = why
                self._end(self._sequences[ids[row]])
                kept[row] = False
            for row, logprobs in sampled.logprobs.items():
                if kept[row]:
                    result.logprobs[ids[row]] = logprobs
            ids = [request_id for row, request_id in enumerate(ids) if kept[row]]
            tokens, slots = tokens[kept], slots[kept]
        elif sampled.logprobs:
            result.logprobs = {ids[row]: logprobs for row, logprobs in sampled.logprobs.items()}
        complete = self._slots.append(slots, tokens)
        result.tokens.update(zip(ids, tokens.tolist(), strict=True))
        if sampled.complete:
            over = {int(slot) for slot in sampled.complete}
            complete = np.union1d(complete, [row for row, slot in enumerate(slots.tolist()) if slot in over])
        for row in complete.astype(np.int64).tolist():
            sequence = self._sequences[ids[row]]
            token = int(tokens[row])
            stopped = token in sequence.request.sampling.stop_ids
            done = stopped or (bool(sampled.complete) and int(slots[row]) in sampled.complete)
            result.finished[ids[row]] = Finish(
                "stop" if done else "length", self._slots.output(int(slots[row])), token if stopped else None
            )
            self._end(sequence)

    def _hidden(self, rows: Rows) -> Tensor:
        """Last hidden states [R, D] of the rows that yield something, in the order of `logit_rows`."""
        return self._model.hidden(self._batch(rows), self._pool.device, self._kernels, self._rope)

    def _batch(self, rows: Rows) -> Batch:
        slots, decodes = self._slots, rows.decodes
        return make_batch(
            rows,
            slots.tables,
            slots.tables_tensor,
            self._pool.block_tokens,
            self._device,
            self._by_length,
            self._adapters_of(rows) if len(self.adapters) else None,
            self._prefixes.find(rows.slots[:decodes], rows.lengths[:decodes], slots.tables, slots.bindings),
        )

    def _embed(self, pooled: list[PooledRows], hidden: Tensor, result: StepResult) -> None:
        """Vectors, and with each the end of its request: the one token it gets stands for nothing."""
        assert self._pooler is not None
        vectors = self._pooler.take(pooled, hidden)
        for request_id in [
            name for name, vector in vectors.items() if not np.isfinite(np.frombuffer(vector, "<f4")).all()
        ]:
            del vectors[request_id]
            result.failed[request_id] = "the model's hidden states are not finite numbers"
            self._end(self._sequences[request_id])
        for request_id in vectors:
            result.tokens[request_id] = 0
            result.finished[request_id] = Finish("length", (0,))
            self._end(self._sequences[request_id])
        result.embeddings = vectors

    def _adapters_of(self, rows: Rows) -> StepAdapters | None:
        numbers = self._slots.adapter[rows.slots]
        return self.adapters.of_rows(
            numbers if len(numbers) == len(rows.token_ids) else np.repeat(numbers, rows.counts)
        )

    def _attach(self, sequence: Sequence, blocks: Numbers[int]) -> None:
        request = self._slots.bind(sequence, blocks)
        assert sequence.slot is not None
        self._sampler.add(sequence.slot, request, self.guides.place(request))

    def _detach(self, sequence: Sequence) -> None:
        slot = self._slots.unbind(sequence)
        if slot is not None:
            self._decoding.leave(slot)
            self._sampler.remove(slot)

    def _end(self, sequence: Sequence) -> None:
        sequence.done = True
        if sequence.slot is not None:
            self._decoding.leave(sequence.slot)

    def _check_blocks(self, request_id: str, device: Numbers[int], host: Numbers[int] | None = None) -> None:
        bad = [block for block in device if not 0 <= block < self._pool.blocks]
        if host is not None:
            bad += [block for block in host if not 0 <= block < self._pool.host_blocks]
            if len(host) != len(device):
                raise ProtocolError(f"{request_id} swaps {len(device)} device blocks with {len(host)} host blocks")
        if bad:
            raise ProtocolError(f"{request_id} gets block {bad[0]}, which the pool does not have")

    def _validate(self, request: Request) -> None:
        if request.id in self._sequences:
            raise InvalidRequest(
                field="id", value=request.id, why="a request with this id is running", remedy="another id"
            )
        check_tokens(
            request,
            vocab_size=self.architecture.vocab_size,
            max_sequence_tokens=self.max_sequence_tokens,
            recompute_beyond=self.recompute_beyond,
        )
        check_kind(request, embeds=self._pooler is not None, generates=self.architecture.head)
        self._sampler.check_request(request)
