"""The perceptual network: features of any timm model, the distance, MoCo v3."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from peco.core import config
from peco.core.errors import PecoError
from peco.networks import timm_nets
from peco.perceptual.distance import PerceptualDistance
from peco.perceptual.features import FeatureNet
from peco.perceptual.moco import GlobalBatchNorm, MoCo

VIT = "vit_tiny_patch16_224"


def small_vit(img_size: int = 32) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_small_patch16_224", num_classes=0, img_size=img_size, patch_size=8, embed_dim=32, depth=4, num_heads=2
    )


def images(seed: int, batch: int = 2, size: int = 32) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


# Features


def test_vit_features_are_the_patch_tokens_after_each_block() -> None:
    model, x = small_vit().eval(), images(0)
    hooked: list[Tensor] = []
    for index in (0, 2):
        model.blocks[index].register_forward_hook(lambda _m, _i, out: hooked.append(out))
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    model((x - mean) / std)
    features = FeatureNet(model, [3, 1])(x)
    for feature, tokens in zip(features, hooked, strict=False):
        assert feature.shape == (2, 32, 4, 4)
        torch.testing.assert_close(feature.flatten(2).transpose(1, 2), tokens[:, 1:])


def test_blocks_after_the_last_selected_one_do_not_run() -> None:
    model, ran = small_vit(), []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _m, _i, _o, index=index: ran.append(index))
    FeatureNet(model, [2])(images(0))
    assert ran == [0, 1]


@pytest.mark.parametrize(
    ("name", "blocks", "shapes"),
    [
        (VIT, (6, 12), [(192, 4, 4), (192, 4, 4)]),
        ("vit_small_patch14_dinov2", (1,), [(384, 5, 5)]),  # 64 is not a multiple of 14: built for 70
        ("resnet50", (1, 2, 5), [(64, 32, 32), (256, 16, 16), (2048, 2, 2)]),
        ("vgg11", (1, 5), [(64, 64, 64), (512, 4, 4)]),
    ],
)
def test_transformers_and_convnets_give_features_at_any_image_size(
    name: str, blocks: tuple[int, ...], shapes: list[tuple[int, ...]]
) -> None:
    net = FeatureNet(timm_nets.by_name(config.TimmNet(name, False, None), 64), blocks)
    x = images(0, size=64).requires_grad_()
    features = net(x)
    assert [tuple(feature.shape[1:]) for feature in features] == shapes
    sum(feature.sum() for feature in features).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_images_are_resized_to_the_input_size_of_a_transformer() -> None:
    (feature,) = FeatureNet(small_vit(32), [1])(images(0, size=48))
    assert feature.shape == (2, 32, 4, 4)


def test_images_enter_a_convnet_at_a_given_size() -> None:
    model = timm_nets.by_name(config.TimmNet("resnet18", False, None), 32)
    x = images(0, size=32)
    (feature,) = FeatureNet(copy.deepcopy(model), [3], size=64)(x)
    enlarged = F.interpolate(x, (64, 64), mode="bilinear", antialias=True)
    (expected,) = FeatureNet(model, [3])(enlarged)
    assert feature.shape[-2:] == (8, 8)
    torch.testing.assert_close(feature, expected)


def test_the_network_is_frozen_and_stays_in_eval_mode() -> None:
    parent = nn.ModuleList([FeatureNet(timm_nets.by_name(config.TimmNet("resnet18", False, None), 32), [2])])
    before = {name: value.clone() for name, value in parent.state_dict().items()}
    parent.train()
    parent[0](images(0))
    assert not any(parameter.requires_grad for parameter in parent.parameters())
    assert not any(module.training for module in parent[0].modules())
    assert all(torch.equal(value, before[name]) for name, value in parent.state_dict().items())


@pytest.mark.parametrize("block", [0, 5])
def test_a_block_out_of_range_names_the_parameter(block: int) -> None:
    with pytest.raises(PecoError, match=r"perceptual_net\.blocks: \d .* from 1 to 4"):
        FeatureNet(small_vit(), [1, block])


def test_a_network_without_intermediate_features_is_refused() -> None:
    with pytest.raises(PecoError, match="no intermediate features"):
        FeatureNet(nn.Linear(1, 1), [1])


# Distance


@pytest.mark.parametrize("normalize", ["channel", "token", "none"])
def test_distance_is_zero_for_equal_images_and_symmetric(normalize: str) -> None:
    distance = PerceptualDistance(FeatureNet(small_vit(), [1, 4]), normalize).train()  # type: ignore[arg-type]
    a, b = images(0), images(1)
    assert distance(a, a) == 0
    assert distance(a, b) > 0
    torch.testing.assert_close(distance(a, b), distance(b, a))


def test_distance_follows_its_definition() -> None:
    net, a, b = FeatureNet(small_vit(), [2, 3]), images(0), images(1)
    pairs = list(zip(net(a), net(b), strict=True))
    cosine = sum((2 - 2 * F.cosine_similarity(x, y, dim=1)).mean() for x, y in pairs)
    torch.testing.assert_close(PerceptualDistance(net, "channel")(a, b), cosine)
    plain = sum(((x - y) ** 2).mean() for x, y in pairs)
    torch.testing.assert_close(PerceptualDistance(net, "none")(a, b), plain)

    def layer_norm(x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), (32,), eps=1e-6)

    token = sum(((layer_norm(x) - layer_norm(y)) ** 2).mean() for x, y in pairs)
    torch.testing.assert_close(PerceptualDistance(net, "token")(a, b), token)


def test_the_gradient_goes_to_the_reconstruction_only() -> None:
    distance = PerceptualDistance(FeatureNet(small_vit(), [2]), "channel")
    x, target = images(0).requires_grad_(), images(1).requires_grad_()
    distance(x, target).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert target.grad is None


# MoCo v3

VIEW = config.ViewDistribution((0.2, 1.0), (0.75, 1.33), 0.5, (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.5, 0.1)
MOCO = config.MoCo(
    hidden_dim=24,
    out_dim=16,
    temperature=0.2,
    momentum=0.9,
    freeze_patch_embed=True,
    pool="token",
    crop_size=None,
    view=VIEW,
)


def build_moco() -> MoCo:
    torch.manual_seed(0)
    return MoCo(small_vit, MOCO)


def test_global_batch_norm_of_one_process_is_batch_norm() -> None:
    norm, reference = GlobalBatchNorm(5), nn.BatchNorm1d(5)
    nn.init.normal_(norm.weight_D), nn.init.normal_(norm.bias_D)
    reference.load_state_dict({"weight": norm.weight_D, "bias": norm.bias_D}, strict=False)
    x, weight = (3 * torch.randn(7, 5) + 2).requires_grad_(), torch.randn(7, 5)
    results = []
    for module in (norm, reference):
        out = module(x)
        results.append((out, *torch.autograd.grad((out * weight).sum(), [x, *module.parameters()])))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def reference_loss(moco: MoCo, x1: Tensor, x2: Tensor) -> Tensor:
    """Algorithm 1 of the paper, with torch's own batch norm."""

    def head(modules: nn.Sequential, x: Tensor) -> Tensor:
        for module in modules:
            norm = isinstance(module, GlobalBatchNorm)
            x = F.batch_norm(x, None, None, module.weight_D, module.bias_D, training=True) if norm else module(x)
        return F.normalize(x, dim=1)

    def ctr(q: Tensor, k: Tensor) -> Tensor:
        return 2 * 0.2 * F.cross_entropy(q @ k.T / 0.2, torch.arange(len(q)))

    x1, x2 = 2 * x1 - 1, 2 * x2 - 1  # mean and std of this model are 0.5
    online = nn.Sequential(*moco.projector, *moco.predictor)
    q1, q2 = (head(online, moco.encoder(x)) for x in (x1, x2))
    k1, k2 = (head(moco.momentum_projector, moco.momentum_encoder(x)).detach() for x in (x1, x2))
    return ctr(q1, k2) + ctr(q2, k1)


def test_loss_and_gradients_follow_the_papers_algorithm() -> None:
    moco = build_moco()
    for parameter in moco.momentum_encoder.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    trained = [parameter for parameter in moco.parameters() if parameter.requires_grad]
    loss, scalars = moco(images(0, 8), images(1, 8))
    expected = reference_loss(moco, images(0, 8), images(1, 8))
    torch.testing.assert_close(loss, expected)
    pairs = zip(torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained), strict=True)
    for gradient, expected_gradient in pairs:
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-5)
    assert 0 <= scalars["accuracy"] <= 1


def test_momentum_copies_and_patch_embedding_are_frozen() -> None:
    moco = build_moco()
    frozen = {name for name, parameter in moco.named_parameters() if not parameter.requires_grad}
    momentum = {name for name, _ in moco.named_parameters() if name.startswith("momentum_")}
    assert frozen == momentum | {"encoder.patch_embed.proj.weight", "encoder.patch_embed.proj.bias"}
    moco(images(0, 8), images(1, 8))[0].backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in moco.parameters())


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.9), (50, 0.95), (100, 1.0)])
def test_the_momentum_rises_along_a_cosine(step: int, momentum: float) -> None:
    moco = build_moco()
    old = moco.momentum_projector[0].weight.clone()
    new = nn.init.normal_(moco.projector[0].weight)
    moco.update_momentum(step, 100)
    torch.testing.assert_close(moco.momentum_projector[0].weight, momentum * old + (1 - momentum) * new)


def test_queries_find_their_own_image() -> None:
    moco, x = build_moco(), images(0, 8)
    optimizer = torch.optim.Adam([p for p in moco.parameters() if p.requires_grad], 1e-3)
    for _ in range(20):
        loss, scalars = moco(x, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert scalars["accuracy"] == 1


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)

    def gather(tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(2)]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    torch.manual_seed(0)
    moco = MoCo(small_vit, MOCO, gather=gather, mean_over_ranks=lambda x: all_reduce(x) / 2, rank=rank)
    loss, scalars = moco(images(0, 8).chunk(2)[rank], images(1, 8).chunk(2)[rank])
    loss.backward()
    results = {"loss": loss.detach(), **scalars}
    results |= {name: p.grad for name, p in moco.named_parameters() if p.grad is not None}
    for value in results.values():
        dist.all_reduce(value)
        value /= 2
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, args=(str(tmp_path),), nprocs=2)
    shared = torch.load(tmp_path / "0.pt", weights_only=True)
    moco = build_moco()
    loss, scalars = moco(images(0, 8), images(1, 8))
    loss.backward()
    alone = {"loss": loss.detach(), **scalars}
    alone |= {name: p.grad for name, p in moco.named_parameters() if p.grad is not None}
    assert shared.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=1e-5)
