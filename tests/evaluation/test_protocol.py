"""The protocol: it changes with all that a number depends on, and with nothing else."""

import pytest
import tiny
import tiny_sampler

from vqjax.data import pipeline
from vqjax.data.folder import Folder
from vqjax.evaluation import pair_metrics, protocol, references, set_metrics
from vqjax.evaluation.network_registry import build_network
from vqjax.evaluation.protocol import imported_modules, protocol_hash, source_digest
from vqjax.evaluation.samples import sampling_modules
from vqjax.features import imagenet, inception
from vqjax.generation.run import Run
from vqjax.samplers import SAMPLERS, Sampler
from vqjax.tokenizers import VQGAN

PACKAGE = {
    "__init__": "",
    "network": '"""A network."""\nimport numpy\n\nfrom house.layers import convolution\n',
    "layers/__init__": '"""Layers."""\n',
    "layers/convolution": "from ..pixels import scale  # relative\n",
    "pixels": "from house import errors\n\ndef scale(x):\n    return 2 * x\n",
    "errors": "",
    "models/__init__": "from house.models.small import Small as Tiny\n"
    "from house.models.large import Large\n\n"
    "def build(name):\n    return {'small': Tiny, 'large': Large}[name]\n",
    "models/small": "class Small:\n    width = 1\n",
    "models/large": "class Large:\n    width = 9\n",
    "metric": "from house.models import Tiny\n\n"
    "def metric():\n    import house.network\n    return Tiny, house.network\n",
    "program": "from house.models import build\nfrom house.metric import *\n",
    "report": "import house.program\n",
}


@pytest.fixture
def package(tmp_path):
    for name, text in PACKAGE.items():
        file = tmp_path / "house" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "house"


NETWORK = {f"house.{name}" for name in ("network", "layers.convolution", "pixels", "errors")}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        # Through a package, a relative import, and `from a import module`.
        ("house.network", NETWORK),
        # What a package re-exports leads to its module alone; imports in functions count.
        ("house.metric", NETWORK | {"house.metric", "house.models.small"}),
        # What a registry defines leads to none of its models.
        ("house.program", NETWORK | {f"house.{m}" for m in ("program", "metric", "models")}
         | {"house.models.small"}),
    ],
)  # fmt: skip
def test_imports_are_followed(package, module, expected):
    assert imported_modules(module, root=package) == sorted(expected)


def test_what_several_modules_import_and_what_there_is_not(package):
    both = imported_modules("house.network", "house.models.large", root=package)
    assert both == sorted(NETWORK | {"house.models.large"})
    with pytest.raises(ValueError, match=r"there is no module house\.nothing"):
        imported_modules("house.nothing", root=package)


@pytest.mark.parametrize(
    ("file", "text", "same"),
    [
        ("pixels", PACKAGE["pixels"].replace("2 * x", "3 * x"), False),
        ("network", PACKAGE["network"] + "\nimport house.report\n", False),
        ("network", '"""Another docstring."""\nimport numpy  # for numbers\n\n\n'
         "from house.layers import convolution", True),
        ("pixels", PACKAGE["pixels"].replace("return", '"""Twice."""\n\n    return'), True),
        ("models/large", "class Large:\n    width = 10\n", True),
        ("report", "import house.metric\n", True),
    ],
)  # fmt: skip
def test_the_digest_is_that_of_the_code(package, file, text, same):
    digest = source_digest.__wrapped__
    before = digest("house.network", root=package)
    (package / f"{file}.py").write_text(text)
    assert (digest("house.network", root=package) == before) == same


OTHERS = "report", "programs", "training", "generation", "priors", "samplers", "discriminators"


def test_reference_features_depend_on_what_makes_them():
    roots = references.__name__, Folder.__module__, pipeline.__name__
    known = imported_modules(*roots, inception.__name__)
    needed = ("pixels", "nn.convolutional", "data.folder", "data.images", "data.pipeline")
    needed += ("features.inception", "features.weight_files", "evaluation.metrics.frechet")
    assert {f"vqjax.{name}" for name in needed} <= set(known)
    others = ("evaluation.metrics.kernel_distance", "data.tfds", "tokenizers", "features.resnet")
    others += ("features.efficientnet_lite", "quantizers", "losses", *OTHERS)
    assert not [m for m in known if m.startswith(tuple(f"vqjax.{name}" for name in others))]
    # The network says itself by which modules it is computed.
    assert build_network().modules == ("vqjax.features.efficientnet_lite", imagenet.__name__)


def test_reconstructions_depend_on_their_tokenizer_alone():
    known = imported_modules(pair_metrics.__name__, VQGAN.__module__)
    needed = "tokenizers.vqgan", "quantizers", "losses.perceptual", "evaluation.metrics.ssim"
    assert {f"vqjax.{name}" for name in needed} <= set(known)
    others = "tokenizers.efficient_vqgan", "evaluation.metrics.kernel_distance", *OTHERS
    assert not [m for m in known if m.startswith(tuple(f"vqjax.{name}" for name in others))]
    # The metrics of the set are no part of what is kept of each image, but of the protocol.
    assert "vqjax.evaluation.metrics.kernel_distance" in imported_modules(set_metrics.__name__)


def test_samples_depend_on_their_models_and_their_sampler_alone():
    """A line in a registry, or another prior, leaves the kept samples what they are."""
    run = Run(tiny.finished_run().workdir, tiny.one_device())
    modules = sampling_modules(run, run.sampling())
    known = imported_modules(*modules)
    needed = ("tokenizers.efficient_vqgan", "priors.multigrained", "samplers.multigrained")
    needed += ("samplers.confidence", "samplers.rejection", "generation.image_sampler", "pixels")
    needed += ("generation.editing", "runs.sampling", "settings", "random_keys", "quantizers")
    assert {f"vqjax.{name}" for name in needed} <= set(known)
    others = ("runs.build", "runs.stages", "runs.workdir", "generation.run", "data", "files")
    others += ("tokenizers.vqgan", "evaluation", "features", "losses.perceptual", "discriminators")
    others += ("report", "programs", "training")
    assert not [m for m in known if m.startswith(tuple(f"vqjax.{name}" for name in others))]
    assert not {f"vqjax.{room}" for room in ("tokenizers", "priors", "samplers")} & set(known)


def test_samples_depend_on_the_function_that_draws(monkeypatch):
    """Wherever it is, and not only on where its settings are."""
    settings = SAMPLERS["multigrained"].settings
    monkeypatch.setitem(SAMPLERS, "multigrained", Sampler(settings, tiny_sampler.noise_logits))
    run = Run(tiny.finished_run().workdir, tiny.one_device())
    modules = sampling_modules(run, run.sampling())
    assert {settings.__module__, tiny_sampler.__name__} <= set(modules)
    assert run.sampler(2, run.sampling()).models.sample is tiny_sampler.noise_logits


def test_environment_has_a_digest_of_the_modules_alone():
    assert "code" not in protocol.environment()
    one, other = (protocol.environment(m)["code"] for m in ("vqjax.pixels", "vqjax.quantizers"))
    assert one == source_digest("vqjax.pixels") != other


def test_the_order_of_keys_does_not_matter():
    assert protocol_hash({"a": 1, "b": [2]}) == protocol_hash({"b": [2], "a": 1})
    assert protocol_hash({"a": 1}) != protocol_hash({"a": 2})
