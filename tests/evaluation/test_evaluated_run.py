"""A run under evaluation is not judged by what it was trained against."""

import pytest
import tiny
import tiny_network
from etils import epath

from configs import common
from vqjax.evaluation.evaluated_run import EvaluatedRun
from vqjax.evaluation.evaluator import Evaluator
from vqjax.evaluation.pair_metrics import metric_lpips
from vqjax.evaluation.samples import _classifier_notes
from vqjax.evaluation.set_metrics import MetricSettings
from vqjax.runs.workdir import write_config


@pytest.fixture
def run(tmp_path):
    """A run whose decoder was trained anew, with another adversary and another perceptual loss."""
    config = tiny.get_config("path=x")
    config.decoder = common.decoder_stage(config.tokenizer)
    config.tokenizer.discriminator.model = {"name": "projected"}
    config.tokenizer.loss.perceptual_net = "alexnet"
    config.decoder.loss.perceptual_net = "vgg16"
    write_config(config, tmp_path / "run")
    evaluator = Evaluator(tiny_network.build(), MetricSettings(), tmp_path, 8)
    return EvaluatedRun(epath.Path(tmp_path / "run"), evaluator)


def test_both_stages_of_a_tokenizer_count(run):
    nets = [settings.loss.perceptual_net for settings in run.tokenizer_settings]
    assert nets == ["alexnet", "vgg16"]
    classifier = tiny_network.classifier("efficientnet_lite0")
    (note,) = _classifier_notes(run, None, classifier)
    assert note == "efficientnet_lite0 judges samples of a tokenizer that was trained against it"
    assert not list(_classifier_notes(run, None, tiny_network.classifier("efficientnet_lite1")))
    del run.config["decoder"]
    assert len(run.tokenizer_settings) == 1


@pytest.mark.parametrize(
    ("trained_with", "resolution", "net"),
    [
        ((), 32, "alexnet"),
        (("vgg16",), 32, "alexnet"),
        (("alexnet",), 32, "vgg16"),
        (("alexnet", "vgg16"), 32, None),
        ((), 31, None),
    ],
)
def test_lpips_is_on_a_trunk_that_was_not_trained_with(trained_with, resolution, net):
    found = metric_lpips(trained_with, resolution)
    assert (found.net if found else None) == net


def test_a_classifier_whose_logits_a_loss_compares_does_not_judge(tmp_path):
    config = tiny.get_config("path=x")
    config.tokenizer.loss.update({"semantic": 1.0, "semantic_logits": "efficientnet_lite0"})
    notes = {}
    for ratio in (0.0, 1.0):
        config.tokenizer.loss.semantic_ratio = ratio
        write_config(config, tmp_path / f"run{ratio}")
        evaluator = Evaluator(tiny_network.build(), MetricSettings(), tmp_path, 8)
        run = EvaluatedRun(epath.Path(tmp_path / f"run{ratio}"), evaluator)
        classifier = tiny_network.classifier("efficientnet_lite0")
        notes[ratio] = list(_classifier_notes(run, None, classifier))
    assert not notes[0.0]
    assert notes[1.0] == [
        "efficientnet_lite0 judges samples of a tokenizer that was trained against it"
    ]
