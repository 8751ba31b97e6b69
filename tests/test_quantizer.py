"""The vector quantizer: numerics, codebook updates, independence of the number of processes."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from peco.core import config
from peco.tokenizer.quantizer import VectorQuantizer

CFG = config.Quantizer(codes=16, dim=4, l2_normalize=False, decay=0.9, restart_after=0, kmeans_iters=5)
Reduce = Callable[[Tensor], Tensor]


def latents(seed: int, batch: int = 8, dim: int = 4, size: int = 4) -> Tensor:
    return torch.randn(batch, dim, size, size, generator=torch.Generator().manual_seed(seed))


def build(**changes: object) -> VectorQuantizer:
    """A quantizer with a fixed random codebook that is already initialised."""
    torch.manual_seed(0)
    quantizer = VectorQuantizer(dataclasses.replace(CFG, **changes))
    quantizer.initialized.fill_(True)
    return quantizer


def step(quantizer: VectorQuantizer, seed: int) -> Tensor:
    tokens = quantizer(latents(seed)).tokens_Bhw
    quantizer.update()
    return tokens


def vectors(z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


@pytest.mark.parametrize("cosine", [False, True])
def test_five_steps_agree_with_an_independent_library(cosine: bool) -> None:
    from vector_quantize_pytorch import VectorQuantize  # imported here: slow, and spawned processes import this module

    quantizer = build(l2_normalize=cosine)
    reference = VectorQuantize(
        dim=4,
        codebook_size=16,
        decay=0.9,
        commitment_weight=1.0,
        threshold_ema_dead_code=0,
        use_cosine_sim=cosine,
        rotation_trick=False,
    )
    for name in ("embed", "embed_avg"):
        getattr(reference._codebook, name).data.copy_(quantizer.codebook_KD[None])
    for seed in range(5):
        z = latents(seed)
        z_own, z_reference = z.clone().requires_grad_(), z.clone().requires_grad_()
        out = quantizer(z_own)
        quantized, tokens, loss = reference(z_reference.flatten(2).transpose(1, 2))
        weight = torch.randn_like(z)
        ((out.z_q_BDhw * weight).sum() + out.commitment).backward()
        ((quantized * weight.flatten(2).transpose(1, 2)).sum() + loss.sum()).backward()
        quantizer.update()
        assert torch.equal(out.tokens_Bhw.flatten(1), tokens)
        torch.testing.assert_close(out.z_q_BDhw.flatten(2).transpose(1, 2), quantized)
        torch.testing.assert_close(out.commitment, loss.squeeze())
        torch.testing.assert_close(z_own.grad, z_reference.grad)
        torch.testing.assert_close(quantizer.codebook_KD, reference._codebook.embed[0])


def test_ema_step_follows_the_formula() -> None:
    quantizer = build()
    codes, z = quantizer.codebook_KD.clone(), vectors(latents(0))
    tokens = step(quantizer, 0).flatten()
    counts = [0.9 + 0.1 * int((tokens == k).sum()) for k in range(16)]
    for k in range(16):
        total = 0.9 * codes[k] + 0.1 * z[tokens == k].sum(0)
        smoothed = (counts[k] + 1e-5) / (sum(counts) + 16e-5) * sum(counts)
        torch.testing.assert_close(quantizer.codebook_KD[k], total / smoothed)


def test_tokens_are_the_nearest_codes_and_lookup_inverts_them() -> None:
    quantizer, z = build(), latents(3)
    expected = torch.cdist(vectors(z).double(), quantizer.codebook_KD.double()).argmin(1)
    tokens = quantizer.encode(z)
    assert tokens.dtype == torch.int64 and tokens.shape == (8, 4, 4)
    assert torch.equal(tokens.flatten(), expected)
    torch.testing.assert_close(quantizer(z).z_q_BDhw, quantizer.lookup(tokens))


def test_distances_in_chunks_give_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, z = build(), latents(3)
    whole = quantizer.encode(z)
    monkeypatch.setattr("peco.tokenizer.quantizer._CHUNK", 16 * 7)
    assert torch.equal(quantizer.encode(z), whole)


def test_gradient_passes_straight_through_and_commitment_pulls_the_encoder_only() -> None:
    quantizer, z = build(), latents(1).requires_grad_()
    out = quantizer(z)
    (grad,) = torch.autograd.grad(out.z_q_BDhw.sum(), z, retain_graph=True)
    assert torch.equal(grad, torch.ones_like(z))
    (pull,) = torch.autograd.grad(out.commitment, z)
    torch.testing.assert_close(pull, 2 * (z - out.z_q_BDhw).detach() / z.numel())
    assert not any(parameter.requires_grad for parameter in quantizer.parameters())


def test_autocast_changes_nothing() -> None:
    plain, cast = build(), build()
    expected = plain(latents(0).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        out = cast(latents(0).bfloat16())
    assert out.z_q_BDhw.dtype == torch.float32
    for value, plain_value in zip(out, expected, strict=True):
        assert torch.equal(value, plain_value)
    plain.update(), cast.update()
    assert torch.equal(plain.codebook_KD, cast.codebook_KD) and cast.codebook_KD.dtype == torch.float32


def test_normalized_codes_are_unit_vectors_and_ignore_scale() -> None:
    quantizer = VectorQuantizer(dataclasses.replace(CFG, l2_normalize=True, restart_after=2))
    for seed in range(4):
        step(quantizer, seed)
        torch.testing.assert_close(quantizer.codebook_KD.norm(dim=1), torch.ones(16))
    assert torch.equal(quantizer.encode(latents(9)), quantizer.encode(100 * latents(9)))


def test_kmeans_runs_once_and_finds_clusters() -> None:
    centers = 10 * torch.eye(4)
    z = centers.repeat(32, 1).view(8, 4, 4, 4).permute(0, 3, 1, 2) + 0.01 * latents(0)
    quantizer = VectorQuantizer(dataclasses.replace(CFG, codes=8, kmeans_iters=10))
    quantizer.eval()
    quantizer(z)
    assert not quantizer.initialized, "evaluation does not start the codebook"
    quantizer.train()
    out = quantizer(z)
    assert quantizer.initialized
    assert out.commitment < 1e-3
    start = quantizer.codebook_KD.clone()
    quantizer(latents(5))
    assert torch.equal(quantizer.codebook_KD, start), "only `update` moves the codebook from now on"


def test_without_kmeans_codes_start_on_encoder_outputs() -> None:
    quantizer = VectorQuantizer(dataclasses.replace(CFG, kmeans_iters=0))
    quantizer(latents(0))
    assert torch.cdist(quantizer.codebook_KD, vectors(latents(0))).min(1).values.max() < 1e-3


def test_more_codes_than_vectors_are_allowed() -> None:
    quantizer = VectorQuantizer(dataclasses.replace(CFG, codes=500, restart_after=1))
    for seed in range(3):
        step(quantizer, seed)
    assert quantizer.codebook_KD.isfinite().all()


def test_dead_codes_restart_on_current_vectors_after_the_wait() -> None:
    quantizer = build(restart_after=3)
    quantizer.codebook_KD[0] = 1e3
    quantizer.ema_sums_KD[0] = 1e3
    for seed in range(3):
        assert quantizer.codebook_KD[0].min() > 500
        assert not (step(quantizer, seed) == 0).any()
    assert (vectors(latents(2)) == quantizer.codebook_KD[0]).all(1).any()
    assert quantizer.idle_steps_K[0] == 0
    assert (step(quantizer, 2) == 0).any(), "the code is in use again"


def test_restart_after_zero_never_restarts() -> None:
    quantizer = build(restart_after=0)
    quantizer.codebook_KD[0] = quantizer.ema_sums_KD[0] = 1e3
    for seed in range(5):
        step(quantizer, seed)
    assert quantizer.idle_steps_K[0] == 5 and quantizer.codebook_KD[0].min() > 500


def test_usage_and_perplexity_cover_the_epoch_and_start_again() -> None:
    quantizer = build(decay=1.0)
    seen = torch.cat([step(quantizer, seed).flatten() for seed in range(3)])
    p = torch.bincount(seen, minlength=16) / len(seen)
    usage, perplexity = quantizer.epoch_usage()
    assert usage == pytest.approx(len(seen.unique()) / 16)
    assert perplexity == pytest.approx(math.exp(-sum(float(x) * math.log(x) for x in p if x > 0)))
    assert quantizer.epoch_usage() == (0.0, 0.0)


@settings(max_examples=10, deadline=None)
@given(parts=st.sampled_from([1, 2, 4, 8]), cosine=st.booleans())
def test_micro_batches_add_up_to_the_batch(parts: int, cosine: bool) -> None:
    whole, split = (build(l2_normalize=cosine, restart_after=1) for _ in range(2))
    for seed in range(3):
        whole(latents(seed))
        for part in latents(seed).chunk(parts):
            split(part)
        whole.update(), split.update()
    torch.testing.assert_close(split.codebook_KD, whole.codebook_KD)
    assert torch.equal(split.histogram_K, whole.histogram_K)


def test_evaluation_changes_no_state() -> None:
    quantizer = build().eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    step(quantizer, 0)
    quantizer.encode(latents(1))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("stop", [1, 4])
def test_state_dict_resumes_exactly(stop: int) -> None:
    cfg = dataclasses.replace(CFG, codes=64, restart_after=2)
    straight, first, resumed = (VectorQuantizer(cfg, seed=3) for _ in range(3))
    for seed in range(8):
        step(straight, seed)
    for seed in range(stop):
        step(first, seed)
    resumed.load_state_dict(first.state_dict())
    for seed in range(stop, 8):
        step(resumed, seed)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in straight.state_dict().items())


def train(quantizer: VectorQuantizer, rank: int, world: int) -> dict[str, Tensor]:
    """Five steps on this rank's part of each batch; codes are used so rarely that some die and restart."""
    for seed in range(5):
        quantizer(latents(seed).chunk(world)[rank])
        quantizer.update()
    return quantizer.state_dict()


SPARSE = dataclasses.replace(CFG, codes=64, restart_after=1)


def assert_same(states: list[dict[str, Tensor]]) -> None:
    alone = train(VectorQuantizer(SPARSE, seed=1), 0, 1)
    assert alone["histogram_K"].sum() == 5 * 8 * 16
    for state in states:
        for name, value in alone.items():
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("world", [2, 4])
def test_shards_with_summed_statistics_equal_one_process(world: int) -> None:
    """Ranks are threads that meet at a barrier."""
    barrier, slots = threading.Barrier(world, timeout=20), [torch.empty(0)] * world
    states: list[dict[str, Tensor]] = [{}] * world

    def run(rank: int) -> None:
        def collective(combine: Callable[[list[Tensor]], Tensor]) -> Reduce:
            def call(tensor: Tensor) -> Tensor:
                slots[rank] = tensor
                barrier.wait()
                result = combine(list(slots)).clone()
                barrier.wait()
                return result

            return call

        quantizer = VectorQuantizer(
            SPARSE,
            all_reduce=collective(lambda parts: torch.stack(parts).sum(0)),
            broadcast=collective(lambda parts: parts[0]),
            gather=collective(torch.cat),
            seed=1,
        )
        states[rank] = train(quantizer, rank, world)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same(states)


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)

    def all_reduce(tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def broadcast(tensor: Tensor) -> Tensor:
        mine = tensor.clone()
        dist.broadcast(mine, 0)
        return mine

    def gather(tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(2)]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    torch.manual_seed(rank)  # the ranks' own random numbers must not matter
    quantizer = VectorQuantizer(SPARSE, all_reduce=all_reduce, broadcast=broadcast, gather=gather, seed=1)
    torch.save(train(quantizer, rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, args=(str(tmp_path),), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert_same(states)


def test_commitment_is_the_mean_squared_distance_to_the_code() -> None:
    quantizer, z = build(), latents(2)
    out = quantizer(z)
    torch.testing.assert_close(out.commitment, F.mse_loss(z, quantizer.lookup(out.tokens_Bhw)))
