"""The claims of paper 001 on small photographs: codebooks, semantic ratio, two phases, decoders.

    python benchmarks/reproduction_seqgan.py --photographs=/data/photographs \
        --workdir=runs/reproduction

Trains the runs of `RUNS` with configs/folder_seqgan.py, each with every seed, and prints how full
their codebooks are, how good their reconstructions, and how well a prior predicts their codes, as
mean and range over the seeds. `--only=entropy,plain --seeds=0` trains some; the tables have what
there is. See `reproducing` for the photographs.
"""

from reproducing import SmallRun, measured, shown, table, train_all

from vqjax.programs import command_line

# Of codebooks by themselves: l1 alone, as no other loss decides which codes are in use.
ALONE = (
    "--config.tokenizer.discriminator.model.name=none",
    "--config.tokenizer.loss.semantic=0",
    "--config.tokenizer.steps=200",
    "--config.tokenizer.eval_every=100",
)
RUNS = {
    "plain": SmallRun("folder_seqgan.py:phases=1,codebook=plain", "tokenizer", ALONE),
    "fn": SmallRun("folder_seqgan.py:phases=1,codebook=fn", "tokenizer", ALONE),
    "kmeans": SmallRun("folder_seqgan.py:phases=1,codebook=kmeans", "tokenizer", ALONE),
    "entropy": SmallRun("folder_seqgan.py:phases=1", "tokenizer", ALONE),
    "details": SmallRun("folder_seqgan.py:phases=1,alpha=0", "tokenizer,prior"),
    "half": SmallRun("folder_seqgan.py:phases=1,alpha=0.5", "tokenizer,prior"),
    "two_phases": SmallRun("folder_seqgan.py", "tokenizer,decoder,prior"),
    "joint": SmallRun("folder_seqgan.py:decoder=attention,alpha=0", "tokenizer,prior"),
}

# Title, and rows: what it is, the run, and the paper's number.
Rows = list[tuple[str, str, str]]
CODEBOOKS: Rows = [
    ("plain", "plain", "43.5 %"),
    ("factorized and normalised, K = 8,192", "fn", "99.7 %"),
    ("k-means between epochs", "kmeans", "100 %"),
    ("entropy", "entropy", "100 %"),
]
RATIOS: Rows = [
    ("alpha = 0", "details", "16.97"),
    ("alpha = 0.5", "half", "in figure 6"),
    ("alpha = 1", "two_phases", "12.07"),
]
DECODERS: Rows = [
    ("convolutions alone", "details", "3.45, 16.97"),
    ("attention twice, trained together", "joint", "2.90, 17.42"),
]


def main() -> None:
    """Trains, and prints the tables."""
    train_all(RUNS)

    def used(name: str) -> str:
        return shown(measured(name, "tokenizer", "validation/codebook_usage"), 1, " %", 100)

    def psnr(name: str, stage: str = "tokenizer") -> str:
        return shown(measured(name, stage, "validation/psnr"), 2, " dB")

    def nats(name: str) -> str:
        return shown(measured(name, "prior", "validation/nats_per_token", "min"), 3)

    table(
        ["codebook (table 5)", "codes in use", "paper", "reconstruction"],
        [(what, used(name), paper, psnr(name)) for what, name, paper in CODEBOOKS],
    )
    table(
        ["semantic ratio (figures 6, 10)", "nats a token", "paper: FID of AR", "reconstruction"],
        [(what, nats(name), paper, psnr(name)) for what, name, paper in RATIOS],
    )
    table(
        ["decoder (table 1)", "reconstruction", "nats a token", "paper: rFID, FID of AR"],
        [(what, psnr(name), nats(name), paper) for what, name, paper in DECODERS],
    )
    stages = ("phase 1", "tokenizer"), ("phase 2", "decoder")
    table(
        ["two phases (figure 8)", "reconstruction"],
        [(what, psnr("two_phases", stage)) for what, stage in stages],
    )


if __name__ == "__main__":
    command_line.run(main)
