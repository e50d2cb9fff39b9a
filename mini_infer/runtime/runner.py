"""The device side of a step: a plan of integers in, sampled tokens out, everything between on one stream."""

from __future__ import annotations

from dataclasses import replace

import torch

from mini_infer.core.plan import AdmittedSlot, SeqStep, StepPlan
from mini_infer.models.decoder import Decoder
from mini_infer.ops.attention import LONG_CONTEXT
from mini_infer.ops.inputs import ForwardBatch, prepare_inputs, write_tokens
from mini_infer.ops.sampling import SamplingNeeds, sample
from mini_infer.runtime.grammar import SlotGrammars
from mini_infer.runtime.graphs import MAX_BATCH, StepGraphs, StepShape, decode_shapes, mixed_shapes
from mini_infer.runtime.kv_pool import KVPool
from mini_infer.runtime.pending import DeviceStep, PromptLogprobs
from mini_infer.runtime.sampler import SampleOutput, Sampler
from mini_infer.runtime.state import Header, SlotState


class Runner:
    """Owns all device state of one GPU (or the CPU): weights, KV pool, slot table, sampler, graphs."""

    def __init__(self, model: Decoder, pool: KVPool, state: SlotState, sampler: Sampler, grammars: SlotGrammars,
                 max_model_len: int, largest_mixed_step: int):
        self._model = model
        self._caches = pool.layers
        self._block_size = pool.block_size
        self._state = state
        self._sampler = sampler
        self._grammars = grammars
        self._max_model_len = max_model_len
        self._graphs: StepGraphs | None = None
        most = min(state.num_slots, MAX_BATCH)
        self._shapes = [*decode_shapes(state.num_slots, max_model_len, model.config.num_kv_heads),
                        *mixed_shapes(most, largest_mixed_step, min(LONG_CONTEXT, max_model_len))]
        rows = most + 1 if state.table.is_cuda else 0  # one for padding
        self._logits_buffer = torch.empty(rows, model.config.vocab_size, dtype=model.dtype, device=state.table.device)
        self._prompt_logprobs_asked: dict[int, AdmittedSlot] = {}  # by slot

    @property
    def num_graphs(self) -> int:
        """That `capture_graphs` will make."""
        return len(self._shapes)

    @torch.inference_mode()
    def capture_graphs(self) -> None:
        """Capture steps of one token a sequence, and small ones with prompt chunks (GPU only)."""
        self._graphs = StepGraphs(self._prepare_idle, self._whole_step, self._shapes)

    @torch.inference_mode()
    def warm_up(self, num_tokens: int) -> None:
        """Run the two extreme steps in the null slot, `num_tokens` tokens of as many sequences as there can be and a
        token for every slot: shows the peak of memory, and loads what the first requests would wait for."""
        largest = max(shape for shape in self._shapes if shape.max_query_len == 1)
        num_seqs = min(largest.num_seqs, num_tokens)
        self._run_chunk(num_tokens, num_seqs, num_tokens, num_seqs - 1)
        header = self._prepare_idle(largest)
        logits, _ = self._whole_step(largest)
        self._sampler.warm_up(logits, header.slots, header.seq_lens, self._state.params, self._state.token_ids)

    @torch.inference_mode()
    def rehearse(self, num_tokens: int) -> None:
        """Run chunks of all sizes up to `num_tokens`, alone and beside long contexts: with `warm_up` and
        `rehearse_graphs` every kind of step, so that all the kernels they launch can be compiled, and the library's
        loaded, before a request waits for them."""
        self._state.warm_up()
        powers = [1 << exponent for exponent in range(num_tokens.bit_length())]
        for size in powers[1:]:
            for num_seqs in {1, min(size // 2, self._state.num_slots)}:  # one long chunk, many short ones
                self._run_chunk(size, num_seqs, size, 0)
        for num_decodes in (size for size in powers[:-1] if size < min(self._state.num_slots, MAX_BATCH)):
            for length in (LONG_CONTEXT + 1, self._max_model_len):
                self._run_chunk(num_decodes + 2, num_decodes + 1, length, num_decodes)

    @torch.inference_mode()
    def rehearse_graphs(self) -> None:
        """Run what `capture_graphs` will capture."""
        for shape in self._shapes:
            self._prepare_idle(shape)
            self._whole_step(shape)

    def _prepare_idle(self, shape: StepShape) -> Header:
        return self._state.idle_header(shape.num_seqs, shape.num_tokens)

    def _run_chunk(self, num_tokens: int, num_seqs: int, max_seq_len: int, num_decodes: int) -> None:
        """`num_seqs` sequences in the null slot: a token each, and the last one has all others of `num_tokens`. Kernels
        are chosen as if a context of up to `max_seq_len` tokens were among them, and so many decode tokens."""
        longest = num_tokens - num_seqs + 1
        header = self._state.idle_header(num_seqs, num_seqs)
        header.seq_lens[-1] = longest
        header.cu_seqlens_q[-1] = num_tokens
        batch = self._batch(header, num_tokens, num_seqs, longest, max_seq_len, num_decodes)
        self._model.logits(self._model.forward(batch, self._caches))

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> DeviceStep:
        """Enqueue the step and return at once (on a CPU: compute it)."""
        seqs = plan.seqs
        num_tokens, max_seq_len = plan.num_tokens, max(seq.start + seq.n for seq in seqs)
        scores_prompts = any(seq.prompt_logprobs for seq in seqs)
        shape = None
        if self._graphs is not None and not scores_prompts:
            shape = self._graphs.find(num_tokens, len(seqs), max_seq_len)
        header = self._upload(plan, shape.num_seqs if shape else len(seqs), shape.num_tokens if shape else num_tokens)
        slots = [seq.slot for seq in seqs]
        prompt_logprobs: list[PromptLogprobs] = []
        if self._graphs is not None and shape is not None:
            logits, token_ids = (output[: len(seqs)] for output in self._graphs.replay(shape))
            needs = self._sampler.needs(slots)
            if needs.plain and not needs.sampling.filtered:  # the graph's sample is the answer
                return DeviceStep(plan, self._state.outgoing(len(seqs)), SampleOutput(token_ids, None, ()), [])
        else:
            num_decodes = next((index for index, seq in enumerate(seqs) if seq.n > 1), len(seqs))
            batch = self._batch(header, num_tokens, len(seqs), max(seq.n for seq in seqs), max_seq_len, num_decodes)
            if scores_prompts:
                batch = replace(batch, logit_rows=None)
            hidden = self._model.forward(batch, self._caches)
            if scores_prompts:
                prompt_logprobs = self._prompt_logprobs_of(seqs, hidden)
                hidden = hidden[batch.cu_seqlens_q[1:] - 1]
            logits = self._model.logits(hidden)
        positions = header.seq_lens[: len(seqs)]
        # After a graph this samples again, from the graph's logits, with what it left out; the token written below
        # replaces the graph's before anything has read it.
        masks = self._grammars.masks(seqs)  # waits for the step before, while the device is at this one
        output = self._sampler.sample(logits, slots, header.slots[: len(seqs)], positions, self._state.params,
                                      self._state.token_ids, masks)
        write_tokens(self._state.token_ids, header.write_slots[: len(seqs)], positions, output.token_ids,
                     self._state.outbox, header.turn)
        outgoing = self._state.outgoing(len(seqs))
        if masks is None:
            return DeviceStep(plan, outgoing, output, prompt_logprobs)
        step = DeviceStep(plan, outgoing, output, prompt_logprobs, masks.failed)
        self._grammars.sampled(masks, seqs, step)
        return step

    def _upload(self, plan: StepPlan, num_seqs: int, num_tokens: int) -> Header:
        """Bring the slot table up to the plan, and its header, padded to so many sequences and tokens."""
        for slot in plan.released_slots:
            self._sampler.release(slot)
            self._grammars.release(slot)
            self._prompt_logprobs_asked.pop(slot, None)
        for admitted in plan.admitted:
            self._sampler.admit(admitted)
            self._grammars.admit(admitted)
            if admitted.params.prompt_logprobs is not None:
                self._prompt_logprobs_asked[admitted.slot] = admitted
        params = [self._sampler.param_row(admitted) for admitted in plan.admitted]
        return self._state.upload(plan, params, num_seqs, num_tokens)

    def _prompt_logprobs_of(self, seqs: list[SeqStep], hidden: torch.Tensor) -> list[PromptLogprobs]:
        found = []
        first = 0
        for index, seq in enumerate(seqs):
            if seq.prompt_logprobs:
                admitted = self._prompt_logprobs_asked[seq.slot]
                count = min(seq.n, admitted.prompt_len - 1 - seq.start)
                targets = self._state.token_ids[seq.slot, seq.start + 1 : seq.start + 1 + count]
                k = admitted.params.prompt_logprobs or 0
                top = self._sampler.prompt_logprobs(hidden[first : first + count], self._model.logits, targets, k)
                found.append(PromptLogprobs(index, top, k))
            first += seq.n
        return found

    def _batch(self, header: Header, num_tokens: int, num_seqs: int, max_query_len: int,
               max_seq_len: int, num_decodes: int = 0) -> ForwardBatch:
        slots, seq_lens = header.slots[:num_seqs], header.seq_lens[:num_seqs]
        cu_seqlens_q = header.cu_seqlens_q[: num_seqs + 1]
        input_ids, positions, slot_mapping = prepare_inputs(
            slots, seq_lens, cu_seqlens_q, self._state.token_ids, self._state.block_table, self._block_size,
            num_tokens, max_query_len)
        logit_rows = None if max_query_len == 1 else cu_seqlens_q[1:] - 1  # each sequence's last token
        return ForwardBatch(
            input_ids=input_ids, positions=positions, slot_mapping=slot_mapping, cu_seqlens_q=cu_seqlens_q,
            seq_lens=seq_lens, slots=slots, block_table=self._state.block_table, logit_rows=logit_rows,
            num_tokens=num_tokens, num_seqs=num_seqs, max_query_len=max_query_len, max_seq_len=max_seq_len,
            num_decodes=num_decodes)

    def _whole_step(self, shape: StepShape) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole step as a graph holds it, of what the header says. Returns (logits, token_ids)."""
        header = self._state.header(shape.num_seqs)
        batch = self._batch(header, shape.num_tokens, shape.num_seqs, shape.max_query_len, shape.max_seq_len)
        hidden = self._model.forward(batch, self._caches)
        # All graphs share one buffer of logits, else each would hold its own.
        logits = self._model.logits(hidden, self._logits_buffer[: shape.num_seqs])
        token_ids = sample(logits, header.slots, header.seq_lens, self._state.params, SamplingNeeds(random=True))
        write_tokens(self._state.token_ids, header.write_slots, header.seq_lens, token_ids, self._state.outbox,
                     header.turn)
        return logits, token_ids
