"""``python -m ragkv.tiny --family llama --seconds 530 --out weights/tiny-llama``: train an embedded model."""

import argparse
from pathlib import Path

from ragkv.tiny.train import FAMILIES, STAGES, train


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ragkv.tiny", description="Train an embedded model from scratch.")
    parser.add_argument("--family", choices=FAMILIES, default="llama")
    parser.add_argument("--seconds", type=float, default=530, help="train as long as this (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="or exactly this many steps, which gives the same weights again")
    parser.add_argument("--tokens", type=int, default=32768, help="tokens per step (default: %(default)s)")
    parser.add_argument("--peak", type=float, default=1e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--start-from", type=Path, help="folder of weights to go on from, with the longest documents")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0, help="processes that make documents (use some on a GPU)")
    parser.add_argument("--device", default="auto", help="auto is the GPU if there is one")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and tokenizer")
    arguments = vars(parser.parse_args())
    stages = STAGES[-2:] if arguments["start_from"] else STAGES
    train(arguments.pop("family"), stages=stages, **arguments)


if __name__ == "__main__":
    main()
