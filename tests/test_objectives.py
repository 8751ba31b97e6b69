"""Training objectives of the codebook besides PeCo's own: prediction of a teacher's features, and the adversarial term."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from prepared import prepare
from torch import Tensor, nn

from peco.core import artifacts, config, schema
from peco.core.errors import Interrupted, PecoError
from peco.core.params import load_params, parse_params
from peco.perceptual.features import FeatureNet
from peco.runtime import paths
from peco.runtime.stage import StageRun
from peco.stages import tokenizer
from peco.tokenizer import storage
from peco.tokenizer.adversarial import PatchDiscriminator, adversarial_losses
from peco.tokenizer.loss import Distillation, FeatureDecoder, TokenizerLoss
from peco.tokenizer.model import PerceptualTokenizer
from peco.tokenizer.quantizer import VectorQuantizer
from pipelines.workflow.compose import compose_params

ADVERSARIAL = config.Adversarial(weight=0.1, start=0.5, channels=8, layers=2)
VQKD = "tokenizer.objective=vqkd"
GAN = "tokenizer.adversarial.weight=0.1"


class Fixed(nn.Module):
    """A teacher that always returns these features."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        return [torch.zeros(1), self.features]


def images(batch: int = 2, size: int = 32) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


# Distillation


def test_distillation_loss_is_one_minus_the_mean_cosine_with_standardized_features() -> None:
    rng = np.random.default_rng(0)
    teacher, predicted = rng.normal(3, 2, (2, 6, 4, 4)), rng.normal(0, 1, (2, 6, 4, 4))
    standard = (teacher - teacher.mean(1, keepdims=True)) / teacher.std(1, keepdims=True)
    lengths = np.linalg.norm(standard, axis=1) * np.linalg.norm(predicted, axis=1)
    expected = 1 - ((standard * predicted).sum(1) / lengths).mean()
    distillation = Distillation(Fixed(torch.tensor(teacher, dtype=torch.float32)))
    assert distillation(torch.tensor(predicted), images()).item() == pytest.approx(expected, abs=1e-5)


def test_distillation_ignores_offset_and_scale_of_the_features() -> None:
    teacher = torch.randn(2, 6, 4, 4)
    predicted = 5 * (teacher - teacher.mean(1, keepdim=True))
    distillation = Distillation(Fixed(teacher))
    assert distillation(predicted, images()).item() == pytest.approx(0, abs=1e-5)
    assert distillation(-predicted, images()).item() == pytest.approx(2, abs=1e-5)


def test_a_teacher_on_another_grid_is_resized_to_the_tokens() -> None:
    coarse = torch.randn(1, 6, 1, 1)
    everywhere = (coarse - coarse.mean(1, keepdim=True)).expand(1, 6, 4, 4)
    assert Distillation(Fixed(coarse))(everywhere, images(1)).item() == pytest.approx(0, abs=1e-5)


def test_the_feature_decoder_fits_grid_and_teacher() -> None:
    autoencoder = config.Autoencoder(channels=(16, 32), stem_stride=4, res_blocks=1, attention=True)
    assert FeatureDecoder(autoencoder, dim=8, features=24)(torch.randn(2, 8, 4, 4)).shape == (2, 24, 4, 4)


def test_feature_widths_are_known_before_the_first_image() -> None:
    for name, blocks in (("vit_tiny_patch16_224", [2, 5]), ("resnet18", [1, 3, 5])):
        net = FeatureNet(timm.create_model(name, num_classes=0), blocks)
        assert net.channels == [feature.shape[1] for feature in net(images(1, 64))]


# Adversarial term


def test_each_adversarial_loss_has_gradients_for_its_own_network_only() -> None:
    torch.manual_seed(0)
    discriminator, made = PatchDiscriminator(ADVERSARIAL), images().mul(0.5).requires_grad_()
    generator, judge = adversarial_losses(discriminator, made, images())
    generator.backward(retain_graph=True)
    assert made.grad is not None and float(made.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    made.grad = None
    judge.backward()
    assert made.grad is None
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


def test_adversarial_losses_are_hinge_losses() -> None:
    torch.manual_seed(0)
    discriminator, real, made = PatchDiscriminator(ADVERSARIAL), images(), images().flip(0) * 0.5
    generator, judge = adversarial_losses(discriminator, made, real)
    real_scores, made_scores = (discriminator(x).detach().double().numpy() for x in (real, made))
    assert real_scores.shape == (2, 1, 8, 8)
    assert generator.item() == pytest.approx(-made_scores.mean(), rel=1e-5)
    by_hand = (np.maximum(0, 1 - real_scores).mean() + np.maximum(0, 1 + made_scores).mean()) / 2
    assert judge.item() == pytest.approx(by_hand, rel=1e-5)


def test_a_discriminator_learns_to_separate_real_and_reconstructed_images() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(ADVERSARIAL)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=1e-2)
    sharp = images()
    blurred = nn.functional.avg_pool2d(sharp, 5, stride=1, padding=2)
    for _ in range(30):
        _, judge = adversarial_losses(discriminator, blurred, sharp)
        optimizer.zero_grad()
        judge.backward()
        optimizer.step()
    assert judge.item() < 0.2


# The stage


def train(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PECO_WORK", str(folder / "working"))
    cfg = load_params("params.yaml")
    tokenizer.main(StageRun("tokenizer", schema.restrict(cfg, tokenizer.PARAMS)))


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a stop signal in this step."""
    update, done = VectorQuantizer.update, []

    def counted(self: VectorQuantizer) -> None:
        update(self)
        done.append(None)
        if len(done) == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(VectorQuantizer, "update", counted)


@pytest.mark.parametrize("objective", [VQKD, GAN])
def test_a_killed_training_ends_in_the_same_bytes_whatever_the_objective(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = (prepare(tmp_path / name, objective, steps=6) for name in ("whole", "stopped"))
    train(whole, monkeypatch)
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        with pytest.raises(Interrupted, match=r"stopped at step [34] of 6"):
            train(stopped, patch)
    train(stopped, monkeypatch)
    expected, found = ((root / paths.TOKENIZER / artifacts.WEIGHTS).read_bytes() for root in (whole, stopped))
    assert found == expected
    loaded = storage.load(whole / paths.TOKENIZER)  # without the parts that only training needs
    assert not [name for name, _ in loaded.named_parameters() if name.startswith(("feature", "discriminator"))]
    scores = json.loads((whole / paths.METRICS / "tokenizer.json").read_text())
    assert {"val_psnr", "val_perceptual", "usage"} <= set(scores)


def test_only_features_shape_a_distilled_codebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixel decoder is trained by l1 or l2; encoder and codes have the same bits either way."""
    made = {}
    for pixel in ("l1", "l2"):
        folder = prepare(tmp_path / pixel, VQKD, f"tokenizer.pixel={pixel}", "tokenizer.optim.clip_grad=null", steps=4)
        train(folder, monkeypatch)
        made[pixel] = artifacts.load_tensors(folder / paths.TOKENIZER / artifacts.WEIGHTS)
    same = {name for name, tensor in made["l1"].items() if torch.equal(tensor, made["l2"][name])}
    shaped = {name for name in made["l1"] if name.startswith(("encoder.", "quantizer."))}
    assert shaped <= same
    assert not all(name in same for name in made["l1"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([VQKD, "tokenizer.pixel=none"], r"tokenizer\.pixel: 'none'.*the decoder has no other loss"),
        ([VQKD, GAN], r"tokenizer\.adversarial\.weight: 0\.1"),
        ([GAN, "tokenizer.adversarial.layers=7"], r"tokenizer\.adversarial\.layers: 7"),
        (["tokenizer.objective=clip"], r"tokenizer\.objective: 'clip'.*peco, vqkd"),
        (["pretrain.target=features"], r"pretrain\.target: 'features'.*tokens, pixels"),
    ],
)
def test_objectives_without_a_loss_for_some_part_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(PecoError, match=message) as caught:
        compose_params("smoke", overrides)
    assert "\n" not in str(caught.value)


def test_the_adversarial_term_is_added_to_the_loss_from_its_start() -> None:
    torch.manual_seed(0)
    cfg = parse_params(compose_params("smoke", [GAN, "tokenizer.perceptual.weight=0"])).tokenizer
    model = PerceptualTokenizer(cfg.autoencoder, cfg.quantizer)
    task = tokenizer.ReconstructionTask(model, TokenizerLoss("l1", None, 0, cfg.commitment), cfg.adversarial).train()
    batch = {"image": images()}
    task(batch, 0, 100)  # the first batch starts the codebook
    before, after = (task(batch, step, 100) for step in (24, 25))
    expected = before[0] + cfg.adversarial.weight * before[1]["generator"]
    assert after[0].item() == pytest.approx(expected.item(), rel=1e-4)
