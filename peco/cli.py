"""`peco`: use trained models, without DVC or parameters.

peco info artifacts/backbone
peco predict artifacts/classifier photos -o predictions
peco embed photos -o embeddings
peco similar photo.jpg embeddings
peco export artifacts/backbone --to onnx -o backbone.onnx
peco tokenize photo.jpg
peco reconstruct photo.jpg -o reconstructions
"""

# Slow imports are in the functions that need them, so that `peco --help` is fast.

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from peco.core.errors import PecoError, exit_status

TOKENIZER, BACKBONE = "artifacts/tokenizer", "artifacts/backbone"
FORMATS = ("onnx", "torch-export", "transformers")
IMAGES = "image, folder, tar or zip of images, or a pattern in quotes"


def tokenize(args: argparse.Namespace) -> None:
    from peco.use import tokens

    tokens.tokenize(args.model, args.images, args.size)


def reconstruct(args: argparse.Namespace) -> None:
    from peco.use import tokens

    tokens.reconstruct(args.model, args.images, args.size, args.output)


def info(args: argparse.Namespace) -> None:
    from peco.use import tokens

    tokens.info(args.folder)


def predict(args: argparse.Namespace) -> None:
    from peco.use import predict
    from peco.use.models import Options

    options = Options(args.top_k, args.min_score, args.pictures)
    predict.predict(args.model, args.images, args.output, options=options, batch_size=args.batch_size, table=args.csv)


def embed(args: argparse.Namespace) -> None:
    if args.parquet and not args.output:
        raise PecoError("--parquet: needs a folder of results (-o)")
    from peco.use import embed

    embedder = embed.Embedder.open(args.model, args.block, args.patches)
    if args.output is None:
        embed.print_embeddings(embedder, args.images, args.batch_size)
    else:
        embed.save_embeddings(
            embedder,
            embedder.settings(args.model),
            args.images,
            args.output,
            batch_size=args.batch_size,
            parquet=args.parquet,
        )


def similar(args: argparse.Namespace) -> None:
    from peco.use.similar import similar

    similar(args.query, args.embeddings, model=args.model, count=args.count, page=args.output)


def export(args: argparse.Namespace) -> None:
    from peco.use.export import export

    export(args.model, args.to, args.output, size=args.size, tolerance=args.tolerance)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="peco", description="Use models trained by the peco workflow.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def batches(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--batch-size", type=positive, metavar="N", help="images at a time")

    command("info", info, "print the content of a model folder").add_argument("folder", metavar="DIR")

    predictions = command("predict", predict, "classify, segment or detect: results of many images in a folder")
    predictions.add_argument("model", metavar="MODEL", help="folder of a classifier, segmenter or detector")
    predictions.add_argument("images", nargs="+", metavar="IMAGES", help=IMAGES)
    predictions.add_argument("-o", "--output", required=True, metavar="DIR", help="folder of the results")
    predictions.add_argument("--csv", action="store_true", help="write predictions.csv next to predictions.jsonl")
    predictions.add_argument("--pictures", action="store_true", help="draw each prediction on its image")
    predictions.add_argument("--top-k", type=positive, default=5, metavar="N", help="classes of an image (default: 5)")
    predictions.add_argument(
        "--min-score", type=fraction, default=0.05, metavar="S", help="least score of a detection (default: 0.05)"
    )
    batches(predictions)

    vectors = command("embed", embed, "features of many images, as JSON lines or in a folder")
    vectors.add_argument("images", nargs="+", metavar="IMAGES", help=IMAGES)
    vectors.add_argument(
        "-m", "--model", default=BACKBONE, metavar="DIR", help="backbone or classifier (default: %(default)s)"
    )
    vectors.add_argument("-o", "--output", metavar="DIR", help="folder for embeddings.npy and the names of the images")
    vectors.add_argument("-b", "--block", metavar="N", help="block from 1, or norm: after the last (default: the last)")
    vectors.add_argument("--patches", action="store_true", help="a vector for each patch, not their mean")
    vectors.add_argument("--parquet", action="store_true", help="write embeddings.parquet too")
    batches(vectors)

    near = command("similar", similar, "print the nearest images of a folder of embeddings")
    near.add_argument("query", metavar="QUERY", help="image file, or name of an image among the embeddings")
    near.add_argument("embeddings", metavar="EMBEDDINGS", help="folder made by `peco embed -o`")
    near.add_argument("-m", "--model", default=BACKBONE, metavar="DIR", help="model of the embeddings")
    near.add_argument("-n", "--count", type=positive, default=12, metavar="N", help="images (default: 12)")
    near.add_argument("-o", "--output", metavar="FILE", help="show them on this HTML page")

    exported = command("export", export, "write a model for other programs, and check it against the original")
    exported.add_argument("model", metavar="MODEL", help="folder of a backbone, classifier or tokenizer")
    exported.add_argument("--to", choices=FORMATS, required=True, help="format")
    exported.add_argument("-o", "--output", required=True, metavar="PATH", help="file (folder for transformers)")
    exported.add_argument("-s", "--size", type=positive, metavar="N", help="side of the images in pixels")
    exported.add_argument(
        "--tolerance", type=float, default=1e-3, metavar="T", help="largest difference allowed (default: %(default)s)"
    )

    tokens = command("tokenize", tokenize, "print the token grid of each image as a JSON line")
    pictures = command("reconstruct", reconstruct, "write each image next to its reconstruction from tokens")
    for sub in (tokens, pictures):
        sub.add_argument("images", nargs="+", metavar="IMG", help="image file")
        sub.add_argument("-m", "--model", default=TOKENIZER, metavar="DIR", help="tokenizer (default: %(default)s)")
        sub.add_argument("-s", "--size", type=int, help="side of the images in pixels (default: that of the training)")
    pictures.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the PNGs")
    return top


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; expected a whole number from 1")
    return int(text)


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; expected a number from 0 to 1")
    return value


def main(argv: list[str] | None = None) -> int:
    """Run the command line: status 0, 2 for an error the user can fix, 130 if interrupted."""
    args = parser().parse_args(argv)
    note = "interrupted; a folder of results (-o) is continued by the same command"
    return exit_status(lambda: args.run(args), interrupted=note)


if __name__ == "__main__":
    sys.exit(main())
