"""The command ``adapt``, and ``python -m adapt``: lists the commands, or runs the one that is
named.
"""

import difflib
import importlib
import signal
import sys

import adapt

COMMANDS = {
    "finetune": "adapt a pre-trained encoder to labelled data: what trains is a strategy",
    "pretrain": "go on with pre-training on texts or pictures, or start it",
    "extract": "the features of a frozen encoder, one row an example",
    "predict": "labels for new rows, by finished runs",
    "evaluate": "the scores of a finished run on new labelled rows",
    "export": "write a run as a folder for transformers or sentence-transformers",
    "runs": "a table of many runs: settings, scores, seconds",
    "probe": "which layer holds what a task needs? heads on frozen features",
    "compare": "which strategy is best on my data? rates, seeds, intervals",
    "plan": "what would each strategy cost on these data?",
    "doctor": "what is wrong with a checkpoint, data, a plan of flags, or a run?",
}
# What other tools call them.
OTHER_NAMES = {
    "train": "finetune",
    "fit": "finetune",
    "tune": "finetune",
    "embed": "extract",
    "encode": "extract",
    "features": "extract",
    "test": "evaluate",
    "eval": "evaluate",
    "score": "evaluate",
    "infer": "predict",
    "classify": "predict",
    "diagnose": "doctor",
    "check": "doctor",
}


def main() -> None:
    """Run ``adapt COMMAND FLAGS``, or answer ``adapt``, ``adapt --help`` and ``adapt --version``."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # adapt | head ends without a traceback
        print(overview())
    elif name == "--version":
        print(f"adapt-jax {adapt.__version__}")
    elif name in COMMANDS:
        run(name)
    else:
        print(f"error: {unknown(name)}", file=sys.stderr)
        sys.exit(2)


def overview() -> str:
    """The commands with a line each. Nothing is imported for it."""
    lines = ["usage: adapt COMMAND [FLAGS]", ""]
    lines += [f"  {name:10} {what}" for name, what in COMMANDS.items()]
    lines += ["", "adapt COMMAND --help shows the flags of a command, adapt --version the version."]
    return "\n".join(lines)


def unknown(name: str) -> str:
    """What is said of a command that there is not."""
    nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    nearest = [OTHER_NAMES[name]] if name in OTHER_NAMES else nearest
    hint = f"did you mean {nearest[0]}?" if nearest else f"give one of {', '.join(COMMANDS)}"
    return f"there is no command {name!r}: {hint}"


def run(name: str) -> None:
    """Run a command with the flags that follow its name."""
    from adapt.cli.launch import launch

    del sys.argv[1]
    command = importlib.import_module(f"adapt.cli.{name}")
    launch(command.Config, command.main, f"adapt {name}")


if __name__ == "__main__":
    main()
