"""A stranger adds a prior by docs/architecture.md: two classes, registered; no other file changes.

The prior is the unigram distribution of codes under a class. It is trained, sampled and evaluated
by the programs.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import command_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_network

from configs import common
from vqjax.losses.cross_entropy import cross_entropy
from vqjax.priors import PRIORS, Prior
from vqjax.samplers import SAMPLERS, Sampler
from vqjax.settings import Range, check_settings, setting
from vqjax.tokens import Tokens


class UnigramPrior(Prior):
    """p(code | class), the same for every cell."""

    token_kind = "any"

    def setup(self):
        shape = (self.num_ids + 2, self.num_codes)
        self.table = self.param("table", jax.nn.initializers.zeros, shape)

    def __call__(self, condition):
        """Logits of the codes, [b, k]."""
        row = condition[:, 0] if condition.shape[1] else jnp.zeros(len(condition), int)
        return self.table[row]

    def _nats(self, tokens, condition):
        logits = jnp.repeat(self(condition)[:, None], tokens.codes.shape[1], axis=1)
        return cross_entropy(logits, tokens.codes)

    def loss(self, tokens, condition, train):
        if train:
            condition = self.drop_condition(condition)
        nats = self._nats(tokens, condition)
        return jnp.mean(nats), jnp.float32(nats.size), {}

    def held_out(self, tokens, condition, valid, key):
        nats = self._nats(tokens, condition) * valid[:, None]
        return {"nats": (jnp.sum(nats), jnp.sum(valid) * float(nats.shape[1]))}


@dataclasses.dataclass(frozen=True)
class UnigramSampling:
    """The settings of its sampler."""

    sharpness: float = setting(1.0, "factor of the logits", Range(0, above=True))

    def __post_init__(self):
        check_settings(self)


@functools.partial(jax.jit, static_argnames=("prior", "settings", "grid"))
def sample(prior, variables, rng, condition, known, settings, grid):
    """Draws every code by itself."""
    logits = settings.sharpness * prior.apply(variables, condition)
    shape = (grid[0] * grid[1], len(condition))
    codes = jax.random.categorical(rng, logits, shape=shape).T
    return Tokens.dense(codes.reshape(-1, *grid).astype(jnp.int32))


SAMPLER = Sampler(UnigramSampling, sample)


@pytest.fixture
def unigram(monkeypatch):
    monkeypatch.setitem(PRIORS, "unigram", UnigramPrior)
    monkeypatch.setitem(SAMPLERS, "unigram", SAMPLER)


def get_config(arg=""):
    """tiny's config with this prior; the name is that of a config file."""
    config = tiny.get_config(arg)
    prior = common.prior_stage("unigram")
    for name in ("batch_size", "steps", "log_every", "eval_every", "checkpoint_every"):
        prior[name] = config.prior[name]
    prior.optimizer.learning_rate = 0.3
    config.prior = prior
    config.sampling = common.sampling("unigram")
    config.sampling.num_images = 4
    return config


@pytest.mark.slow
def test_train_sample_evaluate(unigram, tmp_path, monkeypatch, capsys):
    finished = tiny.finished_run()
    workdir = tmp_path / "run"
    train = [
        f"--config=tests/test_toy_prior.py:path={finished.config.data.source.path}",
        f"--workdir={workdir}",
        f"--config.tokenizer.use_from={finished.workdir}",
    ]
    assert command_runs.call("train", *train) == 0
    lines = [json.loads(x) for x in (workdir / "prior" / "metrics.jsonl").read_text().splitlines()]
    held_out = [line["validation/nats"] for line in lines if "validation/nats" in line]
    assert held_out[-1] < np.log(32) - 0.2

    out = tmp_path / "samples"
    # Its settings are flags where it is registered before the program starts.
    flags = [f"--workdir={workdir}", "--num_images=3", "--label=discs", "--sharpness=5"]
    command = [sys.executable, __file__, "sample", *flags, f"--out={out}"]
    environment = os.environ | {"PYTHONPATH": str(command_runs.ROOT)}
    process = subprocess.run(
        command, cwd=command_runs.ROOT, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert json.loads((out / "settings.json").read_text())["sharpness"] == 5
    assert len(list(out.glob("0*.png"))) == 3
    assert command_runs.call("sample", f"--workdir={workdir}", "--steps=3") == 2
    assert "the sampler of unigram has no such setting" in capsys.readouterr().err

    module = command_runs._load("evaluate")[0]
    monkeypatch.setattr(module, "build_network", tiny_network.build)
    flags = ["--what=generation", "--num=16", "--batch_size=8", "--bootstrap=0"]
    assert command_runs.call("evaluate", f"--workdir={workdir}", *flags) == 0
    metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    assert metrics["generation"]["metrics"]["FD-lite1"] > 0


if __name__ == "__main__":
    from vqjax.programs import main

    PRIORS["unigram"], SAMPLERS["unigram"] = UnigramPrior, SAMPLER
    main()
