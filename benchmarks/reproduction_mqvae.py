"""The claims of paper 002 on small photographs: masks, de-mask modules, codebooks.

    python benchmarks/reproduction_mqvae.py --photographs=/data/photographs \
        --workdir=runs/reproduction_mqvae

Trains the runs of `RUNS` with configs/folder_mqvae.py, each with every seed, and prints how good
their reconstructions are and how full their codebooks, as mean and range over the seeds.
`--only=adaptive_25 --seeds=0` trains some; the tables have what there is. See `reproducing` for the
photographs.
"""

from reproducing import SmallRun, measured, shown, table, train_all

from vqjax.programs import command_line

# No adversary, as held-out errors are compared.
ALONE = ("--config.tokenizer.discriminator.model.name=none",)
RUNS = {
    "full": SmallRun("folder_mqvae.py:mask=none", "tokenizer", ALONE),
    "adaptive_25": SmallRun("folder_mqvae.py", "tokenizer", ALONE),
    "random_25": SmallRun("folder_mqvae.py:mask=random", "tokenizer", ALONE),
    "adaptive_50": SmallRun("folder_mqvae.py:mask_ratio=0.5", "tokenizer", ALONE),
    "random_50": SmallRun("folder_mqvae.py:mask_ratio=0.5,mask=random", "tokenizer", ALONE),
    "adaptive_75": SmallRun("folder_mqvae.py:mask_ratio=0.75", "tokenizer", ALONE),
    "random_75": SmallRun("folder_mqvae.py:mask_ratio=0.75,mask=random", "tokenizer", ALONE),
    "stronger": SmallRun("folder_mqvae.py:mask=none,demask=self_attention", "tokenizer", ALONE),
    "no_demask": SmallRun("folder_mqvae.py:mask_ratio=0.5,demask=none", "tokenizer", ALONE),
    "self_attention": SmallRun(
        "folder_mqvae.py:mask_ratio=0.5,demask=self_attention", "tokenizer", ALONE
    ),
    "constrained": SmallRun(
        "folder_mqvae.py:mask_ratio=0.5,demask=direction_constrained", "tokenizer", ALONE
    ),
}

# What it is, the run, and the paper's rFID at f = 16.
MASKS = [
    ("none", "full", "4.46, 63.89 %"),
    ("25 %, adaptive", "adaptive_25", "4.79, 78.22 %"),
    ("25 %, random", "random_25", "6.13, 67.48 %"),
    ("50 %, adaptive", "adaptive_50", "5.31, 84.29 %"),
    ("50 %, random", "random_50", "7.855, 69.04 %"),
    ("75 %, adaptive", "adaptive_75", "7.62, 87.60 %"),
    ("75 %, random", "random_75", "10.58, 70.41 %"),
]
DEMASK = [
    ("VQGAN", "full", "4.46"),
    ("VQGAN*: the same number of blocks", "stronger", "4.17"),
    ("no de-mask module", "no_demask", "7.02"),
    ("self-attention", "self_attention", "6.56"),
    ("direction-constrained, without updating", "constrained", "5.84"),
    ("direction-constrained, with updating", "adaptive_50", "5.31"),
]


def main() -> None:
    """Trains, and prints the tables."""
    train_all(RUNS)

    def psnr(name: str) -> str:
        return shown(measured(name, "tokenizer", "validation/psnr"), 2, " dB")

    def l1(name: str) -> str:
        return shown(measured(name, "tokenizer", "validation/l1"), 4)

    def used(name: str) -> str:
        return shown(measured(name, "tokenizer", "validation/codebook_usage"), 1, " %", 100)

    def perplexity(name: str) -> str:
        return shown(measured(name, "tokenizer", "validation/codebook_perplexity"), 0)

    table(
        ["mask (table 6)", "PSNR", "l1", "codes in use", "perplexity", "paper: rFID, usage"],
        [(what, psnr(n), l1(n), used(n), perplexity(n), paper) for what, n, paper in MASKS],
    )
    table(
        ["half of the cells masked (table 7)", "PSNR", "l1", "paper: rFID"],
        [(what, psnr(name), l1(name), paper) for what, name, paper in DEMASK],
    )


if __name__ == "__main__":
    command_line.run(main)
