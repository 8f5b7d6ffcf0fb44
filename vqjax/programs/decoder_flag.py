"""The flag of all programs that make images of tokens: whose decoder paints them."""

from absl import flags


def define() -> flags.FlagHolder[str]:
    """Defines the flag; to be called where a program defines its own."""
    return flags.DEFINE_string(
        "decoder",
        "",
        "Stage whose decoder paints the images, such as tokenizer or decoder [the last one that"
        " trained one on the codes]",
    )
