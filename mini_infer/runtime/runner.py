"""The device side of a step: a plan of integers in, sampled tokens out, everything between on one stream."""

from __future__ import annotations

import torch

from mini_infer.core.plan import AdmittedSlot, SeqStep, StepPlan
from mini_infer.models.decoder import Decoder
from mini_infer.ops.attention import LONG_CONTEXT
from mini_infer.ops.inputs import ForwardBatch, prepare_inputs, write_tokens
from mini_infer.ops.sampling import SamplingNeeds, sample
from mini_infer.runtime.grammar import SlotGrammars
from mini_infer.runtime.graphs import MAX_BATCH, StepGraphs, batch_ladder, context_ladder
from mini_infer.runtime.kv_pool import KVPool
from mini_infer.runtime.pending import DeviceStep, PromptLogprobs
from mini_infer.runtime.sampler import SampleOutput, Sampler
from mini_infer.runtime.state import Header, SlotState


class Runner:
    """Owns all device state of one GPU (or the CPU): weights, KV pool, slot table, sampler, graphs."""

    def __init__(self, model: Decoder, pool: KVPool, state: SlotState, sampler: Sampler, grammars: SlotGrammars,
                 max_model_len: int):
        self._model = model
        self._caches = pool.layers
        self._block_size = pool.block_size
        self._state = state
        self._sampler = sampler
        self._grammars = grammars
        self._max_model_len = max_model_len
        self._graphs: StepGraphs | None = None
        rows = min(state.num_slots, MAX_BATCH) if state.table.is_cuda else 0
        self._logits_buffer = torch.empty(rows, model.config.vocab_size, dtype=model.dtype, device=state.table.device)
        self._prompt_logprobs_asked: dict[int, AdmittedSlot] = {}  # by slot

    @torch.inference_mode()
    def capture_graphs(self) -> None:
        """Capture the one-token-a-sequence step for the ladder of batch sizes (GPU only)."""
        self._graphs = StepGraphs(self._state.idle_header, self._single_token_step,
                                  batch_ladder(self._state.num_slots), context_ladder(self._max_model_len))

    @torch.inference_mode()
    def warm_up(self, num_tokens: int) -> None:
        """Run the two extreme steps in the null slot, `num_tokens` tokens of as many sequences as there can be and a
        token for every slot: shows the peak of memory, and loads what the first requests would wait for."""
        largest = self._logits_buffer.shape[0]
        self._run_chunk(num_tokens, min(largest, num_tokens), num_tokens)
        header = self._state.idle_header(largest)
        logits, _ = self._single_token_step(largest, self._max_model_len)
        self._sampler.warm_up(logits, header.slots, header.seq_lens, self._state.params, self._state.token_ids)

    @torch.inference_mode()
    def rehearse(self, num_tokens: int) -> None:
        """Run chunks of all sizes up to `num_tokens`, alone and beside long contexts: with `warm_up` and
        `rehearse_graphs` every kind of step, so that all the kernels they launch can be compiled, and the library's
        loaded, before a request waits for them."""
        self._state.warm_up()
        powers = [1 << exponent for exponent in range(num_tokens.bit_length())]
        for size in powers[1:]:
            self._run_chunk(size, 1, size)
        for num_decodes in (size for size in powers[:-1] if size < self._logits_buffer.shape[0]):
            for length in (LONG_CONTEXT + 1, self._max_model_len):
                self._run_chunk(num_decodes + 2, num_decodes + 1, length)

    @torch.inference_mode()
    def rehearse_graphs(self) -> None:
        """Run what `capture_graphs` will capture."""
        for size in batch_ladder(self._state.num_slots):
            self._state.idle_header(size)
            for length in context_ladder(self._max_model_len):
                self._single_token_step(size, length)

    def _run_chunk(self, num_tokens: int, num_seqs: int, max_seq_len: int) -> None:
        """`num_seqs` sequences in the null slot: a token each, and the last one has all others of `num_tokens`. Kernels
        are chosen as if a context of up to `max_seq_len` tokens were among them."""
        longest = num_tokens - num_seqs + 1
        header = self._state.idle_header(num_seqs)
        header.seq_lens[-1] = longest
        header.cu_seqlens_q[-1] = num_tokens
        batch = self._batch(header, num_tokens, num_seqs, longest, max_seq_len, num_decodes=num_seqs - 1)
        self._logits(self._model.forward(batch, self._caches), batch)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> DeviceStep:
        """Enqueue the step and return at once (on a CPU: compute it)."""
        seqs = plan.seqs
        header, graph_size = self._upload(plan)
        slots = [seq.slot for seq in seqs]
        prompt_logprobs: list[PromptLogprobs] = []
        max_seq_len = max(seq.start + seq.n for seq in seqs)
        if graph_size is not None:
            assert self._graphs is not None
            logits, token_ids = (output[: len(seqs)] for output in self._graphs.replay(graph_size, max_seq_len))
            needs = self._sampler.needs(slots)
            if needs.plain and not needs.sampling.filtered:  # the graph's sample is the answer
                return DeviceStep(plan, SampleOutput(token_ids, None, ()), prompt_logprobs)
        else:
            num_decodes = next((index for index, seq in enumerate(seqs) if seq.n > 1), len(seqs))
            batch = self._batch(header, plan.num_tokens, len(seqs), max(seq.n for seq in seqs), max_seq_len,
                                num_decodes)
            hidden = self._model.forward(batch, self._caches)
            logits = self._logits(hidden, batch)
            prompt_logprobs = self._prompt_logprobs_of(seqs, hidden)
        positions = header.seq_lens[: len(seqs)]
        # After a graph this samples again, from the graph's logits, with what it left out; the token written below
        # replaces the graph's before anything has read it.
        masks = self._grammars.masks(seqs)  # waits for the step before, while the device is at this one
        output = self._sampler.sample(logits, slots, header.slots[: len(seqs)], positions, self._state.params,
                                      self._state.token_ids, masks)
        write_tokens(self._state.token_ids, header.write_slots[: len(seqs)], positions, output.token_ids)
        if masks is None:
            return DeviceStep(plan, output, prompt_logprobs)
        step = DeviceStep(plan, output, prompt_logprobs, masks.failed)
        self._grammars.sampled(masks, seqs, step)
        return step

    def _upload(self, plan: StepPlan) -> tuple[Header, int | None]:
        """Bring the slot table up to the plan; also returns the size of the graph that can run it, if one can."""
        for slot in plan.released_slots:
            self._sampler.release(slot)
            self._grammars.release(slot)
            self._prompt_logprobs_asked.pop(slot, None)
        for admitted in plan.admitted:
            self._sampler.admit(admitted)
            self._grammars.admit(admitted)
            if admitted.params.prompt_logprobs is not None:
                self._prompt_logprobs_asked[admitted.slot] = admitted
        graph_size = None
        if self._graphs is not None and all(seq.n == 1 and not seq.prompt_logprobs for seq in plan.seqs):
            graph_size = self._graphs.padded_size(len(plan.seqs))
        params = [self._sampler.param_row(admitted) for admitted in plan.admitted]
        return self._state.upload(plan, params, graph_size or len(plan.seqs)), graph_size

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
        # A token each: it is its own sequence's last, and no kernel is spent on saying so.
        logit_rows = cu_seqlens_q[:-1] if num_tokens == num_seqs else cu_seqlens_q[1:] - 1
        return ForwardBatch(
            input_ids=input_ids, positions=positions, slot_mapping=slot_mapping, cu_seqlens_q=cu_seqlens_q,
            seq_lens=seq_lens, slots=slots, block_table=self._state.block_table, logit_rows=logit_rows,
            num_tokens=num_tokens, num_seqs=num_seqs, max_query_len=max_query_len, max_seq_len=max_seq_len,
            num_decodes=num_decodes)

    def _logits(self, hidden: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """Of each sequence's last token."""
        if batch.num_tokens == batch.num_seqs:
            return self._model.logits(hidden)
        return self._model.logits(hidden[batch.logit_rows])

    def _single_token_step(self, num_seqs: int, max_seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole step in which each sequence has one token: what a graph holds. Returns (logits, token_ids)."""
        header = self._state.header(num_seqs)
        batch = self._batch(header, num_seqs, num_seqs, 1, max_seq_len)
        # All graphs share one buffer of logits, else each would hold its own.
        logits = self._model.logits(self._model.forward(batch, self._caches), out=self._logits_buffer[:num_seqs])
        token_ids = sample(logits, header.slots, header.seq_lens, self._state.params, SamplingNeeds(random=True))
        write_tokens(self._state.token_ids, header.write_slots, header.seq_lens, token_ids)
        return logits, token_ids
